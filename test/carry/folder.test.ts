import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { readBundleFolder } from "../../src/carry/folder.js";
import { generateKeyPair } from "../../src/trust/minisign.js";
import {
  flipped,
  pack,
  packAll,
  refusal,
  replace,
  resign,
  split,
  join as joined,
  TRUST,
} from "../bundle/support.js";

const bundle = await pack();
const other = await pack({ product: "other" });
const progress = { update: () => undefined, end: () => undefined };
const env = { signal: new AbortController().signal, progress };
let folder: string;
const put = (name: string, bytes: Uint8Array): void => writeFileSync(join(folder, name), bytes);
const read = (trust = TRUST) => readBundleFolder(folder, trust, [], env);

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "zferry-folder-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

describe("a folder of bundles", () => {
  test("gives those that trusted keys signed, by their files' names", async () => {
    put("b.bundle", bundle);
    put("a.bundle", other);
    const { links, left } = await read();
    expect(left).toEqual([]);
    expect(links.map(({ file, product, bytes }) => ({ file, product, bytes }))).toEqual([
      { file: join(folder, "a.bundle"), product: "other", bytes: other.length },
      { file: join(folder, "b.bundle"), product: "demo", bytes: bundle.length },
    ]);
    expect(links[1]).toMatchObject({
      release: { name: "R2", sequence: 2 },
      streams: [{ role: "usr", base: { guid: "99" }, target: "1234605616436508552" }],
      root: null,
      created: 1_750_000_000,
      expires: undefined,
    });
  });

  test("gives a bundle in volumes by its first, wherever the others are", async () => {
    const [first, second] = [bundle.subarray(0, 4096), bundle.subarray(4096)];
    put("R2.bundle.001", first);
    mkdirSync(join(folder, "stick"));
    put("stick/R2.bundle.002", second);
    expect(await read()).toMatchObject({
      links: [],
      left: [
        { file: join(folder, "R2.bundle.001"), reason: expect.stringContaining("R2.bundle.002") as string },
      ],
    });
    const found = await readBundleFolder(folder, TRUST, [join(folder, "stick")], env);
    expect(found).toMatchObject({
      links: [{ file: join(folder, "R2.bundle.001"), bytes: bundle.length, release: { name: "R2" } }],
      left: [],
    });
  });

  test("looks at no other file, and not below", async () => {
    put("R2.bundle.part", bundle);
    put(".hidden.bundle", bundle);
    put("notes.txt", Buffer.from("notes"));
    mkdirSync(join(folder, "more"));
    put("more/R2.bundle", bundle);
    expect(await read()).toEqual({ links: [], left: [] });
  });

  test.each<[string, (name: string) => void, RegExp]>([
    ["is no bundle", (name) => put(name, Buffer.from("hello")), /is no bundle/],
    ["is empty", (name) => put(name, new Uint8Array()), /./],
    ["is cut off", (name) => put(name, bundle.subarray(0, bundle.length - 512)), /bytes/],
    ["goes on", (name) => put(name, Buffer.concat([bundle, Buffer.alloc(512)])), /after the end/],
    ["has another list of hashes than was signed", (name) => put(name, flipped(bundle, 520)), /does not fit/],
    [
      "has another manifest than was signed",
      (name) =>
        put(name, joined(replace(split(bundle), "manifest.json", (text) => flipped(text, text.length - 10)))),
      /manifest\.json/,
    ],
    ["is a folder", (name) => mkdirSync(join(folder, name)), /not a regular file/],
    ["is a link", (name) => symlinkSync("good.bundle", join(folder, name)), /symbolic link/],
  ])("does not mind a file that %s, and says so", async (_, make, reason) => {
    put("good.bundle", bundle);
    make("bad.bundle");
    const { links, left } = await read();
    expect(links.map(({ file }) => file)).toEqual([join(folder, "good.bundle")]);
    expect(left).toEqual([
      { file: join(folder, "bad.bundle"), reason: expect.stringMatching(reason) as string },
    ]);
  });

  test("says nothing of the contents: an install reads them", async () => {
    put("R2.bundle", flipped(bundle, bundle.length - 1500));
    expect((await read()).links).toHaveLength(1);
  });

  test("does not believe a stranger's bundle, nor too few signatures", async () => {
    const { secretKey, publicKey } = generateKeyPair();
    put("R2.bundle", joined(resign(split(await packAll()), [secretKey])));
    expect((await read()).left).toEqual([
      { file: join(folder, "R2.bundle"), reason: expect.stringContaining("is signed by") as string },
    ]);
    expect((await read({ keys: [publicKey], threshold: 1 })).links).toHaveLength(1);
    expect((await read({ keys: [publicKey, ...TRUST.keys], threshold: 2 })).links).toHaveLength(0);
  });

  test("that is not there is refused", async () => {
    expect((await refusal(() => readBundleFolder(join(folder, "none"), TRUST, [], env))).code).toBe(
      "io-failed",
    );
  });

  test("is left when it is interrupted", async () => {
    put("R2.bundle", bundle);
    const interrupt = new AbortController();
    interrupt.abort();
    const { code } = await refusal(() =>
      readBundleFolder(folder, TRUST, [], { signal: interrupt.signal, progress }),
    );
    expect(code).toBe("interrupted");
  });
});
