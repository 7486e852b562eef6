import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { datasetExists, getProperties } from "../system/zfs.js";
import { datasetOfRoot, rootDataset } from "./site-root.js";
import type { Installation, SiteState } from "./state.js";

/** What the environment on `/` has, which may have been made from the configured one. */
export async function datasetsInUse(
  site: SiteConfig,
  state: SiteState | undefined,
): Promise<SiteConfig["streams"]> {
  if (site.install.mode === "in-place") return site.streams;
  return datasetsOf(rootDataset(site), site, state);
}

async function datasetsOf(
  root: string,
  site: SiteConfig,
  state: SiteState | undefined,
): Promise<SiteConfig["streams"]> {
  const { guid } = await getProperties(root, ["guid"]);
  const found = new Map<string, string>();
  let before: readonly Installation[] = state?.installations ?? [];
  let isOwn = ({ environment }: Installation): boolean => environment?.guid === guid;
  for (;;) {
    const at = before.findLastIndex((each) => isOwn(each));
    const installation = before[at];
    if (installation === undefined) break;
    for (const { role, dataset } of installation.streams) if (!found.has(role)) found.set(role, dataset);
    // What it did not bring, it has of the one that it was made from.
    const previous = installation.environment?.previous;
    isOwn = ({ environment }) => environment?.dataset === previous;
    before = before.slice(0, at);
  }
  return { ...site.streams, ...Object.fromEntries(found) };
}

/**
 * Refuses an install in place into the datasets of another environment than that on `/`: its `/` would have the other half.
 * @throws ZferryError `dataset-unsuitable`
 */
export async function requireDatasetsInUse(site: SiteConfig, state: SiteState | undefined): Promise<void> {
  const isOne = state?.installations.some(({ environment }) => environment !== undefined);
  const root = isOne && site.root !== undefined ? datasetOfRoot(site) : undefined;
  if (root === undefined) return;
  for (const [role, used] of Object.entries(await datasetsOf(root, site, state))) {
    const configured = site.streams[role];
    if (configured === undefined || configured === used || !(await datasetExists(used))) continue;
    throw new ZferryError(
      "dataset-unsuitable",
      `the environment ${root} has ${used} for ${role}, and [streams] names ${configured}, which another one has`,
      {
        details: { role, expected: used, found: configured },
        hint: `to change it in place: ${role} = "${used}" under [streams]`,
      },
    );
  }
}
