import { ZferryError } from "../errors.js";
import { parsePublicKey, publicKeyLine, type PublicKey } from "./minisign.js";

// formats/keys.md, A site's keys. Keys are written as the second line of their files and are the same if their 32 bytes are.

/** A change of the key set that a bundle carries. */
export interface KeyChange {
  /** A site takes a change only if this is higher than that of every change before. */
  readonly counter: number;
  readonly add: string[];
  readonly revoke: string[];
}

/** What bundles and `bundle trust` made of a site's keys, beside those in its key folder. */
export interface KeySet {
  /** Of the last change. */
  readonly counter: number;
  readonly added: string[];
  /** Never trusted again, wherever they lie. */
  readonly revoked: string[];
}

export const NO_KEYS: KeySet = { counter: 0, added: [], revoked: [] };

/** Two keys are one if this is the same. */
export const identityOf = ({ key }: PublicKey): string => Buffer.from(key).toString("hex");

const identities = (lines: readonly string[]): Set<string> =>
  new Set(lines.map((line) => identityOf(parsePublicKey(line, line))));

/** The keys that count: those of the folder and those added, less those revoked, each once. */
export function trustedKeys(folder: readonly PublicKey[], { added, revoked }: KeySet): PublicKey[] {
  const refused = identities(revoked);
  const fromBundles = added.map((line) => parsePublicKey(line, "added by a release"));
  const trusted = new Map<string, PublicKey>();
  for (const key of [...folder, ...fromBundles]) {
    const identity = identityOf(key);
    if (!refused.has(identity) && !trusted.has(identity)) trusted.set(identity, key);
  }
  return [...trusted.values()];
}

/** Adds and revokes; what was ever revoked stays so, though a change adds it. */
export function changeKeys(set: KeySet, { counter, add, revoke }: KeyChange): KeySet {
  const revoked = merge(set.revoked, revoke);
  const refused = identities(revoked);
  const added = merge(set.added, add).filter((line) => !refused.has(identityOf(parsePublicKey(line, line))));
  return { counter, added, revoked };
}

function merge(present: readonly string[], more: readonly string[]): string[] {
  const known = identities(present);
  return [...present, ...more.filter((line) => !known.has(identityOf(parsePublicKey(line, line))))];
}

/**
 * A change after which a site could verify nothing any more is refused.
 * @param folder the keys of the site's key folder
 * @throws ZferryError `keys-too-few`
 */
export function requireEnough(folder: readonly PublicKey[], set: KeySet, threshold: number): void {
  const left = trustedKeys(folder, set).length;
  if (left >= threshold) return;
  throw new ZferryError(
    "keys-too-few",
    `${left} trusted keys would be left, and this site demands signatures by ${threshold}`,
    {
      details: { left, threshold },
      hint: "add a key first, or lower the threshold in the site's configuration",
    },
  );
}

/**
 * What is wrong with a change as a manifest has it, or undefined: every key usable, both lists sorted bytewise and
 * without a key twice, none in both, and not both empty.
 */
export function keyChangeFault({ add, revoke }: KeyChange): string | undefined {
  const seen = new Set<string>();
  for (const [name, lines] of Object.entries({ add, revoke })) {
    for (const [index, line] of lines.entries()) {
      let key: PublicKey;
      try {
        key = parsePublicKey(line, line);
      } catch (error) {
        return `${name}.${index}: ${error instanceof Error ? error.message : String(error)}`;
      }
      if (publicKeyLine(key) !== line) return `${name}.${index}: is not the one way to write that key`;
      if (index > 0 && (lines[index - 1] as string) >= line) return `${name}: is not sorted`;
      if (seen.has(identityOf(key))) return `${name}.${index}: is key ${key.keyId} a second time`;
      seen.add(identityOf(key));
    }
  }
  return seen.size === 0 ? "changes nothing" : undefined;
}
