import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { beforeAll, beforeEach, describe, expect, test } from "vitest";
import { begin, end, seal, write } from "../stream/support.js";
import { errorOf, EXAMPLE, inFolder, inTerminal, PUBLIC, run, SECRET, told } from "./support.js";

const folder = inFolder();
const bundle = readFileSync(EXAMPLE);
const runHere = (...args: string[]) => run(args, { cwd: folder.path });
const name = (number: number): string => `R2.bundle.${String(number).padStart(3, "0")}`;

/** Writes a bundle as volumes, as split(1) does. */
function put(bytes: Uint8Array, volumeBytes: number): number {
  let number = 0;
  for (let at = 0; at < bytes.length; at += volumeBytes) {
    number += 1;
    writeFileSync(folder.file(name(number)), bytes.subarray(at, at + volumeBytes));
  }
  return number;
}

const verify = (...more: string[]) => runHere("verify", name(1), "--key", PUBLIC, ...more);

describe("a bundle in volumes", () => {
  test.each([513, 1_000, 2_560, 4_096, bundle.length - 1, bundle.length, bundle.length + 1])(
    "of %i bytes is verified, and cat joins it again",
    async (volumeBytes) => {
      const count = put(bundle, volumeBytes);
      const { status, stdout, stderr } = await verify();
      expect([status, stderr]).toEqual([0, expect.stringContaining("it expired at ")]);
      expect(stdout.toString()).toContain(
        `OK ${name(1)}: demo release R2 (2), usr from guid 99 to R2, 8.5 KiB`,
      );
      const names = Array.from({ length: count }, (_, index) => folder.file(name(index + 1)));
      expect(execFileSync("cat", names).equals(bundle)).toBe(true);
    },
  );

  test("that split(1) made is read", async () => {
    writeFileSync(folder.file("R2.bundle"), bundle);
    const args = ["-d", "-a", "3", "--numeric-suffixes=1", "-b", "3000", "R2.bundle", "R2.bundle."];
    execFileSync("split", args, { cwd: folder.path });
    rmSync(folder.file("R2.bundle"));
    expect((await verify("--deep")).status).toBe(0);
  });

  test("is what every command reads as it reads the file", async () => {
    writeFileSync(folder.file("R2.bundle"), bundle);
    put(bundle, 1_500);
    for (const args of [
      ["inspect", "FILE", "--key", PUBLIC],
      ["inspect", "FILE", "--key", PUBLIC, "--patch"],
      ["sums", "FILE"],
      ["send", "FILE", "--key", PUBLIC],
    ]) {
      const of = (file: string) => runHere(...args.map((arg) => (arg === "FILE" ? file : arg)));
      const [whole, volumes] = [await of("R2.bundle"), await of(name(1))];
      expect(volumes.status).toBe(0);
      expect(volumes.stdout.equals(whole.stdout)).toBe(true);
    }
    const json = await runHere("inspect", name(1), "--json");
    expect(JSON.parse(json.stdout.toString())).toMatchObject({ file: name(1), bytes: bundle.length });
  });

  test("is signed into a file, and not in its place", async () => {
    put(bundle, 3_000);
    await runHere("keygen", "--no-password", "-o", "second");
    const result = await runHere("sign", name(1), "--key", "second.key");
    expect(told(result)).toEqual({
      status: 2,
      message: "R2.bundle.001 is a volume, and a signature changes all of them",
      hint: "name a file for the whole bundle with --output, and write volumes of it with bundle copy",
    });
    expect((await runHere("sign", name(1), "--key", "second.key", "-o", "signed.bundle")).status).toBe(0);
    expect((await runHere("verify", "signed.bundle", "--key", "second.pub")).status).toBe(0);
  });

  test("is found by whoever names the bundle, or another volume than the first", async () => {
    put(bundle, 3_000);
    expect(told(await runHere("verify", "R2.bundle", "--key", PUBLIC))).toEqual({
      status: 16,
      message: "R2.bundle: there is no such file",
      hint: "it is there in volumes: name R2.bundle.001",
    });
    expect(told(await runHere("verify", name(2), "--key", PUBLIC))).toEqual({
      status: 10,
      message: "byte 0: R2.bundle.002 is no bundle: it does not begin with SHA256SUMS",
      hint: "a volume of a bundle? Name the first: R2.bundle.001",
    });
  });

  test("of one volume has no other, whatever lies beside it", async () => {
    put(bundle, bundle.length);
    writeFileSync(folder.file(name(2)), bundle);
    expect((await verify()).status).toBe(0);
  });
});

