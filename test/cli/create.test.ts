import { readdirSync, readFileSync, readlinkSync, statSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { beforeEach, describe, expect, test } from "vitest";
import { longStream, pack, smallStream } from "../bundle/support.js";
import { begin, end, seal, write } from "../stream/support.js";
import {
  ended,
  errorOf,
  inFolder,
  keyFile,
  PUBLIC,
  run,
  SECRET,
  start,
  told,
  type Running,
} from "./support.js";

const folder = inFolder();
beforeEach(() => writeFileSync(folder.file("usr.zfs"), smallStream()));

/** The options that a recorded stream needs. */
const RECORDED = ["--product", "demo", "--release", "R2", "--sequence", "2", "--key", SECRET];
const create = (...args: string[]) => ["create", ...RECORDED, ...args];
const runHere = (args: readonly string[], input?: Uint8Array) =>
  run(args, input === undefined ? { cwd: folder.path } : { cwd: folder.path, input });

/** All files, hidden ones too, but for the recorded stream. */
const filesLeft = (): string[] => readdirSync(folder.path).filter((name) => name !== "usr.zfs");

describe("bundle create --stream", () => {
  test("packs a file, and says in a line what it made", async () => {
    const { status, stdout, stderr } = await runHere(create("--stream", "usr=usr.zfs"));
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout.toString()).toMatch(
      /^demo-R2\.bundle: demo release R2 \(2\), usr from guid 99 to R2, [0-9.]+ KiB, signed by 0E07B77755AB6E15\n$/,
    );
    expect(filesLeft()).toEqual(["demo-R2.bundle"]);
    expect(statSync(folder.file("demo-R2.bundle")).mode & 0o777).toBe(0o644 & ~process.umask());
    expect((await runHere(["verify", "demo-R2.bundle", "--key", PUBLIC])).status).toBe(0);
  });

  test("packs standard input to the same bytes", async () => {
    await runHere(create("--stream", "usr=usr.zfs", "-o", "file"));
    await runHere(create("--stream", "usr=-", "-o", "stdin"), smallStream());
    const bytes = readFileSync(folder.file("file"));
    expect(readFileSync(folder.file("stdin")).equals(bytes)).toBe(true);
    expect((await pack({ chunkBytes: 8 << 20 })).equals(bytes)).toBe(true);
  });

  test("packs several streams, with notes, expiry, level and chunk size", async () => {
    writeFileSync(folder.file("data.zfs"), longStream());
    const more = ["--notes", "two\nlines", "--expires-days", "7", "--level", "1", "--chunk-mib", "1"];
    const streams = ["--stream", "usr=usr.zfs", "--stream", "data=data.zfs"];
    const { stdout } = await runHere(create(...streams, ...more, "--json", "-o", "R2.bundle"));
    const { file, bytes, keyId, manifest } = JSON.parse(stdout.toString()) as Record<string, never> & {
      manifest: Record<string, unknown>;
    };
    expect([file, bytes, keyId]).toEqual([
      "R2.bundle",
      statSync(folder.file("R2.bundle")).size,
      "0E07B77755AB6E15",
    ]);
    expect(manifest).toMatchObject({
      notes: "two\nlines",
      expires: 1_750_000_000 + 7 * 86_400,
      streams: [{ role: "data", chunks: [{}, {}] }, { role: "usr" }],
    });
  });

  test("never replaces a file", async () => {
    writeFileSync(folder.file("R2.bundle"), "mine");
    expect(told(await runHere(create("--stream", "usr=usr.zfs", "-o", "R2.bundle")))).toEqual({
      status: 17,
      message: "R2.bundle: there is such a file already",
      hint: "remove it, or write to another name with -o",
    });
    expect(readFileSync(folder.file("R2.bundle")).toString()).toBe("mine");
  });

  test("refuses a stream that is damaged, names the record, and leaves no file", async () => {
    const damaged = smallStream();
    damaged[1_000] = (damaged[1_000] as number) ^ 1;
    const result = await runHere(create("--stream", "usr=-", "--json"), damaged);
    expect(errorOf(result)).toMatchObject({
      code: "stream-malformed",
      details: { record: 3, type: "FREE", offset: 960 },
    });
    expect(filesLeft()).toEqual([]);
  });

  test.each<[string, Uint8Array]>([
    ["is cut off", smallStream().subarray(0, 1_200)],
    ["is empty", new Uint8Array()],
    ["is cut off after whole chunks", longStream().subarray(0, 1_200_000)],
  ])("refuses a stream that %s, and leaves no file", async (_what, stream) => {
    const { status, message } = told(await runHere(create("--stream", "usr=-", "--chunk-mib", "1"), stream));
    expect([status, filesLeft()]).toEqual([10, []]);
    expect(message).toMatch(/at byte [0-9]+/);
  });

  test("says what is no stream at all, and what to do", async () => {
    expect(told(await runHere(create("--stream", "usr=-"), Buffer.alloc(1_000, "x")))).toEqual({
      status: 10,
      message: expect.stringMatching(
        /^stream usr: record 0 .* at byte 0 is not BEGIN, so this is no zfs send stream$/,
      ) as string,
      hint: "what zfs send writes is taken as it is: a compressed one must be decompressed before",
    });
    expect(filesLeft()).toEqual([]);
  });

  test("names the file that it cannot read", async () => {
    expect(told(await runHere(create("--stream", "usr=none.zfs")))).toMatchObject({
      status: 16,
      message: "cannot open none.zfs: there is no such file or folder",
    });
    // The second file is not asked for before the first one is packed, and was once reported without a message.
    const both = await runHere(create("--stream", "usr=usr.zfs", "--stream", "zzz=none.zfs"));
    expect(told(both)).toMatchObject({
      status: 16,
      message: "cannot open none.zfs: there is no such file or folder",
    });
    expect(told(await runHere(create("--stream", "usr=."))).status).toBe(16);
    expect(filesLeft()).toEqual([]);
  });

  test("names the folder that it cannot write to", async () => {
    const { status, message } = told(
      await runHere(create("--stream", "usr=usr.zfs", "-o", "none/R2.bundle")),
    );
    expect([status, message]).toEqual([16, "cannot open none/R2.bundle: there is no such file or folder"]);
  });

  test.each<[string, string[]]>([
    ["--stream usr: is not role=file", ["--stream", "usr"]],
    ['--stream "USR": is not a role', ["--stream", "USR=usr.zfs"]],
    ["--stream: standard input holds one stream only", ["--stream", "usr=-", "--stream", "opt=-"]],
    ['--output "new/": is not a file\'s name', ["--stream", "usr=usr.zfs", "-o", "new/"]],
    ["--stream: a role is given twice", ["--stream", "usr=usr.zfs", "--stream", "usr=usr.zfs"]],
    ["--level: 23 is not a whole number from 1 to 22", ["--stream", "usr=-", "--level", "23"]],
    ["--level: 1.5 is not a whole number from 1 to 22", ["--stream", "usr=-", "--level", "1.5"]],
    ["--chunk-mib: 33 is not a whole number from 1 to 32", ["--stream", "usr=-", "--chunk-mib", "33"]],
    [
      "--stream packs a recorded stream, --base, --target and --for this host's releases",
      ["--stream", "usr=-", "-t", "R2"],
    ],
    ["--product goes with --stream only", ["--target", "R2"]],
    [
      "--allow-secret is for paths of /: it goes with --base and --target",
      ["--stream", "usr=-", "--allow-secret", "etc/x"],
    ],
  ])("says %s", async (expected, args) => {
    expect(told(await runHere(create(...args)))).toMatchObject({ status: 2, message: expected });
    expect(filesLeft()).toEqual([]);
  });

  test.each(["--product", "--release", "--sequence", "--key"])("says that %s is missing", async (option) => {
    const at = RECORDED.indexOf(option);
    const args = RECORDED.filter((_, index) => index !== at && index !== at + 1);
    const result = await runHere(["create", "--stream", "usr=usr.zfs", ...args]);
    expect(told(result)).toMatchObject({ status: 2, message: `${option} is missing` });
  });

  test("refuses names that no reader takes", async () => {
    const args = ["create", "--stream", "usr=usr.zfs", "--key", SECRET, "--sequence", "2"];
    const release = await runHere([...args, "--product", "demo", "--release", "../R2"]);
    expect(told(release)).toMatchObject({ status: 2, message: '--release "../R2": is not a release name' });
    const product = await runHere([...args, "--product", "Demo", "--release", "R2"]);
    expect(told(product)).toMatchObject({ status: 2, message: '--product "Demo": is not a product name' });
  });

  test("refuses a path to be allowed that is no pattern", async () => {
    const result = await runHere(["create", "--target", "R2", "--allow-secret", "etc//shadow"]);
    expect(told(result)).toMatchObject({
      status: 2,
      message: '--allow-secret "etc//shadow": has an empty component',
    });
  });

  test("says where a build host's configuration belongs", async () => {
    const result = await runHere(["create", "--target", "R2", "--config", "none.toml"]);
    expect(told(result)).toEqual({
      status: 17,
      message: "build configuration none.toml: there is no such file",
      hint: "write one (formats/configuration.md has an example), or name another with --config",
    });
  });
});

