import { basename } from "node:path";
import * as v from "valibot";
import { sha256Hex } from "../bundle/manifest.js";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { formatBytes } from "../report.js";
import { findMountOf } from "../system/mounts.js";
import {
  datasetExists,
  depthOf,
  destroy,
  destroySnapshots,
  findSnapshotsWith,
  fullName,
  getProperties,
  listBelow,
  listDepended,
  listProperties,
  parentOf,
  poolFreeing,
  poolOf,
  promote,
  renameSnapshot,
  setProperty,
  type DependedSnapshot,
} from "../system/zfs.js";
import {
  findMounter,
  listEnvironments,
  type BootEnvironment,
  type BootEnvironments,
} from "./environments.js";
import { requireNothingPending, withState } from "./pending.js";
import { availableTo } from "./plan.js";
import { patiently, type ReceiveOptions } from "./receive.js";
import { installed, openState, undoable, type SiteState } from "./state.js";
import { readUnderWay } from "./under-way.js";

// formats/environments.md, Keeping and removing

/** On an environment that is being removed, and on a snapshot that goes as soon as nothing depends on it. */
const PRUNED = "zferry:pruned";

/** An environment that goes. */
export interface RemovedEnvironment {
  readonly name: string;
  readonly dataset: string;
  /** That it was made for. */
  readonly release: string;
  /** Those of its streams that nobody else has, in the order in which they go; the root goes last. */
  readonly datasets: readonly string[];
  /** Bytes: what became free, or of a plan at least would. */
  readonly frees: number;
  /** What it goes for: a plan has as many for `keep_free` as may be needed, and fewer go where that is enough. */
  readonly for: "keep" | "keep_free";
}

/** One that would go by its age, and why it stays. */
export interface StayingEnvironment {
  readonly name: string;
  readonly dataset: string;
  readonly why: string;
}

export interface Pruning {
  readonly container: string;
  readonly keep: number;
  /** Bytes that shall be free on the container's pool; 0: none. */
  readonly keepFree: number;
  /** Bytes that are free there in the end, or of a plan at least would be. */
  readonly free: number;
  /** Oldest first. */
  readonly removed: readonly RemovedEnvironment[];
  readonly staying: readonly StayingEnvironment[];
}

/** What a plan is made of. */
interface Site {
  readonly config: SiteConfig;
  readonly state: SiteState | undefined;
  readonly found: BootEnvironments;
}

/**
 * Which environments would be removed. Nothing is changed.
 * @param found as `listEnvironments` gives them
 * @throws ZferryError `install-pending` while something is under way, or the newest environment is not confirmed; `zfs-failed`
 */
export async function planPruning(config: SiteConfig, found?: BootEnvironments): Promise<Pruning> {
  const state = await openState(config.state).readState();
  await requireNothingPending(
    await readUnderWay(config),
    "and no environment is removed before that is done",
  );
  requireConfirmed(state);
  return makePlan(await readSite(config, state, found));
}

/**
 * Removes the environments of zferry's own that are more than are kept. What depends on one is promoted first. After an
 * interruption the same command goes on.
 * @throws ZferryError as `planPruning`; `site-busy` where a dataset is in use: what was begun is gone on with by the next call
 */
export const pruneEnvironments = (
  config: SiteConfig,
  options: Pick<ReceiveOptions, "signal" | "step">,
): Promise<Pruning> =>
  withState(
    config,
    (what) => options.step(`warning: ${what}`),
    async (folder) => {
      const state = await folder.readState();
      await requireNothingPending(
        await folder.readJournal(),
        "and no environment is removed before that is done",
      );
      requireConfirmed(state);
      const site = await readSite(config, state);
      const { old, more, ...plan } = await choose(site);
      const { container, environments } = site.found;
      const work = { ...options, site, needed: neededBy(without(environments, old), state) };
      const removed: RemovedEnvironment[] = [];
      for (const each of old) removed.push({ ...each, frees: await remove(each, work) });
      for (const each of more) {
        // What is free by now is known, and was only estimated.
        if ((await freeIn(container)) >= plan.keepFree) break;
        const needed = neededBy(without(environments, [...removed, each]), state);
        removed.push({ ...each, frees: await remove(each, { ...work, needed }) });
      }
      // Also what a run before left.
      if (removed.length === 0) await sweep(work);
      return { ...plan, removed, free: await freeIn(container) };
    },
  );

