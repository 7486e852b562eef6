import type { Trust } from "../bundle/reader.js";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { readKeyFolder, readPublicKey } from "../system/key-files.js";
import { readSiteConfig } from "../system/settings.js";
import { NO_KEYS, trustedKeys, type KeySet } from "../trust/keys.js";
import type { PublicKey } from "../trust/minisign.js";
import { openState, type SiteState } from "./state.js";

/** Whom a site believes, and why. */
export interface SiteTrust extends Trust {
  /** What lies in the site's key folder, revoked or not. */
  readonly folder: readonly PublicKey[];
  /** What bundles and `bundle trust` made of it. */
  readonly set: KeySet;
}

export const keySetOf = (state: SiteState | undefined): KeySet => state?.keys ?? NO_KEYS;

/**
 * The keys of the site's folder and state, and its threshold.
 * @throws ZferryError `not-configured` when there is no key, `not-permitted` when the state may not be read
 */
export async function readSiteTrust({ trust, state }: SiteConfig): Promise<SiteTrust> {
  const set = keySetOf(await readState(state));
  const folder = await readKeyFolder(trust.keys);
  const keys = trustedKeys(folder, set);
  if (keys.length === 0) {
    throw new ZferryError(
      "not-configured",
      `${trust.keys}: there is no public key (*.pub)${folder.length === 0 ? "" : " that is not revoked"}`,
      {
        details: { folder: trust.keys },
        hint: "copy the publisher's public key there, or name one with --key",
      },
    );
  }
  return { keys, threshold: trust.threshold, folder, set };
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

/** The keys that are named, one of which is enough; or else the site's. */
export async function readTrust(options: {
  readonly key?: readonly string[];
  readonly config?: string;
}): Promise<Trust> {
  if (options.key !== undefined) {
    return { keys: await Promise.all(options.key.map(readPublicKey)), threshold: 1 };
  }
  return readSiteTrust(await readSiteConfig(options.config, ", or a public key with --key"));
}