describe("what is wrong with volumes", () => {
  beforeEach(() => void put(bundle, 1_000));

  test("all that are missing are named, whichever they are", async () => {
    rmSync(folder.file(name(7)));
    expect(told(await verify())).toEqual({
      status: 16,
      message: "R2.bundle.001: R2.bundle.007 of 9 volumes is missing",
      hint: "put all volumes into one folder, or name the other folders: --search FOLDER",
    });
    rmSync(folder.file(name(9)));
    rmSync(folder.file(name(5)));
    expect(errorOf(await verify("--json"))).toMatchObject({
      code: "volume-missing",
      message: "R2.bundle.001: R2.bundle.005, R2.bundle.007 and R2.bundle.009 of 9 volumes are missing",
      details: { missing: [name(5), name(7), name(9)], searched: [folder.path] },
    });
    // The head lies in the first ones, and tells how many there are.
    rmSync(folder.file(name(2)));
    expect(told(await verify())).toMatchObject({
      status: 16,
      message: "R2.bundle.001: R2.bundle.002 is missing",
    });
  });

  test.each([
    [4, 999, "bundle-truncated", `${name(4)}: has 999 bytes, not 1000: ${name(1)} has 1000, the bundle 8704`],
    [9, 703, "bundle-truncated", `${name(9)}: has 703 bytes, not 704: ${name(1)} has 1000, the bundle 8704`],
    [9, 705, "content-mismatch", `${name(9)}: has 705 bytes, not 704: ${name(1)} has 1000, the bundle 8704`],
    [
      5,
      1001,
      "bundle-truncated",
      `${name(1)}: has 1000 bytes, and ${name(5)} has 1001: no volume is larger than the first`,
    ],
    [2, 10, "bundle-truncated", `${name(2)}: ends at byte 10, the bundle goes on`],
  ] as const)("volume %i has %i bytes", async (number, size, code, message) => {
    const bytes = Buffer.alloc(size);
    bytes.set(readFileSync(folder.file(name(number))).subarray(0, size));
    writeFileSync(folder.file(name(number)), bytes);
    const error = errorOf(await verify("--json"));
    expect([error.code, error.message.slice(0, message.length)]).toEqual([code, message]);
  });

  test("a first volume that is cut short is what is named", async () => {
    writeFileSync(folder.file(name(1)), bundle.subarray(0, 900));
    expect(told(await verify()).message).toContain(`${name(1)}: has 900 bytes, and ${name(2)} has 1000`);
    writeFileSync(folder.file(name(1)), "");
    expect(errorOf(await verify("--json"))).toMatchObject({ code: "bundle-truncated" });
  });

  test("more volumes would be needed than there can be", async () => {
    rmSync(folder.file(name(2)));
    const noise = await large();
    put(noise.subarray(0, 20_000), 20_000);
    const error = errorOf(await verify("--json"));
    expect(error.code).toBe("bundle-truncated");
    expect(error.message).toContain(`${name(1)}: has 20000 of the bundle's ${noise.length} bytes`);
  });

  test("one with other bytes is named, with its member", async () => {
    const at = bundle.lastIndexOf("streams/usr/00000000.zst") + 512;
    const number = Math.floor(at / 1_000) + 1;
    const bytes = readFileSync(folder.file(name(number)));
    bytes[at % 1_000] = (bytes[at % 1_000] as number) ^ 1;
    writeFileSync(folder.file(name(number)), bytes);
    const error = errorOf(await verify("--json"));
    expect(error).toMatchObject({
      code: "content-mismatch",
      message: expect.stringContaining(`${name(number)}: streams/usr/00000000.zst has SHA-256 `) as string,
      details: { file: name(number), member: "streams/usr/00000000.zst" },
    });
    expect(told(await verify()).hint).toBe(
      "the volume is damaged, or of another bundle or copy; copy it again from where the bundle is whole",
    );
  });

  test("of a member in two volumes both are named", async () => {
    put(bundle, bundle.lastIndexOf("streams/usr/00000000.zst") + 600);
    writeFileSync(folder.file(name(2)), Buffer.alloc(readFileSync(folder.file(name(2))).length));
    const error = errorOf(await verify("--json"));
    expect(error.message).toContain(`${name(1)} and ${name(2)}: streams/usr/00000000.zst has SHA-256 `);
    expect(error.details["file"]).toEqual([name(1), name(2)]);
  });

  test("a header or padding is told of its volume", async () => {
    const at = bundle.length - 1;
    const last = Buffer.from(bundle.subarray(8_000));
    last[at - 8_000] = 1;
    writeFileSync(folder.file(name(9)), last);
    expect(told(await verify()).message).toMatch(/^R2\.bundle\.009: byte 8703: the padding/);
    put(bundle, 1_000);
    const header = bundle.lastIndexOf("streams/usr/00000000.zst");
    const number = Math.floor(header / 1_000) + 1;
    const bytes = readFileSync(folder.file(name(number)));
    bytes[header % 1_000] = 0x53;
    writeFileSync(folder.file(name(number)), bytes);
    expect(told(await verify()).message).toMatch(
      new RegExp(`^${name(number)}.*the tar header is not that of`),
    );
  });

  test("a volume that is a link is refused", async () => {
    renameSync(folder.file(name(4)), folder.file("elsewhere"));
    symlinkSync("elsewhere", folder.file(name(4)));
    expect(told(await verify())).toMatchObject({ status: 16, message: `${name(4)}: is a symbolic link` });
  });
});

