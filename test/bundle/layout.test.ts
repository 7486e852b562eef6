import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join as joinPath } from "node:path";
import { buffer } from "node:stream/consumers";
import { extract } from "tar-stream";
import { describe, expect, test } from "vitest";
import {
  BLOCK_BYTES,
  encodeHeader,
  encodeSums,
  parseHeader,
  parseSums,
  type MemberHeader,
} from "../../src/bundle/layout.js";
import { CREATED, flipped, packAll, refusal, split } from "./support.js";

const header: MemberHeader = { name: "streams/usr/00000000.zst", size: 1234, mtime: CREATED };

describe("a member's header", () => {
  test.each<MemberHeader>([
    header,
    { name: "m", size: 0, mtime: 0 },
    { name: "n".repeat(100), size: 0o77777777777, mtime: 0o77777777777 },
  ])("is read as it was written: $name", (each) => {
    expect(parseHeader(encodeHeader(each), 0)).toEqual(each);
  });

  test.each([
    { ...header, name: "n".repeat(101) },
    { ...header, size: 0o100000000000 },
    { ...header, mtime: 0o100000000000 },
  ])("holds no larger values", (each) => {
    expect(() => encodeHeader(each)).toThrow(RangeError);
  });

  test.each([1, 0x80])("has no other spelling: bits 0x%s of any byte changed", async (bits) => {
    const block = encodeHeader(header);
    for (let at = 0; at < BLOCK_BYTES; at += 1) {
      const changed = flipped(block, at, bits);
      const { code, details } = await refusal(() => parseHeader(changed, 4096));
      expect([code, details]).toEqual(["archive-malformed", { offset: 4096 }]);
    }
  });

  /** A header with some bytes replaced, and the checksum that belongs to it. */
  function spelled(changes: Record<number, string>): Buffer {
    const block = Buffer.from(encodeHeader(header));
    for (const [at, bytes] of Object.entries(changes)) block.write(bytes, Number(at), "latin1");
    block.fill(" ", 148, 156);
    const sum = block.reduce((total, byte) => total + byte, 0);
    block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
    return block;
  }

  test.each([
    ["a hard link", { 156: "1" }],
    ["a symbolic link", { 156: "2" }],
    ["a character device", { 156: "3" }],
    ["a block device", { 156: "4" }],
    ["a directory", { 156: "5" }],
    ["a FIFO", { 156: "6" }],
    ["a pax header", { 156: "x" }],
    ["a global pax header", { 156: "g" }],
    ["a GNU long name", { 156: "L" }],
    ["a sparse file", { 156: "S" }],
    ["the old typeflag of a file", { 156: "\0" }],
    ["a link's target", { 157: "/etc/passwd" }],
    ["another mode", { 100: "0000755" }],
    ["an owner", { 108: "0001000" }],
    ["a group", { 116: "0001000" }],
    ["an owner's name", { 265: "root" }],
    ["a name prefix", { 345: "elsewhere" }],
    ["GNU's magic", { 257: "ustar  \0" }],
    ["a size in base 256", { 124: "\x80\0\0\0\0\0\0\0\0\0\x04\xd2" }],
    ["a size with spaces", { 124: "       2322 " }],
    ["a time in base 256", { 136: "\x80\0\0\0\0\0\0\0\x68\x4e\xe1\x80" }],
    ["bytes after the name's end", { 40: "x" }],
    ["a device number", { 329: "0000001" }],
  ])("that has %s is refused", async (_what, changes) => {
    expect((await refusal(() => parseHeader(spelled(changes), 0))).code).toBe("archive-malformed");
  });

  test("of zeros is refused", async () => {
    expect((await refusal(() => parseHeader(new Uint8Array(BLOCK_BYTES), 0))).code).toBe("archive-malformed");
  });
});

describe("other tar programs", () => {
  const reference = async () => {
    const bundle = await packAll();
    return { bundle, members: split(bundle) };
  };

  test("tar-stream reads the same members", async () => {
    const { bundle, members } = await reference();
    const found: { name: string; content: Buffer }[] = [];
    const reader = extract();
    reader.end(bundle);
    for await (const entry of reader) {
      expect(entry.header).toMatchObject({
        type: "file",
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: new Date(CREATED * 1000),
      });
      found.push({ name: entry.header.name, content: await buffer(entry) });
    }
    expect(found).toEqual(members.map(({ name, content }) => ({ name, content: Buffer.from(content) })));
  });

  test("tar extracts the same members", async () => {
    const { bundle, members } = await reference();
    const folder = mkdtempSync(joinPath(tmpdir(), "zferry-tar-"));
    try {
      const file = joinPath(folder, "b");
      writeFileSync(file, bundle);
      const tar = (...args: string[]) => spawnSync("tar", [...args], { cwd: folder, encoding: "buffer" });
      expect(tar("-tf", file).stdout.toString()).toBe(members.map(({ name }) => `${name}\n`).join(""));
      for (const { name, content } of members) {
        const { status, stdout, stderr } = tar("-xOf", file, name);
        expect([status, stderr.toString(), stdout.equals(content)]).toEqual([0, "", true]);
      }
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

describe("SHA256SUMS", () => {
  const digest = "0123456789abcdef".repeat(4);
  const list = [
    { name: "manifest.json", sha256: digest },
    { name: "streams/usr/00000000.zst", sha256: "f".repeat(64) },
  ];

  test("is read as it was written", () => {
    expect(parseSums(encodeSums(list))).toEqual(list);
  });

  test.each<[string, string, number]>([
    ["nothing", "", 1],
    ["a line without its end", `${digest}  manifest.json`, 1],
    ["a second line without its end", `${digest}  manifest.json\n${digest}  x`, 2],
    ["an empty line", `${digest}  manifest.json\n\n`, 2],
    ["one space", `${digest} manifest.json\n`, 1],
    ["the binary mark", `${digest} *manifest.json\n`, 1],
    ["an escaped name", `\\${digest}  manifest.json\n`, 1],
    ["upper case", `${digest.toUpperCase()}  manifest.json\n`, 1],
    ["a short digest", `${digest.slice(1)}  manifest.json\n`, 1],
    ["a long digest", `${digest}0  manifest.json\n`, 1],
    ["no name", `${digest}  \n`, 1],
    ["a name with a space", `${digest}  manifest.json \n`, 1],
    ["a carriage return", `${digest}  manifest.json\r\n`, 1],
    ["a name that is not ASCII", `${digest}  manifést.json\n`, 1],
    ["a zero byte", `${digest}  manifest\0.json\n`, 1],
    ["a byte order mark", `\ufeff${digest}  manifest.json\n`, 1],
    ["a name twice", `${digest}  manifest.json\n${"0".repeat(64)}  manifest.json\n`, 2],
  ])("with %s is refused", async (_what, sums, line) => {
    const { code, details } = await refusal(() => parseSums(Buffer.from(sums)));
    expect([code, details]).toEqual(["sums-malformed", { member: "SHA256SUMS", line }]);
  });
});
