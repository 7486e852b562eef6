import { describe, expect, test } from "vitest";

import { Fletcher4 } from "../../src/stream/fletcher4.js";
import { filler } from "./support.js";

/** fletcher-4 as formats/stream.md puts it. */
function reference(bytes: Uint8Array): Uint8Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let [a, b, c, d] = [0n, 0n, 0n, 0n];
  for (let at = 0; at < bytes.length; at += 4) {
    a = BigInt.asUintN(64, a + BigInt(view.getUint32(at, true)));
    b = BigInt.asUintN(64, b + a);
    c = BigInt.asUintN(64, c + b);
    d = BigInt.asUintN(64, d + c);
  }
  return words(a, b, c, d);
}

function words(...values: bigint[]): Uint8Array {
  const view = new DataView(new ArrayBuffer(8 * values.length));
  values.forEach((value, i) => view.setBigUint64(8 * i, value, true));
  return new Uint8Array(view.buffer);
}

function sumOf(...parts: Uint8Array[]): Uint8Array {
  const sum = new Fletcher4();
  for (const part of parts) sum.update(part);
  return sum.digest();
}

describe("known sums", () => {
  test.each([
    { of: "nothing", bytes: [], sum: words(0n, 0n, 0n, 0n) },
    { of: "the word 1", bytes: [1, 0, 0, 0], sum: words(1n, 1n, 1n, 1n) },
    { of: "the words 1, 2, 3", bytes: [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0], sum: words(6n, 10n, 15n, 21n) },
    {
      of: "the largest word",
      bytes: [255, 255, 255, 255],
      sum: new Uint8Array(32).fill(255).map((v, i) => (i % 8 < 4 ? v : 0)),
    },
  ])("of $of", ({ bytes, sum }) => {
    expect(sumOf(Uint8Array.from(bytes))).toEqual(sum);
  });
});

// 65504 bytes are what fits into the memory of the sum at once.
test.each([4, 312, 65500, 65504, 65508, 131072, 300_000])("agrees with BigInt over %i bytes", (length) => {
  expect(sumOf(filler(length))).toEqual(reference(filler(length)));
});

test("wraps at 64 bits", () => {
  const ones = new Uint8Array(400_000).fill(255);
  expect(sumOf(ones)).toEqual(reference(ones));
});

test("does not depend on how the bytes are split", () => {
  const bytes = filler(1200);
  const whole = sumOf(bytes);
  for (let at = 0; at <= bytes.length; at += 4) {
    expect(sumOf(bytes.subarray(0, at), bytes.subarray(at))).toEqual(whole);
  }
});

test("takes bytes at any address", () => {
  const memory = filler(103);
  expect(sumOf(memory.subarray(3))).toEqual(reference(memory.slice(3)));
});

test("sums do not disturb each other", () => {
  const [one, other] = [filler(64), filler(128).subarray(64)];
  const first = new Fletcher4();
  const second = new Fletcher4();
  for (let at = 0; at < 64; at += 16) {
    first.update(one.subarray(at, at + 16));
    second.update(other.subarray(at, at + 16));
  }
  expect(first.digest()).toEqual(reference(one));
  expect(second.digest()).toEqual(reference(other.slice()));
});

test("goes on from a digest, which does not change", () => {
  const bytes = filler(96);
  const sum = new Fletcher4();
  sum.update(bytes.subarray(0, 32));
  const digest = sum.digest();
  sum.update(bytes.subarray(32));
  const again = new Fletcher4(digest);
  again.update(bytes.subarray(32));
  expect(digest).toEqual(reference(bytes.slice(0, 32)));
  expect(again.digest()).toEqual(sum.digest());
});

test("matches its own sum only", () => {
  const sum = new Fletcher4();
  sum.update(filler(64));
  const digest = sum.digest();
  expect(sum.matches(digest)).toBe(true);
  expect(sum.matches(digest.subarray(0, 31))).toBe(false);
  for (let i = 0; i < 32; i += 1) {
    const other = digest.slice();
    other[i] = (other[i] ?? 0) ^ 1;
    expect(sum.matches(other)).toBe(false);
  }
});

test("refuses bytes that are not whole words, and a state that is no sum", () => {
  expect(() => sumOf(new Uint8Array(6))).toThrow("6 bytes are not whole 32-bit words");
  expect(() => new Fletcher4(new Uint8Array(31))).toThrow("a sum has 32 bytes, not 31");
});
