import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { parsePublicKey, parseSecretKey, publicKeyOf } from "../../src/trust/minisign.js";
import { flipped, smallStream } from "../bundle/support.js";
import { CLI, inFolder, inTerminal, run, told } from "./support.js";

const folder = inFolder();
const read = (name: string): Buffer => readFileSync(folder.file(name));

const noMinisign = spawnSync("minisign", ["-v"]).error !== undefined;
const required = process.env["CI"] === "true" || process.env["ZFERRY_REQUIRE_TOOLS"] === "1";
const why = "minisign is not installed here (apt-get install minisign)";
if (noMinisign && required) throw new Error(`these tests are required, but ${why}`);
if (noMinisign) console.warn(`left out: keygen's keys with the real minisign, because ${why}`);

describe("bundle keygen", () => {
  test("writes a pair of keys, the secret one for its owner's eyes only", async () => {
    const { status, stdout, stderr } = await run(["keygen", "-o", "release", "--no-password"], {
      cwd: folder.path,
    });
    const publicKey = parsePublicKey(read("release.pub"), "release.pub");
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout.toString()).toBe(`key ${publicKey.keyId}: secret in release.key, public in release.pub\n`);
    const secretKey = await parseSecretKey(read("release.key"), "release.key", undefined);
    expect(publicKeyOf(secretKey, "release.pub")).toEqual(publicKey);
    expect(statSync(folder.file("release.key")).mode & 0o777).toBe(0o600);
    expect(statSync(folder.file("release.pub")).mode & 0o777).toBe(0o644 & ~process.umask());
  });

  test.each([
    ["000", 0o644],
    ["0777", 0o600],
    ["027", 0o640],
  ])("with umask %s no file is more open than 022 has it, or closed to its owner", (umask, mode) => {
    const command = `umask ${umask}; exec "$0" "$@"`;
    const args = ["keygen", "-o", "release", "--no-password"];
    const { status } = spawnSync("sh", ["-c", command, process.execPath, CLI, ...args], { cwd: folder.path });
    expect(status).toBe(0);
    expect(statSync(folder.file("release.key")).mode & 0o777).toBe(0o600);
    expect(statSync(folder.file("release.pub")).mode & 0o777).toBe(mode);
  });

  test("refuses a password file for a key without a password, and writes nothing", async () => {
    writeFileSync(folder.file("password"), "secret\n");
    const args = ["keygen", "-o", "release", "--no-password", "--password-file", "password"];
    expect(told(await run(args, { cwd: folder.path })).status).toBe(2);
    expect(readdirSync(folder.path)).toEqual(["password"]);
  });

  test("tells as JSON what it wrote", async () => {
    const { stdout } = await run(["keygen", "-o", "release", "--no-password", "--json"], {
      cwd: folder.path,
    });
    expect(JSON.parse(stdout.toString())).toEqual({
      keyId: parsePublicKey(read("release.pub"), "x").keyId,
      secretKey: "release.key",
      publicKey: "release.pub",
    });
  });

  test.each(["release.key", "release.pub"])("never overwrites %s, and then writes neither", async (name) => {
    writeFileSync(folder.file(name), "mine");
    const { status, message } = told(
      await run(["keygen", "-o", "release", "--no-password"], { cwd: folder.path }),
    );
    expect([status, message]).toEqual([
      17,
      `${name}: there is such a file already, and keys are never overwritten`,
    ]);
    expect(readdirSync(folder.path)).toEqual([name]);
    expect(read(name).toString()).toBe("mine");
  });

  test("encrypts with the first line of a password file", async () => {
    writeFileSync(folder.file("password"), "correct horse\nand more\n");
    const args = ["keygen", "-o", "release", "--password-file", "password"];
    expect((await run(args, { cwd: folder.path })).status).toBe(0);
    const secretKey = await parseSecretKey(read("release.key"), "release.key", () => "correct horse");
    expect(secretKey.keyId).toBe(parsePublicKey(read("release.pub"), "x").keyId);
  });

  test("does not encrypt with an empty password", async () => {
    writeFileSync(folder.file("password"), "\n");
    const args = ["keygen", "-o", "release", "--password-file", "password"];
    expect(told(await run(args, { cwd: folder.path }))).toMatchObject({
      status: 2,
      message: "the passphrase is empty",
    });
    expect(readdirSync(folder.path)).toEqual(["password"]);
  });

  test("asks twice on a terminal, and shows nothing of the answer", async () => {
    const question = "passphrase for the new secret key: ";
    const { status, screen } = await inTerminal(
      ["keygen", "-o", "release"],
      [
        { question, answer: "hush hush\r" },
        { question: "repeat the passphrase: ", answer: "hush hush\r" },
      ],
      folder.path,
    );
    expect([status, screen.includes("hush")]).toEqual([0, false]);
    await parseSecretKey(read("release.key"), "release.key", () => "hush hush");
  });

  test("refuses two passphrases that differ, and leaves no file", async () => {
    const { status, screen } = await inTerminal(
      ["keygen", "-o", "release"],
      [
        { question: "passphrase for the new secret key: ", answer: "one\r" },
        { question: "repeat the passphrase: ", answer: "two\r" },
      ],
      folder.path,
    );
    expect([status, readdirSync(folder.path)]).toEqual([2, []]);
    expect(screen).toContain("the two passphrases differ");
  });

  test("stops at Ctrl-C in the question", async () => {
    const { status } = await inTerminal(
      ["keygen", "-o", "release"],
      [{ question: "passphrase for the new secret key: ", answer: "hu\u0003" }],
      folder.path,
    );
    expect([status, readdirSync(folder.path)]).toEqual([130, []]);
  });

  test.each(["", ".", "..", "folder/", "folder/.."])(
    "refuses the name %j, and writes nothing",
    async (name) => {
      const { status, message } = told(
        await run(["keygen", "-o", name, "--no-password"], { cwd: folder.path }),
      );
      expect([status, message]).toEqual([2, `--output ${JSON.stringify(name)}: is not a file's name`]);
      expect(readdirSync(folder.path)).toEqual([]);
    },
  );

  test("without a terminal says how to give a passphrase", async () => {
    expect(told(await run(["keygen", "-o", "release"], { cwd: folder.path }))).toEqual({
      status: 11,
      message: "passphrase for the new secret key: there is no terminal to ask on",
      hint: "give the passphrase with --password-file, or make a key without one with --no-password",
    });
  });

  test("names the folder that is not there", async () => {
    const { status, message } = told(
      await run(["keygen", "-o", "none/release", "--no-password"], { cwd: folder.path }),
    );
    expect([status, message]).toEqual([16, "cannot write none/release.key: there is no folder none"]);
  });

  test.skipIf(noMinisign)("makes keys that minisign signs and verifies with, bundles too", async () => {
    await run(["keygen", "-o", "release", "--no-password"], { cwd: folder.path });
    writeFileSync(folder.file("message"), "hello");
    const minisign = (...args: string[]) => spawnSync("minisign", args, { cwd: folder.path }).status;
    expect(minisign("-S", "-s", "release.key", "-m", "message")).toBe(0);
    expect(minisign("-V", "-p", "release.pub", "-m", "message")).toBe(0);

    const recorded = ["--stream", "usr=-", "--product", "demo", "--release", "R2", "--sequence", "2"];
    const create = ["create", ...recorded, "--key", "release.key", "-o", "R2.bundle"];
    expect((await run(create, { cwd: folder.path, input: smallStream() })).status).toBe(0);
    expect(spawnSync("tar", ["-xf", "R2.bundle"], { cwd: folder.path }).status).toBe(0);
    const signature = `signatures/${parsePublicKey(read("release.pub"), "release.pub").keyId}.minisig`;
    const verify = ["-V", "-p", "release.pub", "-m", "SHA256SUMS", "-x", signature];
    expect(minisign(...verify)).toBe(0);
    writeFileSync(folder.file("SHA256SUMS"), flipped(read("SHA256SUMS"), 0));
    expect(minisign(...verify)).toBe(1);
  });
});
