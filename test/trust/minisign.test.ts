import { readFileSync } from "node:fs";
import { beforeAll, describe, expect, test, vi } from "vitest";
import { ZferryError, type ErrorCode } from "../../src/errors.js";
import {
  encodePublicKey,
  encodeSecretKey,
  encodeSignature,
  generateKeyPair,
  MEMLIMIT_MAX,
  MEMLIMIT_MIN,
  OPSLIMIT_MAX,
  OPSLIMIT_MIN,
  parsePublicKey,
  parseSecretKey,
  parseSignature,
  publicKeyOf,
  sign,
  TRUSTED_COMMENT_BYTES_MAX,
  UNTRUSTED_COMMENT_BYTES_MAX,
  verifySignature,
  type PublicKey,
} from "../../src/trust/minisign.js";

const DERIVING = 60_000; // 1 GiB of scrypt, and the machine may be busy

const fixture = (name: string) => readFileSync(new URL(`../../fixtures/keys/${name}`, import.meta.url));
const publicKey = (name: string) => parsePublicKey(fixture(name), name);
const signature = (name: string) => parseSignature(fixture(name), name);
const message = fixture("message");
const password = fixture("password").toString().trimEnd();
const text = (bytes: Uint8Array) => Buffer.from(bytes).toString();

const refusal = (code: ErrorCode, message: string | RegExp): unknown =>
  expect.objectContaining({ name: "ZferryError", code, message: expect.stringMatching(message) as string });

/** The file with the bytes behind its nth line, base64, edited. */
function withBytes(file: Buffer, line: number, edit: (bytes: Buffer) => Buffer | void): string {
  const lines = file.toString().split("\n");
  const bytes = Buffer.from(lines[line] ?? "", "base64");
  lines[line] = (edit(bytes) ?? bytes).toString("base64");
  return lines.join("\n");
}

/** The faults that a text file of lines can have, whatever is in them. */
function textFaults(file: Buffer, keyLine: number, limit: number): [string, Uint8Array | string, RegExp][] {
  const whole = file.toString();
  const replaced = (from: string | RegExp, to: string) => whole.replace(from, () => to);
  return [
    ["a byte more than the limit", whole.padEnd(limit + 1, "\n"), /bytes, more than/],
    ["no newline at the end", whole.slice(0, -1), /does not end with a newline/],
    ["a line more", `${whole}\n`, /lines, not/],
    ["carriage returns", replaced(/\n/g, "\r\n"), /control character|lines, not/],
    ["a byte order mark", `\ufeff${whole}`, /no line that starts with|canonical base64/],
    ["no UTF-8", Buffer.concat([Buffer.from("untrusted comment: \xe4\n", "latin1"), file]), /is not UTF-8/],
    [
      "an escape in the comment",
      replaced("untrusted comment: ", "untrusted comment: \u001b"),
      /control char/,
    ],
    [
      "a C1 control in the comment",
      replaced("untrusted comment: ", "untrusted comment: \u009b"),
      /control char/,
    ],
    ["a null in the comment", replaced("untrusted comment: ", "untrusted comment: \0"), /control char/],
    [
      "a comment too long",
      replaced(/comment: .*/, `comment: ${"x".repeat(UNTRUSTED_COMMENT_BYTES_MAX + 1)}`),
      /1004 bytes of untrusted comment, more than 1003|bytes, more than/,
    ],
    [
      "a byte more in the base64",
      withBytes(file, keyLine, (b) => Buffer.concat([b, b.subarray(-1)])),
      /bytes, not/,
    ],
    ["a byte less in the base64", withBytes(file, keyLine, (b) => b.subarray(0, -1)), /bytes, not/],
    ["a space in the base64", replaced(/\nR/, "\nR "), /canonical base64/],
    ["base64 for URLs", replaced(/\nR.*/, `\nR_${whole.split("\n")[keyLine]?.slice(2)}`), /canonical base64/],
  ];
}

