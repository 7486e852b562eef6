import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/** What a server may do to one answer. */
export type Fault =
  | "none"
  | "cut"
  | "flip"
  | "zeros"
  | "swap"
  | "whole"
  | "longer"
  | "length-lie"
  | "total-lie"
  | "range-lie"
  | "busy"
  | "stall"
  | "gone"
  | "gzip"
  | "loop"
  | "to-file"
  | "headers";

export interface FaultServer {
  readonly url: URL;
  /** Requests so far: path and Range. */
  readonly asked: { readonly path: string; readonly range: string | undefined }[];
  close(): Promise<void>;
}

/**
 * A web server that has some files, and chooses a fault for each answer.
 * @param random from 0 up to 1
 */
export async function faultServer(
  files: ReadonlyMap<string, Buffer>,
  choose: (path: string) => Fault,
  random: () => number = () => 0.5,
  other: Buffer = Buffer.alloc(0),
): Promise<FaultServer> {
  const asked: FaultServer["asked"] = [];
  const answer = (request: IncomingMessage, response: ServerResponse): void => {
    const path = decodeURIComponent((request.url ?? "").slice(1));
    const { range } = request.headers;
    asked.push({ path, range });
    const file = files.get(path);
    const fault = choose(path);
    const end = (status: number, headers: Record<string, string> = {}): void =>
      void response.writeHead(status, headers).end();
    if (file === undefined || fault === "gone") return end(404);
    if (fault === "busy") return end(503);
    if (fault === "loop") return end(302, { Location: request.url ?? "/" });
    if (fault === "to-file") return end(302, { Location: "file:///etc/passwd" });
    if (fault === "stall") return void response.writeHead(200).write("x");
    const [, first, last] = /^bytes=([0-9]+)-([0-9]+)$/.exec(range ?? "") ?? [];
    const isPart = first !== undefined && fault !== "whole";
    const from = isPart ? Number(first) : 0;
    const to = isPart ? Math.min(Number(last) + 1, file.length) : file.length;
    const source = fault === "swap" ? other : file;
    let bytes = Buffer.from(source.subarray(from, to));
    if (fault === "flip" && bytes.length > 0) {
      const at = Math.floor(random() * bytes.length);
      bytes[at] = (bytes[at] as number) ^ 1;
    }
    if (fault === "zeros") bytes.fill(0, Math.floor(bytes.length / 2));
    const headers: Record<string, string> = { "Content-Length": String(bytes.length) };
    if (isPart) {
      const total = fault === "total-lie" ? file.length + 1 : file.length;
      const start = fault === "range-lie" ? from + 1 : from;
      headers["Content-Range"] = `bytes ${start}-${to - 1}/${total}`;
    }
    if (fault === "total-lie" && !isPart) headers["Content-Length"] = String(bytes.length + 1);
    if (fault === "gzip") headers["Content-Encoding"] = "gzip";
    if (fault === "headers") headers["X-Long"] = "x".repeat(20_000);
    if (fault === "longer") {
      bytes = Buffer.concat([bytes, Buffer.alloc(5_000, 1)]);
      delete headers["Content-Length"];
    }
    if (fault === "length-lie") headers["Content-Length"] = String(bytes.length + 9);
    response.writeHead(isPart ? 206 : 200, headers);
    if (fault === "cut") {
      response.write(bytes.subarray(0, Math.floor(random() * bytes.length)), () => response.destroy());
    } else if (fault === "length-lie") {
      response.write(bytes, () => response.destroy());
    } else {
      response.end(bytes);
    }
  };
  const server: Server = createServer(answer);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return {
    url: new URL(`http://127.0.0.1:${port}/`),
    asked,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
