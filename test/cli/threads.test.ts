import { randomBytes } from "node:crypto";
import { closeSync, openSync, readFileSync, writeFileSync, writeSync } from "node:fs";
import { beforeAll, describe, expect, test } from "vitest";
import { begin, end, seal, write } from "../stream/support.js";
import { inFolder, PUBLIC, run, SECRET } from "./support.js";

const MIB = 1 << 20;
const BUNDLE = "R2.bundle";
const folder = inFolder();
let stream: Buffer;

beforeAll(() => {
  // More than is read without threads, and than is padded: noise for the one, zeros for the other.
  const records = Array.from({ length: 80 }, (_, i) => {
    const record = write(BigInt(i + 1), MIB);
    record.fill(0, record.length - MIB);
    if (i % 3 === 0) record.set(randomBytes(MIB), record.length - MIB);
    return record;
  });
  stream = Buffer.concat([seal([begin(), ...records, end()])]);
});

const create = (...more: string[]): string[] => [
  ...["create", "--product", "demo", "--release", "R2", "--sequence", "2", "--key", SECRET, "--level", "1"],
  ...more,
];
const runHere = (args: readonly string[], input?: Uint8Array) =>
  run(args, { cwd: folder.path, ...(input === undefined ? {} : { input }) });

async function createBundle(threads: string): Promise<void> {
  writeFileSync(folder.file("usr.stream"), stream);
  const args = create("--stream", "usr=usr.stream", "-o", BUNDLE, "--threads", threads);
  expect(await runHere(args)).toMatchObject({ status: 0, stderr: "" });
}

describe("a large bundle", () => {
  test("has the same bytes with any number of threads, from a file or a pipe", async () => {
    await createBundle("1");
    const one = readFileSync(folder.file(BUNDLE));
    expect(one.length).toBeGreaterThan(20 * MIB);
    for (const [name, ...args] of [
      ["three.bundle", "--stream", "usr=usr.stream", "--threads", "3"],
      ["pipe.bundle", "--stream", "usr=-"],
    ] as const) {
      const { status, stderr } = await runHere(create(...args, "-o", name), stream);
      expect([status, stderr]).toEqual([0, ""]);
      expect(readFileSync(folder.file(name)).equals(one)).toBe(true);
    }
  });

  test("is verified and sent by threads", async () => {
    await createBundle("2");
    for (const threads of ["1", "4"]) {
      const verified = await runHere(["verify", BUNDLE, "--key", PUBLIC, "--threads", threads]);
      expect(verified).toMatchObject({ status: 0, stderr: "" });
      const deep = await runHere(["verify", BUNDLE, "--key", PUBLIC, "--threads", threads, "--deep"]);
      expect(deep).toMatchObject({ status: 0, stderr: "" });
      const sent = await runHere(["send", BUNDLE, "--key", PUBLIC, "--threads", threads]);
      expect(sent).toMatchObject({ status: 0, stderr: "" });
      expect(sent.stdout.equals(stream)).toBe(true);
    }
    const { stdout } = await runHere(["inspect", BUNDLE, "--json"]);
    expect(JSON.parse(stdout.toString())).not.toHaveProperty("manifest.padding");
  });

  test("that is damaged is refused, and sent up to there", async () => {
    await createBundle("2");
    const bytes = readFileSync(folder.file(BUNDLE));
    const at = bytes.lastIndexOf("streams/usr/00000005.zst") + 600;
    const file = openSync(folder.file(BUNDLE), "r+");
    writeSync(file, Uint8Array.of((bytes[at] as number) ^ 1), 0, 1, at);
    closeSync(file);
    const verified = await runHere(["verify", BUNDLE, "--key", PUBLIC]);
    expect(verified.status).toBe(12);
    expect(verified.stderr).toMatch(/^bundle: R2\.bundle: streams\/usr\/00000005\.zst has SHA-256 /);
    const sent = await runHere(["send", BUNDLE, "--key", PUBLIC]);
    expect(sent.status).toBe(12);
    expect(sent.stdout.length).toBeGreaterThan(30 * MIB);
    expect(stream.subarray(0, sent.stdout.length).equals(sent.stdout)).toBe(true);
  });

  test.each(["0", "257", "two", "-1"])("--threads %s is refused", async (threads) => {
    const { status, stderr } = await runHere(["verify", BUNDLE, `--threads=${threads}`]);
    expect([status, stderr]).toEqual([
      2,
      `bundle: --threads: ${threads} is not a whole number from 1 to 256\n`,
    ]);
  });
});
