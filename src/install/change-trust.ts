import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { readKeyFolder, readPublicKey, writeNewFiles } from "../system/key-files.js";
import { changeKeys, identityOf, requireEnough, trustedKeys } from "../trust/keys.js";
import { encodePublicKey, parsePublicKey, publicKeyLine, type PublicKey } from "../trust/minisign.js";
import { requireNothingPending } from "./pending.js";
import { emptyState, lockState } from "./state.js";
import { keySetOf, readSiteTrust, type SiteTrust } from "./trust.js";
import { readUnderWay } from "./under-way.js";

/**
 * Changes the site's keys by hand: a file of a public key is added to the key folder, or a key (its id or a file of it)
 * is revoked for good.
 * @throws ZferryError `key-revoked` for the adding of a key that was revoked, `output-exists`, `keys-too-few`
 */
export async function changeTrust(
  site: SiteConfig,
  change: { add: string } | { revoke: string },
): Promise<void> {
  const folder = await lockState(site.state);
  try {
    // The bundle of an install that is under way must be believed until its end, or the site would stay half-way.
    await requireNothingPending(await readUnderWay(site), "and the keys stay until that is done");
    const state = await folder.readState();
    if ("add" in change) {
      const key = await readPublicKey(change.add);
      requireNotRevoked(key, keySetOf(state).revoked);
      const present = trustedKeys(await readKeyFolder(site.trust.keys), keySetOf(state));
      if (present.some((each) => identityOf(each) === identityOf(key))) return;
      await mkdir(site.trust.keys, { recursive: true });
      const path = join(site.trust.keys, `${key.keyId}.pub`);
      await writeNewFiles([{ path, bytes: encodePublicKey(key), mode: 0o644 }]);
      return;
    }
    const trust = await readSiteTrust(site);
    const key = await findKey(change.revoke, trust);
    const { counter } = trust.set;
    const keys = changeKeys(trust.set, { counter, add: [], revoke: [publicKeyLine(key)] });
    requireEnough(trust.folder, keys, site.trust.threshold);
    await folder.writeState({
      ...(state ?? emptyState(site.product)),
      keys,
    });
  } finally {
    await folder.release();
  }
}

function requireNotRevoked(key: PublicKey, revoked: string[]): void {
  if (trustedKeys([key], { counter: 0, added: [], revoked }).length > 0) return;
  throw new ZferryError("key-revoked", `key ${key.keyId} was revoked at this site, which is for good`, {
    details: { keyId: key.keyId },
    hint: "the publisher makes a new key",
  });
}

/** A key by its id, among those that are trusted, or by a file, also one that is not. */
async function findKey(name: string, { keys: trusted, set }: SiteTrust): Promise<PublicKey> {
  if (!/^[0-9A-F]{16}$/i.test(name)) return readPublicKey(name);
  const wanted = name.toUpperCase();
  const keys = [...trusted, ...set.revoked.map((line) => parsePublicKey(line, line))];
  const found = new Map(keys.filter(({ keyId }) => keyId === wanted).map((key) => [identityOf(key), key]));
  const [key] = found.values();
  if (key !== undefined && found.size === 1) return key;
  throw new ZferryError(
    "usage",
    `${found.size === 0 ? "no key of this site has" : `${found.size} keys of this site have`} the id ${wanted}`,
    { hint: "bundle trust lists them; a key that is not trusted is named by a file of it" },
  );
}
