/**
 * npm run dist [-- --key FILE [--password-file FILE]] [-o FOLDER]
 *
 * Makes zferry-VERSION-linux-ARCH.tar.gz in FOLDER (here), and with a key FILE.minisig; prints a line for sha256sum.
 * The same commit, modules and compiler give the same bytes. Times are SOURCE_DATE_EPOCH, or the commit's.
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, renameSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { syncPath, writeFileDurably } from "../../src/system/files.js";
import { readSecretKey } from "../../src/system/key-files.js";
import { processEnvironment } from "../../src/system/terminal.js";
import { encodeSignature, sign } from "../../src/trust/minisign.js";
import { CHECKOUT, layTree, platformOf, readVersion, requirementsOf } from "./tree.js";

const { values } = parseArgs({
  options: {
    key: { type: "string" },
    "password-file": { type: "string" },
    output: { type: "string", short: "o", default: "." },
  },
});

const git = (...args: string[]): string =>
  execFileSync("git", ["-C", CHECKOUT, ...args], { encoding: "utf8" }).trim();

function epochOf(): number {
  const epoch = process.env["SOURCE_DATE_EPOCH"] ?? git("log", "-1", "--format=%ct");
  if (/^\d{1,10}$/.test(epoch)) return Number(epoch);
  throw new Error(`SOURCE_DATE_EPOCH is ${epoch}, not a number of seconds`);
}

/**
 * gzip, since no system is without: xz and zstd are not in the smallest Debian, and would save a quarter of what is carried once.
 * The program, not node's zlib, whose bytes depend on the processor.
 */
const PACK = `
  tar --create --format=ustar --sort=name --mtime="@$4" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX -C "$1" "$2" |
    gzip -n >"$3"`;

async function main(): Promise<void> {
  const { key: keyFile, "password-file": passwordFile, output } = values;
  const ask = processEnvironment(
    { json: false, quiet: true, version: readVersion() },
    new AbortController().signal,
  ).askPassphrase;
  const key = keyFile === undefined ? undefined : await readSecretKey(keyFile, passwordFile, ask);
  const epoch = epochOf();
  if (process.env["SOURCE_DATE_EPOCH"] === undefined && git("status", "--porcelain") !== "")
    console.error("dist: what is not committed is in it too");

  const name = `zferry-${readVersion()}-linux-${platformOf()}`;
  const file = join(output, `${name}.tar.gz`);
  const folder = mkdtempSync(join(tmpdir(), "zferry-dist-"));
  const temporary = `${file}.${process.pid}`;
  try {
    await layTree(join(folder, name));
    const needed = [...requirementsOf(join(folder, name))].map((pair) => pair.join(" "));
    console.error(`dist: needs ${needed.sort().join(", ")}`);
    execFileSync("bash", ["-euo", "pipefail", "-c", PACK, "pack", folder, name, temporary, String(epoch)], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const bytes = readFileSync(temporary);
    const trustedComment = `timestamp:${epoch}\tfile:${name}.tar.gz\thashed`;
    const signature = key && encodeSignature(sign(key, bytes, { trustedComment }));
    syncPath(temporary);
    // One that is there belongs to what had the name before.
    rmSync(`${file}.minisig`, { force: true });
    renameSync(temporary, file);
    syncPath(output);
    if (signature !== undefined) writeFileDurably(`${file}.minisig`, signature, 0o644);
    console.log(`${createHash("sha256").update(bytes).digest("hex")}  ${name}.tar.gz`);
  } finally {
    rmSync(temporary, { force: true });
    rmSync(folder, { recursive: true, force: true });
  }
}

await main();
