import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { createBundleFile, openBundleFile } from "../../src/system/bundle-file.js";
import { refusal } from "../bundle/support.js";

const never = new AbortController().signal;
let folder: string;
let path: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "zferry-file-"));
  path = join(folder, "R2.bundle");
});
afterEach(() => rmSync(folder, { recursive: true }));

describe("a new bundle's file", () => {
  test("has the head before what was appended, and is there only once it is whole", async () => {
    const file = await createBundleFile(path, never);
    await file.append(Buffer.from("streams"));
    await file.append(Buffer.alloc(5 << 20, "x"));
    expect(readdirSync(folder)).toEqual([]);
    expect(await file.finish(Buffer.from("head "))).toEqual({ bytes: 12 + (5 << 20) });
    await file.discard();
    expect(readdirSync(folder)).toEqual(["R2.bundle"]);
    expect(readFileSync(path).equals(Buffer.from(`head streams${"x".repeat(5 << 20)}`))).toBe(true);
    expect(statSync(path).mode & 0o777).toBe(0o644 & ~process.umask());
  });

  describe.each([
    ["as long as was reserved", 4096, 4096],
    ["shorter than was reserved", 4096, 512],
    ["longer than was reserved", 4096, 70_000],
    ["longer, with nothing reserved", 0, 512],
  ])("with a head %s", (_what, reserved, length) => {
    const content = randomBytes(3 << 20);
    const make = async (): Promise<Buffer> => {
      const file = await createBundleFile(path, never);
      if (reserved > 0) file.reserve(reserved);
      for (let at = 0; at < content.length; at += 700_000)
        await file.append(content.subarray(at, at + 700_000));
      expect(readdirSync(folder)).toEqual([]);
      expect(await file.finish(Buffer.alloc(length, "h"))).toEqual({ bytes: length + content.length });
      await file.discard();
      expect(readdirSync(folder)).toEqual(["R2.bundle"]);
      return readFileSync(path);
    };
    const expected = Buffer.concat([Buffer.alloc(length, "h"), content]);

    test("the file is the head and the contents", async () => {
      expect((await make()).equals(expected)).toBe(true);
      expect(statSync(path).mode & 0o777).toBe(0o644 & ~process.umask());
    });

    test("the same without the programs that let the kernel copy and link", async () => {
      const before = process.env["PATH"];
      process.env["PATH"] = folder;
      try {
        expect((await make()).equals(expected)).toBe(true);
      } finally {
        process.env["PATH"] = before;
      }
    });
  });

  test("leaves nothing when it is discarded, at any time", async () => {
    const file = await createBundleFile(path, never);
    await file.append(Buffer.from("streams"));
    await file.discard();
    await file.discard();
    expect(readdirSync(folder)).toEqual([]);
  });

  test("leaves nothing when it is interrupted as it is written together", async () => {
    const interrupt = new AbortController();
    const file = await createBundleFile(path, interrupt.signal);
    await file.append(Buffer.from("streams"));
    interrupt.abort();
    expect((await refusal(() => file.finish(Buffer.from("head")))).code).toBe("interrupted");
    await file.discard();
    expect(readdirSync(folder)).toEqual([]);
  });

  test.each<[string, () => void]>([
    ["a file", () => writeFileSync(path, "mine")],
    ["a folder", () => mkdirSync(path)],
    ["a link that leads nowhere", () => symlinkSync("nowhere", path)],
  ])("never replaces %s, be it there before or after", async (_what, make) => {
    const exact = await createBundleFile(path, never);
    exact.reserve(4);
    const file = await createBundleFile(path, never);
    make();
    expect((await refusal(() => exact.finish(Buffer.from("head")))).code).toBe("output-exists");
    await exact.discard();
    expect((await refusal(() => file.finish(Buffer.from("head")))).code).toBe("output-exists");
    await file.discard();
    expect((await refusal(() => createBundleFile(path, never))).code).toBe("output-exists");
    expect(readdirSync(folder)).toEqual(["R2.bundle"]);
  });

  test("names the file that cannot be made", async () => {
    const { code, message } = await refusal(() => createBundleFile(join(folder, "none/R2.bundle"), never));
    expect([code, message]).toEqual([
      "io-failed",
      `cannot open ${folder}/none/R2.bundle: there is no such file or folder`,
    ]);
  });
});

describe("a bundle's file", () => {
  test("gives the bytes that are asked for", async () => {
    writeFileSync(path, "0123456789");
    const file = await openBundleFile(path);
    expect([file.name, file.size]).toEqual([path, 10]);
    expect(Buffer.from(await file.read(2, 3)).toString()).toBe("234");
    expect((await file.read(10, 0)).length).toBe(0);
    await file.close();
  });

  test("that shrinks while it is read is truncated", async () => {
    writeFileSync(path, "0123456789");
    const file = await openBundleFile(path);
    writeFileSync(path, "01234");
    expect((await refusal(() => file.read(2, 8))).code).toBe("bundle-truncated");
    await file.close();
  });

  test.each<[string, () => void, RegExp]>([
    ["missing", () => undefined, /there is no such file$/],
    ["a folder", () => mkdirSync(path), /is not a regular file or block device$/],
    ["a FIFO", () => spawnSync("mkfifo", [path]), /is not a regular file or block device$/],
    ["a symbolic link", () => symlinkSync("/etc/passwd", path), /is a symbolic link$/],
  ])("that is %s is refused", async (_what, make, expected) => {
    make();
    const { code, message } = await refusal(() => openBundleFile(path));
    expect(code).toBe("io-failed");
    expect(message).toMatch(expected);
  });
});
