import { rmSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import type { VerifiedBundle } from "../bundle/reader.js";
import { requireRoot, type InstallMode, type SiteConfig } from "../config.js";
import { Obstacles, ZferryError } from "../errors.js";
import type { RawPath } from "../raw-path.js";
import type { ProgressReport } from "../report.js";
import type { RootSpace } from "../root/disk.js";
import { planRoot, type PlanOptions } from "../root/merge.js";
import type { RootPlan } from "../root/plan.js";
import type { Resolutions, SettledConflict } from "../root/settle.js";
import { keepAt, withScratch, writeScratchFile } from "../system/scratch.js";
import { datasetExists, hasGuid } from "../system/zfs.js";
import { changeKeys, requireEnough, type KeyChange } from "../trust/keys.js";
import {
  requireOwnUntouched,
  requireStateOffStreams,
  requireStateOutside,
  requireStateUntracked,
  requireStateWritable,
} from "./apart.js";
import { requireDatasetsInUse } from "./datasets-in-use.js";
import {
  freeClone,
  endOf,
  planEnvironment,
  planFstab,
  planStreamsBeside,
  requireFollowed,
  requireFree,
  streamsDone,
  withContainer,
  type ChainEnd,
} from "./environment-install.js";
import { requireNoTrial } from "./environments.js";
import { forgetMerge } from "./merge-mark.js";
import { isAsPlanned, pending, placeOf, requireSameSite, withLock, withState } from "./pending.js";
import {
  estimateTime,
  planStreams,
  requireAnswer,
  type Live,
  type StreamPlan,
  type TimeEstimate,
} from "./plan.js";
import { checkRelease, type Exceptions } from "./policy.js";
import { identifyStream, isReceived } from "./receive.js";
import { resolveConflicts, type Resolved, type ResolveOptions } from "./resolve.js";
import { rootOptions } from "./root-options.js";
import {
  installed,
  isOnTheWay,
  isRecorded,
  isWritten,
  openState,
  type Installation,
  type InstallJournal,
  type Journal,
  type NewEnvironment,
  type SiteState,
  type StateFolder,
} from "./state.js";
import { requireMayChange, requireOffStreams, sharedPart } from "./shared-mounts.js";
import { rootMount, trackedPaths, withRootToPlan, type SiteRoot } from "./site-root.js";
import { carryOut, requireUndoable, undo, warnBy, type Work } from "./steps.js";
import { runningTrial } from "./trial.js";
import { keySetOf, type SiteTrust } from "./trust.js";
import { requireDataApart } from "./untracked-data.js";

export interface InstallOptions {
  readonly site: SiteConfig;
  readonly trust: SiteTrust;
  readonly exceptions: Exceptions;
  readonly now: () => Date;
  readonly signal: AbortSignal;
  readonly progress: ProgressReport;
  /** Told what is done next, in a few words for people. */
  readonly step: (what: string) => void;
  /** With `--live`: told who uses a dataset that is to be received into, or taken back. */
  readonly live: Live | undefined;
  /** Whether uncommitted changes of `/` are committed first; otherwise as the configuration has it. */
  readonly commitDrift: boolean;
  /** Whether files that git does not track are replaced, and kept in git. */
  readonly replaceUntracked: boolean;
  /** Told what does not stand against the install, and is good to know. */
  readonly warn: (what: string) => void;
  /** Whether a boot environment that is made is to boot next; undefined: yes, or as the install was begun. */
  readonly activate: boolean | undefined;
  /** Where the bundles lead that make one boot environment together; undefined of one that makes it alone. */
  readonly chain?: ChainEnd | undefined;
}

/** What goes on without a bundle has nothing to judge. */
export type GoOnOptions = Omit<
  InstallOptions,
  "trust" | "exceptions" | "commitDrift" | "replaceUntracked" | "warn" | "activate" | "chain"
>;

export interface Plan {
  /** What lies in the state folder. */
  readonly state: SiteState | undefined;
  /** Of an install of this bundle that is under way. */
  readonly journal: InstallJournal | undefined;
  readonly streams: readonly StreamPlan[];
  /** How it is installed, and what decided that. */
  readonly mode: InstallMode;
  /** That is made; null for an install in place. */
  readonly environment: NewEnvironment | null;
  readonly root: RootPlan | undefined;
  /** Of `/`: what each of its file systems needs and has; empty where the plan of `/` is that of the journal. */
  readonly rootSpace: readonly RootSpace[];
  /** Of `/`: what does not stand against it, and is good to know. */
  readonly rootWarnings: readonly string[];
  /** Of `/`: conflicts that are settled. */
  readonly rootSettled: readonly SettledConflict[];
  readonly time: TimeEstimate;
  /** The bundle's change of the site's keys, if it is newer than what the site had. */
  readonly keys: KeyChange | undefined;
  /** Nothing is left to do. */
  readonly present: boolean;
}

/**
 * Everything that an install does before it changes anything.
 * @throws ZferryError whatever the install would be refused for; `also` has what else it would be refused for
 */
export async function planInstall(bundle: VerifiedBundle, options: InstallOptions): Promise<Plan> {
  for (const dataset of Object.values(options.site.streams)) await requireAnswer(dataset);
  return withScratch((scratch) => makePlan(bundle, options, openState(options.site.state), scratch));
}

/**
 * Installs a verified bundle, in place or as a boot environment: both halves or neither. Called again with the same bundle after an
 * interruption, it brings the install to its end.
 * @returns the plan that was carried out
 * @throws ZferryError; the site is then as it was, or the error's hint says how to go on
 */
export async function installBundle(bundle: VerifiedBundle, options: InstallOptions): Promise<Plan> {
  return withState(options.site, options.warn, async (folder, scratch) => {
    await freeBegun(bundle, folder, options);
    // One time for all that it begins with: planned again, it is the same plan.
    const began = options.now();
    const plan = await makePlan(bundle, { ...options, now: () => began }, folder, scratch);
    if (plan.present) return plan;
    const { journal = beginning(bundle, options.site, plan, began) } = plan;
    const root = plan.root ?? null;
    const isSame = JSON.stringify(root) === JSON.stringify(journal.root);
    const work: Work = {
      ...options,
      folder,
      scratchDir: scratch,
      bundle,
      streams: plan.streams,
      state: plan.state,
    };
    await carryOut(
      {
        ...journal,
        // What was prepared for another plan is of no use.
        phase: isSame ? await phaseToGoOnFrom(journal, plan.streams) : "holding",
        streams: await Promise.all(plan.streams.map(identifyStream)),
        site: placeOf(options.site),
        origin: originOf(bundle, plan.keys),
        environment: plan.environment,
        root,
      },
      isSame ? null : journal.root,
      work,
    );
    return plan;
  });
}

/** What goes on may have been ended between the clone and what follows it, and is planned in the clone. */
async function freeBegun(
  bundle: VerifiedBundle,
  folder: StateFolder,
  { site, step }: InstallOptions,
): Promise<void> {
  const begun = await folder.readJournal();
  if (begun?.operation !== "install" || begun.undoing || isWritten(begun)) return;
  const { environment, release } = begun;
  if (environment === null || release.identity !== bundle.identity || site.install.mode === "in-place")
    return;
  requireSameSite(begun, site);
  await freeClone({ environment, release }, site, step);
}

/**
 * Goes on with an install whose streams are all received, without its bundle; with what is being given up, too.
 * @returns the journal of what was brought to its end; undefined when nothing is under way
 * @throws ZferryError `install-pending` when the bundle is needed, or a rollback is under way
 */
export const finishInstall = (options: GoOnOptions): Promise<Journal | undefined> =>
  withUnderWay(options, async (journal, work) => {
    if (journal.undoing) await giveUp(journal, work, options);
    else if (journal.operation !== "install") throw await pending(journal, "which no install goes on with");
    else if (await needsBundle(journal, options.site))
      throw await pending(journal, "and its bundle is needed");
    else await carryOut(journal, null, work);
  });

/** What was made or received may have been taken back since, by hand. */
async function phaseToGoOnFrom(
  journal: InstallJournal,
  streams: readonly StreamPlan[],
): Promise<InstallJournal["phase"]> {
  const { phase, origin, environment } = journal;
  if (isWritten(journal)) {
    // A phase before that would say that / is as it was. Who took a stream back may have taken / back, too: in place it is written again.
    const isMissing = streams.some(({ received }) => !received);
    return phase === "recording" && environment === null && isMissing ? "writing" : phase;
  }
  if (environment !== null && !(await datasetExists(environment.dataset))) return "holding";
  // What version 1 of the journal called receiving began with the holds.
  return origin === null && phase === "receiving" ? "holding" : phase;
}

/** Whether only its bundle leads an install on: to receive what is missing, or to plan `/` again, which has changed. */
export async function needsBundle(journal: Journal, site: SiteConfig): Promise<boolean> {
  if (journal.undoing || journal.operation !== "install") return false;
  const { origin, phase, streams, root, environment } = journal;
  if (isOnTheWay(journal)) return true;
  if (origin === null || phase === "holding" || phase === "preparing") return true;
  if (environment !== null && !isWritten(journal)) return true;
  for (const stream of streams) if (!(await isReceived(stream))) return true;
  return phase === "receiving" && root !== null && !(await isAsPlanned(root, site));
}

/**
 * Gives up what is under way: the site becomes what it was.
 * @returns its journal; undefined when nothing is under way
 * @throws ZferryError `dataset-in-use`, `base-modified` before anything is changed, when a stream that is received cannot
 * be taken back; `install-pending` for a rollback that only its end is left of
 */
export const abortInstall = (options: GoOnOptions): Promise<Journal | undefined> =>
  withUnderWay(options, async (journal, work) => {
    await giveUp(journal, work, options);
  });

/** Also where it was begun: since then something may have come that would be lost. */
async function giveUp(journal: Journal, work: Work, { site, live }: GoOnOptions): Promise<void> {
  await requireUndoable(journal, site, live);
  // First: what is given up is not to begin again, whatever ends this run.
  if (journal.operation === "merge") await forgetMerge(journal.into);
  await undo(journal, work);
}

/** Runs `use` on what is under way, and gives its journal; without a bundle there is nothing to receive. */
const withUnderWay = (
  options: GoOnOptions,
  use: (journal: Journal, work: Work) => Promise<void>,
): Promise<Journal | undefined> =>
  withState(options.site, warnBy(options.step), async (folder, scratchDir) => {
    const [state, journal] = [await folder.readState(), await folder.readJournal()];
    if (journal === undefined) return undefined;
    requireSameSite(journal, options.site);
    await use(journal, { ...options, folder, scratchDir, bundle: undefined, streams: [], state });
    return journal;
  });

const beginning = (
  bundle: VerifiedBundle,
  site: SiteConfig,
  { streams, environment }: Pick<Plan, "streams" | "environment">,
  now: Date,
): InstallJournal => ({
  operation: "install",
  release: { ...bundle.manifest.release, identity: bundle.identity },
  startedAt: Math.floor(now.getTime() / 1000),
  phase: "holding",
  undoing: false,
  streams: [],
  present: streams.flatMap(({ received, stream }) => (received ? [stream.role] : [])),
  site: placeOf(site),
  origin: null,
  environment,
  root: null,
});

const originOf = (
  { name, manifest: { created }, signers }: VerifiedBundle,
  keys: KeyChange | undefined,
): InstallJournal["origin"] => ({
  file: resolve(name),
  created,
  signers: signers.map(({ keyId }) => keyId),
  keys: keys ?? null,
});

/**
 * @param journal of what is under way
 * @returns it
 * @throws ZferryError `install-pending` when a bundle is not the one that leads it on
 */
async function requireNoOther(
  bundle: VerifiedBundle,
  journal: Journal | undefined,
): Promise<InstallJournal | undefined> {
  const { release } = bundle.manifest;
  if (journal === undefined) return undefined;
  if (journal.operation !== "install")
    throw await pending(journal, "and nothing is installed before that is done");
  if (journal.release.identity !== bundle.identity) {
    throw await pending(
      journal,
      `${bundle.name} is another bundle: ${bundle.manifest.product} release ${release.name} (${release.sequence})`,
    );
  }
  if (journal.undoing) throw await pending(journal, "and cannot be installed before that is done");
  return journal;
}

/** Where a bundle stands. */
interface InLine {
  /** Of an install of this bundle that is under way. */
  readonly journal: InstallJournal | undefined;
  /** The boot environment that it, or a bundle before it, is being brought into; null for none. */
  readonly made: NewEnvironment | null;
}

/**
 * @param begun what is under way
 * @throws ZferryError `install-pending` when a bundle is not the one that leads that on, nor the next one of several
 */
export async function placeInLine(bundle: VerifiedBundle, begun: Journal | undefined): Promise<InLine> {
  const isNext =
    begun?.operation === "install" &&
    begun.phase === "linking" &&
    !begun.undoing &&
    begun.release.identity !== bundle.identity;
  if (isNext && begun.environment !== null) {
    return { journal: undefined, made: withLink(begun, begun.environment) };
  }
  const journal = await requireNoOther(bundle, begun);
  return { journal, made: journal?.environment ?? null };
}

function withLink({ release, startedAt, streams, root }: InstallJournal, environment: NewEnvironment) {
  const { chain } = environment;
  if (chain === undefined) return environment;
  const shared = sharedPart(root, environment);
  const known = { release, startedAt, streams, commit: root?.mergeCommit ?? null };
  const link = shared === undefined ? known : { ...known, shared };
  return { ...environment, chain: { ...chain, done: [...chain.done, link] } };
}

/** @throws ZferryError `install-pending` for one of several that is named alone, or leads elsewhere than they do */
async function requireSameEnd(begun: Journal | undefined, { chain: end }: InstallOptions): Promise<void> {
  const chain = begun?.operation === "install" ? begun.environment?.chain : undefined;
  if (begun === undefined || chain?.identity === end?.identity) return;
  if (chain === undefined) throw await pending(begun, "which is made by its bundle alone");
  throw await pending(
    begun,
    `the first of several up to release ${chain.release} that are one boot environment`,
  );
}

async function makePlan(
  bundle: VerifiedBundle,
  options: InstallOptions,
  folder: StateFolder,
  scratch: string,
): Promise<Plan> {
  const { site } = options;
  const state = await folder.readState();
  const found = await folder.readJournal();
  const begun = found === undefined || isRecorded(state, found) ? undefined : found;
  const { journal, made } = await placeInLine(bundle, begun);
  await requireSameEnd(begun, options);
  if (begun !== undefined) requireSameSite(begun, site);

  const obstacles = new Obstacles();
  // An install that began is finished, though the bundle expired since.
  if (journal === undefined) {
    await obstacles.unless(async () =>
      checkRelease(bundle.manifest, bundle.identity, site.product, state, options.now(), options.exceptions),
    );
  }
  await obstacles.unless(() => requireStateOffStreams(site));
  await obstacles.unless(async () => requireStateWritable(site));
  const last = installed(state);
  const isInstalled = journal === undefined && last?.release.identity === bundle.identity;
  const isThere = isInstalled && last.environment !== undefined && (await isStanding(last.environment));
  // What was installed in place stays so.
  const isOne = site.install.mode === "boot-environment" && !(isInstalled && last.environment === undefined);
  const environment =
    isOne && !isThere ? await obstacles.unless(() => environmentToMake(bundle, options, made)) : null;
  if (environment === undefined) obstacles.throwAny();
  if (!isOne && journal === undefined && !isInstalled) {
    // It would be confirmed or left with what is on trial.
    await obstacles.unless(async () => requireNoTrial((await runningTrial(site))?.name));
    await obstacles.unless(() => requireDatasetsInUse(site, state));
  }
  const streams = isThere ? [] : await planAllStreams(bundle, options, environment, journal, obstacles);
  if (environment != null && made === null) await obstacles.unless(() => requireDataApart(environment, site));
  const keys = await obstacles.unless(async () => planKeys(bundle, options, state));
  const rootSpace: RootSpace[] = [];
  const rootWarnings = isOne || site.install.after.length === 0 ? [] : [AFTER_IN_PLACE];
  for (const warning of [...streams.flatMap(({ warnings }) => warnings), ...rootWarnings])
    options.warn(warning);
  const rootSettled: SettledConflict[] = [];
  const told = { space: rootSpace, warnings: rootWarnings, settled: rootSettled };
  const known = {
    state,
    journal,
    streams,
    mode: { mode: isOne ? ("boot-environment" as const) : ("in-place" as const), from: site.install.from },
    environment: environment ?? null,
    rootSpace,
    rootWarnings,
    rootSettled,
    time: estimateTime(streams, state),
    keys,
  };
  if (journal !== undefined && isWritten(journal)) {
    obstacles.throwAny();
    return { ...known, root: journal.root ?? undefined, present: false };
  }
  const isReceived =
    streams.length === bundle.manifest.streams.length && streams.every(({ received }) => received);
  const present = isThere || (isInstalled && environment === null && isReceived);
  const root = present
    ? undefined
    : await obstacles.unless(() => planRootHalf(bundle, options, known, scratch, told, journal));
  obstacles.throwAny();
  return { ...known, root, present };
}

const AFTER_IN_PLACE = "the commands of after under [install] are not run: this is an install in place";

/** Whether a boot environment that was made is there still. */
export const isStanding = async ({
  dataset,
  guid,
}: NonNullable<Installation["environment"]>): Promise<boolean> =>
  (await datasetExists(dataset)) && (await hasGuid(dataset, guid));

/** @param begun what an install that is under way makes */
async function environmentToMake(
  bundle: VerifiedBundle,
  { site, activate, chain }: Pick<InstallOptions, "site" | "activate" | "chain">,
  begun: NewEnvironment | null,
): Promise<NewEnvironment> {
  const environment = begun ?? (await planEnvironment(bundle, site, chain));
  const { dataset, origin, snapshot } = environment;
  // What the bundles before made is not made again.
  if (environment.chain?.done.length) await rootMount(environment);
  // What is there already, and not of this install, is not to be taken for the clone.
  if (begun === null) {
    const { identity } = endOf(environment, bundle);
    const from = { dataset: origin, name: snapshot };
    await requireFree([dataset], withContainer(site, environment), identity, from);
  }
  await requireStateOutside(site, origin);
  return { ...environment, activate: activate ?? environment.activate };
}

async function planAllStreams(
  bundle: VerifiedBundle,
  { site, live }: InstallOptions,
  environment: NewEnvironment | null | undefined,
  journal: InstallJournal | undefined,
  obstacles: Obstacles,
): Promise<StreamPlan[]> {
  if (environment == null) return planStreams(bundle, site, journal !== undefined, live, obstacles);
  const streams = await planStreamsBeside(bundle, site, environment, journal?.streams, obstacles);
  const own = streamsDone(environment).map(({ dataset }) => dataset);
  const others = streams.map(({ dataset }) => dataset).filter((dataset) => !own.includes(dataset));
  if (journal === undefined) {
    const { identity } = endOf(environment, bundle);
    await obstacles.unless(() => requireFree(others, withContainer(site, environment), identity));
    if (own.length === 0) await obstacles.unless(() => requireFollowed(environment, streams, site));
  }
  return streams;
}

/**
 * Takes what a person settled of the conflicts in `/`, and puts what is left into a folder. Datasets are not asked.
 * @param options.folder by default `resolve` in the state folder
 * @throws ZferryError as `resolveConflicts`; what an install is refused for by the release's own sake
 */
export async function resolveBundle(
  bundle: VerifiedBundle,
  options: Pick<
    InstallOptions,
    "site" | "now" | "warn" | "progress" | "exceptions" | "commitDrift" | "replaceUntracked" | "activate"
  > &
    Pick<ResolveOptions, "chosen" | "tool"> & { readonly folder: string | undefined },
): Promise<Resolved & { readonly folder: string }> {
  const { site, folder = join(site.state, "resolve"), chosen, tool } = options;
  return withLock(site, async (state, scratch) => {
    const [known, found] = [await state.readState(), await state.readJournal()];
    const { journal, made } = await placeInLine(
      bundle,
      found === undefined || isRecorded(known, found) ? undefined : found,
    );
    if (journal !== undefined && isWritten(journal))
      throw await pending(journal, "and its conflicts are settled");
    if (journal === undefined)
      checkRelease(bundle.manifest, bundle.identity, site.product, known, options.now(), options.exceptions);
    const environment =
      site.install.mode === "in-place" ? null : await environmentToMake(bundle, options, made);
    const resolved = await resolveConflicts({
      state: site.state,
      folder,
      scratchDir: scratch,
      with: `release ${bundle.manifest.release.name}`,
      theirs: bundle.manifest.release.name,
      chosen,
      tool,
      plan: (how) => {
        const told = { space: [], warnings: [], settled: [], ...how };
        return planRootHalf(bundle, options, { environment, streams: [] }, scratch, told, journal);
      },
    });
    return { ...resolved, folder };
  });
}

function planKeys(
  { manifest: { keys } }: VerifiedBundle,
  { site, trust }: InstallOptions,
  state: SiteState | undefined,
): KeyChange | undefined {
  const set = keySetOf(state);
  if (JSON.stringify(set) !== JSON.stringify(trust.set)) {
    throw new ZferryError("site-busy", "the site's trusted keys changed while the bundle was verified", {
      hint: "run the same command again",
    });
  }
  if (keys === undefined || keys.counter <= set.counter) return undefined;
  requireEnough(trust.folder, changeKeys(set, keys), site.trust.threshold);
  return keys;
}

/** @param told takes what there is to be told */
async function planRootHalf(
  bundle: VerifiedBundle,
  {
    site,
    now,
    warn,
    progress,
    commitDrift,
    replaceUntracked,
  }: Pick<InstallOptions, "site" | "now" | "warn" | "progress" | "commitDrift" | "replaceUntracked">,
  { environment, streams }: Pick<Plan, "environment" | "streams">,
  scratchDir: string,
  told: {
    readonly space: RootSpace[];
    readonly warnings: string[];
    readonly settled: SettledConflict[];
    readonly conflicts?: PlanOptions["conflicts"];
    /** Instead of those that are recorded. */
    readonly resolutions?: Resolutions;
  },
  journal: InstallJournal | undefined,
): Promise<RootPlan | undefined> {
  const { root, release } = bundle.manifest;
  if (root === undefined && environment === null) return undefined;
  const unpack = (kind: "patch" | "objects") => {
    const place = join(scratchDir, kind);
    return writeScratchFile(place, bundle.rootMemberPieces(kind, keepAt(`${place}.zst`)));
  };
  const options = rootOptions(site, { journal, now, commitDrift });
  const planHalf = async (place: SiteRoot, summary: NonNullable<typeof root>): Promise<RootPlan> => {
    const { path } = requireRoot(site);
    await requireStateUntracked(site, path, place.git);
    const [patch, objects] = [await unpack("patch"), await unpack("objects")];
    const plan = await planRoot({
      ...place,
      scratchDir,
      summary,
      release: release.name,
      progress,
      ...(environment === null
        ? {}
        : {
            permit: (paths: readonly RawPath[]) => {
              requireMayChange(site, environment, paths);
            },
          }),
      // Not where it is mounted for a moment.
      space: (found) =>
        told.space.push(
          ...found.map((each) => ({ ...each, folder: join(path, relative(place.rootDir, each.folder)) })),
        ),
      warn: (what) => {
        told.warnings.push(what);
        warn(what);
      },
      ...options,
      ...(told.resolutions === undefined ? {} : { resolutions: told.resolutions }),
      ...(told.conflicts === undefined ? {} : { conflicts: told.conflicts }),
      settled: (found) => told.settled.push(...found),
      replaceUntracked: replaceUntracked || journal?.root?.replaced !== undefined,
      patch,
      objects,
      metadata: await bundle.rootMember("metadata"),
    });
    for (const file of [patch, objects]) rmSync(file.path);
    requireOwnUntouched(site, path, plan);
    return plan;
  };
  return withRootToPlan(environment, site, async (place) => {
    if (environment === null) return root && planHalf(place, root);
    const datasets = streams.flatMap(({ base, dataset }) => [base?.dataset ?? dataset, dataset]);
    const all = [...Object.values(site.streams), ...datasets];
    requireOffStreams(site, all, environment, await trackedPaths(place.git));
    const plan = root && (await planHalf(place, root));
    const how = { scratchDir, release: release.name, date: options.date };
    return planFstab(plan, environment, streams, site, place, how);
  });
}
