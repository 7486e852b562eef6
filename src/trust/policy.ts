import { ZferryError } from "../errors.js";
import { identityOf } from "./keys.js";
import { parseSignature, verifySignature, type PublicKey, type Signature } from "./minisign.js";

/** A trusted key that signed. `name`: the key's file; `trustedComment`: what its owner signed beside the file. */
export type Signer = { readonly keyId: string; readonly name: string; readonly trustedComment: string };

/**
 * Decides whether enough trusted keys signed `sums`, the exact bytes of `SHA256SUMS`.
 *
 * `signatures` are the bundle's members `signatures/<keyId>.minisig`; `threshold` is the m of m of n. Keys are
 * distinct by their 32 bytes, for anyone can give a key any id, or the same key two. Signatures by other
 * keys are parsed and otherwise ignored; one that names a trusted key must verify.
 * @throws ZferryError signature-malformed, signature-invalid, or signature-missing
 */
export async function checkSignatures(
  sums: Uint8Array,
  signatures: ReadonlyArray<{ readonly keyId: string; readonly bytes: Uint8Array }>,
  trusted: readonly PublicKey[],
  threshold: number,
): Promise<Signer[]> {
  const signers = new Map<string, Signer>();
  for (const { keyId, bytes } of signatures) {
    const member = `signatures/${keyId}.minisig`;
    const signature = parseSignature(bytes, member);
    if (signature.keyId !== keyId) {
      throw new ZferryError("signature-malformed", `signature ${member} is by key ${signature.keyId}`);
    }
    const candidates = trusted.filter((key) => key.keyId === keyId);
    if (candidates.length === 0) continue;
    const { key, trustedComment } = await findSigner(candidates, signature, sums);
    signers.set(identityOf(key), { keyId, name: key.name, trustedComment });
  }

  if (signers.size === 0) throw noneTrusted(signatures, trusted);
  // Negated, so that a threshold that is not a number lets nothing through.
  if (!(signers.size >= threshold)) {
    const of = new Set(trusted.map(identityOf)).size;
    const others = signatures.filter(({ keyId }) => !trusted.some((key) => key.keyId === keyId));
    throw new ZferryError(
      "signature-missing",
      `signatures by ${threshold} of ${of} trusted keys are needed, found ${signers.size}: ${list([...signers.values()])}` +
        (others.length === 0 ? "" : `; not by trusted keys: ${list(others)}`),
      {
        details: {
          needed: threshold,
          signed: signatures.map(({ keyId }) => keyId),
          trusted: trusted.map(({ keyId }) => keyId),
        },
      },
    );
  }
  return [...signers.values()];
}

async function findSigner(
  candidates: readonly PublicKey[],
  signature: Signature,
  sums: Uint8Array,
): Promise<{ key: PublicKey; trustedComment: string }> {
  let failure: unknown;
  for (const key of candidates) {
    try {
      const { trustedComment } = await verifySignature(key, signature, sums);
      return { key, trustedComment };
    } catch (error) {
      failure = error;
    }
  }
  throw failure;
}

function noneTrusted(
  signatures: ReadonlyArray<{ readonly keyId: string }>,
  trusted: readonly PublicKey[],
): ZferryError {
  const options = {
    details: { signed: signatures.map(({ keyId }) => keyId), trusted: trusted.map(({ keyId }) => keyId) },
  };
  if (signatures.length === 0)
    return new ZferryError("signature-missing", "SHA256SUMS is not signed", options);
  const message = `SHA256SUMS is signed by ${list(signatures)}, trusted is ${list(trusted) || "no key"}`;
  return new ZferryError("signature-missing", message, {
    ...options,
    hint: "if you trust one of these signers, add its public key to the trusted keys",
  });
}

function list(keys: ReadonlyArray<{ readonly keyId: string }>): string {
  return keys.map(({ keyId }) => keyId).join(", ");
}
