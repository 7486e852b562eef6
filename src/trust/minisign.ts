import {
  createHash,
  generateKeyPairSync,
  randomBytes,
  scrypt,
  sign as signEd25519,
  type KeyObject,
} from "node:crypto";
import { promisify } from "node:util";
import { ZferryError, type ErrorCode } from "../errors.js";
import { isStrongPoint, privateKeyFrom, publicBytesOf, seedOf, verifyStrictly } from "./ed25519.js";

// The files of minisign 0.11 and 0.12 (https://jedisct1.github.io/minisign/), as formats/keys.md has them.

/** An Ed25519 public key. `keyId`: 16 upper-case hex digits; `key`: 32 bytes; `name`: the file that held it. */
export type PublicKey = { readonly keyId: string; readonly key: Uint8Array; readonly name: string };

/** A decrypted secret key. `comment` is the untrusted comment of its file. */
export type SecretKey = { readonly keyId: string; readonly comment: string; readonly privateKey: KeyObject };

/** A parsed signature file. Nothing in it is verified. */
export type Signature = {
  readonly keyId: string;
  /** 64 bytes, over the BLAKE2b-512 hash of the message. */
  readonly signature: Uint8Array;
  readonly trustedComment: string;
  /** 64 bytes, over `signature` and the trusted comment. */
  readonly globalSignature: Uint8Array;
  readonly untrustedComment: string;
};

/** What a passphrase is asked with: called once, and only if the key is encrypted. */
export type AskPassphrase = () => string | Promise<string>;

// minisign reads an untrusted comment's line into 1,024 bytes and a trusted one's into 8,192, with prefix, newline
// and the terminating zero: longer ones it writes, and then cannot read.
export const UNTRUSTED_COMMENT_BYTES_MAX = 1003;
export const TRUSTED_COMMENT_BYTES_MAX = 8173;

// The least that libsodium names, and what minisign asks for when it has the memory: 2^20 blocks of 1 KiB.
export const OPSLIMIT_MIN = 2 ** 15;
export const OPSLIMIT_MAX = 2 ** 25;
export const MEMLIMIT_MIN = 2 ** 24;
export const MEMLIMIT_MAX = 2 ** 30;

const UNTRUSTED = "untrusted comment: ";
const TRUSTED = "trusted comment: ";

const ED25519 = Buffer.from("Ed");
const ED25519_PREHASHED = Buffer.from("ED");
const SCRYPT = Buffer.from("Sc");
const UNENCRYPTED = Buffer.alloc(2);
const BLAKE2B = Buffer.from("B2");

const PUBLIC_KEY_BYTES = 2 + 8 + 32;
const SIGNATURE_BYTES = 2 + 8 + 64;
const SALT_BYTES = 32;
const SEALED_BYTES = 8 + 64 + 32; // key number, seed and public key, checksum: what the passphrase encrypts
const SECRET_KEY_BYTES = 3 * 2 + SALT_BYTES + 2 * 8 + SEALED_BYTES;

const base64Length = (bytes: number) => Math.ceil(bytes / 3) * 4;
const UNTRUSTED_LINE_MAX = UNTRUSTED.length + UNTRUSTED_COMMENT_BYTES_MAX + 1;
const TRUSTED_LINE_MAX = TRUSTED.length + TRUSTED_COMMENT_BYTES_MAX + 1;
export const PUBLIC_KEY_FILE_MAX = UNTRUSTED_LINE_MAX + base64Length(PUBLIC_KEY_BYTES) + 1;
export const SECRET_KEY_FILE_MAX = UNTRUSTED_LINE_MAX + base64Length(SECRET_KEY_BYTES) + 1;
export const SIGNATURE_FILE_MAX =
  UNTRUSTED_LINE_MAX + base64Length(SIGNATURE_BYTES) + 1 + TRUSTED_LINE_MAX + base64Length(64) + 1;

