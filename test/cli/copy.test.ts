import { spawnSync } from "node:child_process";
import { randomBytes, randomInt } from "node:crypto";
import { once } from "node:events";
import {
  chmodSync,
  closeSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { Framer } from "../bench/stream.js";
import {
  CLI,
  ended,
  errorOf,
  EXAMPLE,
  hasMounts,
  inFolder,
  makeNoise,
  PUBLIC,
  run,
  runByModes,
  SECRET,
  start,
  told,
} from "./support.js";

const MIB = 1 << 20;
const folder = inFolder();
const runHere = (...args: string[]) => run(args, { cwd: folder.path });

/** Runs a program that must succeed. */
function must(program: string, ...args: string[]): void {
  const { status, stderr, error } = spawnSync(program, args, { encoding: "utf8" });
  if (status !== 0) throw new Error(`${program} ${args.join(" ")}: ${error?.message ?? stderr}`);
}

const mounted: string[] = [];
afterEach(() => {
  for (const point of mounted.splice(0)) spawnSync("umount", ["--lazy", point]);
});

/** A stick: a file system of its own in a file, which is mounted. */
function stick(name: string, mib: number, image = folder.file(`${name}.img`)): string {
  must("truncate", "-s", `${mib}M`, image);
  must("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=0", image);
  return mountStick(name, image);
}

function mountStick(name: string, image = folder.file(`${name}.img`)): string {
  const point = folder.file(name);
  mkdirSync(point, { recursive: true });
  must("mount", "-o", "loop", image, point);
  mounted.push(point);
  return point;
}

/** Whether a test can have sticks; where the tools are required, it fails without. */
const hasSticks = ((): boolean => {
  if (process.env["ZFERRY_REQUIRE_TOOLS"] === "1") return true;
  const probe = mkdtempSync(join(tmpdir(), "zferry-stick-"));
  const [image, point] = [join(probe, "image"), join(probe, "point")];
  mkdirSync(point);
  try {
    must("truncate", "-s", "8M", image);
    must("mkfs.ext4", "-q", "-F", image);
    must("mount", "-o", "loop", image, point);
    must("umount", point);
    return true;
  } catch {
    return false;
  } finally {
    rmSync(probe, { recursive: true });
  }
})();

let made: string;
let noise: Buffer;
/** A bundle of 24 MiB that do not compress. */
beforeAll(async () => {
  made = mkdtempSync(join(tmpdir(), "zferry-noise-"));
  noise = await makeNoise(made);
});
afterAll(() => rmSync(made, { recursive: true }));

/** Makes a bundle of more bytes than that, from a pipe. */
async function createLarge(bytes: number): Promise<void> {
  const args =
    "create --product demo --release R2 --sequence 2 --level 1 --stream usr=- -o R2.bundle -q".split(" ");
  const child = start([...args, "--key", SECRET], folder.path);
  const result = ended(child);
  let full = false;
  const framer = new Framer((record) => (full = !child.stdin.write(record)));
  const file = 32 * MIB;
  for (let done = 0; done < bytes; done += file) {
    const pool = randomBytes(file);
    framer.file(file, (offset) => pool.subarray(offset, offset + (128 << 10)));
    if (full) await once(child.stdin, "drain");
  }
  framer.end();
  child.stdin.end();
  expect(await result).toMatchObject({ status: 0 });
}

const putNoise = (): void => copyFileSync(join(made, "R2.bundle"), folder.file("R2.bundle"));

describe("bundle copy", () => {
  test("says what was checked, how it was read back, and when the medium can go", async () => {
    copyFileSync(EXAMPLE, folder.file("R2.bundle"));
    mkdirSync(folder.file("to"));
    const signed = await runHere("copy", "R2.bundle", "to", "--key", PUBLIC);
    expect(signed).toMatchObject({
      status: 0,
      stderr: "warning: to is on the file system that R2.bundle is on: is the medium mounted there?\n",
    });
    expect(signed.stdout.toString()).toMatch(
      /^R2\.bundle: 8\.5 KiB, signed by 0E07B77755AB6E15 \(.*\)\n {2}to\/R2\.bundle: copied, 8\.5 KiB; read back .*\n$/,
    );
    const again = await runHere("copy", "R2.bundle", "to");
    expect(again.status).toBe(0);
    expect(again.stdout.toString()).toMatch(
      /^R2\.bundle: 8\.5 KiB, hashes checked, SIGNATURES NOT CHECKED: name a key with --key\n {2}to\/R2\.bundle: is there already, /,
    );
  });

  test("prints the same as JSON", async () => {
    copyFileSync(EXAMPLE, folder.file("R2.bundle"));
    mkdirSync(folder.file("to"));
    const { stdout } = await runHere("copy", "R2.bundle", "to", "--json", "--volume-size", "5000");
    expect(JSON.parse(stdout.toString())).toEqual({
      folder: "to",
      warnings: ["to is on the file system that R2.bundle is on: is the medium mounted there?"],
      copies: [
        {
          file: "R2.bundle",
          bytes: 8704,
          identity: "3f8e1e8f517db7d1693321409a4045e22360a30ac4e2f516218c2a622c268a11",
          signers: null,
          volumes: 2,
          readBack: expect.stringMatching(/^(direct|asked|memory|zfs)$/) as string,
          files: [
            { file: "to/R2.bundle.001", bytes: 5000, outcome: "copied", resumed: 0 },
            { file: "to/R2.bundle.002", bytes: 3704, outcome: "copied", resumed: 0 },
          ],
        },
      ],
    });
  });

  test("copies several bundles, and none if one is no good", async () => {
    copyFileSync(EXAMPLE, folder.file("R2.bundle"));
    mkdirSync(folder.file("to"));
    writeFileSync(folder.file("R3.bundle"), Buffer.alloc(9_000));
    expect((await runHere("copy", "R2.bundle", "R3.bundle", "to")).status).toBe(10);
    expect(readdirSync(folder.file("to"))).toEqual([]);
    putNoise();
    copyFileSync(EXAMPLE, folder.file("R3.bundle"));
    expect((await runHere("copy", "R2.bundle", "R3.bundle", "to", "-q")).status).toBe(0);
    expect(readdirSync(folder.file("to")).sort()).toEqual(["R2.bundle", "R3.bundle"]);
    mkdirSync(folder.file("other"));
    copyFileSync(EXAMPLE, folder.file("other/R2.bundle"));
    const result = await runHere("copy", "R2.bundle", "other/R2.bundle", "to");
    expect([result.status, result.stderr]).toEqual([
      2,
      expect.stringContaining("bundle: two bundles are to become R2.bundle\n"),
    ]);
  });

  test.each([
    [["R2.bundle"], "missing required argument 'folder'"],
    [
      ["R2.bundle", "to", "--volume-size", "4095"],
      "--volume-size: 4095 is not a number of bytes such as 500k or 2M, from 4096 on",
    ],
    [
      ["R2.bundle", "to", "--volume-size", "1T"],
      "--volume-size: 1T is not a number of bytes such as 500k or 2M, from 4096 on",
    ],
    [["R2.bundle", "to", "--volumes", "3-2"], "--volumes: 3-2 is not a number, or two such as 4-5"],
    [["R2.bundle", "to", "--volumes", "0"], "--volumes: 0 is not a number, or two such as 4-5"],
    [["R2.bundle", "R3.bundle", "to", "--volumes", "1"], "--volumes is of one bundle, and several are named"],
  ])("%j: %s", async (args, message) => {
    expect(told(await runHere("copy", ...args))).toMatchObject({ status: 2, message });
  });

  test("to where files may not be so large says that volumes may", async () => {
    putNoise();
    mkdirSync(folder.file("to"));
    // As FAT is through a driver that does not say so.
    const command = `'${process.execPath}' '${CLI}' copy R2.bundle to`;
    const { status, stderr } = spawnSync("bash", ["-c", `trap '' XFSZ; ulimit -f 8192; ${command}`], {
      cwd: folder.path,
      encoding: "utf8",
    });
    expect([status, stderr]).toEqual([
      16,
      expect.stringMatching(
        /\nbundle: cannot write to\/R2\.bundle: .*\(EFBIG\)\n {2}it takes no file of this size: --volume-size 4095M writes volumes\n$/,
      ),
    ]);
    expect(readdirSync(folder.file("to"))).toEqual([]);
    expect((await runHere("copy", "R2.bundle", "to", "--volume-size", "4000000")).status).toBe(0);
  });

  test.each([
    [
      "a symbolic link",
      "it is a symbolic link",
      () => symlinkSync("/etc/passwd", folder.file("to/.R2.bundle.partial")),
    ],
    ["a folder", "it is a folder", () => mkdirSync(folder.file("to/.R2.bundle.partial"))],
  ])("is refused where %s has the name of its partial file, which is told", async (_, reason, make) => {
    putNoise();
    mkdirSync(folder.file("to"));
    make();
    const { status, stderr } = await runHere("copy", "R2.bundle", "to", "-q");
    expect([status, stderr]).toEqual([
      16,
      expect.stringContaining(`bundle: cannot open to/.R2.bundle.partial: ${reason}\n`),
    ]);
    expect(stderr).not.toContain("goes on where it stopped");
  });

  test("takes the size of volumes in units", async () => {
    putNoise();
    mkdirSync(folder.file("to"));
    expect((await runHere("copy", "R2.bundle", "to", "--volume-size", "9M")).status).toBe(0);
    expect(statSync(folder.file("to/R2.bundle.001")).size).toBe(9 * MIB);
  });

  test("of a folder says what to name", async () => {
    mkdirSync(folder.file("from"));
    mkdirSync(folder.file("to"));
    expect(told(await runHere("copy", "from", "to"))).toEqual({
      status: 16,
      message: "from: is not a regular file or block device",
      hint: "name the bundles in it",
    });
  });

  test("does not pass over a key or configuration that cannot be read", async () => {
    copyFileSync(EXAMPLE, folder.file("R2.bundle"));
    mkdirSync(folder.file("to"));
    expect((await runHere("copy", "R2.bundle", "to", "--config", "none.toml")).status).toBe(17);
    expect((await runHere("copy", "R2.bundle", "to", "--key", "none.pub")).status).toBe(16);
    expect(readdirSync(folder.file("to"))).toEqual([]);
  });
});

describe.skipIf(!hasMounts)("a folder in memory", () => {
  test("is read back from there, and not said to be a medium that can be taken out", async () => {
    copyFileSync(EXAMPLE, folder.file("R2.bundle"));
    mkdirSync(folder.file("to"));
    const args = [process.execPath, CLI, "copy", "R2.bundle", "to", "--key", PUBLIC].map(
      (each) => `'${each}'`,
    );
    const script = `mount -t tmpfs none to; ${args.join(" ")}; ${args.join(" ")} --json; cmp R2.bundle to/R2.bundle`;
    const { status, stdout } = spawnSync("unshare", ["-m", "bash", "-euc", script], {
      cwd: folder.path,
      encoding: "utf8",
    });
    const [, copied = "", json = "", ...more] = stdout.trimEnd().split("\n");
    expect([status, copied, more]).toEqual([
      0,
      "  to/R2.bundle: copied, 8.5 KiB; read back from memory: there is no medium",
      [],
    ]);
    expect(JSON.parse(json)).toMatchObject({ copies: [{ readBack: "memory" }] });
  });
});

// The whole bundle was read first, and the hint was to run the same again.
test("a folder that this user may not write to, or not enter, is refused before the bundle is read", async () => {
  putNoise();
  // Past its head nothing is right, but it is not looked at.
  const damaged = openSync(folder.file("R2.bundle"), "r+");
  writeSync(damaged, Buffer.alloc(8), 0, 8, 20 * MIB);
  closeSync(damaged);
  for (const name of ["to", "shut/to"]) mkdirSync(folder.file(name), { recursive: true });
  chmodSync(folder.file("to"), 0o555);
  chmodSync(folder.file("shut"), 0);
  const tried = (to: string): object => {
    const { status, stderr } = runByModes(["copy", "R2.bundle", to, "-q"], folder.path);
    return { status, said: stderr.replace(/^warning: .*\n/, "") };
  };
  const denied = (call: string, to: string) => ({
    status: 16,
    said: `bundle: cannot ${call} ${to}: permission denied\n`,
  });
  expect(tried("to")).toEqual(denied("access", "to"));
  expect(tried("shut/to")).toEqual(denied("stat", "shut/to"));
  chmodSync(folder.file("shut"), 0o700);
});

describe.skipIf(!hasSticks)("sticks", () => {
  test("that are write-protected are refused before the bundle is read, and compared where it is there", async () => {
    putNoise();
    const point = stick("one", 64);
    expect((await runHere("copy", "R2.bundle", "one")).status).toBe(0);
    must("mount", "-o", "remount,ro", point);
    expect((await runHere("copy", "R2.bundle", "one")).stdout.toString()).toContain("is there already");
    const { status, message, hint } = told(await runHere("copy", "R2.bundle", "one", "--volume-size", "9M"));
    expect([status, message, hint]).toEqual([
      16,
      "cannot access one: the file system is read-only",
      expect.stringMatching(/^mount it for writing, such as: [^;]*$/),
    ]);
  });

  // Nothing was said, but that the medium could be taken out.
  test("a folder of the system's own disk is told, wherever the bundle comes from", async () => {
    const here = mkdtempSync("/zferry-copy-");
    try {
      copyFileSync(EXAMPLE, join(stick("one", 12), "R2.bundle"));
      const { status, stdout, stderr } = await runHere("copy", "one/R2.bundle", here);
      expect([status, stderr]).toEqual([
        0,
        `warning: ${here} is on the file system that / is on: is the medium mounted there?\n`,
      ]);
      expect(stdout.toString()).not.toContain("all of it is on the medium");
      stick("two", 12);
      const mounted = await runHere("copy", "one/R2.bundle", "two");
      expect([mounted.stderr, mounted.stdout.toString()]).toEqual([
        "",
        expect.stringMatching(/\nall of it is on the medium: two can be unmounted, and then taken out\n$/),
      ]);
    } finally {
      rmSync(here, { recursive: true });
    }
  });

  test("three of them carry a bundle that none has room for, as each says", async () => {
    putNoise();
    const sticks = ["one", "two", "three"].map((name) => stick(name, 12));
    const refused = await runHere("copy", "R2.bundle", "one", "--volume-size", String(9 * MIB));
    const { status, hint = "" } = told(refused);
    expect(status).toBe(16);
    expect(hint).toBe(
      "volumes 1 fit here: --volume-size 9437184 --volumes 1; " +
        "then the same with another medium for the rest: --volume-size 9437184 --volumes 2-3",
    );
    expect(readdirSync(sticks[0] as string)).toEqual(["lost+found"]);
    for (const [index, name] of ["one", "two", "three"].entries()) {
      const args = ["--volume-size", String(9 * MIB), "--volumes", String(index + 1), "--json"];
      const { stdout } = await runHere("copy", "R2.bundle", name, "--key", PUBLIC, ...args);
      expect(JSON.parse(stdout.toString())).toMatchObject({
        copies: [{ readBack: "direct", volumes: 3, files: [{ outcome: "copied" }] }],
      });
    }
    rmSync(folder.file("R2.bundle"));
    const search = ["--search", "two", "--search", "three"];
    const verified = await runHere("verify", "one/R2.bundle.001", "--key", PUBLIC, ...search);
    expect(verified).toMatchObject({ status: 0, stderr: "" });
    mkdirSync(folder.file("disk"));
    expect((await runHere("copy", "one/R2.bundle.001", "disk", ...search)).status).toBe(0);
    expect(readFileSync(folder.file("disk/R2.bundle")).equals(noise)).toBe(true);
  });

  // 12 GB on the disk, and minutes.
  test.skipIf(process.env["ZFERRY_TEST_ALL"] !== "1")(
    "three of them carry a bundle of 6 GB",
    async () => {
      await createLarge(6e9);
      const bytes = statSync(folder.file("R2.bundle")).size;
      expect(bytes).toBeGreaterThan(6e9);
      const size = ["--volume-size", "1100000000"];
      for (const [name, volumes] of [
        ["one", "1-2"],
        ["two", "3-4"],
        ["three", "5-6"],
      ] as const) {
        stick(name, 2_200);
        const copied = await runHere(
          "copy",
          "R2.bundle",
          name,
          "--key",
          PUBLIC,
          ...size,
          "--volumes",
          volumes,
          "-q",
        );
        expect(copied).toMatchObject({ status: 0, stderr: "" });
      }
      rmSync(folder.file("R2.bundle"));
      const search = ["--search", "two", "--search", "three"];
      const { status, stdout } = await runHere(
        "verify",
        "one/R2.bundle.001",
        "--key",
        PUBLIC,
        "--json",
        ...search,
      );
      expect([status, JSON.parse(stdout.toString())]).toEqual([0, expect.objectContaining({ bytes })]);
      const volume = openSync(folder.file("two/R2.bundle.004"), "r+");
      writeSync(volume, "damage", 500_000_000);
      closeSync(volume);
      const { message } = told(
        await runHere("verify", "one/R2.bundle.001", "--key", PUBLIC, "-q", ...search),
      );
      expect(message).toContain("two/R2.bundle.004: streams/usr/");
    },
    1_200_000,
  );

  test("one that ends before it says is found, and nothing on it has the bundle's name", async () => {
    putNoise();
    // It says 40 MiB, and what is under it takes 12.
    mkdirSync(folder.file("small"));
    must("mount", "-t", "tmpfs", "-o", "size=12M", "none", folder.file("small"));
    mounted.unshift(folder.file("small"));
    stick("false", 40, folder.file("small/image"));
    const error = errorOf(await runHere("copy", "R2.bundle", "false", "--json"));
    expect(["io-failed", "no-space", "copy-damaged"]).toContain(error.code);
    expect(readdirSync(folder.file("false"))).not.toContain("R2.bundle");
  });

  test("bits that flip on it are found although the kernel's cache has them as they were", async () => {
    putNoise();
    const point = stick("one", 64);
    expect((await runHere("copy", "R2.bundle", "one")).status).toBe(0);
    const isCached = (): boolean => readFileSync(join(point, "R2.bundle")).equals(noise);
    expect(isCached()).toBe(true);
    const at = readFileSync(folder.file("one.img")).indexOf(noise.subarray(20 * MIB, 20 * MIB + 4096));
    const args = ["if=/dev/zero", `of=${folder.file("one.img")}`, "bs=1", "count=16", `seek=${at}`];
    must("dd", ...args, "conv=notrunc", "status=none");
    expect(isCached()).toBe(true);
    const error = errorOf(await runHere("copy", "R2.bundle", "one", "--json"));
    expect(error.code).toBe("output-exists");
    expect(error.message).toContain(`bytes ${20 * MIB} to ${20 * MIB + 16} are not the bundle's`);
  });

  test("taken out while it is written, it is gone on with when it is back", async () => {
    putNoise();
    const point = stick("one", 64);
    const child = start(["copy", "R2.bundle", "one"], folder.path);
    const result = ended(child);
    while (!readdirSync(point).includes(".R2.bundle.partial") && child.exitCode === null)
      await new Promise((resolve) => setTimeout(resolve, 2));
    // So that it is not over before the stick is out.
    child.kill("SIGSTOP");
    expect(readdirSync(point)).toContain(".R2.bundle.partial");
    must("umount", "--lazy", point);
    child.kill("SIGCONT");
    const { status, stderr } = await result;
    expect([status, stderr]).toEqual([16, expect.stringContaining("one: is not what it was")]);
    mountStick("one");
    expect(readdirSync(point)).not.toContain("R2.bundle");
    expect((await runHere("copy", "R2.bundle", "one")).status).toBe(0);
    expect(readFileSync(join(point, "R2.bundle")).equals(noise)).toBe(true);
  });

  test("killed at any moment, a copy has no name before it is whole, and goes on", async () => {
    putNoise();
    const point = stick("one", 64);
    const args = ["copy", "R2.bundle", "one", "--volume-size", String(7 * MIB)];
    for (let kills = 0; kills < 12; kills += 1) {
      const child = start(args, folder.path);
      const result = ended(child);
      await new Promise((resolve) => setTimeout(resolve, randomInt(150, 900)));
      child.kill("SIGKILL");
      await result;
      for (const name of readdirSync(point).filter((name) => name.startsWith("R2"))) {
        const start = (Number(name.slice(-3)) - 1) * 7 * MIB;
        expect(readFileSync(join(point, name)).equals(noise.subarray(start, start + 7 * MIB))).toBe(true);
      }
    }
    expect((await runHere(...args)).status).toBe(0);
    expect(readdirSync(point).sort()).toEqual(
      [1, 2, 3, 4].map((number) => `R2.bundle.00${number}`).concat("lost+found"),
    );
    expect((await runHere("verify", "one/R2.bundle.001", "--key", PUBLIC)).status).toBe(0);
  });

  test("a block device is read, and copied from", async () => {
    putNoise();
    const point = stick("one", 64);
    const { stdout } = spawnSync("losetup", ["--find", "--show", "--read-only", folder.file("R2.bundle")], {
      encoding: "utf8",
    });
    const device = stdout.trim();
    try {
      expect((await runHere("copy", device, "one", "--key", PUBLIC)).status).toBe(0);
      expect(readdirSync(point)).toContain(device.slice("/dev/".length));
    } finally {
      must("losetup", "-d", device);
    }
  });
});
