import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { datasetsInUse } from "../install/datasets-in-use.js";
import {
  acceptedBy,
  doneLinks,
  type Installation,
  type InstallJournal,
  type SiteState,
} from "../install/state.js";
import { availableTo, requireAnswer } from "../install/plan.js";
import type { SiteTrust } from "../install/trust.js";
import { readSite } from "../root/site.js";
import { openRepository, trimmed } from "../system/git.js";
import { readSecretKey } from "../system/key-files.js";
import {
  datasetExists,
  getProperties,
  listSnapshots,
  poolFeatures,
  poolOf,
  type Snapshot,
} from "../system/zfs.js";
import type { SecretKey } from "../trust/minisign.js";
import type { ChainStart, Link } from "./chain.js";
import type { SiteRequest } from "./request.js";
import { STATEMENT_FORMAT } from "./statement.js";

/** Of a dataset the newest snapshots that are looked at: whoever takes more of them after a release starts from the newest. */
const MOST_SNAPSHOTS = 64;

/**
 * What a site has, for a chain to start from. Datasets are asked, and the state only tells their releases: somebody may have
 * taken a dataset back by hand.
 * @throws ZferryError `not-configured`, `dataset-unsuitable`, `zfs-failed`, `git-failed`
 */
export async function readChainStart(site: SiteConfig, state: SiteState | undefined): Promise<ChainStart> {
  const streams = new Map<string, readonly string[]>();
  for (const [role, dataset] of Object.entries(await datasetsInUse(site, state))) {
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
    accepted: acceptedBy(state),
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

/** What the boot environment has that is being made of several bundles; the tree of its `/` is not asked for. */
export function afterDone(start: ChainStart, { environment, ...last }: InstallJournal): ChainStart {
  const links = [...doneLinks({ environment }), last];
  const targets = links.flatMap(({ streams }) =>
    streams.map(({ role, target }) => [role, [target.guid]] as const),
  );
  return {
    ...start,
    installed: last.release,
    highestSequence: Math.max(start.highestSequence, last.release.sequence),
    accepted: new Set([...start.accepted, ...links.map(({ release }) => release.identity)]),
    streams: new Map([...start.streams, ...targets]),
    tree: null,
  };
}

/** What a site calls itself in what it says of itself. */
export type SiteIdentity = NonNullable<SiteConfig["site"]>;

/** @throws ZferryError `not-configured` */
export function requireIdentity({ site }: SiteConfig): SiteIdentity {
  if (site !== undefined) return site;
  throw new ZferryError("not-configured", "the site's configuration has no [site]: it has no name", {
    hint: 'add [site] with name = "…", and key = "/etc/zferry/site.key" for signatures',
  });
}

/**
 * The key that signs what the site says of itself; undefined where none is configured.
 * @throws ZferryError `not-configured` when it is not there, and what a malformed one gives
 */
export async function readSiteKey(
  { key }: SiteIdentity,
  ask: (prompt: string) => Promise<string>,
): Promise<SecretKey | undefined> {
  if (key === undefined) return undefined;
  try {
    return await readSecretKey(key, undefined, ask);
  } catch (error) {
    const { code } = (error instanceof Error ? (error.cause as NodeJS.ErrnoException | undefined) : {}) ?? {};
    if (code !== "ENOENT") throw error;
    throw new ZferryError("not-configured", `the site's key ${key} is not there`, {
      details: { file: key },
      hint: `bundle keygen --no-password -o ${key.replace(/\.key$/, "")} makes it; its public half goes to the build host`,
      cause: error,
    });
  }
}

/** What a site asks a bundle with. */
export async function describeSite(
  site: SiteConfig,
  state: SiteState | undefined,
  trust: SiteTrust,
  { made, zferry }: Pick<SiteRequest, "made" | "zferry">,
): Promise<SiteRequest> {
  const start = await readChainStart(site, state);
  const streams: SiteRequest["streams"] = [];
  const datasets = await datasetsInUse(site, state);
  for (const [role, dataset] of Object.entries(datasets).sort(([a], [b]) => (a < b ? -1 : 1))) {
    const guids = [...(start.streams.get(role) ?? [])];
    const features = [...(await poolFeatures(poolOf(dataset)))].sort();
    const place = guids.length > 0 ? dataset : await nearestAbove(dataset);
    streams.push({ role, guids, poolFeatures: features, freeBytes: await availableTo(place) });
  }
  return {
    format: STATEMENT_FORMAT,
    kind: "request",
    site: requireIdentity(site).name,
    made,
    zferry,
    product: site.product,
    installed: state?.installations.find(({ release }) => release === start.installed)?.release ?? null,
    highestSequence: start.highestSequence,
    streams,
    root: site.root === undefined ? null : { tree: start.tree },
    keys: {
      threshold: trust.threshold,
      counter: trust.set.counter,
      trusted: [...new Set(trust.keys.map(({ keyId }) => keyId))].sort(),
    },
  };
}

/** The nearest dataset at or above the place of one that may not be there yet. */
async function nearestAbove(dataset: string): Promise<string> {
  let place = dataset;
  while (place.includes("/") && !(await datasetExists(place))) place = place.slice(0, place.lastIndexOf("/"));
  return place;
}
