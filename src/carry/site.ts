import type { SiteConfig } from "../config.js";
import { type Installation, type SiteState } from "../install/state.js";
import { requireAnswer } from "../install/plan.js";
import { readSite } from "../root/site.js";
import { openRepository, trimmed } from "../system/git.js";
import { datasetExists, getProperties, listSnapshots, type Snapshot } from "../system/zfs.js";
import type { ChainStart, Link } from "./chain.js";

/** Of a dataset the newest snapshots that are looked at: whoever takes more of them after a release starts from the newest. */
const MOST_SNAPSHOTS = 64;

/**
 * What a site has, for a chain to start from. Datasets are asked, and the state only tells their releases: somebody may have
 * taken a dataset back by hand.
 * @throws ZferryError `not-configured`, `dataset-unsuitable`, `zfs-failed`, `git-failed`
 */
export async function readChainStart(site: SiteConfig, state: SiteState | undefined): Promise<ChainStart> {
  const streams = new Map<string, readonly string[]>();
  for (const [role, dataset] of Object.entries(site.streams)) {
    await requireAnswer(dataset);
    const there = (await datasetExists(dataset)) ? await guidsToStartFrom(dataset) : [];
    streams.set(role, there);
  }
  const isThere = (each: Installation): boolean =>
    each.rolledBack === undefined &&
    each.streams.every(({ role, target }) => streams.get(role)?.includes(target.guid));
  return {
    product: site.product,
    installed: state?.installations.findLast(isThere)?.release,
    highestSequence: state?.highestSequence ?? 0,
    accepted: new Set(state?.installations.map(({ release }) => release.identity)),
    streams,
    tree: site.root === undefined ? null : await releaseTree(site.root.path),
  };
}

/** The snapshots after which nothing was written, newest first; if something was, the newest alone: the install says so. */
async function guidsToStartFrom(dataset: string): Promise<string[]> {
  const newest = (await listSnapshots(dataset)).slice(-MOST_SNAPSHOTS).reverse();
  if (newest.length === 0) return [];
  const since = ({ name }: Snapshot): string => `written@${name}`;
  const written = await getProperties(dataset, newest.map(since));
  const unmodified = newest.filter((snapshot) => written[since(snapshot)] === "0");
  return (unmodified.length === 0 ? newest.slice(0, 1) : unmodified).map(({ guid }) => guid);
}

/** The tree of the release that `/` was made from; null where the site does not know it. */
async function releaseTree(path: string): Promise<string | null> {
  const git = await openRepository(path);
  const { previousRelease } = await readSite(git);
  if (previousRelease === null) return null;
  return trimmed(await git.run(["rev-parse", "--verify", `${previousRelease}^{tree}`]));
}

/** What the site will have once a bundle is installed. */
export const afterLink = (start: ChainStart, { id, release, streams, root }: Link): ChainStart => ({
  ...start,
  installed: release,
  highestSequence: Math.max(start.highestSequence, release.sequence),
  accepted: new Set([...start.accepted, id]),
  streams: new Map([...start.streams, ...streams.map(({ role, target }) => [role, [target]] as const)]),
  tree: root?.target ?? start.tree,
});