const without = (
  environments: readonly BootEnvironment[],
  gone: readonly RemovedEnvironment[],
): BootEnvironment[] => environments.filter(({ dataset }) => !gone.some((each) => each.dataset === dataset));

/** What is not confirmed may have to go back to what would be removed. */
function requireConfirmed(state: SiteState | undefined): void {
  const last = installed(state);
  if (last?.environment === undefined || last !== undoable(state)) return;
  const { release, environment } = last;
  throw new ZferryError(
    "install-pending",
    `release ${release.name} (${release.sequence}) is not confirmed, and no environment is removed before that`,
    {
      details: { pending: release.name, dataset: environment.dataset },
      hint: `boot ${basename(environment.dataset)}, and when it is good: bundle confirm`,
    },
  );
}

const readSite = async (
  config: SiteConfig,
  state: SiteState | undefined,
  found?: BootEnvironments,
): Promise<Site> => ({ config, state, found: found ?? (await listEnvironments(config)) });

/** Guids of the snapshots that the installed releases of environments end at, which the next ones begin with. */
function neededBy(environments: readonly BootEnvironment[], state: SiteState | undefined): Set<string> {
  const guids = new Set(environments.map(({ guid }) => guid));
  const installations = (state?.installations ?? []).filter(
    (each) => each === installed(state) || guids.has(each.environment?.guid ?? ""),
  );
  return new Set(installations.flatMap(({ streams }) => streams.map(({ target }) => target.guid)));
}

/**
 * Those of zferry's own, oldest first.
 * @returns `old`: those that are more than the newest few, and those that are leaving already; `kept`: the others
 */
export function chooseOld(
  environments: readonly BootEnvironment[],
  keep: number,
): { readonly old: BootEnvironment[]; readonly kept: BootEnvironment[] } {
  const made = environments
    .filter(({ release }) => release !== null)
    .sort((one, other) => other.created - one.created || (one.name < other.name ? 1 : -1));
  const old = made.filter((each, index) => index >= keep || each.states.includes("leaving"));
  return { old: old.reverse(), kept: made.filter((each) => !old.includes(each)).reverse() };
}

async function makePlan(site: Site): Promise<Pruning> {
  const { old, more, ...plan } = await choose(site);
  const removed = [...old, ...more];
  return { ...plan, removed, free: plan.free + removed.reduce((sum, { frees }) => sum + frees, 0) };
}

/** What is free before anything goes, those that go by their age, and those that go besides, one after the other, until enough is free. */
type Choice = Omit<Pruning, "removed"> & Record<"old" | "more", readonly RemovedEnvironment[]>;

async function choose(site: Site): Promise<Choice> {
  const { container, environments } = site.found;
  const { keep, keep_free: keepFree } = site.config["boot-environment"];
  const staying: StayingEnvironment[] = [];
  let left = environments;
  const judge = async (
    each: BootEnvironment,
    what: RemovedEnvironment["for"],
  ): Promise<RemovedEnvironment | undefined> => {
    const { name, dataset } = each;
    const others = left.filter((other) => other !== each);
    const datasets = await ownDatasets(each, others, site.found.usedElsewhere);
    const why = await whyItStays(each, datasets, others, site);
    if (why !== undefined) {
      staying.push({ name, dataset, why });
      return undefined;
    }
    left = others;
    const frees = await estimate([...datasets, dataset]);
    return { name, dataset, release: each.release?.name ?? "", datasets, frees, for: what };
  };
  const [old, more]: [RemovedEnvironment[], RemovedEnvironment[]] = [[], []];
  const free = await freeIn(container);
  const chosen = chooseOld(environments, keep);
  for (const each of chosen.old) {
    const going = await judge(each, "keep");
    if (going !== undefined) old.push(going);
  }
  let expected = old.reduce((sum, { frees }) => sum + frees, free);
  for (const each of chosen.kept) {
    if (expected >= keepFree) break;
    const going = await judge(each, "keep_free");
    if (going === undefined) continue;
    more.push(going);
    expected += going.frees;
  }
  return { container, keep, keepFree, free, staying, old, more };
}

/** Bytes that are free on the pool of a dataset, with those that ZFS is still freeing. */
async function freeIn(dataset: string): Promise<number> {
  const pool = poolOf(dataset);
  return (await availableTo(pool)) + (await poolFreeing(pool));
}