/**
 * Reads a public key file, or the bare base64 line that `minisign -P` takes.
 * @throws ZferryError key-malformed, also for a key that no honest generator makes (see `isStrongPoint`)
 */
export function parsePublicKey(file: Uint8Array | string, name: string): PublicKey {
  const refuse = refusal("key-malformed", `public key ${name}`);
  const text = readText(file, PUBLIC_KEY_FILE_MAX, refuse);
  const bytes = text.startsWith(UNTRUSTED)
    ? readKeyFile(text, PUBLIC_KEY_BYTES, refuse).bytes
    : readBase64(text.replace(/\n$/, ""), "key", PUBLIC_KEY_BYTES, refuse);
  expectTag("signature algorithm", bytes.subarray(0, 2), ED25519, refuse);
  const key = bytes.subarray(10);
  if (!isStrongPoint(key)) {
    throw refuse(`holds ${key.toString("hex")}, which is not a usable ed25519 point`);
  }
  return { keyId: keyIdOf(bytes.subarray(2, 10)), key, name };
}

/** A public key file as minisign writes it. */
export function encodePublicKey(key: PublicKey): Uint8Array {
  return Buffer.from(`${UNTRUSTED}minisign public key ${key.keyId}\n${publicKeyLine(key)}\n`);
}

/** The second line of a public key file, which is all of the key. */
export const publicKeyLine = ({ keyId, key }: PublicKey): string =>
  Buffer.concat([ED25519, keyNumberOf(keyId), key]).toString("base64");

/**
 * A new key pair with a random key id. `comment` goes into the secret key file, as with `minisign -G -c`.
 * @throws ZferryError key-malformed for a comment that such a file cannot hold
 */
export function generateKeyPair({ comment = "minisign encrypted secret key" }: { comment?: string } = {}): {
  secretKey: SecretKey;
  publicKey: PublicKey;
} {
  checkComment(comment, UNTRUSTED, UNTRUSTED_COMMENT_BYTES_MAX, refusal("key-malformed", "new secret key"));
  const { privateKey } = generateKeyPairSync("ed25519");
  const secretKey = { keyId: keyIdOf(randomBytes(8)), comment, privateKey };
  return { secretKey, publicKey: publicKeyOf(secretKey) };
}

/** The public key that belongs to a secret key. */
export function publicKeyOf({ keyId, privateKey }: SecretKey, name = keyId): PublicKey {
  return { keyId, key: publicBytesOf(privateKey), name };
}

/**
 * Reads a secret key file, encrypted or not (`minisign -W`). Decrypting takes up to 1 GiB and some seconds.
 * @throws ZferryError key-malformed, or password-wrong: also when one is needed and `passphrase` is undefined
 */
export async function parseSecretKey(
  file: Uint8Array | string,
  name: string,
  passphrase: AskPassphrase | undefined,
): Promise<SecretKey> {
  const refuse = refusal("key-malformed", `secret key ${name}`);
  const text = readText(file, SECRET_KEY_FILE_MAX, refuse);
  const { comment, bytes } = readKeyFile(text, SECRET_KEY_BYTES, refuse);
  expectTag("signature algorithm", bytes.subarray(0, 2), ED25519, refuse);
  expectTag("checksum algorithm", bytes.subarray(4, 6), BLAKE2B, refuse);

  const kdf = bytes.subarray(2, 4);
  let sealed = bytes.subarray(-SEALED_BYTES);
  if (!kdf.equals(UNENCRYPTED)) {
    expectTag("key derivation", kdf, SCRYPT, refuse);
    const salt = bytes.subarray(6, 38);
    const opslimit = readLimit("opslimit", bytes.subarray(38, 46), OPSLIMIT_MIN, OPSLIMIT_MAX, refuse);
    const memlimit = readLimit("memlimit", bytes.subarray(46, 54), MEMLIMIT_MIN, MEMLIMIT_MAX, refuse);
    const wrong = refusal("password-wrong", `secret key ${name}`);
    if (passphrase === undefined) throw wrong("is encrypted, and no password was given");
    sealed = xor(sealed, await deriveStream(await passphrase(), salt, opslimit, memlimit));
    if (!(await checksumOf(sealed)).equals(sealed.subarray(72)))
      throw wrong("cannot be decrypted with this password");
  } else if (!isZero(sealed.subarray(72)) && !(await checksumOf(sealed)).equals(sealed.subarray(72))) {
    // `minisign -G -W` leaves the checksum zero, `minisign -C -W` keeps the true one.
    throw refuse("does not match its checksum");
  }

  const privateKey = privateKeyFrom(sealed.subarray(8, 40));
  const stored = sealed.subarray(40, 72);
  const computed = publicBytesOf(privateKey);
  if (!stored.equals(computed)) {
    throw refuse(
      `holds the public key ${stored.toString("hex")}, but its seed makes ${Buffer.from(computed).toString("hex")}`,
    );
  }
  return { keyId: keyIdOf(sealed.subarray(0, 8)), comment, privateKey };
}

