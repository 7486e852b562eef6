import type { SiteConfig } from "../config.js";
import { readSiteConfig } from "../system/settings.js";
import type { Journal } from "./state.js";
import { readUnderWay } from "./under-way.js";

/**
 * Reads a site's configuration for what installs, or tells of installs.
 * @param config the file, where it is not the usual one
 * @throws ZferryError `not-configured`, `config-malformed`, `journal-malformed`
 */
export async function readSite(config?: string, live = false): Promise<SiteConfig> {
  const site = await readSiteConfig(config);
  if (site.install.from !== "default") return site;
  return settleMode(site, await readUnderWay(site), live);
}

/**
 * Of a site that names no mode: what is under way goes on as it was begun, whatever the default is by now; and `--live` is in place.
 * formats/configuration.md, The mode
 * @param journal of what is under way
 */
export function settleMode(site: SiteConfig, journal: Journal | undefined, live: boolean): SiteConfig {
  const { install } = site;
  if (journal !== undefined)
    return { ...site, install: { ...install, mode: modeOf(journal), from: "under-way" } };
  return live ? { ...site, install: { ...install, mode: "in-place", from: "live" } } : site;
}

/** A rollback that is journalled is in place: of an environment nothing is under way. */
export const modeOf = (journal: Journal): SiteConfig["install"]["mode"] =>
  journal.operation === "merge" || (journal.operation === "install" && journal.environment !== null)
    ? "boot-environment"
    : "in-place";
