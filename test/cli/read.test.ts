import { spawnSync } from "node:child_process";
import {
  chmodSync,
  closeSync,
  copyFileSync,
  mkdirSync,
  openSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { beforeEach, describe, expect, test } from "vitest";
import { readIndex, readStream } from "../../fixtures/streams/recorded.js";
import { encodeFrame } from "../../src/bundle/frame.js";
import { LIMITS } from "../../src/bundle/layout.js";
import { encodeManifest, type Manifest } from "../../src/bundle/manifest.js";
import type { ErrorCode } from "../../src/errors.js";
import { encodePublicKey, generateKeyPair } from "../../src/trust/minisign.js";
import {
  flipped,
  input,
  join,
  longStream,
  pack,
  packAll,
  replace,
  resign,
  rootInput,
  smallStream,
  split,
} from "../bundle/support.js";
import {
  CLI,
  ended,
  errorOf,
  EXAMPLE,
  inFolder,
  inTerminal,
  PUBLIC,
  run,
  runByModes,
  start,
  told,
} from "./support.js";

const folder = inFolder();
const bundle = readFileSync(EXAMPLE);
const runHere = (...args: string[]) => run(args, { cwd: folder.path });
const put = (bytes: Uint8Array, name = "R2.bundle"): void => writeFileSync(folder.file(name), bytes);
beforeEach(() => {
  put(bundle);
  writeFileSync(folder.file("other.pub"), encodePublicKey(generateKeyPair().publicKey));
});

describe("bundle verify", () => {
  test("says in a line what is verified, from where to where, and who signed", async () => {
    const { status, stdout, stderr } = await runHere("verify", "R2.bundle", "--key", PUBLIC);
    expect([status, stderr]).toEqual([
      0,
      "it expired at 2025-09-13 15:06:40 UTC: bundle install refuses it\n",
    ]);
    expect(stdout.toString()).toBe(
      "OK R2.bundle: demo release R2 (2), usr from guid 99 to R2, 8.5 KiB, " +
        `signed by 0E07B77755AB6E15 (${PUBLIC})\n`,
    );
  });

  test("takes one of several keys", async () => {
    expect((await runHere("verify", "--key", "other.pub", "R2.bundle", "-k", PUBLIC)).status).toBe(0);
  });

  test("tells as JSON what is verified", async () => {
    const { stdout } = await runHere("verify", "R2.bundle", "--key", PUBLIC, "--json");
    expect(JSON.parse(stdout.toString())).toMatchObject({
      verified: true,
      expired: true,
      file: "R2.bundle",
      bytes: bundle.length,
      identity: "3f8e1e8f517db7d1693321409a4045e22360a30ac4e2f516218c2a622c268a11",
      signers: [
        { keyId: "0E07B77755AB6E15", name: PUBLIC, trustedComment: "product demo release R2 sequence 2" },
      ],
      manifest: { product: "demo", release: { name: "R2", sequence: 2 } },
    });
  });

  test("asks the site's configuration for its keys and threshold", async () => {
    mkdirSync(folder.file("keys"));
    copyFileSync(PUBLIC, folder.file("keys/release.pub"));
    const configure = (threshold: number) =>
      writeFileSync(
        folder.file("site.toml"),
        `product = "demo"\n[streams]\nusr = "p/usr"\n[trust]\nkeys = "${folder.file("keys")}"\nthreshold = ${threshold}\n`,
      );
    configure(1);
    expect((await runHere("verify", "R2.bundle", "--config", "site.toml")).status).toBe(0);
    configure(2);
    const { status, message } = told(await runHere("verify", "R2.bundle", "--config", "site.toml"));
    expect([status, message]).toEqual([
      11,
      "signatures by 2 of 1 trusted keys are needed, found 1: 0E07B77755AB6E15",
    ]);
  });

  test("says that another product's bundle is not for this site, and does not mix its keys with others", async () => {
    mkdirSync(folder.file("keys"));
    copyFileSync(PUBLIC, folder.file("keys/release.pub"));
    writeFileSync(
      folder.file("site.toml"),
      `product = "other"\nstate = "${folder.file("state")}"\n[streams]\nusr = "p/usr"\n[trust]\nkeys = "${folder.file("keys")}"\n`,
    );
    const { status, stderr } = await runHere("verify", "R2.bundle", "--config", "site.toml");
    expect([status, stderr]).toEqual([
      0,
      expect.stringContaining("this site has product other: bundle install refuses it\n"),
    ]);
    expect((await runHere("verify", "R2.bundle", "--config", "site.toml", "--key", PUBLIC)).status).toBe(2);
  });

  test("refuses other keys, and names who signed and who is trusted", async () => {
    const result = await runHere("verify", "R2.bundle", "--key", "other.pub", "--json");
    expect(errorOf(result)).toMatchObject({
      code: "signature-missing",
      details: { signed: ["0E07B77755AB6E15"], trusted: [expect.stringMatching(/^[0-9A-F]{16}$/)] },
    });
  });

  test("refuses a file that is cut off", async () => {
    for (const length of [0, 100, 3_000, bundle.length - 512, bundle.length - 1]) {
      put(bundle.subarray(0, length));
      const { status, hint } = told(await runHere("verify", "R2.bundle", "--key", PUBLIC));
      expect([status, hint]).toEqual([12, "copy the file again"]);
    }
  });

  test("refuses a file with a byte changed", async () => {
    put(flipped(bundle, bundle.length - 1_500));
    const result = await runHere("verify", "R2.bundle", "--key", PUBLIC, "--json");
    expect(errorOf(result)).toMatchObject({
      code: "content-mismatch",
      details: { file: "R2.bundle", member: "streams/usr/00000000.zst" },
    });
  });

  test("refuses what is no bundle, and names the offset", async () => {
    put(Buffer.alloc(10_000, "x"));
    expect(told(await runHere("verify", "R2.bundle", "--key", PUBLIC))).toMatchObject({
      status: 10,
      message: "byte 0: R2.bundle is no bundle: it does not begin with SHA256SUMS",
    });
  });

  test.each<[string, string, () => void]>([
    ["there is no such file", "missing", () => undefined],
    ["is not a regular file or block device", "folder", () => mkdirSync(folder.file("folder"))],
    ["is not a regular file or block device", "fifo", () => spawnSync("mkfifo", [folder.file("fifo")])],
    ["is a symbolic link", "link", () => symlinkSync("R2.bundle", folder.file("link"))],
  ])("refuses a path that %s: %s", async (reason, name, make) => {
    make();
    for (const verb of ["verify", "inspect", "send"]) {
      const { status, message } = told(await runHere(verb, name, "--key", PUBLIC));
      expect([status, message]).toEqual([16, `${name}: ${reason}`]);
    }
  });

  test("refuses a file that may not be read", () => {
    chmodSync(folder.file("R2.bundle"), 0);
    const { status, stderr } = runByModes(["verify", "R2.bundle", "--key", PUBLIC], folder.path);
    expect([status, stderr]).toEqual([16, "bundle: R2.bundle: permission denied\n"]);
  });

  test("names a key file that is missing, or no key", async () => {
    expect(told(await runHere("verify", "R2.bundle", "--key", "none.pub"))).toMatchObject({
      status: 16,
      message: "public key none.pub: there is no such file",
    });
    expect(told(await runHere("verify", "R2.bundle", "--key", "R2.bundle"))).toMatchObject({ status: 10 });
  });

  test("says where a site's configuration and keys belong", async () => {
    expect(told(await runHere("verify", "R2.bundle", "--config", "none.toml"))).toEqual({
      status: 17,
      message: "site configuration none.toml: there is no such file",
      hint: "write one (formats/configuration.md has an example), or name another with --config, or a public key with --key",
    });
    writeFileSync(
      folder.file("site.toml"),
      `product = "demo"\n[streams]\nusr = "p/usr"\n[trust]\nkeys = "${folder.path}/none"\n`,
    );
    expect(told(await runHere("verify", "R2.bundle", "--config", "site.toml"))).toEqual({
      status: 17,
      message: `${folder.path}/none: there is no public key (*.pub)`,
      hint: "bundle trust --add FILE puts the publisher's public key there",
    });
  });
});

describe("bundle verify --deep", () => {
  const verify = (...more: string[]) => runHere("verify", "R2.bundle", "--key", PUBLIC, "--deep", ...more);
  /** The example with another frame in the place of one, and a manifest that knows its size. */
  const putFrame = (name: string, change: (frame: Uint8Array) => Uint8Array): void => {
    const changed = replace(split(bundle), name, change);
    const stored = changed.find((member) => member.name === name)?.content.length;
    const sized = replace(changed, "manifest.json", (content) => {
      const manifest = JSON.parse(Buffer.from(content).toString()) as Manifest;
      const { patch } = manifest.root as NonNullable<Manifest["root"]>;
      const [chunk] = manifest.streams[0]?.chunks ?? [];
      Object.assign(name === "root/patch.zst" ? patch : (chunk ?? {}), { storedBytes: stored });
      return encodeManifest(manifest);
    });
    put(join(resign(sized)));
  };

  test("says that every record was checked", async () => {
    const { status, stdout } = await verify();
    expect([status, stdout.toString()]).toEqual([
      0,
      "OK R2.bundle: demo release R2 (2), usr from guid 99 to R2, 8.5 KiB, " +
        `signed by 0E07B77755AB6E15 (${PUBLIC}), every record checked\n`,
    ]);
    const deep = async (result: ReturnType<typeof verify>) =>
      (JSON.parse((await result).stdout.toString()) as { deep: boolean }).deep;
    expect(await deep(verify("--json"))).toBe(true);
    expect(await deep(runHere("verify", "R2.bundle", "--key", PUBLIC, "--json"))).toBe(false);
  });

  test("needs no root half", async () => {
    put(await packAll());
    expect((await verify()).status).toBe(0);
    put(await pack());
    expect((await verify()).status).toBe(0);
  });

  test.each<[ErrorCode, string, () => void | Promise<void>]>([
    [
      "stream-malformed",
      "a stream with a fault",
      () => putFrame("streams/usr/00000000.zst", () => encodeFrame(flipped(smallStream(), 700), 9)),
    ],
    [
      "metadata-malformed",
      "counts that are not those of the metadata",
      async () => {
        const { summary, ...root } = rootInput();
        const counts = { added: 1, modified: 1, deleted: 0 };
        put(await pack({ root: { ...root, summary: { ...summary, counts } } }));
      },
    ],
    [
      "metadata-malformed",
      "metadata that is none",
      async () => put(await pack({ root: { ...rootInput(), metadata: Buffer.from("{}") } })),
    ],
    [
      "frame-malformed",
      "a patch of two frames",
      () => putFrame("root/patch.zst", (frame) => Buffer.concat([frame, frame])),
    ],
  ])("refuses with %s what verify alone does not see: %s", async (code, _what, make) => {
    await make();
    expect((await runHere("verify", "R2.bundle", "--key", PUBLIC)).status).toBe(0);
    const result = await verify("--json");
    expect([errorOf(result).code, result.status, result.stdout.length]).toEqual([code, 10, 0]);
  });
});

describe("bundle inspect", () => {
  test("says first that nothing is verified", async () => {
    const { status, stdout } = await runHere("inspect", "R2.bundle");
    const [first, ...rest] = stdout.toString().trimEnd().split("\n");
    expect([status, first]).toEqual([
      0,
      "NOTHING IS VERIFIED: this is what the file says of itself. Use bundle verify, or give --key.",
    ]);
    expect(rest).toEqual([
      "product:   demo",
      "release:   R2 (sequence 2)",
      "created:   2025-06-15 15:06:40 UTC",
      "expires:   2025-09-13 15:06:40 UTC (expired: bundle install refuses it)",
      "notes:     New /etc/issue.",
      "file:      8.5 KiB",
      "signed by: 0E07B77755AB6E15 (not verified)",
      "stream:    usr, of tank/BUILD/gentoo/usr",
      "  base:    guid 99",
      "  target:  R2 (guid 1234605616436508552)",
      "  size:    1.5 KiB, 308 B stored in 1 chunk",
      "  flags:   none",
      "needs:     1.5 KiB free in the pool at most",
      `root:      commit ${"1".repeat(40)} to ${"2".repeat(40)}`,
      "  changes: 0 added, 1 modified, 0 deleted",
      "  M etc/issue",
    ]);
  });

  test("with a key verifies the signatures, and says so", async () => {
    const { stdout } = await runHere("inspect", "R2.bundle", "--key", PUBLIC);
    expect(stdout.toString()).toMatch(
      /^The signatures are verified, the contents are NOT: use bundle verify\.\n/,
    );
    expect(stdout.toString()).toContain(
      "signed by: 0E07B77755AB6E15 (verified), trusted comment: product demo release R2 sequence 2\n",
    );
    expect((await runHere("inspect", "R2.bundle", "--key", "other.pub")).status).toBe(11);
  });

  test("tells the same as JSON", async () => {
    const parsed = async (...args: string[]) =>
      JSON.parse((await runHere("inspect", "R2.bundle", "--json", ...args)).stdout.toString()) as object;
    expect(await parsed()).toMatchObject({
      verified: false,
      signers: [{ keyId: "0E07B77755AB6E15" }],
      manifest: { product: "demo" },
      changes: [{ path: "etc/issue" }],
    });
    expect(await parsed("--key", PUBLIC)).toMatchObject({ verified: true, signers: [{ name: PUBLIC }] });
    put(await pack());
    expect(await parsed()).toMatchObject({ changes: null });
  });

  test("shows nothing that could command a terminal", async () => {
    const notes = "\u001b[31mred\r\u202e and\u0007\nthe second line";
    const metadata = Buffer.from(
      Buffer.from(rootInput().metadata)
        .toString()
        .replace('"path":"etc/issue"', '"path":"etc/\\u001b[2Jissue"'),
    );
    put(await pack({ notes, root: { ...rootInput(), metadata } }));
    const { status, stdout } = await runHere("inspect", "R2.bundle");
    const screen = stdout.toString();
    expect([status, /[^\n\x20-\x7e]/.test(screen)]).toEqual([0, false]);
    expect(screen).toContain(
      "notes:     \\u{1b}[31mred\\u{d}\\u{202e} and\\u{7}\n           the second line\n",
    );
    expect(screen).toContain('  M "etc/\\033[2Jissue"\n');
  });

  test("prints the patch as it is, and says beside it that nothing is verified", async () => {
    const { stdout, stderr } = await runHere("inspect", "R2.bundle", "--patch");
    expect(stdout.equals(Buffer.from(rootInput().patch))).toBe(true);
    expect(stderr).toMatch(/^NOTHING IS VERIFIED/);
    expect((await runHere("inspect", "R2.bundle", "--patch", "--quiet")).stderr).toBe(stderr);
    expect((await runHere("inspect", "R2.bundle", "--patch", "--key", PUBLIC)).stderr).toBe("");
    put(await pack());
    expect(told(await runHere("inspect", "R2.bundle", "--patch", "--key", PUBLIC))).toMatchObject({
      status: 2,
      message: "R2.bundle has no root half, so there is no patch",
    });
  });

  test("prints nothing of a patch that could command a terminal", async () => {
    const patch = Buffer.from("+\u001b[2J\tx\n");
    put(await pack({ root: { ...rootInput(), patch } }));
    const { status, screen } = await inTerminal(
      ["inspect", "R2.bundle", "--patch", "--key", PUBLIC],
      [],
      folder.path,
    );
    expect([status, screen]).toEqual([0, "+\\u{1b}[2J\tx\r\n"]);
  });
});

describe("bundle send", () => {
  test("gives the stream that went in, byte for byte", async () => {
    put(await pack({ streams: [input("usr", longStream())] }));
    const { status, stdout, stderr } = await runHere("send", "R2.bundle", "--key", PUBLIC);
    expect([status, stderr, stdout.equals(longStream())]).toEqual([0, "", true]);
  });

  describe("--token", () => {
    const recorded = (name: string) => {
      const found = readIndex().find((each) => each.name === name);
      if (found === undefined) throw new Error(`${name} is not recorded`);
      return found;
    };
    const resuming = recorded("2.3-files-incr-resuming");
    const token = resuming.rest?.token ?? "";
    const send = (...more: string[]) => runHere("send", "R2.bundle", "--key", PUBLIC, ...more);
    beforeEach(async () => {
      const whole = readStream(recorded("2.3-files-incr"));
      put(
        await pack({
          chunkBytes: 256 * 1024,
          streams: [input("data", smallStream(40)), input("usr", whole)],
        }),
      );
    });

    test.each([[[]], [["--stream", "usr"]]])("gives what zfs send -t gives, with %j", async (more) => {
      const { status, stdout, stderr } = await send("-t", token, ...more);
      expect([status, stderr]).toEqual([0, ""]);
      expect(stdout.equals(readStream(resuming))).toBe(true);
    });

    test("of another receive is refused, and nothing is sent", async () => {
      const other = await send("--token", recorded("2.1-files-incr-resuming").rest?.token ?? "");
      expect(told(other)).toMatchObject({
        status: 13,
        message: expect.stringMatching(
          /^the token is of a receive from guid 10683328058126123105 to /,
        ) as string,
        hint: "the bundle whose receive was interrupted has the rest of it",
      });
      const wrongRole = await send("--token", token, "--stream", "data");
      expect([other.stdout.length, wrongRole.status, wrongRole.stdout.length]).toEqual([0, 13, 0]);
    });

    test("that is no token is refused", async () => {
      const { status, message } = told(await send("--token=-"));
      expect([status, message]).toEqual([10, "resume token is not of the form 1-CHECKSUM-LENGTH-DATA"]);
    });
  });

  test("gives one of several streams by its role", async () => {
    put(await packAll());
    const { stdout } = await runHere("send", "R2.bundle", "--key", PUBLIC, "--stream", "data");
    expect(stdout.equals(smallStream(40))).toBe(true);
    const none = await runHere("send", "R2.bundle", "--key", PUBLIC);
    expect(told(none)).toEqual({
      status: 2,
      message: "the bundle has streams data, usr",
      hint: "choose one with --stream",
    });
    const other = await runHere("send", "R2.bundle", "--key", PUBLIC, "--stream", "home");
    expect(told(other)).toMatchObject({
      status: 2,
      message: "the bundle has no stream home, only data, usr",
    });
  });

  test("gives nothing without a signature by a trusted key", async () => {
    const result = await runHere("send", "R2.bundle", "--key", "other.pub");
    expect([told(result).status, result.stdout.length]).toEqual([11, 0]);
  });

  test("gives nothing of a chunk that was changed, and nothing after it", async () => {
    const long = await pack({ streams: [input("usr", longStream())] });
    const second = long.indexOf("streams/usr/00000001.zst", 2_000) + 512;
    put(flipped(long, second));
    const result = await runHere("send", "R2.bundle", "--key", PUBLIC);
    expect(told(result).status).toBe(12);
    expect(result.stdout.length).toBeGreaterThan(0);
    expect(result.stdout.equals(longStream().subarray(0, result.stdout.length))).toBe(true);
  });

  test("gives no byte that changed after it was verified", async () => {
    const stream = Buffer.concat([longStream()]);
    const long = await pack({ streams: [input("usr", stream)] });
    put(long);
    const child = start(["send", "R2.bundle", "--key", PUBLIC], folder.path);
    const result = ended(child);
    child.stdout.pause();
    await new Promise((resolve) => child.stdout.once("readable", resolve));
    // The first chunk is on its way, which the pipe does not hold whole; the last one is not read yet.
    const last = long.lastIndexOf("streams/usr/0000000") + 600;
    const file = openSync(folder.file("R2.bundle"), "r+");
    writeSync(file, "XXXX", last);
    closeSync(file);
    child.stdout.resume();
    const { status, stdout, stderr } = await result;
    expect([status, stderr]).toEqual([12, expect.stringContaining("has SHA-256")]);
    expect(stdout.length).toBeLessThan(stream.length);
    expect(stdout.equals(stream.subarray(0, stdout.length))).toBe(true);
  });

  test("says in a line that the disk is full", () => {
    const full = openSync("/dev/full", "w");
    const { status, stderr } = spawnSync(process.execPath, [CLI, "send", "R2.bundle", "--key", PUBLIC], {
      cwd: folder.path,
      stdio: ["ignore", full, "pipe"],
    });
    closeSync(full);
    expect([status, stderr.toString()]).toEqual([16, "bundle: cannot write to standard output: ENOSPC\n"]);
  });

  test.each(["SIGINT", "SIGTERM"] as const)("ends by %s although nobody reads", async (signal) => {
    put(await pack({ streams: [input("usr", longStream())] }));
    const child = start(["send", "R2.bundle", "--key", PUBLIC], folder.path);
    child.stdout.pause();
    await new Promise((resolve) => child.stdout.once("readable", resolve));
    child.kill(signal);
    // By the signal only if it waited for its reader just then. To a shell both are status 130.
    const by = await new Promise((resolve) =>
      child.once("exit", (status, signal) => resolve(status ?? signal)),
    );
    expect([130, "SIGINT"]).toContain(by);
    child.stdout.destroy();
  });

  test("says in a line that its reader has ended", async () => {
    put(await pack({ streams: [input("usr", longStream())] }));
    const child = start(["send", "R2.bundle", "--key", PUBLIC], folder.path);
    const result = ended(child);
    child.stdout.once("data", () => child.stdout.destroy());
    expect(told(await result)).toMatchObject({
      status: 16,
      message: "cannot write to standard output: its reader has ended",
    });
  });

  test("does not write to a terminal", async () => {
    const { status, screen } = await inTerminal(["send", "R2.bundle", "--key", PUBLIC], [], folder.path);
    expect([status, screen]).toEqual([
      2,
      "bundle: standard output is a terminal, and a send stream is binary\r\n  give it to zfs receive, or to a file\r\n",
    ]);
  });
});

describe("a hostile bundle", () => {
  test("of another format is refused with both numbers", async () => {
    const members = split(bundle).map((member) =>
      member.name === "manifest.json" ? { ...member, content: Buffer.from('{"format":2}') } : member,
    );
    put(join(resign(members)));
    expect(told(await runHere("verify", "R2.bundle", "--key", PUBLIC))).toMatchObject({
      status: 10,
      message: "the bundle has format 2, this zferry reads format 1",
    });
  });

  test("with a name that could command a terminal cannot", async () => {
    const changed = Buffer.from(bundle);
    changed.write("\u001b[2J", 0, "latin1");
    changed.fill(" ", 148, 156);
    const sum = changed.subarray(0, 512).reduce((total, byte) => total + byte, 0);
    changed.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
    put(changed);
    const { status, message } = told(await runHere("verify", "R2.bundle", "--key", PUBLIC));
    expect(status).toBe(10);
    expect(message).not.toMatch(/[^\x20-\x7e]/);
  });

  test("whose metadata would take gigabytes when parsed is refused before", async () => {
    const metadata = Buffer.concat([
      Buffer.from("["),
      Buffer.alloc(9_000_000 * 3, "[],"),
      Buffer.from("[]]"),
    ]);
    put(await pack({ root: { ...rootInput(), metadata } }));
    expect(told(await runHere("inspect", "R2.bundle"))).toMatchObject({
      status: 10,
      message: "root metadata is malformed: more than 8000000 values",
    });
  });

  test("whose counts are not those of its metadata is refused by inspect", async () => {
    const { summary, ...root } = rootInput();
    const counts = { added: 1, modified: 1, deleted: 0 };
    put(await pack({ root: { ...root, summary: { ...summary, counts } } }));
    expect(told(await runHere("inspect", "R2.bundle"))).toMatchObject({
      status: 10,
      message: "root metadata has 0 added paths, the manifest says 1",
    });
  });

  test("with a name of megabytes gives a message of a few lines", async () => {
    const members = split(bundle).map((member) =>
      member.name === "manifest.json"
        ? { ...member, content: Buffer.from(`{"${"x".repeat(3 << 20)}":1}`) }
        : member,
    );
    put(join(resign(members)));
    const { status, message } = told(await runHere("inspect", "R2.bundle"));
    expect([status, message.length < 3_000]).toEqual([10, true]);
  });

  test("that claims a huge list of hashes is refused at once", async () => {
    const changed = Buffer.from(bundle);
    changed.write((LIMITS.sumsBytes + 1).toString(8).padStart(11, "0"), 124, "latin1");
    changed.fill(" ", 148, 156);
    const sum = changed.subarray(0, 512).reduce((total, byte) => total + byte, 0);
    changed.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
    put(changed);
    expect(told(await runHere("inspect", "R2.bundle"))).toMatchObject({
      status: 10,
      message: "byte 0: SHA256SUMS has 33554433 bytes, the limit is 33554432",
    });
  });
});
