import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  encodePublicKey,
  encodeSecretKey,
  encodeSignature,
  generateKeyPair,
  parsePublicKey,
  parseSecretKey,
  parseSignature,
  publicKeyOf,
  sign,
  TRUSTED_COMMENT_BYTES_MAX,
  UNTRUSTED_COMMENT_BYTES_MAX,
  verifySignature,
} from "../../src/trust/minisign.js";

const missing = spawnSync("minisign", ["-v"]).error !== undefined;
const required = process.env["CI"] === "true" || process.env["ZFERRY_REQUIRE_TOOLS"] === "1";
const why = "minisign is not installed here (apt-get install minisign)";
if (missing && required) throw new Error(`these tests are required, but ${why}`);
if (missing) console.warn(`left out: tests against the real minisign, because ${why}`);

describe.skipIf(missing)(missing ? `the real minisign: left out, ${why}` : "the real minisign", () => {
  const DERIVING = 120_000;
  const password = "tëst password";
  const message = Buffer.from(`${"0".repeat(64)}  manifest.json\n`);
  let folder: string;

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "zferry-minisign-"));
    write("message", message);
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  const read = (name: string) => readFileSync(join(folder, name));
  const write = (name: string, bytes: Uint8Array) => writeFileSync(join(folder, name), bytes);

  /** Runs minisign; it reads passwords from its input when that is no terminal. */
  function minisign(args: string[], input = ""): { status: number | null; output: string } {
    const { status, stdout, stderr } = spawnSync("minisign", args, { cwd: folder, input, encoding: "utf8" });
    return { status, output: stdout + stderr };
  }

  const verified = (trustedComment: string) => ({
    status: 0,
    output: `Signature and comment signature verified\nTrusted comment: ${trustedComment}\n`,
  });

  test("reads the plain keys and signatures that zferry makes", async () => {
    const { secretKey, publicKey } = generateKeyPair();
    write("a.pub", encodePublicKey(publicKey));
    write("a.key", await encodeSecretKey(secretKey, undefined));

    write("a.minisig", encodeSignature(sign(secretKey, message, { trustedComment: "release\t7 – ü" })));
    expect(minisign(["-Vm", "message", "-x", "a.minisig", "-p", "a.pub"])).toEqual(
      verified("release\t7 – ü"),
    );

    expect(minisign(["-Sm", "message", "-x", "b.minisig", "-s", "a.key", "-t", "by minisign"]).status).toBe(
      0,
    );
    expect(await verifySignature(publicKey, parseSignature(read("b.minisig"), "b"), message)).toEqual({
      keyId: publicKey.keyId,
      trustedComment: "by minisign",
    });

    expect(minisign(["-R", "-s", "a.key", "-p", "again.pub"]).status).toBe(0);
    expect(parsePublicKey(read("again.pub"), publicKey.name)).toEqual(publicKey);
  });

  test("makes plain keys that zferry reads", async () => {
    expect(minisign(["-G", "-W", "-p", "c.pub", "-s", "c.key", "-c", "a comment"]).status).toBe(0);
    const secretKey = await parseSecretKey(read("c.key"), "c.key", undefined);
    expect(secretKey.comment).toBe("a comment");
    expect(publicKeyOf(secretKey, "c.pub")).toEqual(parsePublicKey(read("c.pub"), "c.pub"));
  });

  test("decrypts the secret keys that zferry encrypts", { timeout: DERIVING }, async () => {
    const { secretKey, publicKey } = generateKeyPair();
    write("d.key", await encodeSecretKey(secretKey, password));
    const args = ["-Sm", "message", "-x", "d.minisig", "-s", "d.key", "-t", "d"];
    expect(minisign(args, "wrong\n").output).toContain("Wrong password for that key");
    expect(minisign(args, `${password}\n`).status).toBe(0);
    await verifySignature(publicKey, parseSignature(read("d.minisig"), "d"), message);
  });

  test("encrypts secret keys that zferry decrypts", { timeout: DERIVING }, async () => {
    const twice = `${password}\n${password}\n`;
    expect(minisign(["-G", "-p", "e.pub", "-s", "e.key"], twice).status).toBe(0);
    const secretKey = await parseSecretKey(read("e.key"), "e.key", () => password);
    expect(publicKeyOf(secretKey, "e.pub")).toEqual(parsePublicKey(read("e.pub"), "e.pub"));
    await expect(parseSecretKey(read("e.key"), "e.key", () => "wrong")).rejects.toThrow("with this password");
  });

  test("prints the same key ids", () => {
    const [a, b] = [generateKeyPair(), generateKeyPair()];
    // 0.11 leaves out leading zeros, 0.12 does not.
    const ofB = { ...b.publicKey, keyId: "00ABCDEF01234567" };
    write("b.pub", encodePublicKey(ofB));
    write("message.minisig", encodeSignature(sign(a.secretKey, message, { trustedComment: "" })));
    const { status, output } = minisign(["-Vm", "message", "-p", "b.pub"]);
    const printed = [...output.matchAll(/ is ([0-9A-F]+)$/gm)].map(([, id]) => id?.padStart(16, "0"));
    expect({ status, printed }).toEqual({ status: 1, printed: [a.publicKey.keyId, ofB.keyId] });
  });

  test("reads comments of the same length, and not a byte more", () => {
    const { secretKey, publicKey } = generateKeyPair();
    write("f.pub", encodePublicKey(publicKey));
    const trustedComment = "t".repeat(TRUSTED_COMMENT_BYTES_MAX);
    const untrustedComment = "u".repeat(UNTRUSTED_COMMENT_BYTES_MAX);
    const file = Buffer.from(encodeSignature(sign(secretKey, message, { trustedComment, untrustedComment })));
    const verify = (bytes: string) => {
      write("f.minisig", Buffer.from(bytes));
      return minisign(["-Vm", "message", "-x", "f.minisig", "-p", "f.pub"]);
    };
    expect(verify(file.toString())).toEqual(verified(trustedComment));
    expect(verify(file.toString().replace(": u", ": uu")).output).toContain("comment too long");
    expect(verify(file.toString().replace(": t", ": tt")).output).toContain("comment too long");
  });

  test("refuses a changed trusted comment as zferry does", () => {
    const { secretKey, publicKey } = generateKeyPair();
    write("g.pub", encodePublicKey(publicKey));
    const file = Buffer.from(
      encodeSignature(sign(secretKey, message, { trustedComment: "good" })),
    ).toString();
    write("g.minisig", Buffer.from(file.replace("good", "evil")));
    expect(minisign(["-Vm", "message", "-x", "g.minisig", "-p", "g.pub"])).toMatchObject({
      status: 1,
      output: "Comment signature verification failed\n",
    });
  });
});