/** A secret key file as minisign writes it, encrypted unless `passphrase` is undefined. */
export async function encodeSecretKey(
  { keyId, comment, privateKey }: SecretKey,
  passphrase: string | undefined,
): Promise<Uint8Array> {
  const key = Buffer.concat([keyNumberOf(keyId), seedOf(privateKey), publicBytesOf(privateKey)]);
  let sealed: Uint8Array = Buffer.concat([key, await checksumOf(key)]);
  let kdf = UNENCRYPTED;
  const parameters = Buffer.alloc(SALT_BYTES + 2 * 8);
  if (passphrase !== undefined) {
    const salt = randomBytes(SALT_BYTES);
    kdf = SCRYPT;
    parameters.set(salt);
    parameters.writeBigUInt64LE(BigInt(OPSLIMIT_MAX), SALT_BYTES);
    parameters.writeBigUInt64LE(BigInt(MEMLIMIT_MAX), SALT_BYTES + 8);
    sealed = xor(sealed, await deriveStream(passphrase, salt, OPSLIMIT_MAX, MEMLIMIT_MAX));
  }
  const base64 = Buffer.concat([ED25519, kdf, BLAKE2B, parameters, sealed]).toString("base64");
  return Buffer.from(`${UNTRUSTED}${comment}\n${base64}\n`);
}

/**
 * Signs `message` and the trusted comment. Deterministic.
 * @throws ZferryError signature-malformed for a comment that a signature file cannot hold
 */
export function sign(
  { keyId, privateKey }: SecretKey,
  message: Uint8Array,
  {
    trustedComment,
    untrustedComment = "signature from zferry secret key",
  }: { trustedComment: string; untrustedComment?: string },
): Signature {
  const refuse = refusal("signature-malformed", "new signature");
  checkComment(untrustedComment, UNTRUSTED, UNTRUSTED_COMMENT_BYTES_MAX, refuse);
  checkComment(trustedComment, TRUSTED, TRUSTED_COMMENT_BYTES_MAX, refuse);
  const signature = signEd25519(null, hashOf(message), privateKey);
  const globalSignature = signEd25519(null, commentMessage(signature, trustedComment), privateKey);
  return { keyId, signature, trustedComment, globalSignature, untrustedComment };
}

/**
 * Reads a signature file without verifying it.
 * @throws ZferryError signature-malformed, also for the legacy algorithm that does not hash first
 */
