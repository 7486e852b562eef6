import { readFileSync } from "node:fs";
import { sign } from "node:crypto";
import { verifyAsync } from "@noble/ed25519";
import { describe, expect, test } from "vitest";
import {
  isStrongPoint,
  privateKeyFrom,
  publicBytesOf,
  seedOf,
  verifyStrictly,
} from "../../src/trust/ed25519.js";

type Vector = { name: string; seed: string; public_key: string; message: string; signature: string };
type EdgeCase = { message: string; pub_key: string; signature: string };

const hex = (text: string) => Buffer.from(text, "hex");
const cases = (name: string) =>
  (JSON.parse(readFileSync(new URL(`../../fixtures/keys/${name}`, import.meta.url), "utf8")) as { cases: [] })
    .cases;
const rfc8032 = cases("rfc8032.json") as Vector[];
const speccheck = cases("speccheck.json") as EdgeCase[];

describe("RFC 8032, section 7.1", () => {
  test.each(rfc8032)("$name", (vector) => {
    const [seed, publicKey, message, signature] = [
      hex(vector.seed),
      hex(vector.public_key),
      hex(vector.message),
      hex(vector.signature),
    ];
    const privateKey = privateKeyFrom(seed);
    expect(Buffer.from(seedOf(privateKey))).toEqual(seed);
    expect(Buffer.from(publicBytesOf(privateKey))).toEqual(publicKey);
    expect(isStrongPoint(publicKey)).toBe(true);
    expect(sign(null, message, privateKey)).toEqual(signature);
    expect(verifyStrictly(publicKey, signature, message)).toBe(true);
    expect(verifyStrictly(publicKey, signature, Buffer.concat([message, Buffer.alloc(1)]))).toBe(false);
  });
});

// "Taming the many EdDSAs": the twelve cases on which implementations differ.
const expected = [
  { accepted: false, why: "A and R of small order" },
  { accepted: false, why: "A of small order" },
  { accepted: false, why: "R of small order" },
  // Both points have a part of small order, and the equation holds without the cofactor. RFC 8032 accepts it, so does
  // libsodium. Nobody but the owner of the key can make such a key or such a signature.
  { accepted: true, why: "A and R of mixed order, nothing wrong by RFC 8032" },
  { accepted: false, why: "holds only when multiplied by the cofactor" },
  { accepted: false, why: "holds only when multiplied by the cofactor, and with 8h not reduced first" },
  { accepted: false, why: "S is L or more" },
  { accepted: false, why: "S is much more than L" },
  { accepted: false, why: "R not canonical and of small order, reduced for the hash" },
  { accepted: false, why: "R not canonical and of small order" },
  { accepted: false, why: "A not canonical and of small order, reduced for the hash" },
  { accepted: false, why: "A not canonical and of small order" },
];

describe("speccheck", () => {
  test("has a verdict for each case", () => expect(speccheck).toHaveLength(expected.length));

  test.each(expected.map((verdict, index) => ({ index, ...verdict })))(
    "$index: $why",
    ({ index, accepted }) => {
      const { pub_key, signature, message } = speccheck[index] as EdgeCase;
      expect(verifyStrictly(hex(pub_key), hex(signature), hex(message))).toBe(accepted);
    },
  );

  // Why noble's own verify is not used; what OpenSSL alone accepts depends on its version.
  test("noble accepts some that must not be", async () => {
    const accepted = [];
    for (const [index, { signature, message, pub_key }] of speccheck.entries()) {
      if (await verifyAsync(hex(signature), hex(message), hex(pub_key), { zip215: false }))
        accepted.push(index);
    }
    expect(accepted).toEqual([2, 3, 4, 5]);
  });
});

describe("points that no honest key has", () => {
  test.each([
    ["order 1", "0100000000000000000000000000000000000000000000000000000000000000"],
    ["order 2", "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"],
    ["order 4", "0000000000000000000000000000000000000000000000000000000000000000"],
    ["order 4", "0000000000000000000000000000000000000000000000000000000000000080"],
    ["order 8", "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"],
    ["order 8", "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85"],
    ["order 8", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"],
    ["order 8", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"],
    ["x = 0 with the sign bit", "0100000000000000000000000000000000000000000000000000000000000080"],
    ["x = 0 with the sign bit", "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"],
    ["y = p, order 4", "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"],
    ["y = p + 1, order 1", "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"],
    ["y = p + 3, large order", "f0ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"],
    ["not on the curve", "0200000000000000000000000000000000000000000000000000000000000000"],
    ["31 bytes", "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f70751"],
  ])("%s: %s", (_, point) => expect(isStrongPoint(hex(point))).toBe(false));
});
