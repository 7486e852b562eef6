import { LIMITS } from "../bundle/layout.js";
import type { Bundle, Signature } from "../bundle/reader.js";
import { ZferryError } from "../errors.js";
import {
  encodeSignature,
  parseSignature,
  sign,
  verifySignature,
  type PublicKey,
  type SecretKey,
} from "../trust/minisign.js";
import { trustedCommentOf } from "./pack.js";

/** A signature of the bundle by this key, with zferry's trusted comment. */
export const signBundle = (bundle: Bundle, key: SecretKey): Signature => ({
  keyId: key.keyId,
  bytes: encodeSignature(sign(key, bundle.sums, { trustedComment: trustedCommentOf(bundle.manifest) })),
});

/**
 * A signature that was made elsewhere, of the bytes that `bundle sums` prints. Without `publicKey` nobody knows whether
 * it is a good one.
 * @throws ZferryError `signature-malformed`, `signature-invalid`
 */
export async function readDetached(
  bundle: Bundle,
  bytes: Uint8Array,
  name: string,
  publicKey: PublicKey | undefined,
): Promise<Signature> {
  const signature = parseSignature(bytes, name);
  if (publicKey !== undefined) {
    if (publicKey.keyId !== signature.keyId) {
      throw new ZferryError(
        "signature-invalid",
        `signature ${name} is by key ${signature.keyId}, ${publicKey.name} is key ${publicKey.keyId}`,
      );
    }
    await verifySignature(publicKey, signature, bundle.sums);
  }
  return { keyId: signature.keyId, bytes };
}

/**
 * The bundle's signatures and this one more. One by the same key that does not fit makes room for it.
 * @param publicKey to tell whether it fits; without it, it is taken to
 * @throws ZferryError `signature-exists`, `usage` when there are as many as there can be
 */
export async function withSignature(
  bundle: Bundle,
  signature: Signature,
  publicKey: PublicKey | undefined,
): Promise<Signature[]> {
  const { keyId } = signature;
  const same = bundle.signatures.find((present) => present.keyId === keyId);
  if (same !== undefined && (publicKey === undefined || (await fits(bundle, same, publicKey)))) {
    throw new ZferryError("signature-exists", `${bundle.name} has a signature of key ${keyId} already`, {
      details: { file: bundle.name, keyId },
    });
  }
  const others = bundle.signatures.filter((present) => present !== same);
  if (others.length >= LIMITS.signatures) {
    throw new ZferryError(
      "usage",
      `${bundle.name} has ${others.length} signatures, the limit is ${LIMITS.signatures}`,
    );
  }
  return [...others, signature].sort((a, b) => (a.keyId < b.keyId ? -1 : 1));
}

async function fits(bundle: Bundle, { keyId, bytes }: Signature, publicKey: PublicKey): Promise<boolean> {
  try {
    await verifySignature(publicKey, parseSignature(bytes, keyId), bundle.sums);
    return true;
  } catch {
    return false;
  }
}
