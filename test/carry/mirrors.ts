import { createHash } from "node:crypto";
import type { IndexEntry, MirrorIndex } from "../../src/carry/index-format.js";
import { canonicalJson } from "../../src/canonical-json.js";
import { encodeSignature, sign, type SecretKey } from "../../src/trust/minisign.js";
import { KEY } from "../bundle/support.js";

export const NOW = 1_750_100_000;
export const DAY = 86_400;

/** An entry of a release that leads from the one before it. */
export const entry = (sequence: number, changed: Partial<IndexEntry> = {}): IndexEntry => ({
  path: `R${sequence}.bundle`,
  size: 8704 + sequence,
  identity: createHash("sha256").update(String(sequence)).digest("hex"),
  release: { name: `R${sequence}`, sequence },
  created: NOW - DAY,
  streams: [
    {
      role: "usr",
      base: { guid: String(1_000 + sequence - 1), snapshot: `R${sequence - 1}` },
      target: { guid: String(1_000 + sequence), snapshot: `R${sequence}` },
    },
  ],
  signers: [KEY.keyId],
  ...changed,
});

export const index = (bundles: readonly IndexEntry[], changed: Partial<MirrorIndex> = {}): MirrorIndex => ({
  format: 1,
  product: "demo",
  counter: NOW,
  created: NOW,
  expires: NOW + 30 * DAY,
  bundles: [...bundles],
  ...changed,
});

/** Signs whatever it is given, as an index is. */
export const signed = (text: string | Uint8Array, key: SecretKey = KEY): Buffer => {
  const json = Buffer.from(text);
  return Buffer.concat([encodeSignature(sign(key, json, { trustedComment: "test" })), json]);
};

export const signedJson = (value: unknown, key: SecretKey = KEY): Buffer => signed(canonicalJson(value), key);
