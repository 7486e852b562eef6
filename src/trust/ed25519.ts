import { createPrivateKey, createPublicKey, verify, type KeyObject } from "node:crypto";
import { Point } from "@noble/ed25519";

// What precedes the 32 bytes in the two DER encodings of RFC 8410, sections 4 and 7.
const SPKI_PREFIX = Buffer.from("302a300506032b6570032100", "hex");
const PKCS8_PREFIX = Buffer.from("302e020100300506032b657004220420", "hex");

/** The order of the base point, L. */
const ORDER = 2n ** 252n + 27742317777372353535851937790883648493n;

/**
 * Whether 32 bytes are the canonical encoding of a curve point that is not one of the eight of small order.
 * A public key of small order "verifies" signatures that nobody made.
 */
export function isStrongPoint(bytes: Uint8Array): boolean {
  try {
    return !Point.fromBytes(bytes, false).isSmallOrder();
  } catch {
    return false;
  }
}

/**
 * Whether `signature` (64 bytes) is by `publicKey` (32 bytes) over exactly `message`: RFC 8032, section 5.1.7,
 * where it leaves a choice the strict one. S is below L, both points are canonical and not of small order, and
 * the equation holds without the cofactor.
 *
 * OpenSSL checks the equation so, and S; but many versions take every point of small order, and keys that are not
 * canonical. noble's own `verify` would not do: it multiplies by the cofactor even with `zip215: false`, takes an R of
 * small order, and needs as long as all other starting of a process.
 */
export function verifyStrictly(publicKey: Uint8Array, signature: Uint8Array, message: Uint8Array): boolean {
  if (signature.length !== 64) return false;
  const key = strongKey(publicKey);
  return (
    key !== undefined &&
    isStrongPoint(signature.subarray(0, 32)) &&
    isReduced(signature.subarray(32)) &&
    verify(null, message, key, signature)
  );
}

/** Keys that were looked at before: a mirror has thousands of signatures by few keys, and making one takes as long as verifying. */
const seenKeys = new Map<string, KeyObject | undefined>();
const SEEN_KEYS_MAX = 1_024;

/** The key for OpenSSL, or undefined if it is not canonical or of small order. */
function strongKey(publicKey: Uint8Array): KeyObject | undefined {
  const name = Buffer.from(publicKey).toString("hex");
  if (seenKeys.has(name)) return seenKeys.get(name);
  const key = isStrongPoint(publicKey) ? publicKeyObject(publicKey) : undefined;
  if (seenKeys.size < SEEN_KEYS_MAX) seenKeys.set(name, key);
  return key;
}

/** Whether a little-endian number is below L. */
const isReduced = (bytes: Uint8Array): boolean =>
  BigInt(`0x${Buffer.from(bytes).reverse().toString("hex")}`) < ORDER;

/** The private key with this 32-byte seed. A key object prints as nothing, so that no log ever shows the seed. */
export function privateKeyFrom(seed: Uint8Array): KeyObject {
  return createPrivateKey({ key: Buffer.concat([PKCS8_PREFIX, seed]), format: "der", type: "pkcs8" });
}

/** The 32-byte seed of an Ed25519 private key. */
export function seedOf(privateKey: KeyObject): Uint8Array {
  return privateKey.export({ format: "der", type: "pkcs8" }).subarray(PKCS8_PREFIX.length);
}

/** The 32-byte public key that belongs to an Ed25519 private key, computed from its seed. */
export function publicBytesOf(privateKey: KeyObject): Uint8Array {
  return createPublicKey(privateKey).export({ format: "der", type: "spki" }).subarray(SPKI_PREFIX.length);
}

function publicKeyObject(publicKey: Uint8Array): KeyObject {
  return createPublicKey({ key: Buffer.concat([SPKI_PREFIX, publicKey]), format: "der", type: "spki" });
}