describe("the key of bundle create", () => {
  const withKey = (key: string, ...more: string[]) => [
    ...["create", "--stream", "usr=usr.zfs", "--product", "demo", "--release", "R2", "--sequence", "2"],
    ...["--key", key, ...more],
  ];
  const encrypted = keyFile("low-memory.key");

  test("is decrypted with a password file", async () => {
    const { status } = await runHere(withKey(encrypted, "--password-file", keyFile("password")));
    expect(status).toBe(0);
    const verified = await runHere(["verify", "demo-R2.bundle", "--key", keyFile("low-memory.pub")]);
    expect(verified.status).toBe(0);
  });

  test("with a wrong password is refused, and no file left", async () => {
    writeFileSync(folder.file("usr.zfs"), smallStream());
    const { status, message } = told(await runHere(withKey(encrypted, "--password-file", PUBLIC)));
    expect([status, filesLeft()]).toEqual([11, []]);
    expect(message).toBe(`secret key ${encrypted} cannot be decrypted with this password`);
  });

  test("with no password to be had is refused", async () => {
    const { status, hint } = told(await runHere(withKey(encrypted)));
    expect([status, hint, filesLeft()]).toEqual([11, "give the passphrase with --password-file", []]);
  });

  test("that is no key, or not there, is refused", async () => {
    expect(told(await runHere(withKey(PUBLIC))).status).toBe(10);
    expect(told(await runHere(withKey("none.key")))).toMatchObject({
      status: 16,
      message: "secret key none.key: there is no such file",
    });
    expect(filesLeft()).toEqual([]);
  });
});