describe("volumes in several folders", () => {
  beforeEach(() => {
    put(bundle, 2_000);
    for (const stick of ["one", "sticks", "sticks/two"]) mkdirSync(folder.file(stick));
  });
  const move = (number: number, to: string): void =>
    renameSync(folder.file(name(number)), folder.file(`${to}/${name(number)}`));

  test("are found in each that is named, and in the folders in it", async () => {
    move(3, "one");
    move(4, "sticks/two");
    expect((await verify("--search", "one", "--search", "sticks")).status).toBe(0);
    expect(told(await verify("--search", "one")).message).toBe(
      "R2.bundle.001: R2.bundle.004 of 5 volumes is missing",
    );
  });

  test("are taken from beside the first, and two of different sizes are told", async () => {
    writeFileSync(folder.file(`one/${name(3)}`), Buffer.alloc(2_000));
    expect(await verify("--search", "one")).toMatchObject({ status: 0 });
    writeFileSync(folder.file(`one/${name(3)}`), "short");
    const { status, stderr } = await verify("--search", "one");
    expect(status).toBe(0);
    expect(stderr).toContain(
      `warning: ${name(3)} is used, which has 2.0 KiB as it must; one/${name(3)} has 5 B\n`,
    );
    renameSync(folder.file(name(3)), folder.file(`sticks/two/${name(3)}`));
    const other = await verify("--search", "one", "--search", "sticks");
    expect(other.status).toBe(0);
    expect(other.stderr).toContain(`warning: sticks/two/${name(3)} is used`);
  });

  test("are asked for at a terminal, by name, until they are there", async () => {
    move(3, "one");
    move(5, "one");
    const bring = (number: number) => (): void =>
      renameSync(folder.file(`one/${name(number)}`), folder.file(name(number)));
    const { status, screen } = await inTerminal(
      ["verify", name(1), "--key", PUBLIC],
      [
        { question: `insert the medium with ${name(3)}, then press Enter`, answer: "\n", act: bring(3) },
        { question: `insert the medium with ${name(5)}, then press Enter`, answer: "\n" },
        { question: `insert the medium with ${name(5)}, then press Enter`, answer: "\n", act: bring(5) },
      ],
      folder.path,
    );
    expect(screen).toContain("OK R2.bundle.001");
    expect(status).toBe(0);
  });

  test("one in the head is asked for, too, and Ctrl-C is an answer", async () => {
    move(2, "one");
    const { status } = await inTerminal(
      ["verify", name(1), "--key", PUBLIC],
      [{ question: `insert the medium with ${name(2)}, then press Enter`, answer: "\x03" }],
      folder.path,
    );
    expect(status).toBe(130);
  });
});

const MIB = 1 << 20;
let noise: Promise<Buffer> | undefined;

/** A bundle of more than threads are used from, which does not compress. */
const large = (): Promise<Buffer> => (noise ??= makeLarge());

async function makeLarge(): Promise<Buffer> {
  const records = Array.from({ length: 24 }, (_, i) => {
    const record = write(BigInt(i + 1), MIB);
    record.set(randomBytes(MIB), record.length - MIB);
    return record;
  });
  const args =
    "create --product demo --release R2 --sequence 2 --level 1 --stream usr=- -o large.bundle".split(" ");
  const created = await run([...args, "--key", SECRET], {
    cwd: folder.path,
    input: seal([begin(), ...records, end()]),
  });
  expect(created).toMatchObject({ status: 0 });
  return readFileSync(folder.file("large.bundle"));
}

describe("a large bundle in volumes", () => {
  beforeAll(() => {
    noise = undefined;
  });

  test("is read by threads, and its damaged volume is named", async () => {
    const bytes = await large();
    writeFileSync(folder.file("large.bundle"), bytes);
    put(bytes, 5 * MIB + 1);
    for (const threads of ["1", "3"]) {
      expect(await verify("--threads", threads)).toMatchObject({ status: 0, stderr: "" });
      const sent = await runHere("send", name(1), "--key", PUBLIC, "--threads", threads);
      const whole = await runHere("send", "large.bundle", "--key", PUBLIC);
      expect(sent.stdout.equals(whole.stdout)).toBe(true);
    }
    const damaged = readFileSync(folder.file(name(3)));
    damaged.fill(0, 2 * MIB, 2 * MIB + 10);
    writeFileSync(folder.file(name(3)), damaged);
    const { status, message } = told(await verify());
    expect(status).toBe(12);
    expect(message).toMatch(
      /^R2\.bundle\.00[23]( and R2\.bundle\.00[34])?: streams\/usr\/0000000[12]\.zst has SHA-256 /,
    );
    expect(message).toContain(name(3));
  });
});
