import { spawnSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { beforeEach, describe, expect, test } from "vitest";
import {
  encodePublicKey,
  encodeSecretKey,
  encodeSignature,
  generateKeyPair,
  sign,
  type SecretKey,
} from "../../src/trust/minisign.js";
import { flipped, resign, join, split } from "../bundle/support.js";
import { errorOf, EXAMPLE, inFolder, PUBLIC, run, SECRET, told } from "./support.js";

const folder = inFolder();
const runHere = (...args: string[]) => run(args, { cwd: folder.path });
const bundle = readFileSync(EXAMPLE);
const second = generateKeyPair();
beforeEach(async () => {
  writeFileSync(folder.file("R2.bundle"), bundle);
  writeFileSync(folder.file("second.key"), await encodeSecretKey(second.secretKey, undefined));
  writeFileSync(folder.file("second.pub"), encodePublicKey(second.publicKey));
});

const sums = () => runHere("sums", "R2.bundle");
const present = (): Buffer => readFileSync(folder.file("R2.bundle"));
/** A site that demands two signatures. */
function twoOfTwo(): string {
  mkdirSync(folder.file("keys"));
  copyFileSync(PUBLIC, folder.file("keys/first.pub"));
  copyFileSync(folder.file("second.pub"), folder.file("keys/second.pub"));
  writeFileSync(
    folder.file("site.toml"),
    `product = "demo"\nstate = "${folder.file("state")}"\n[streams]\nusr = "p/usr"\n[trust]\nkeys = "${folder.file("keys")}"\nthreshold = 2\n`,
  );
  return "site.toml";
}

describe("bundle sign", () => {
  test("adds a signature, and changes nothing else", async () => {
    const config = twoOfTwo();
    expect((await runHere("verify", "R2.bundle", "--config", config)).status).toBe(11);
    const { status, stdout } = await runHere("sign", "R2.bundle", "--key", "second.key");
    expect([status, stdout.toString()]).toEqual([
      0,
      `R2.bundle: signed by ${second.publicKey.keyId}; signatures: ${["0E07B77755AB6E15", second.publicKey.keyId].sort().join(", ")}\n`,
    ]);
    expect((await runHere("verify", "R2.bundle", "--config", config)).status).toBe(0);
    const rest = (bytes: Uint8Array) => split(bytes).filter(({ name }) => name !== signatureName);
    const signatureName = `signatures/${second.publicKey.keyId}.minisig`;
    expect(rest(present())).toEqual(split(bundle));
    expect(readdirSync(folder.path).filter((name) => name.startsWith("."))).toEqual([]);
  });

  test("keeps the owner and mode of what it replaces", async () => {
    chmodSync(folder.file("R2.bundle"), 0o600);
    chownSync(folder.file("R2.bundle"), 1234, 1234);
    expect((await runHere("sign", "R2.bundle", "--key", "second.key")).status).toBe(0);
    const { mode, uid, gid } = statSync(folder.file("R2.bundle"));
    expect([mode & 0o7777, uid, gid]).toEqual([0o600, 1234, 1234]);
  });

  test("loses no signature when several sign at a time", async () => {
    const results = await Promise.all(
      Array.from({ length: 4 }, async (_, number) => {
        const { secretKey } = generateKeyPair();
        writeFileSync(folder.file(`${number}.key`), await encodeSecretKey(secretKey, undefined));
        const { status } = await runHere("sign", "R2.bundle", "--key", `${number}.key`);
        return { keyId: secretKey.keyId, status };
      }),
    );
    const told = results.filter(({ status }) => status === 0).map(({ keyId }) => keyId);
    expect(told.length).toBeGreaterThan(0);
    const names = split(present()).map(({ name }) => name);
    for (const keyId of told) expect(names).toContain(`signatures/${keyId}.minisig`);
  });

  test("writes to another file, and leaves the first", async () => {
    expect((await runHere("sign", "R2.bundle", "--key", "second.key", "-o", "two.bundle")).status).toBe(0);
    expect(present().equals(bundle)).toBe(true);
    expect((await runHere("verify", "two.bundle", "--key", "second.pub")).status).toBe(0);
    const again = await runHere("sign", "R2.bundle", "--key", "second.key", "-o", "two.bundle");
    expect(told(again)).toMatchObject({ status: 17, message: "two.bundle: there is such a file already" });
  });

  test("does not sign twice", async () => {
    const result = await runHere("sign", "R2.bundle", "--key", SECRET, "--json");
    expect(errorOf(result)).toMatchObject({ code: "signature-exists" });
    expect(present().equals(bundle)).toBe(true);
  });

  test("does not sign what is damaged", async () => {
    writeFileSync(folder.file("R2.bundle"), flipped(bundle, bundle.length - 1_500));
    const before = present();
    expect((await runHere("sign", "R2.bundle", "--key", "second.key")).status).toBe(12);
    expect(present().equals(before)).toBe(true);
    expect(readdirSync(folder.path).sort()).toEqual(["R2.bundle", "second.key", "second.pub"]);
  });

  test("adds no more signatures than a bundle can have", async () => {
    const keys: SecretKey[] = Array.from({ length: 16 }, () => generateKeyPair().secretKey);
    keys.sort((a, b) => (a.keyId < b.keyId ? -1 : 1));
    writeFileSync(folder.file("R2.bundle"), join(resign(split(bundle), keys)));
    expect(told(await runHere("sign", "R2.bundle", "--key", "second.key"))).toMatchObject({
      status: 2,
      message: "R2.bundle has 16 signatures, the limit is 16",
    });
  });

  test.each<[string, string[]]>([
    ["--key or --attach is missing", []],
    ["--attach needs no secret key, so no --password-file either", ["--attach", "x", "--password-file", "y"]],
    ['--output "x/": is not a file\'s name', ["--key", "second.key", "-o", "x/"]],
  ])("says %s", async (message, args) => {
    expect(told(await runHere("sign", "R2.bundle", ...args))).toMatchObject({ status: 2, message });
  });
});

describe("bundle sums", () => {
  test("prints what is signed", async () => {
    const { status, stdout, stderr } = await sums();
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout.equals(split(bundle)[0]?.content as Buffer)).toBe(true);
  });

  test("prints nothing of a file that is not what its list says", async () => {
    writeFileSync(folder.file("R2.bundle"), flipped(bundle, bundle.length - 1_500));
    const { status, stdout } = await sums();
    expect([status, stdout.length]).toEqual([12, 0]);
  });
});