/** That too little is free, in a sentence; undefined where that is not so. */
export function describeShort({ container, keepFree, free }: Pruning, isPlan: boolean): string | undefined {
  if (free >= keepFree) return undefined;
  const found = isPlan ? `at least ${formatBytes(free)} would be` : `${formatBytes(free)} are`;
  return `keep_free is ${formatBytes(keepFree)}, and ${found} free on ${poolOf(container)}: no other boot environment can be removed`;
}

/** The datasets of an environment that zferry received, and that none of the others has; those below others before them. */
async function ownDatasets(
  environment: BootEnvironment,
  others: readonly BootEnvironment[],
  usedElsewhere: readonly string[],
): Promise<string[]> {
  const elsewhere = new Set([
    ...others.flatMap((other) => [other.dataset, ...namesOf(other)]),
    ...usedElsewhere,
  ]);
  const own: string[] = [];
  for (const name of new Set(namesOf(environment))) {
    if (elsewhere.has(name) || name === environment.dataset || !(await datasetExists(name))) continue;
    const [described] = await listProperties(name, ["zferry:identity"]);
    const mark = described?.properties["zferry:identity"];
    if (mark?.local === true && v.is(sha256Hex, mark.value)) own.push(name);
  }
  return own.sort((one, other) => depthOf(other) - depthOf(one));
}

const namesOf = ({ datasets }: BootEnvironment): string[] => (datasets ?? []).map(({ dataset }) => dataset);

const WHY_STATES = {
  running: "it is running",
  next: "it boots next",
  previous: "it ran before the running one",
} as const;

/** Why an environment is not removed, whatever its age; undefined where nothing stands against it. */
async function whyItStays(
  environment: BootEnvironment,
  datasets: readonly string[],
  others: readonly BootEnvironment[],
  site: Site,
): Promise<string | undefined> {
  const { states, guid, dataset } = environment;
  for (const state of states) if (state !== "leaving") return WHY_STATES[state];
  const mounter = findMounter(environment, others);
  if (mounter !== undefined) return `${mounter.name} mounts it`;
  if (site.found.usedElsewhere.includes(dataset)) return "a file system beside the environments mounts it";
  if (environment.trial !== undefined) return "it is on trial";
  if (installed(site.state)?.environment?.guid === guid) return "it has the release that is installed";
  const unread = [environment, ...others].find(({ fault }) => fault !== null);
  if (unread !== undefined) return `which datasets ${unread.name} has is not known: ${unread.fault ?? ""}`;
  const all = [...datasets, dataset];
  const configured = Object.values(site.config.streams).find((each) => all.includes(each));
  if (configured !== undefined) return `[streams] names ${configured}`;
  const mounted = findMountOf(all);
  if (mounted !== undefined) return `${mounted.source} is mounted on ${mounted.point}`;
  // Also those that go before it: an interrupted run may have promoted what they depend on.
  const known = new Set(site.found.environments.flatMap((each) => [each.dataset, ...namesOf(each)]));
  const needed = neededBy(others, site.state);
  for (const each of all) {
    const below = (await listBelow(each)).find((name) => !all.includes(name));
    if (below !== undefined) return `${below} lies below it, which zferry did not make for it`;
    const snapshots = await listDepended(each);
    const why = whyDatasetStays(snapshots, await foreignIn(each, snapshots), known, needed);
    if (why !== undefined) return why;
  }
  return undefined;
}

/**
 * Those of a dataset's snapshots that are somebody's of another environment: whoever promoted this one, as zectl does, gave it what is older
 * than it is. Not those that zferry took, or promoted itself.
 */
async function foreignIn(
  dataset: string,
  snapshots: readonly DependedSnapshot[],
): Promise<readonly DependedSnapshot[]> {
  const born = Number((await getProperties(dataset, ["createtxg"])).createtxg);
  const older = snapshots.filter(({ createtxg, name }) => createtxg < born && !name.startsWith("zferry-"));
  if (older.length === 0) return [];
  const marked = new Set(await findSnapshotsWith(dataset, PRUNED));
  return older.filter((snapshot) => !marked.has(fullName(snapshot)));
}

/**
 * @param foreign that are not its own
 * @param known datasets that may be promoted
 */