describe("public keys", () => {
  test("are read from what minisign wrote", () => {
    expect(publicKey("encrypted.pub")).toMatchObject({ keyId: "D950C3178AD0130D", name: "encrypted.pub" });
  });

  test("are read from the bare line, with and without a newline", () => {
    const line = text(fixture("encrypted.pub")).split("\n")[1] ?? "";
    expect(parsePublicKey(line, "encrypted.pub")).toEqual(publicKey("encrypted.pub"));
    expect(parsePublicKey(`${line}\n`, "encrypted.pub")).toEqual(publicKey("encrypted.pub"));
    expect(() => parsePublicKey(`${line}\n\n`, "k")).toThrow(refusal("key-malformed", "canonical base64"));
    expect(() => parsePublicKey("", "k")).toThrow(refusal("key-malformed", "0 bytes, not 42"));
  });

  test("are written byte for byte as minisign writes them", () => {
    expect(encodePublicKey(publicKey("encrypted.pub"))).toEqual(fixture("encrypted.pub"));
  });

  test("have 16 digits, also where minisign 0.11 leaves out the zeros", () => {
    expect(text(fixture("plain.pub"))).toMatch(/ 0?E07B77755AB6E15\n/);
    expect(publicKey("plain.pub").keyId).toBe("0E07B77755AB6E15");
    expect(text(encodePublicKey(publicKey("plain.pub")))).toContain(" 0E07B77755AB6E15\n");
  });

  const good = fixture("encrypted.pub");
  test.each<[string, Uint8Array | string, RegExp]>([
    ...textFaults(good, 1, 1080).filter(([fault]) => fault !== "a byte order mark"),
    [
      "the algorithm of a signature",
      withBytes(good, 1, (b) => void b.write("ED")),
      /0x4544, not 0x4564 \(Ed\)/,
    ],
    ["a point of small order", withBytes(good, 1, (b) => void b.fill(0, 10)), /not a usable ed25519 point/],
    [
      "a point that is not canonical",
      withBytes(good, 1, (b) => void b.fill(0xff, 10).fill(0xf0, 10, 11).fill(0x7f, 41)),
      /not a usable ed25519 point/,
    ],
    ["a point off the curve", withBytes(good, 1, (b) => void b.fill(0, 10).fill(2, 10, 11)), /not a usable/],
    ["a byte order mark", Buffer.concat([Buffer.from("\ufeff"), good]), /canonical base64/],
  ])("with %s are refused", (_, file, message) => {
    expect(() => parsePublicKey(file, "k")).toThrow(refusal("key-malformed", message));
  });

  test("with any byte changed are refused, or verify nothing", async () => {
    for (const { file, position } of flipped(good)) {
      const verdict = await verdictOf(async () => {
        await verifySignature(parsePublicKey(file, "k"), signature("encrypted.minisig"), message);
      });
      if (inUntrustedComment(good, position) && verdict === "accepted") continue;
      expect(["key-malformed", "signature-invalid"], `byte ${position}`).toContain(verdict);
    }
  });
});