describe("bundle sign --attach", () => {
  const write = (message: Uint8Array, key = second.secretKey) =>
    writeFileSync(
      folder.file("SHA256SUMS.minisig"),
      encodeSignature(sign(key, message, { trustedComment: "elsewhere" })),
    );

  test("puts in a signature that was made elsewhere", async () => {
    write((await sums()).stdout);
    const attach = ["sign", "R2.bundle", "--attach", "SHA256SUMS.minisig"];
    const { status, stderr } = await runHere(...attach, "--key", "second.pub");
    expect([status, stderr]).toEqual([0, ""]);
    const { stdout } = await runHere("verify", "R2.bundle", "--config", twoOfTwo(), "--json");
    expect(JSON.parse(stdout.toString())).toMatchObject({
      signers: expect.arrayContaining([
        expect.objectContaining({ keyId: second.publicKey.keyId, trustedComment: "elsewhere" }),
      ]) as unknown,
    });
  });

  test("says so when nobody checked it", async () => {
    write((await sums()).stdout);
    const { status, stdout, stderr } = await runHere("sign", "R2.bundle", "--attach", "SHA256SUMS.minisig");
    expect(status).toBe(0);
    expect(stderr).toBe(
      `the signature was not checked, and sites refuse a bundle with a wrong one: --key names the public key of ${second.publicKey.keyId}\n`,
    );
    expect(stdout.toString()).toContain("NOT CHECKED");
  });

  test("puts a signature in the place of one by the same key that does not fit", async () => {
    const right = (await sums()).stdout;
    write(Buffer.from("something else\n"));
    await runHere("sign", "R2.bundle", "--attach", "SHA256SUMS.minisig");
    expect((await runHere("verify", "R2.bundle", "--key", "second.pub")).status).toBe(11);
    write(right);
    const attach = ["sign", "R2.bundle", "--attach", "SHA256SUMS.minisig", "--key", "second.pub"];
    expect((await runHere(...attach)).status).toBe(0);
    expect((await runHere("verify", "R2.bundle", "--key", "second.pub")).status).toBe(0);
    expect((await runHere(...attach)).status).toBe(17);
  });

  test("refuses a signature of something else, or by another key", async () => {
    write(Buffer.from("something else\n"));
    const attach = ["sign", "R2.bundle", "--attach", "SHA256SUMS.minisig", "--json", "--key"];
    expect(errorOf(await runHere(...attach, "second.pub")).code).toBe("signature-invalid");
    expect(errorOf(await runHere(...attach, PUBLIC)).code).toBe("signature-invalid");
    expect(present().equals(bundle)).toBe(true);
  });

  test("refuses what is no signature", async () => {
    const result = await runHere("sign", "R2.bundle", "--attach", "second.pub", "--json");
    expect(errorOf(result).code).toBe("signature-malformed");
  });

  const noMinisign = spawnSync("minisign", ["-v"]).error !== undefined;
  if (noMinisign && process.env["ZFERRY_REQUIRE_TOOLS"] === "1") throw new Error("minisign is not installed");
  if (noMinisign) console.warn("left out: a signature by the real minisign, which is not installed here");
  test.skipIf(noMinisign)("takes one by the real minisign", async () => {
    writeFileSync(folder.file("SHA256SUMS"), (await sums()).stdout);
    const made = spawnSync("minisign", ["-S", "-s", "second.key", "-m", "SHA256SUMS"], { cwd: folder.path });
    expect(made.status).toBe(0);
    expect(statSync(folder.file("SHA256SUMS.minisig")).size).toBeGreaterThan(0);
    const attach = ["sign", "R2.bundle", "--attach", "SHA256SUMS.minisig", "--key", "second.pub"];
    expect((await runHere(...attach)).status).toBe(0);
    expect((await runHere("verify", "R2.bundle", "--config", twoOfTwo())).status).toBe(0);
  });
});