export function parseSignature(file: Uint8Array | string, name: string): Signature {
  const refuse = refusal("signature-malformed", `signature ${name}`);
  const text = readText(file, SIGNATURE_FILE_MAX, refuse);
  const [line1, line2, line3, line4] = splitLines(text, 4, refuse) as [string, string, string, string];
  const untrustedComment = readComment(line1, UNTRUSTED, UNTRUSTED_COMMENT_BYTES_MAX, refuse);
  const bytes = readBase64(line2, "signature", SIGNATURE_BYTES, refuse);
  const trustedComment = readComment(line3, TRUSTED, TRUSTED_COMMENT_BYTES_MAX, refuse);
  const globalSignature = readBase64(line4, "signature of the trusted comment", 64, refuse);
  if (bytes.subarray(0, 2).equals(ED25519)) {
    throw refuse("has the legacy algorithm Ed, not ED", "sign without -l");
  }
  expectTag("signature algorithm", bytes.subarray(0, 2), ED25519_PREHASHED, refuse);
  const keyId = keyIdOf(bytes.subarray(2, 10));
  return { keyId, signature: bytes.subarray(10), trustedComment, globalSignature, untrustedComment };
}

/** A signature file as minisign writes it. */
export function encodeSignature(signature: Signature): Uint8Array {
  const bytes = Buffer.concat([ED25519_PREHASHED, keyNumberOf(signature.keyId), signature.signature]);
  const globalSignature = Buffer.from(signature.globalSignature);
  return Buffer.from(
    `${UNTRUSTED}${signature.untrustedComment}\n${bytes.toString("base64")}\n` +
      `${TRUSTED}${signature.trustedComment}\n${globalSignature.toString("base64")}\n`,
  );
}

/**
 * Verifies both signatures of a signature file against `message`. The untrusted comment is not covered.
 * @throws ZferryError signature-invalid
 */
export async function verifySignature(
  { keyId, key, name }: PublicKey,
  { keyId: signedBy, signature, trustedComment, globalSignature }: Signature,
  message: Uint8Array,
): Promise<{ keyId: string; trustedComment: string }> {
  const refuse = refusal("signature-invalid", `signature by key ${signedBy}`);
  if (signedBy !== keyId) throw refuse(`is not by key ${keyId} (${name})`);
  if (!verifyStrictly(key, signature, hashOf(message))) {
    throw refuse(`does not fit the signed file and the public key ${name}`);
  }
  if (!verifyStrictly(key, globalSignature, commentMessage(signature, trustedComment))) {
    throw refuse(`does not fit its trusted comment and the public key ${name}`);
  }
  return { keyId, trustedComment };
}

/** Makes the error for a reason to refuse `subject`. */
type Refusal = (reason: string, hint?: string) => ZferryError;

function refusal(code: ErrorCode, subject: string): Refusal {
  return (reason, hint) => new ZferryError(code, `${subject} ${reason}`, hint === undefined ? {} : { hint });
}

function readText(file: Uint8Array | string, limit: number, refuse: Refusal): string {
  const bytes = typeof file === "string" ? Buffer.from(file) : file;
  if (bytes.length > limit) throw refuse(`has ${bytes.length} bytes, more than ${limit}`);
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw refuse("is not UTF-8");
  }
}

function readKeyFile(text: string, length: number, refuse: Refusal): { comment: string; bytes: Buffer } {
  const [commentLine, keyLine] = splitLines(text, 2, refuse) as [string, string];
  const comment = readComment(commentLine, UNTRUSTED, UNTRUSTED_COMMENT_BYTES_MAX, refuse);
  return { comment, bytes: readBase64(keyLine, "key", length, refuse) };
}

function splitLines(text: string, count: number, refuse: Refusal): string[] {
  const lines = text.split("\n");
  if (lines.pop() !== "") throw refuse("does not end with a newline");
  if (lines.length !== count) throw refuse(`has ${lines.length} lines, not ${count}`);
  return lines;
}

function readComment(line: string, prefix: string, limit: number, refuse: Refusal): string {
  if (!line.startsWith(prefix)) throw refuse(`has no line that starts with "${prefix}" where one must be`);
  const comment = line.slice(prefix.length);
  checkComment(comment, prefix, limit, refuse);
  return comment;
}

