import { describe, expect, test } from "vitest";
import { changeKeys, keyChangeFault, NO_KEYS, requireEnough, trustedKeys } from "../../src/trust/keys.js";
import { generateKeyPair, parsePublicKey, publicKeyLine, type PublicKey } from "../../src/trust/minisign.js";

// formats/keys.md, A site's keys

const newKey = (): PublicKey => generateKeyPair().publicKey;
const line = publicKeyLine;
const ids = (keys: readonly PublicKey[]): string[] => keys.map(({ keyId }) => keyId);
/** The same 32 bytes under another key id. */
const renamed = (key: PublicKey): PublicKey => ({ ...key, keyId: newKey().keyId });

describe("a site trusts", () => {
  const [a, b, c] = [newKey(), newKey(), newKey()];

  test("the keys of its folder and those that were added, each once", () => {
    expect(ids(trustedKeys([a, renamed(a), b], NO_KEYS))).toEqual(ids([a, b]));
    const set = { counter: 1, added: [line(renamed(b)), line(c)], revoked: [] };
    expect(ids(trustedKeys([a, b], set))).toEqual(ids([a, b, c]));
  });

  test("no key that was revoked, wherever it lies and whatever its id", () => {
    const set = { counter: 1, added: [line(b), line(c)], revoked: [line(renamed(a)), line(renamed(b))] };
    expect(ids(trustedKeys([a, renamed(a)], set))).toEqual(ids([c]));
  });
});

describe("a change", () => {
  const [a, b, c] = [newKey(), newKey(), newKey()];

  test("adds and revokes, and moves the counter", () => {
    const first = changeKeys(NO_KEYS, { counter: 3, add: [line(b)], revoke: [line(a)] });
    expect(first).toEqual({ counter: 3, added: [line(b)], revoked: [line(a)] });
    const second = changeKeys(first, { counter: 4, add: [line(b), line(c)], revoke: [line(b)] });
    expect(second).toEqual({ counter: 4, added: [line(c)], revoked: [line(a), line(b)] });
  });

  test("does not bring back what was revoked", () => {
    const revoked = changeKeys(NO_KEYS, { counter: 1, add: [], revoke: [line(a)] });
    const again = changeKeys(revoked, { counter: 2, add: [line(a), line(renamed(a))], revoke: [] });
    expect(trustedKeys([a], again)).toEqual([]);
  });

  test("that leaves too few keys is refused", () => {
    const set = changeKeys(NO_KEYS, { counter: 1, add: [line(b)], revoke: [line(a)] });
    expect(() => requireEnough([a], set, 1)).not.toThrow();
    expect(() => requireEnough([a], set, 2)).toThrow(
      "1 trusted keys would be left, and this site demands signatures by 2",
    );
  });
});

describe("a change in a manifest", () => {
  const [a, b] = [newKey(), newKey()].map(line).sort() as [string, string];

  test("may add and revoke", () => {
    expect(keyChangeFault({ counter: 1, add: [a, b], revoke: [] })).toBeUndefined();
    expect(keyChangeFault({ counter: 1, add: [a], revoke: [b] })).toBeUndefined();
  });

  test.each<[string, RegExp, { add: string[]; revoke: string[] }]>([
    ["that changes nothing", /^changes nothing$/, { add: [], revoke: [] }],
    ["whose keys are not sorted", /^add: is not sorted$/, { add: [b, a], revoke: [] }],
    ["with a key twice", /^revoke: is not sorted$/, { add: [], revoke: [a, a] }],
    ["with a key in both lists", /^revoke\.0: is key [0-9A-F]{16} a second time$/, { add: [a], revoke: [a] }],
    [
      "with a key under two ids",
      /a second time$/,
      { add: [a, line(renamed(parsePublicKey(a, "a")))].sort(), revoke: [] },
    ],
    [
      "with a key of small order",
      /is not a usable ed25519 point$/,
      { add: [Buffer.concat([Buffer.from("Ed"), Buffer.alloc(40)]).toString("base64")], revoke: [] },
    ],
  ])("%s is refused", (_what, fault, change) => {
    expect(keyChangeFault({ counter: 1, ...change })).toMatch(fault);
  });
});
