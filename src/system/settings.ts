import { isUtf8 } from "node:buffer";
import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import {
  BUILD_CONFIG_PATH,
  buildSchema,
  parseConfig,
  SITE_CONFIG_PATH,
  siteSchema,
  type BuildConfig,
  type InstallMode,
  type SiteConfig,
  type SiteFile,
} from "../config.js";
import { ZferryError } from "../errors.js";
import type { KeyChange } from "../trust/keys.js";
import { publicKeyLine } from "../trust/minisign.js";
import { readPublicKey, readSmallFile } from "./key-files.js";
import { datasetOf, mountPath, ownMounts, type Mount } from "./mounts.js";

async function readConfig(path: string, what: string, hint = ""): Promise<string> {
  let bytes: Buffer;
  try {
    bytes = await readSmallFile(path, what, 1 << 20);
  } catch (error) {
    const { cause } = error as { cause?: NodeJS.ErrnoException };
    if (cause?.code !== "ENOENT") throw error;
    throw new ZferryError("not-configured", error instanceof Error ? error.message : String(error), {
      details: { file: path },
      hint: `write one (formats/configuration.md has an example), or name another with --config${hint}`,
      cause: error,
    });
  }
  // Replaced by something else, a byte in a path would name another file.
  if (!isUtf8(bytes)) {
    throw new ZferryError("config-malformed", `${path}: is not UTF-8`, { details: { file: path } });
  }
  return bytes.toString("utf8");
}

/**
 * Reads a site's configuration. The mode of installing is what it says, or else the default of its system.
 * @param options.hint is added to what is said where there is no such file
 * @param options.system the folder of its system
 * @throws ZferryError `not-configured`, `config-malformed`
 */
export async function readSiteConfig(
  path = SITE_CONFIG_PATH,
  { hint = "", system = "/" }: { readonly hint?: string; readonly system?: string } = {},
): Promise<SiteConfig> {
  const text = await readConfig(path, "site configuration", `${hint}${ofBuildHost()}`);
  // Who only reads needs no /proc, as in a chroot.
  const mounts = existsSync("/proc/self") ? ownMounts() : new Map<string, Mount>();
  return withMode(parseConfig(siteSchema, text, path), mounts, system);
}

/**
 * A site's configuration with the mode that it names, or else the default: formats/configuration.md, The mode.
 * @param mounts those that are seen, by where they are
 * @param system the folder of the site's system
 */
export function withMode(site: SiteFile, mounts: ReadonlyMap<string, Mount>, system = "/"): SiteConfig {
  const { mode } = site.install;
  const decided: InstallMode =
    mode === undefined
      ? {
          mode: isCloneable(site, mounts.get(mountPath(system))) ? "boot-environment" : "in-place",
          from: "default",
        }
      : { mode, from: "configuration" };
  return { ...site, install: { ...site.install, ...decided } };
}

/** Whether `/` is the site's own, and a dataset that another one can be made beside. */
const isCloneable = ({ root }: SiteFile, mount: Mount | undefined): boolean =>
  root !== undefined && resolve(root.path) === "/" && datasetOf(mount)?.includes("/") === true;

/** Words for a machine that releases are made on: what is a site's has nothing to tell there. */
const ofBuildHost = (): string =>
  existsSync(BUILD_CONFIG_PATH)
    ? `; this machine has ${BUILD_CONFIG_PATH}, and this is for the sites that install its bundles`
    : "";

export const readBuildConfig = async (path = BUILD_CONFIG_PATH): Promise<BuildConfig> =>
  parseConfig(buildSchema, await readConfig(path, "build configuration"), path);

/** The change of the sites' keys that the configuration names by files. */
export async function readKeyChange({ keys }: BuildConfig): Promise<KeyChange | undefined> {
  if (keys === undefined) return undefined;
  const lines = async (paths: readonly string[]): Promise<string[]> =>
    (await Promise.all(paths.map(readPublicKey))).map(publicKeyLine).sort();
  return { counter: keys.counter, add: await lines(keys.add), revoke: await lines(keys.revoke) };
}

/** The environment variables of this process. */
export const processVariables = (): Readonly<Record<string, string | undefined>> => process.env;

/** Where a user keeps what a site has in its state folder: the XDG Base Directory Specification has it so. */
export function userStateFolder(): string {
  const state = process.env["XDG_STATE_HOME"];
  return join(state?.startsWith("/") === true ? state : join(homedir(), ".local/state"), "zferry");
}