function checkComment(comment: string, prefix: string, limit: number, refuse: Refusal): void {
  const kind = prefix.slice(0, -2);
  const { length } = Buffer.from(comment);
  if (length > limit) throw refuse(`has ${length} bytes of ${kind}, more than ${limit}`);
  // A tab is allowed: minisign's own trusted comment has them. A lone surrogate has no UTF-8.
  if (/(?!\t)[\p{Cc}\p{Cs}]/u.test(comment)) throw refuse(`has a control character in its ${kind}`);
}

function readBase64(line: string, what: string, length: number, refuse: Refusal): Buffer {
  const bytes = Buffer.from(line, "base64");
  // Decoding skips what is not base64, so only the way back shows that nothing was skipped.
  if (bytes.toString("base64") !== line) throw refuse(`has a ${what} that is not canonical base64`);
  if (bytes.length !== length) throw refuse(`has a ${what} of ${bytes.length} bytes, not ${length}`);
  return bytes;
}

function expectTag(what: string, tag: Buffer, expected: Buffer, refuse: Refusal): void {
  if (!tag.equals(expected)) {
    throw refuse(
      `has ${what} 0x${tag.toString("hex")}, not 0x${expected.toString("hex")} (${expected.toString()})`,
    );
  }
}

function readLimit(what: string, bytes: Buffer, min: number, max: number, refuse: Refusal): number {
  const limit = bytes.readBigUInt64LE();
  if (limit < min || limit > max) throw refuse(`has ${what} ${limit}, not ${min} to ${max}`);
  return Number(limit);
}

/** The key id as minisign prints it: the key number is little-endian. */
function keyIdOf(keyNumber: Uint8Array): string {
  return Buffer.from(keyNumber).reverse().toString("hex").toUpperCase();
}

function keyNumberOf(keyId: string): Uint8Array {
  return Buffer.from(keyId, "hex").reverse();
}

function commentMessage(signature: Uint8Array, trustedComment: string): Uint8Array {
  return Buffer.concat([signature, Buffer.from(trustedComment)]);
}

/** BLAKE2b-512, which is what is signed. */
const hashOf = (message: Uint8Array): Buffer => createHash("blake2b512").update(message).digest();

/** Covers the algorithm, the key number, the seed and the public key. */
async function checksumOf(sealed: Uint8Array): Promise<Buffer> {
  // OpenSSL has no BLAKE2b-256. Loaded only when it is needed.
  const { blake2b } = await import("@noble/hashes/blake2.js");
  return Buffer.from(blake2b(Buffer.concat([ED25519, sealed.subarray(0, 72)]), { dkLen: 32 }));
}

/**
 * The key stream for the sealed part of a secret key: libsodium's crypto_pwhash_scryptsalsa208sha256, whose
 * `pickparams` turns the two limits into scrypt's N and p. Within the limits above maxN is 2^10 to 2^20.
 */
async function deriveStream(
  passphrase: string,
  salt: Uint8Array,
  opslimit: number,
  memlimit: number,
): Promise<Buffer> {
  const r = 8;
  const powerOfTwo = (maxN: number) => 2 ** (31 - Math.clz32(maxN));
  let N: number;
  let p = 1;
  if (opslimit < Math.floor(memlimit / 32)) {
    N = powerOfTwo(opslimit / (4 * r));
  } else {
    N = powerOfTwo(memlimit / (128 * r));
    p = Math.floor(opslimit / 4 / N / r);
  }
  // Beside the N blocks OpenSSL counts some working memory.
  const options = { N, r, p, maxmem: MEMLIMIT_MAX + 2 ** 21 };
  return scryptAsync(passphrase, salt, SEALED_BYTES, options);
}

const scryptAsync = promisify<string, Uint8Array, number, object, Buffer>(scrypt);

function xor(bytes: Uint8Array, stream: Uint8Array): Buffer {
  return Buffer.from(bytes.map((byte, index) => byte ^ (stream[index] ?? 0)));
}

function isZero(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === 0);
}
