import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { input, pack } from "../bundle/support.js";
import { begin, end, seal } from "../stream/support.js";

/*
 * Folders of small bundles for a mirror. What a large mirror costs is its heads, its index and the choice among them; what a
 * bundle's contents cost is in the other rows.
 */

const guidOf = (release: number): bigint => 1_000n + BigInt(release);

/** The guid that all bundles lead from, and the release that they lead to. */
export const FROM = String(guidOf(0));

/** A bundle from a release, 0 for the first base, to another. */
async function bundleOf(base: number, target: number): Promise<Buffer> {
  const toguid = guidOf(target);
  const stream = seal([
    begin({ toname: `tank/usr@R${target}`, toguid, fromguid: guidOf(base) }),
    end({ toguid }),
  ]);
  return pack({ release: { name: `R${target}`, sequence: target }, streams: [input("usr", stream)] });
}

/** Makes a folder with so many bundles, from each release to the next, and one from the first base to the last. */
export async function makeBundles(folder: string, count: number): Promise<void> {
  mkdirSync(folder);
  const put = async (name: string, base: number, target: number): Promise<void> =>
    writeFileSync(join(folder, `${name}.bundle`), await bundleOf(base, target));
  for (let release = 1; release < count; release += 1) await put(`R${release}`, release - 1, release);
  await put("all", 0, count);
}

/** Writes the bundle that is to be added. */
export async function makeNext(path: string, count: number): Promise<void> {
  writeFileSync(path, await bundleOf(count, count + 1));
}

/** A web server that serves a folder as it is, whole files only. */
export async function serve(folder: string): Promise<{ url: string; close(): void }> {
  const server = createServer((request, response) => {
    response.end(readFileSync(join(folder, decodeURIComponent(request.url ?? "/").slice(1))));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}/`,
    close: () => {
      server.close();
      server.closeAllConnections();
    },
  };
}
