import { basename } from "node:path";
import * as v from "valibot";
import { sha256Hex } from "../bundle/manifest.js";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { ownMounts } from "../system/mounts.js";
import {
  datasetExists,
  destroy,
  destroySnapshots,
  findSnapshotsWith,
  fullName,
  getProperties,
  listBelow,
  listDepended,
  listProperties,
  parentOf,
  promote,
  renameSnapshot,
  setProperty,
  type DependedSnapshot,
} from "../system/zfs.js";
import { listEnvironments, type BootEnvironment, type BootEnvironments } from "./environments.js";
import { requireNothingPending, withState } from "./pending.js";
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
  requireNothingPending(await readUnderWay(config), "and no environment is removed before that is done");
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
  withState(config, async (folder) => {
    const state = await folder.readState();
    requireNothingPending(await folder.readJournal(), "and no environment is removed before that is done");
    requireConfirmed(state);
    const site = await readSite(config, state);
    const plan = await makePlan(site);
    const gone = new Set(plan.removed.map(({ dataset }) => dataset));
    const staying = site.found.environments.filter(({ dataset }) => !gone.has(dataset));
    const work = { ...options, site, needed: neededBy(staying, state) };
    const removed: RemovedEnvironment[] = [];
    for (const each of plan.removed) removed.push({ ...each, frees: await remove(each, work) });
    // Also what a run before left.
    if (removed.length === 0) await sweep(work);
    return { ...plan, removed };
  });

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

/** Those of zferry's own that are older than the newest few, oldest first, and those that are leaving already. */
export function chooseOld(environments: readonly BootEnvironment[], keep: number): BootEnvironment[] {
  const made = environments
    .filter(({ release }) => release !== null)
    .sort((one, other) => other.created - one.created || (one.name < other.name ? 1 : -1));
  return made.filter((each, index) => index >= keep || each.states.includes("leaving")).reverse();
}

async function makePlan(site: Site): Promise<Pruning> {
  const { container, environments } = site.found;
  const { keep } = site.config["boot-environment"];
  const removed: RemovedEnvironment[] = [];
  const staying: StayingEnvironment[] = [];
  let left = environments;
  for (const each of chooseOld(environments, keep)) {
    const { name, dataset } = each;
    const others = left.filter((other) => other !== each);
    const datasets = await ownDatasets(each, others);
    const why = await whyItStays(each, datasets, others, site);
    if (why !== undefined) {
      staying.push({ name, dataset, why });
      continue;
    }
    left = others;
    const frees = await estimate([...datasets, dataset]);
    removed.push({ name, dataset, release: each.release?.name ?? "", datasets, frees });
  }
  return { container, keep, removed, staying };
}

/** The datasets of an environment that zferry received, and that none of the others has. */
async function ownDatasets(
  environment: BootEnvironment,
  others: readonly BootEnvironment[],
): Promise<string[]> {
  const elsewhere = new Set(others.flatMap((other) => [other.dataset, ...namesOf(other)]));
  const own: string[] = [];
  for (const name of new Set(namesOf(environment))) {
    if (elsewhere.has(name) || name === environment.dataset || !(await datasetExists(name))) continue;
    const [described] = await listProperties(name, ["zferry:identity"]);
    const mark = described?.properties["zferry:identity"];
    if (mark?.local === true && v.is(sha256Hex, mark.value)) own.push(name);
  }
  return own;
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
  if (environment.trial !== undefined) return "it is on trial";
  if (installed(site.state)?.environment?.guid === guid) return "it has the release that is installed";
  const unread = [environment, ...others].find(({ fault }) => fault !== null);
  if (unread !== undefined) return `which datasets ${unread.name} has is not known: ${unread.fault ?? ""}`;
  const all = [...datasets, dataset];
  const configured = Object.values(site.config.streams).find((each) => all.includes(each));
  if (configured !== undefined) return `[streams] names ${configured}`;
  const mounted = [...ownMounts().values()].find(
    ({ type, source }) => type === "zfs" && all.includes(source),
  );
  if (mounted !== undefined) return `${mounted.source} is mounted on ${mounted.point}`;
  // Also those that go before it: an interrupted run may have promoted what they depend on.
  const known = new Set(site.found.environments.flatMap((each) => [each.dataset, ...namesOf(each)]));
  const needed = neededBy(others, site.state);
  for (const each of all) {
    const below = (await listBelow(each)).find((name) => !all.includes(name));
    if (below !== undefined) return `${below} lies below it, which zferry did not make for it`;
    const why = whyDatasetStays(await listDepended(each), known, needed);
    if (why !== undefined) return why;
  }
  return undefined;
}

/** @param known datasets that may be promoted */
function whyDatasetStays(
  snapshots: readonly DependedSnapshot[],
  known: ReadonlySet<string>,
  needed: ReadonlySet<string>,
): string | undefined {
  const lastCloned = snapshots.findLastIndex(({ clones }) => clones.length > 0);
  for (const [index, snapshot] of snapshots.entries()) {
    const name = fullName(snapshot);
    if (snapshot.holds > 0) return `${name} is held`;
    const foreign = snapshot.clones.find((clone) => !known.has(clone));
    if (foreign !== undefined) return `${foreign} was made of ${name}, and belongs to no environment`;
    if (needed.has(snapshot.guid) && index > lastCloned)
      return `the next release of another environment begins with ${name}`;
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
async function remove({ name, dataset, release, datasets }: RemovedEnvironment, work: Work): Promise<number> {
  work.step(`removing the boot environment ${name}`);
  // From here on nobody boots it, and the next run goes on with it.
  await setProperty(dataset, PRUNED, "yes");
  await setProperty(dataset, "org.zfsbootmenu:active", "off");
  const { origin } = await getProperties(dataset, ["origin"]);
  if (origin.endsWith(`@zferry-${release}`)) await setProperty(origin, PRUNED, "yes");
  let freed = 0;
  for (const each of [...datasets, dataset]) freed += await removeDataset(each, work);
  return freed + (await sweep(work));
}

async function removeDataset(dataset: string, { needed, ...options }: Work): Promise<number> {
  const snapshots = await listDepended(dataset);
  const alone = snapshots.filter(({ clones, guid }) => clones.length === 0 && !needed.has(guid));
  let freed = await destroySnapshots(
    dataset,
    alone.map(({ name }) => name),
  );
  await handOver(snapshots.filter((snapshot) => !alone.includes(snapshot)));
  freed += Number((await getProperties(dataset, ["usedbydataset"])).usedbydataset) || 0;
  await patiently(options, () => destroy(dataset));
  return freed;
}

/** Promotes what was made of the newest of a dataset's snapshots, which takes them all. */
async function handOver(snapshots: readonly DependedSnapshot[]): Promise<void> {
  const heir = snapshots
    .findLast(({ clones }) => clones.length > 0)
    ?.clones.toSorted()
    .at(-1);
  if (heir === undefined) return;
  const taken = new Set((await listDepended(heir)).map(({ name }) => name));
  for (const snapshot of snapshots) {
    await setProperty(fullName(snapshot), PRUNED, "yes");
    // zfs promote refuses names that both have. The guid is what anybody looks for.
    if (taken.has(snapshot.name)) await renameSnapshot(snapshot, `zferry-${snapshot.guid}`);
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
