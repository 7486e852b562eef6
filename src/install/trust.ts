import type { Trust } from "../bundle/reader.js";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { readKeyFolder } from "../system/key-files.js";
import { NO_KEYS, trustedKeys, type KeySet } from "../trust/keys.js";
import type { PublicKey } from "../trust/minisign.js";
import { openState, type SiteState } from "./state.js";

/** Whom a site believes, and why. */
export interface SiteTrust extends Trust {
  /** The site's, by its configuration. */
  readonly product: string;
  /** What lies in the site's key folder, revoked or not. */
  readonly folder: readonly PublicKey[];
  /** What bundles and `bundle trust` made of it. */
  readonly set: KeySet;
  /** Whether the site has a state, which would say what was revoked. */
  readonly known: boolean;
}

export const keySetOf = (state: SiteState | undefined): KeySet => state?.keys ?? NO_KEYS;

/**
 * The keys of the site's folder and state, and its threshold.
 * @throws ZferryError `not-configured` when there is no key, `not-permitted` when the state may not be read
 */
export async function readSiteTrust({ product, trust, state }: SiteConfig): Promise<SiteTrust> {
  const found = await readState(state);
  const set = keySetOf(found);
  const folder = await readKeyFolder(trust.keys);
  const keys = trustedKeys(folder, set);
  if (keys.length === 0) {
    throw new ZferryError(
      "not-configured",
      `${trust.keys}: there is no public key (*.pub)${folder.length === 0 ? "" : " that is not revoked"}`,
      {
        details: { folder: trust.keys },
        hint: "bundle trust --add FILE puts the publisher's public key there",
      },
    );
  }
  return { product, keys, threshold: trust.threshold, folder, set, known: found !== undefined };
}

/** Who may not see what was revoked cannot say whom the site believes. */
async function readState(path: string): Promise<SiteState | undefined> {
  try {
    return await openState(path).readState();
  } catch (error) {
    if (!(error instanceof ZferryError && error.code === "not-permitted")) throw error;
    throw new ZferryError(error.code, error.message, {
      details: error.details,
      hint: "the state says which keys are revoked: run this as root, or name a public key with --key",
      cause: error,
    });
  }
}
