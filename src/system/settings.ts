import type { Trust } from "../bundle/reader.js";
import {
  BUILD_CONFIG_PATH,
  buildSchema,
  parseConfig,
  SITE_CONFIG_PATH,
  siteSchema,
  type BuildConfig,
  type SiteConfig,
} from "../config.js";
import { ZferryError } from "../errors.js";
import { readKeyFolder, readPublicKey, readSmallFile } from "./key-files.js";

async function readConfig(path: string, what: string, hint = ""): Promise<string> {
  try {
    return (await readSmallFile(path, what, 1 << 20)).toString("utf8");
  } catch (error) {
    throw new ZferryError("not-configured", error instanceof Error ? error.message : String(error), {
      details: { file: path },
      hint: `write one (formats/configuration.md has an example), or name another with --config${hint}`,
      cause: error,
    });
  }
}

/** `hint` is added to what is said where there is none. */
export const readSiteConfig = async (path = SITE_CONFIG_PATH, hint = ""): Promise<SiteConfig> =>
  parseConfig(siteSchema, await readConfig(path, "site configuration", hint), path);

export const readBuildConfig = async (path = BUILD_CONFIG_PATH): Promise<BuildConfig> =>
  parseConfig(buildSchema, await readConfig(path, "build configuration"), path);

/** The keys that are named, one of which is enough; or else the site's key folder and threshold. */
export async function readTrust(options: {
  readonly key?: readonly string[];
  readonly config?: string;
}): Promise<Trust> {
  if (options.key !== undefined) {
    return { keys: await Promise.all(options.key.map(readPublicKey)), threshold: 1 };
  }
  return siteTrust(await readSiteConfig(options.config, ", or a public key with --key"));
}

export const siteTrust = async ({ trust }: SiteConfig): Promise<Trust> => ({
  keys: await readKeyFolder(trust.keys),
  threshold: trust.threshold,
});