describe("secret keys", () => {
  test.each([
    ["plain.key", "plain.pub"],
    ["password-removed.key", "low-memory.pub"],
  ])("%s is read without a password", async (name, pub) => {
    const ask = vi.fn(() => "");
    const key = await parseSecretKey(fixture(name), name, ask);
    expect(publicKeyOf(key, pub)).toEqual(publicKey(pub));
    expect(ask).not.toHaveBeenCalled();
  });

  test.each([
    ["low-memory.key", "low-memory.pub"],
    ["opslimit.key", "plain.pub"],
    ["parallel.key", "plain.pub"],
    ["encrypted.key", "encrypted.pub"],
  ])(
    "%s is decrypted",
    async (name, pub) => {
      const key = await parseSecretKey(fixture(name), name, () => Promise.resolve(password));
      expect(publicKeyOf(key, pub)).toEqual(publicKey(pub));
    },
    DERIVING,
  );

  test("that are new can be encrypted and read again", { timeout: 2 * DERIVING }, async () => {
    const { secretKey, publicKey } = generateKeyPair({ comment: "build host – ü" });
    const file = await encodeSecretKey(secretKey, password);
    expect(text(file)).toMatch(/^untrusted comment: build host – ü\nRWRTY0Iy[A-Za-z0-9+/]{203}=\n$/);
    const again = await parseSecretKey(file, "new.key", () => password);
    expect(publicKeyOf(again)).toEqual(publicKey);
    expect(again.comment).toBe("build host – ü");
  });

  test("are written without encryption as minisign -C -W does", async () => {
    const key = await parseSecretKey(fixture("password-removed.key"), "k", undefined);
    // minisign leaves salt and limits of the former encryption, which mean nothing.
    const expected = withBytes(fixture("password-removed.key"), 1, (b) => void b.fill(0, 6, 54));
    expect(text(await encodeSecretKey(key, undefined))).toBe(expected);
  });

  test("never print their seed", async () => {
    const key = await parseSecretKey(fixture("plain.key"), "k", undefined);
    expect(Object.keys(key)).toEqual(["keyId", "comment", "privateKey"]);
    expect(JSON.stringify(key.privateKey)).toBe("{}");
  });

  test("have a comment that fits", () => {
    expect(() => generateKeyPair({ comment: "a\nb" })).toThrow(refusal("key-malformed", "control character"));
    expect(() => generateKeyPair({ comment: "\ud800" })).toThrow(
      refusal("key-malformed", "control character"),
    );
    const long = "x".repeat(UNTRUSTED_COMMENT_BYTES_MAX + 1);
    expect(() => generateKeyPair({ comment: long })).toThrow(refusal("key-malformed", "1004 bytes"));
  });

  const plain = fixture("password-removed.key");
  test.each<[string, Uint8Array | string, RegExp]>([
    ...textFaults(plain, 1, 1236),
    [
      "another signature algorithm",
      withBytes(plain, 1, (b) => void b.write("ED", 0)),
      /signature algorithm 0x4544/,
    ],
    ["another key derivation", withBytes(plain, 1, (b) => void b.write("A2", 2)), /key derivation 0x4132/],
    ["another checksum", withBytes(plain, 1, (b) => void b.write("B3", 4)), /checksum algorithm 0x4233/],
    ["a wrong checksum", withBytes(plain, 1, (b) => void (b[157]! ^= 1)), /does not match its checksum/],
    ["a public key of another seed", fixtureOfOtherPublicKey(), /but its seed makes/],
  ])("with %s are refused", async (_, file, message) => {
    await expect(parseSecretKey(file, "k", undefined)).rejects.toThrow(refusal("key-malformed", message));
  });

  const encrypted = fixture("opslimit.key");
  const withLimits = (ops: number | bigint, mem: number | bigint) =>
    withBytes(encrypted, 1, (b) => {
      b.writeBigUInt64LE(BigInt(ops), 38);
      b.writeBigUInt64LE(BigInt(mem), 46);
    });
  test.each<[string, string, RegExp]>([
    [
      "opslimit too high",
      withLimits(OPSLIMIT_MAX + 1, MEMLIMIT_MAX),
      /opslimit 33554433, not 32768 to 33554432/,
    ],
    ["opslimit too low", withLimits(OPSLIMIT_MIN - 1, MEMLIMIT_MAX), /opslimit 32767/],
    ["memlimit too high", withLimits(OPSLIMIT_MAX, MEMLIMIT_MAX + 1), /memlimit 1073741825/],
    ["memlimit too low", withLimits(OPSLIMIT_MAX, MEMLIMIT_MIN - 1), /memlimit 16777215/],
    ["memlimit beyond 2^53", withLimits(OPSLIMIT_MAX, 2n ** 64n - 1n), /memlimit 18446744073709551615/],
  ])("with %s are refused before anything is asked", async (_, file, message) => {
    const ask = vi.fn(() => password);
    await expect(parseSecretKey(file, "k", ask)).rejects.toThrow(refusal("key-malformed", message));
    expect(ask).not.toHaveBeenCalled();
  });

  test.each<[string, string | Buffer, (() => string) | undefined, RegExp]>([
    ["without a password", encrypted, undefined, /is encrypted, and no password was given/],
    ["with a wrong password", encrypted, () => `${password} `, /cannot be decrypted with this password/],
    [
      "with a changed byte",
      withBytes(encrypted, 1, (b) => void (b[80]! ^= 1)),
      () => password,
      /cannot be decr/,
    ],
    [
      "with a changed salt",
      withBytes(encrypted, 1, (b) => void (b[6]! ^= 1)),
      () => password,
      /cannot be decr/,
    ],
    ["with a changed limit", withLimits(100_000, MEMLIMIT_MAX), () => password, /cannot be decrypted/],
  ])("that are encrypted are not opened %s", async (_, file, ask, message) => {
    await expect(parseSecretKey(file, "k", ask)).rejects.toThrow(refusal("password-wrong", message));
  });
});

/** plain.key, whose checksum is zero, with one bit of its public key changed. */
function fixtureOfOtherPublicKey(): string {
  return withBytes(fixture("plain.key"), 1, (bytes) => void (bytes[100]! ^= 1));
}

