import { setMaxListeners } from "node:events";
import * as http from "node:http";
import * as https from "node:https";
import type { Duplex } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { connect as connectTls, createSecureContext, type ConnectionOptions } from "node:tls";
import { systemCode, ZferryError } from "../errors.js";
import { readSmallFile } from "./key-files.js";

// formats/mirror.md, Fetching. HTTP as little of it as downloading whole files and parts of them needs.

/** What a server answers with: its bytes from `start` on. */
export interface Download {
  readonly start: number;
  /** Of the whole file, as far as the server says. */
  readonly total: number | undefined;
  /** Ends the connection, where the body is not asked for. */
  cancel(): void;
  /** May be left at any time, which ends the connection. Fails for a server that stalls or breaks off. */
  readonly body: AsyncIterable<Buffer>;
}

export interface HttpClient {
  /**
   * Asks for a file, or for a part of it, which the server need not heed: see `start`.
   * @param part offsets of the first byte and after the last one
   * @throws ZferryError `download-failed`; `isLasting` tells whether to try again is in vain
   */
  get(url: URL, part?: { readonly start: number; readonly end: number }): Promise<Download>;
  close(): void;
}

export interface HttpOptions {
  /** PEM: believed instead of the certificate authorities of Node. */
  readonly caFile: string | undefined;
  /** For all connections together. */
  readonly bytesPerSecond: number | undefined;
  /** How long a server may take for an answer, and for each {@link LEAST_BYTES} of it. */
  readonly timeoutSeconds: number;
  readonly signal: AbortSignal;
  /** `http_proxy` and its kin. */
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** formats/mirror.md, Limits. */
export const HTTP_LIMITS = { redirects: 5, headerBytes: 16 << 10, caBytes: 4 << 20 } as const;
const LEAST_BYTES = 1024;
const CONNECTIONS = 16;

/**
 * An address that may be asked.
 * @throws ZferryError `usage` for another scheme, and for a password, which messages would show
 */
export function parseUrl(text: string): URL {
  const refuse = (why: string): ZferryError => new ZferryError("usage", `${text}: ${why}`);
  if (!URL.canParse(text)) throw refuse("is no address; it begins with http:// or https://");
  const url = new URL(text);
  if (url.protocol !== "http:" && url.protocol !== "https:") throw refuse("is neither http:// nor https://");
  if (url.username !== "" || url.password !== "")
    throw new ZferryError("usage", `${url.host}: an address with a password is not taken`);
  return url;
}

/** Failures of the TLS handshake that come again each time. */
const CERTIFICATE = /CERT|SELF_SIGNED|ISSUER|SIGNATURE|ALTNAME|EPROTO|ERR_SSL/;
const LATER = new Set([408, 425, 429]);

function failure(
  url: URL,
  fault: string,
  details: Record<string, string | number> = {},
  cause?: unknown,
): ZferryError {
  const isCertificate = CERTIFICATE.test(String(details["reason"]));
  return new ZferryError("download-failed", `${url.href}: ${fault}`, {
    details: { url: url.href, ...details },
    hint: isCertificate ? "if the server has an authority of its own, --ca-file names it" : undefined,
    cause,
  });
}

/** Whether the same request would fail again: the server said so, or cannot be believed to be the one that was meant. */
export function isLasting({ details }: ZferryError): boolean {
  const { status, reason } = details;
  if (typeof status === "number") return status >= 300 && status < 500 && !LATER.has(status);
  return (
    typeof reason === "string" && (CERTIFICATE.test(reason) || reason === "redirect" || reason === "encoding")
  );
}

/** @throws ZferryError `usage`, `io-failed` for a file of certificates that is none */
export async function openHttp(options: HttpOptions): Promise<HttpClient> {
  const { caFile, signal, timeoutSeconds } = options;
  // Each request that is under way listens to it.
  setMaxListeners(0, signal);
  const ca = caFile === undefined ? undefined : await readCertificates(caFile);
  const agentOptions = { keepAlive: true, maxSockets: CONNECTIONS };
  const tls = ca === undefined ? {} : { ca };
  const plain = new http.Agent(agentOptions);
  const secure = new https.Agent({ ...agentOptions, ...tls });
  const tunnels = new Map<string, https.Agent>();
  const proxyOf = proxies(options.env);
  const paced = pacing(options.bytesPerSecond);

  const start = (url: URL, headers: http.OutgoingHttpHeaders): http.ClientRequest => {
    const proxy = proxyOf(url);
    const common = { headers, maxHeaderSize: HTTP_LIMITS.headerBytes, signal };
    if (url.protocol === "https:") {
      let agent = secure;
      if (proxy !== undefined) {
        agent =
          tunnels.get(proxy.href) ??
          new TunnelAgent(proxy, timeoutSeconds, signal, { ...agentOptions, ...tls });
        tunnels.set(proxy.href, agent);
      }
      return https.get(url, { ...common, agent });
    }
    if (proxy === undefined) return http.get(url, { ...common, agent: plain });
    return http.get(withoutUser(proxy), {
      ...common,
      agent: plain,
      path: url.href,
      headers: { ...headers, Host: url.host, ...proxyAuthorization(proxy) },
    });
  };

  const answer = async (url: URL, headers: http.OutgoingHttpHeaders): Promise<http.IncomingMessage> => {
    const request = start(url, headers);
    const late = setTimeout(
      () => request.destroy(new Error(`no answer within ${timeoutSeconds} s`)),
      timeoutSeconds * 1000,
    );
    try {
      return await new Promise((resolve, reject) => {
        request.once("response", resolve).once("error", reject);
      });
    } catch (error) {
      throw asFailure(error, url, signal);
    } finally {
      clearTimeout(late);
      // What fails later is the body's to tell.
      request.on("error", () => undefined);
    }
  };

  return {
    async get(asked, part) {
      const headers: http.OutgoingHttpHeaders = {
        "User-Agent": "zferry",
        Accept: "*/*",
        // What is counted and hashed are the bytes of the file.
        "Accept-Encoding": "identity",
        ...(part === undefined
          ? { "Cache-Control": "no-cache" }
          : { Range: `bytes=${part.start}-${part.end - 1}` }),
      };
      let url = asked;
      for (let redirects = 0; ; redirects += 1) {
        const response = await answer(url, headers);
        const { statusCode = 0, headers: found } = response;
        if ([301, 302, 303, 307, 308].includes(statusCode)) {
          response.destroy();
          url = redirected(url, found.location, redirects);
          continue;
        }
        try {
          const range = rangeOf(url, response, part);
          return { ...range, cancel: () => void response.destroy(), body: bodyOf(url, response) };
        } catch (error) {
          response.destroy();
          throw error;
        }
      }
    },
    close() {
      for (const agent of [plain, secure, ...tunnels.values()]) agent.destroy();
    },
  };

  async function* bodyOf(url: URL, response: http.IncomingMessage): AsyncGenerator<Buffer, void, void> {
    const pieces = response[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
    let waited = 0;
    let came = 0;
    try {
      for (;;) {
        const since = performance.now();
        const stalled = setTimeout(
          () => response.destroy(new Error(`nothing came for ${timeoutSeconds} s`)),
          timeoutSeconds * 1000,
        );
        const next = await pieces.next().finally(() => clearTimeout(stalled));
        if (next.done === true) return;
        waited += performance.now() - since;
        came += next.value.length;
        if (waited > timeoutSeconds * 1000) {
          if (came < LEAST_BYTES) throw new Error(`only ${came} bytes came in ${timeoutSeconds} s`);
          waited = came = 0;
        }
        await paced(next.value.length, signal);
        yield next.value;
      }
    } catch (error) {
      throw asFailure(error, url, signal);
    } finally {
      response.destroy();
    }
  }
}

function asFailure(error: unknown, url: URL, signal: AbortSignal): unknown {
  if (error instanceof ZferryError) return error;
  if (signal.aborted) return new ZferryError("interrupted", "interrupted");
  const code = systemCode(error);
  const { message } = error as Error;
  const words: Record<string, string> = {
    ECONNREFUSED: "the server does not answer (ECONNREFUSED)",
    ECONNRESET: "the connection broke off",
    ENOTFOUND: "there is no server of this name",
    EAI_AGAIN: "the server's name cannot be looked up now",
    HPE_HEADER_OVERFLOW: `the server's headers are longer than ${HTTP_LIMITS.headerBytes} bytes`,
  };
  return failure(url, words[code ?? ""] ?? message, { reason: code ?? message }, error);
}

/** @throws ZferryError `download-failed` */
function redirected(from: URL, location: string | undefined, before: number): URL {
  const refuse = (why: string): ZferryError => failure(from, `is redirected ${why}`, { reason: "redirect" });
  if (before >= HTTP_LIMITS.redirects) throw refuse(`more than ${HTTP_LIMITS.redirects} times`);
  if (location === undefined || !URL.canParse(location, from.href)) throw refuse("to nowhere");
  const to = new URL(location, from);
  if (to.protocol !== "https:" && (to.protocol !== "http:" || from.protocol === "https:")) {
    throw refuse(`to ${to.protocol}//${to.host}, which is not followed`);
  }
  if (to.username !== "" || to.password !== "") throw refuse("to an address with a password");
  return to;
}

/** Which bytes an answer has. @throws ZferryError `download-failed` */
function rangeOf(
  url: URL,
  { statusCode = 0, headers }: http.IncomingMessage,
  part: { readonly start: number; readonly end: number } | undefined,
): Pick<Download, "start" | "total"> {
  const encoding = headers["content-encoding"] ?? "identity";
  if (encoding !== "identity") {
    throw failure(url, `comes with content encoding ${encoding}, which was not asked for`, {
      reason: "encoding",
    });
  }
  if (statusCode === 200) {
    const length = headers["content-length"];
    return { start: 0, total: length === undefined ? undefined : Number(length) };
  }
  if (statusCode !== 206 || part === undefined) {
    throw failure(url, `the server answers ${statusCode}`, { status: statusCode });
  }
  const range = headers["content-range"] ?? "";
  const [, first, last, total] = /^bytes ([0-9]{1,15})-([0-9]{1,15})\/([0-9]{1,15}|\*)$/.exec(range) ?? [];
  if (Number(first) !== part.start || !(Number(last) < part.end)) {
    throw failure(
      url,
      `bytes ${part.start}-${part.end - 1} were asked for, and the server sends ${JSON.stringify(range)}`,
      {
        reason: "range",
      },
    );
  }
  return { start: part.start, total: total === "*" ? undefined : Number(total) };
}

/** Lets bytes through at a rate that all who call it share. */
function pacing(bytesPerSecond: number | undefined): (bytes: number, signal: AbortSignal) => Promise<void> {
  if (bytesPerSecond === undefined) return async () => undefined;
  let free = 0;
  return async (bytes, signal) => {
    const now = performance.now();
    free = Math.max(free, now) + (bytes / bytesPerSecond) * 1000;
    if (free - now > 5) await sleep(free - now, undefined, { signal });
  };
}

async function readCertificates(path: string): Promise<Buffer> {
  const pem = await readSmallFile(path, "CA file", HTTP_LIMITS.caBytes);
  try {
    if (!pem.includes("-----BEGIN CERTIFICATE-----")) throw new Error("has no certificate in PEM");
    createSecureContext({ ca: pem });
  } catch (error) {
    throw new ZferryError("usage", `--ca-file ${path}: ${(error as Error).message}`, {
      details: { file: path },
    });
  }
  return pem;
}

/** As curl has it: of `http_proxy` the lower-case name alone, for a request to a CGI program can set the other. */
function proxies(env: HttpOptions["env"]): (url: URL) => URL | undefined {
  const of = (...names: string[]): URL | undefined => {
    const name = names.find((each) => (env[each] ?? "") !== "");
    if (name === undefined) return undefined;
    const text = env[name] as string;
    const address = text.includes("://") ? text : `http://${text}`;
    // What it says instead may be a password.
    const refuse = (why: string): ZferryError =>
      new ZferryError("usage", `${name}: ${why}`, { hint: "no_proxy names the servers that need no proxy" });
    if (!URL.canParse(address) || new URL(address).protocol !== "http:") {
      throw refuse("the proxy must be an address that begins with http://");
    }
    const proxy = new URL(address);
    try {
      proxyAuthorization(proxy);
    } catch {
      throw refuse("the proxy's user and password have a % that begins no %XX; a % itself is %25");
    }
    return proxy;
  };
  // Only once one is needed: another scheme's, or one that no server needs, may be what it likes.
  const proxy = {
    "http:": () => of("http_proxy", "all_proxy", "ALL_PROXY"),
    "https:": () => of("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
  };
  const without = (env["no_proxy"] ?? env["NO_PROXY"] ?? "")
    .split(/[\s,]+/)
    .filter((each) => each !== "")
    .map((each) => each.toLowerCase().replace(/^\*?\./, ""));
  return (url) => {
    const { hostname, host } = url;
    const isWithout = without.some(
      (each) => each === "*" || each === host || each === hostname || hostname.endsWith(`.${each}`),
    );
    return isWithout ? undefined : proxy[url.protocol as keyof typeof proxy]();
  };
}

/** Of a user in the address node makes an `Authorization`, which is for the server behind the proxy, and goes on to it. */
function withoutUser(proxy: URL): URL {
  const address = new URL(proxy);
  address.username = address.password = "";
  return address;
}

const proxyAuthorization = ({ username, password }: URL): http.OutgoingHttpHeaders => {
  if (username === "") return {};
  const user = `${decodeURIComponent(username)}:${decodeURIComponent(password)}`;
  return { "Proxy-Authorization": `Basic ${Buffer.from(user).toString("base64")}` };
};

/** TLS to a server, through what a proxy's CONNECT opens. */
class TunnelAgent extends https.Agent {
  readonly #proxy: URL;
  readonly #timeoutSeconds: number;
  readonly #signal: AbortSignal;

  constructor(proxy: URL, timeoutSeconds: number, signal: AbortSignal, options: https.AgentOptions) {
    super(options);
    this.#proxy = proxy;
    this.#timeoutSeconds = timeoutSeconds;
    this.#signal = signal;
  }

  override createConnection(
    options: https.RequestOptions,
    done?: (error: Error | null, socket: Duplex) => void,
  ): undefined {
    const { port = 443 } = options;
    const host = options.host ?? "";
    const target = `${host.includes(":") ? `[${host}]` : host}:${port}`;
    const fail = (error: Error): void => done?.(error, undefined as never);
    http
      .request(withoutUser(this.#proxy), {
        method: "CONNECT",
        path: target,
        agent: false,
        timeout: this.#timeoutSeconds * 1000,
        // The request that waits for this connection has no socket that it could end.
        signal: this.#signal,
        headers: { Host: target, ...proxyAuthorization(this.#proxy) },
      })
      .once("connect", ({ statusCode }, socket) => {
        if (statusCode !== 200) {
          socket.destroy();
          return fail(new Error(`the proxy ${this.#proxy.host} answers ${statusCode}`));
        }
        done?.(null, connectTls({ ...(options as ConnectionOptions), socket }));
      })
      .once("timeout", function (this: http.ClientRequest) {
        this.destroy(new Error("the proxy does not answer"));
      })
      .once("error", fail)
      .end();
    return undefined;
  }
}
