import { LIMITS, TRAILER } from "../bundle/layout.js";
import type { Bundle, Signature } from "../bundle/reader.js";
import { encodeHead, encodeMember } from "../bundle/writer.js";
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
 * The bundle's file with one signature more. Every content is hashed again as it is copied.
 * @throws ZferryError `signature-exists`, `usage` when it has as many as it can have, and what reading gives
 */
export async function* withSignature(bundle: Bundle, signature: Signature): AsyncGenerator<Uint8Array, void> {
  const { keyId } = signature;
  if (bundle.signatures.some((present) => present.keyId === keyId)) {
    throw new ZferryError("signature-exists", `${bundle.name} has a signature of key ${keyId} already`, {
      details: { file: bundle.name, keyId },
    });
  }
  if (bundle.signatures.length >= LIMITS.signatures) {
    throw new ZferryError(
      "usage",
      `${bundle.name} has ${bundle.signatures.length} signatures, the limit is ${LIMITS.signatures}`,
    );
  }
  yield encodeHead(bundle.manifest, bundle.sums, [...bundle.signatures, signature]);
  for await (const { name, bytes } of bundle.contents()) {
    yield encodeMember(name, bytes, bundle.manifest.created);
  }
  yield TRAILER;
}