describe("signatures", () => {
  test.each([
    ["plain", "0E07B77755AB6E15", /^timestamp:\d+\tfile:message\thashed$/],
    ["encrypted", "D950C3178AD0130D", /^release 2026\.10 – ü$/],
    ["low-memory", "CEE2EB552DD011F2", /^timestamp:\d+\tfile:message\thashed$/],
  ])("of minisign with the key %s verify", async (name, keyId, trustedComment) => {
    const verified = await verifySignature(publicKey(`${name}.pub`), signature(`${name}.minisig`), message);
    expect(verified).toEqual({ keyId, trustedComment: expect.stringMatching(trustedComment) as string });
  });

  test.each(["plain", "encrypted", "low-memory"])(
    "of minisign with the key %s are written again as they were",
    (name) => {
      expect(encodeSignature(signature(`${name}.minisig`))).toEqual(fixture(`${name}.minisig`));
    },
  );

  test("are made byte for byte as minisign makes them", async () => {
    const key = await parseSecretKey(fixture("plain.key"), "plain.key", undefined);
    const { trustedComment, untrustedComment } = signature("plain.minisig");
    expect(encodeSignature(sign(key, message, { trustedComment, untrustedComment }))).toEqual(
      fixture("plain.minisig"),
    );
  });

  test("of a new key verify, also of an empty file and with an empty or the longest comment", async () => {
    const { secretKey, publicKey } = generateKeyPair();
    const untrustedComment = `x${"ü".repeat((UNTRUSTED_COMMENT_BYTES_MAX - 1) / 2)}`;
    for (const trustedComment of ["", "x".repeat(TRUSTED_COMMENT_BYTES_MAX)]) {
      const file = encodeSignature(sign(secretKey, Buffer.alloc(0), { trustedComment, untrustedComment }));
      const verified = await verifySignature(publicKey, parseSignature(file, "s"), Buffer.alloc(0));
      expect(verified).toEqual({ keyId: publicKey.keyId, trustedComment });
    }
  });

  test.each([
    ["trustedComment", "a\nb", /control character in its trusted comment/],
    ["untrustedComment", "a\nb", /control character in its untrusted comment/],
    [
      "trustedComment",
      "x".repeat(TRUSTED_COMMENT_BYTES_MAX + 1),
      /8174 bytes of trusted comment, more than 8173/,
    ],
    ["untrustedComment", "x".repeat(UNTRUSTED_COMMENT_BYTES_MAX + 1), /1004 bytes of untrusted comment/],
  ])("are not made with a %s that cannot be", (which, comment, message) => {
    const { secretKey } = generateKeyPair();
    expect(() => sign(secretKey, Buffer.alloc(1), { trustedComment: "", [which]: comment })).toThrow(
      refusal("signature-malformed", message),
    );
  });

  const good = fixture("encrypted.minisig");
  const replaced = (from: RegExp, to: string) => good.toString().replace(from, () => to);
  test.each<[string, Uint8Array | string, RegExp]>([
    ...textFaults(good, 1, 9404),
    ["the legacy algorithm", fixture("legacy.minisig"), /legacy algorithm Ed, not ED/],
    ["an unknown algorithm", withBytes(good, 1, (b) => void b.write("EE")), /0x4545, not 0x4544 \(ED\)/],
    ["three lines", good.toString().split("\n").slice(0, 3).join("\n") + "\n", /3 lines, not 4/],
    [
      "no trusted comment",
      replaced(/\ntrusted/, "\nTrusted"),
      /no line that starts with "trusted comment: "/,
    ],
    [
      "an escape in the trusted comment",
      replaced(/release/, "\u001b[2J"),
      /control character in its trusted/,
    ],
    ["a trusted comment too long", replaced(/release.*/, "x".repeat(8174)), /8174 bytes of trusted comment/],
    [
      "a global signature too long",
      withBytes(good, 3, (b) => Buffer.concat([b, b.subarray(0, 1)])),
      /65 bytes, not 64/,
    ],
    ["a space behind the global signature", replaced(/==\n$/, "== \n"), /canonical base64/],
    ["bits in the padding", replaced(/A==\n$|Q==\n$|g==\n$|w==\n$/, "B==\n"), /canonical base64/],
  ])("with %s are refused", (_, file, message) => {
    expect(() => parseSignature(file, "s")).toThrow(refusal("signature-malformed", message));
  });

  test("of the legacy algorithm are refused with the way out", () => {
    expect(() => signature("legacy.minisig")).toThrow(expect.objectContaining({ hint: "sign without -l" }));
  });

  const order = Buffer.from("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010", "hex");
  const addOrder = (bytes: Buffer) => {
    let carry = 0;
    for (let i = 0; i < 32; i++) {
      carry += bytes[bytes.length - 32 + i]! + order[i]!;
      bytes[bytes.length - 32 + i] = carry & 0xff;
      carry >>= 8;
    }
  };
  test.each<[string, string, RegExp]>([
    ["S + L", withBytes(good, 1, addOrder), /does not fit the signed file/],
    ["S + L in the global signature", withBytes(good, 3, addOrder), /does not fit its trusted comment/],
    ["another trusted comment", replaced(/release/, "Release"), /does not fit its trusted comment/],
    [
      "another key id",
      withBytes(good, 1, (b) => void (b[2]! ^= 1)),
      /key D950C3178AD0130C is not by key D950/,
    ],
    ["R of small order", withBytes(good, 1, (b) => void b.fill(0, 10, 42)), /does not fit the signed file/],
  ])("with %s do not verify", async (_, file, message_) => {
    const verified = verifySignature(publicKey("encrypted.pub"), parseSignature(file, "s"), message);
    await expect(verified).rejects.toThrow(refusal("signature-invalid", message_));
  });

  test("of another file, or by another key with the same id, do not verify", async () => {
    const key = publicKey("encrypted.pub");
    const other: PublicKey = { ...publicKey("plain.pub"), keyId: key.keyId };
    const invalid = refusal("signature-invalid", "does not fit the signed file");
    await expect(verifySignature(key, signature("encrypted.minisig"), Buffer.from("x"))).rejects.toThrow(
      invalid,
    );
    await expect(verifySignature(other, signature("encrypted.minisig"), message)).rejects.toThrow(invalid);
  });

  test("with any byte changed are refused, but in the untrusted comment", { timeout: DERIVING }, async () => {
    const original = signature("encrypted.minisig");
    for (const { file, position } of flipped(good)) {
      const verdict = await verdictOf(async () => {
        const changed = parseSignature(file, "s");
        await verifySignature(publicKey("encrypted.pub"), changed, message);
        expect({ ...changed, untrustedComment: "" }).toEqual({ ...original, untrustedComment: "" });
      });
      if (inUntrustedComment(good, position) && verdict === "accepted") continue;
      expect(["signature-malformed", "signature-invalid"], `byte ${position}`).toContain(verdict);
    }
  });
});

