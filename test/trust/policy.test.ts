import { describe, expect, test } from "vitest";
import type { ErrorCode } from "../../src/errors.js";
import {
  encodeSignature,
  generateKeyPair,
  publicKeyOf,
  sign,
  type SecretKey,
} from "../../src/trust/minisign.js";
import { checkSignatures } from "../../src/trust/policy.js";

const sums = Buffer.from(`${"0".repeat(64)}  manifest.json\n`);

const alice = newSigner("alice");
const bob = newSigner("bob");
const carol = newSigner("carol");
const mallory = newSigner("mallory");

function newSigner(name: string) {
  const { secretKey } = generateKeyPair();
  return { ...signerOf(secretKey, name), secretKey };
}

function signerOf(secretKey: SecretKey, name: string) {
  const trustedComment = `by ${name}`;
  const member = (message: Uint8Array) => ({
    keyId: secretKey.keyId,
    bytes: encodeSignature(sign(secretKey, message, { trustedComment })),
  });
  return {
    key: publicKeyOf(secretKey, `${name}.pub`),
    signed: member(sums),
    signedOther: member(Buffer.from("other")),
    signer: { keyId: secretKey.keyId, name: `${name}.pub`, trustedComment },
  };
}

const refusal = (code: ErrorCode, message: string | RegExp): unknown =>
  expect.objectContaining({ code, message: expect.stringMatching(message) as string });

const trusted = [alice.key, bob.key, carol.key];

describe("m of n", () => {
  test("returns who signed", async () => {
    expect(await checkSignatures(sums, [alice.signed], trusted, 1)).toEqual([alice.signer]);
    const all = [alice.signed, bob.signed, carol.signed];
    expect(await checkSignatures(sums, all, trusted, 2)).toEqual([alice.signer, bob.signer, carol.signer]);
  });

  test("does not count keys that are not trusted, nor mind them", async () => {
    expect(await checkSignatures(sums, [mallory.signedOther, bob.signed], trusted, 1)).toEqual([bob.signer]);
    await expect(checkSignatures(sums, [mallory.signed, bob.signed], trusted, 2)).rejects.toThrow(
      refusal(
        "signature-missing",
        `^signatures by 2 of 3 trusted keys are needed, found 1: ${bob.key.keyId}; not by trusted keys: [0-9A-F]{16}$`,
      ),
    );
  });

  test("counts a key once that signs under two ids, or lies in two files", async () => {
    const alias = signerOf({ ...alice.secretKey, keyId: "0000000000000001" }, "alias");
    const copy = { ...alice.key, name: "copy.pub" };
    await expect(
      checkSignatures(sums, [alice.signed, alias.signed], [alice.key, alias.key, copy], 2),
    ).rejects.toThrow(refusal("signature-missing", "signatures by 2 of 1 trusted keys are needed, found 1"));
    await expect(checkSignatures(sums, [alice.signed, alice.signed], trusted, 2)).rejects.toThrow(
      refusal("signature-missing", "signatures by 2 of 3 trusted keys are needed, found 1"),
    );
  });

  test("tries each of two trusted keys with the same id", async () => {
    const twin = signerOf({ ...bob.secretKey, keyId: alice.key.keyId }, "twin");
    for (const keys of [
      [alice.key, twin.key],
      [twin.key, alice.key],
    ]) {
      expect(await checkSignatures(sums, [alice.signed], keys, 1)).toEqual([alice.signer]);
      expect(await checkSignatures(sums, [twin.signed], keys, 1)).toEqual([twin.signer]);
      await expect(checkSignatures(sums, [twin.signedOther], keys, 1)).rejects.toThrow(
        refusal("signature-invalid", "does not fit the signed file"),
      );
    }
  });

  test.each([NaN, 4, Infinity])("lets nothing through with a threshold of %d of 3", async (threshold) => {
    const all = [alice.signed, bob.signed, carol.signed];
    await expect(checkSignatures(sums, all, trusted, threshold)).rejects.toThrow(
      refusal("signature-missing", "of 3 trusted keys are needed, found 3"),
    );
  });

  test("needs a trusted signer also with a threshold of 0", async () => {
    await expect(checkSignatures(sums, [mallory.signed], trusted, 0)).rejects.toThrow(
      refusal("signature-missing", "is signed by"),
    );
  });
});

describe("refuses", () => {
  test("a signature by a trusted key that does not verify, whatever else does", async () => {
    await expect(
      checkSignatures(sums, [alice.signed, bob.signed, carol.signedOther], trusted, 1),
    ).rejects.toThrow(refusal("signature-invalid", `signature by key ${carol.key.keyId} does not fit`));
  });

  test("a signature under the name of another key", async () => {
    const renamed = { keyId: bob.key.keyId, bytes: alice.signed.bytes };
    await expect(checkSignatures(sums, [renamed], trusted, 1)).rejects.toThrow(
      refusal(
        "signature-malformed",
        `^signature signatures/${bob.key.keyId}.minisig is by key ${alice.key.keyId}$`,
      ),
    );
  });

  test("a malformed signature, also by a key that is not trusted", async () => {
    const cut = { keyId: mallory.key.keyId, bytes: mallory.signed.bytes.subarray(0, -1) };
    await expect(checkSignatures(sums, [alice.signed, cut], trusted, 1)).rejects.toThrow(
      refusal("signature-malformed", "does not end with a newline"),
    );
  });

  test("a file that no trusted key signed, and names those that did and those trusted", async () => {
    const ids = trusted.map(({ keyId }) => keyId);
    await expect(checkSignatures(sums, [mallory.signed], trusted, 1)).rejects.toThrow(
      expect.objectContaining({
        code: "signature-missing",
        message: `SHA256SUMS is signed by ${mallory.key.keyId}, trusted is ${ids.join(", ")}`,
        details: { signed: [mallory.key.keyId], trusted: ids },
        hint: expect.stringContaining("add its public key") as string,
      }),
    );
  });

  test("everything when no key is trusted, and a file that is not signed", async () => {
    await expect(checkSignatures(sums, [alice.signed], [], 1)).rejects.toThrow(
      refusal("signature-missing", "trusted is no key"),
    );
    await expect(checkSignatures(sums, [], trusted, 1)).rejects.toThrow(
      refusal("signature-missing", "^SHA256SUMS is not signed$"),
    );
  });
});