describe("an interrupted create", () => {
  /** Waits until the program has its temporary file, which has no name any more. */
  async function spooling(child: Running): Promise<void> {
    for (;;) {
      const fds = `/proc/${child.pid}/fd`;
      const open = readdirSync(fds).map((fd) => {
        try {
          return readlinkSync(`${fds}/${fd}`);
        } catch {
          return "";
        }
      });
      if (open.some((path) => path.startsWith(folder.path) && path.endsWith(" (deleted)"))) return;
      await sleep(20);
    }
  }

  test.each(["SIGINT", "SIGTERM", "SIGHUP"] as const)(
    "by %s, between two chunks or waiting for its input, leaves no file",
    async (signal) => {
      const child = start(create("--stream", "usr=-", "--chunk-mib", "1", "--json"), folder.path);
      child.stdin.on("error", () => undefined);
      const result = ended(child);
      await spooling(child);
      // More than a chunk, and no end: the program waits for the rest.
      child.stdin.write(
        seal([
          begin(),
          ...Array.from({ length: 20 }, (_, i) => write(BigInt(i + 1), 100 << 10)),
          end(),
        ]).subarray(0, -400),
      );
      await sleep(200);
      child.kill(signal);
      expect(errorOf(await result)).toMatchObject({ code: "interrupted", message: "interrupted" });
      expect(filesLeft()).toEqual([]);
    },
  );

  test("before it reads its input ends as well", async () => {
    const encrypted = keyFile("encrypted.key"); // takes seconds to decrypt
    const args = create("--stream", "usr=-", "--password-file", keyFile("password")).map((word) =>
      word === SECRET ? encrypted : word,
    );
    const child = start(args, folder.path);
    const result = ended(child);
    await spooling(child);
    child.kill("SIGINT");
    const { status, stderr } = await result;
    expect([status, stderr, filesLeft()]).toEqual([130, "bundle: interrupted\n", []]);
  });
});