/** The file with one bit of each byte changed: the lowest, the one between cases, the highest. */
function* flipped(file: Buffer): Generator<{ file: Buffer; position: number }> {
  for (const bit of [0x01, 0x20, 0x80]) {
    for (let position = 0; position < file.length; position++) {
      const changed = Buffer.from(file);
      changed[position]! ^= bit;
      yield { file: changed, position };
    }
  }
}

function inUntrustedComment(file: Buffer, position: number): boolean {
  return position >= "untrusted comment: ".length && position < file.indexOf("\n");
}

async function verdictOf(run: () => Promise<void>): Promise<ErrorCode | "accepted"> {
  try {
    await run();
    return "accepted";
  } catch (error) {
    if (error instanceof ZferryError) return error.code;
    throw error;
  }
}

describe("formats/keys.md", () => {
  let page: string;
  beforeAll(() => {
    page = readFileSync(new URL("../../formats/keys.md", import.meta.url), "utf8");
  });

  test.each(["encrypted.pub", "encrypted.minisig", "plain.key", "message"])("shows %s as it is", (name) => {
    expect(page).toContain(`\`\`\`\n${text(fixture(name))}\`\`\``);
  });

  test("names the limits with their values", () => {
    for (const [name, value] of Object.entries({
      UNTRUSTED_COMMENT_BYTES_MAX,
      TRUSTED_COMMENT_BYTES_MAX,
      OPSLIMIT_MIN,
      OPSLIMIT_MAX,
      MEMLIMIT_MIN,
      MEMLIMIT_MAX,
    })) {
      expect(page).toMatch(new RegExp(`\\| \`${name}\` +\\| ${value.toLocaleString("en")} `));
    }
  });
});