function whyDatasetStays(
  snapshots: readonly DependedSnapshot[],
  foreign: readonly DependedSnapshot[],
  known: ReadonlySet<string>,
  needed: ReadonlySet<string>,
): string | undefined {
  const lastCloned = snapshots.findLastIndex(({ clones }) => clones.length > 0);
  for (const [index, snapshot] of snapshots.entries()) {
    const name = fullName(snapshot);
    if (snapshot.holds > 0) return `${name} is held`;
    const unknown = snapshot.clones.find((clone) => !known.has(clone));
    if (unknown !== undefined) return `${unknown} was made of ${name}, and belongs to no environment`;
    if (needed.has(snapshot.guid) && index > lastCloned)
      return `the next release of another environment begins with ${name}`;
    if (foreign.includes(snapshot) && index > lastCloned)
      return `${name} was taken in another environment, before this one was made of that, and would go with it`;
  }
  return undefined;
}

/** Bytes that nobody shares with these datasets. */
async function estimate(datasets: readonly string[]): Promise<number> {
  let bytes = 0;
  for (const dataset of datasets) {
    bytes += Number((await getProperties(dataset, ["usedbydataset"])).usedbydataset) || 0;
  }
  return bytes;
}

interface Work extends Pick<ReceiveOptions, "signal" | "step"> {
  readonly site: Site;
  /** As `neededBy` gives it for those that stay. */
  readonly needed: ReadonlySet<string>;
}

/** Removes one, its root last; gives the bytes that became free. */
async function remove({ name, dataset, datasets }: RemovedEnvironment, work: Work): Promise<number> {
  work.step(`removing the boot environment ${name}`);
  // From here on nobody boots it, and the next run goes on with it.
  await setProperty(dataset, PRUNED, "yes");
  await setProperty(dataset, "org.zfsbootmenu:active", "off");
  const { origin } = await getProperties(dataset, ["origin"]);
  // An install took it: for this one; or for another, which was promoted since.
  if (origin.includes("@zferry-")) await setProperty(origin, PRUNED, "yes");
  let freed = 0;
  for (const each of [...datasets, dataset]) freed += await removeDataset(each, work);
  return freed + (await sweep(work));
}

async function removeDataset(dataset: string, { needed, ...options }: Work): Promise<number> {
  const snapshots = await listDepended(dataset);
  const foreign = await foreignIn(dataset, snapshots);
  const alone = snapshots.filter(
    (each) => each.clones.length === 0 && !needed.has(each.guid) && !foreign.includes(each),
  );
  let freed = await destroySnapshots(
    dataset,
    alone.map(({ name }) => name),
  );
  await handOver(
    snapshots.filter((snapshot) => !alone.includes(snapshot)),
    foreign,
  );
  freed += Number((await getProperties(dataset, ["usedbydataset"])).usedbydataset) || 0;
  await patiently(options, () => destroy(dataset));
  return freed;
}

/**
 * Promotes what was made of the newest of a dataset's snapshots, which takes them all.
 * @param foreign of these, what nobody removes
 */
async function handOver(
  snapshots: readonly DependedSnapshot[],
  foreign: readonly DependedSnapshot[],
): Promise<void> {
  const heir = snapshots
    .findLast(({ clones }) => clones.length > 0)
    ?.clones.toSorted()
    .at(-1);
  if (heir === undefined) return;
  const taken = new Set((await listDepended(heir)).map(({ name }) => name));
  for (const snapshot of snapshots) {
    const isForeign = foreign.includes(snapshot);
    if (!isForeign) await setProperty(fullName(snapshot), PRUNED, "yes");
    // zfs promote refuses names that both have. The guid is what anybody looks for.
    const { name, guid } = snapshot;
    if (taken.has(name)) await renameSnapshot(snapshot, isForeign ? `${name}-${guid}` : `zferry-${guid}`);
  }
  await promote(heir);
}

/** Destroys snapshots of removed environments that nothing depends on any more; gives the bytes that became free. */
async function sweep({ site: { config, found }, needed }: Work): Promise<number> {
  const { container, environments } = found;
  const parents = [...Object.values(config.streams), ...environments.flatMap(namesOf)].map(parentOf);
  const places = [...new Set([container, ...parents])].filter((place) => place !== "");
  let freed = 0;
  for (const place of places) {
    const within = places.some((other) => place.startsWith(`${other}/`));
    if (within || !(await datasetExists(place))) continue;
    for (const marked of await findSnapshotsWith(place, PRUNED)) {
      const [snapshot] = await listDepended(marked);
      if (snapshot === undefined || snapshot.holds > 0 || snapshot.clones.length > 0) continue;
      if (!needed.has(snapshot.guid)) freed += await destroySnapshots(snapshot.dataset, [snapshot.name]);
    }
  }
  return freed;
}
