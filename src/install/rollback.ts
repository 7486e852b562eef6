import { basename, join } from "node:path";
import type { SiteConfig } from "../config.js";
import { Obstacles, ZferryError } from "../errors.js";
import { formatTime, throwIfInterrupted } from "../report.js";
import type { RootSpace } from "../root/disk.js";
import type { RootPlan } from "../root/plan.js";
import { planRootRollback, type RollbackOptions as RootRollbackOptions } from "../root/rollback.js";
import type { SettledConflict } from "../root/settle.js";
import { datasetOf, ownMounts } from "../system/mounts.js";
import { withScratch } from "../system/scratch.js";
import { dropProperties, hasGuid } from "../system/zfs.js";
import {
  requireOwnUntouched,
  requireStateOffStreams,
  requireStateUntracked,
  requireStateWritable,
} from "./apart.js";
import type { GoOnOptions, InstallOptions } from "./install.js";
import { otherDatasets, pending, placeOf, requireSameSite, withLock, withState } from "./pending.js";
import { requireAnswer, requireUnused } from "./plan.js";
import { requireProduct } from "./policy.js";
import { tokenOf } from "./receive.js";
import { resolveConflicts, type Resolved, type ResolveOptions } from "./resolve.js";
import { rootOptions } from "./root-options.js";
import {
  isPlanLost,
  isRecorded,
  isWritten,
  openState,
  streamWithoutBase,
  undoable,
  type InstalledStream,
  type Installation,
  type Loss,
  type RollbackJournal,
  type SiteState,
  type StateFolder,
} from "./state.js";
import { siteRoot } from "./site-root.js";
import { canBeGivenUp, carryOut, releaseBases, requireAgreed, type Work } from "./steps.js";
import { describeLoss, findWayBack, type WayBack } from "./take-back.js";

// formats/state.md, Rolling back

export interface RollbackOptions extends GoOnOptions, Pick<InstallOptions, "commitDrift" | "warn"> {
  /** Asked whether all of this may be lost. */
  readonly agree: (losses: readonly Loss[]) => Promise<boolean>;
}

export interface Rollback {
  /** What is rolled back. */
  readonly installation: Installation;
  /** Whether it was done and recorded before: then only what it left is to be removed. */
  readonly recorded: boolean;
  /** Of each stream; none where all of them are back already. */
  readonly ways: readonly WayBack[];
  readonly root: RootPlan | null;
  readonly rootSpace: readonly RootSpace[];
  /** Conflicts of `/` that are settled. */
  readonly rootSettled: readonly SettledConflict[];
}

type Planned = Rollback & {
  readonly state: SiteState;
  readonly journal: RollbackJournal | undefined;
};

/**
 * Everything that a rollback does before it changes anything.
 * @throws ZferryError whatever it would be refused for, but for what would be lost; `also` has what else it would be refused for
 */
export async function planRollback(options: Omit<RollbackOptions, "agree">): Promise<Rollback> {
  for (const dataset of Object.values(options.site.streams)) await requireAnswer(dataset);
  const folder = openState(options.site.state);
  return (await readRecorded(folder)) ?? withScratch((scratch) => makePlan(options, folder, scratch));
}

/** A rollback that is recorded, and left something to be removed. */
async function readRecorded(folder: StateFolder): Promise<Rollback | undefined> {
  const [state, journal] = [await folder.readState(), await folder.readJournal()];
  const installation = state?.installations.at(-1);
  if (installation === undefined || journal?.operation !== "rollback" || !isRecorded(state, journal))
    return undefined;
  return { installation, recorded: true, ways: [], root: null, rootSpace: [], rootSettled: [] };
}

/**
 * Takes the newest install back, in place: both halves or neither. Called again after an interruption, it brings that to its
 * end.
 * @throws ZferryError; the site is then as it was, or the error's hint says how to go on
 */
export async function rollBack(options: RollbackOptions): Promise<Rollback> {
  return withState(options.site, options.warn, async (folder, scratchDir, finished) => {
    if (finished?.operation === "rollback") {
      const installation = (await folder.readState())?.installations.at(-1) as Installation;
      return { installation, recorded: true, ways: [], root: finished.root, rootSpace: [], rootSettled: [] };
    }
    // One time for all that it begins with: planned again, it is the same plan.
    const began = options.now();
    const plan = await makePlan({ ...options, now: () => began }, folder, scratchDir);
    const { journal, root, state } = plan;
    const work: Work = { ...options, folder, scratchDir, bundle: undefined, streams: [], state };
    if (journal !== undefined && isWritten(journal)) {
      await carryOut(journal, null, work);
      return plan;
    }
    const isSame = journal !== undefined && JSON.stringify(root) === JSON.stringify(journal.root);
    const { release, streams } = plan.installation;
    const lost = await agreedLosses(plan, options);
    throwIfInterrupted(options.signal);
    const next: RollbackJournal = {
      operation: "rollback",
      release,
      startedAt: journal?.startedAt ?? Math.floor(began.getTime() / 1000),
      // What was prepared for another plan is of no use.
      phase: isSame ? journal.phase : "preparing",
      undoing: false,
      streams,
      present: journal?.present ?? plan.ways.flatMap(({ stream, done }) => (done ? [stream.role] : [])),
      site: placeOf(options.site),
      lost,
      root,
    };
    await carryOut(next, isSame ? null : (journal?.root ?? null), work);
    return plan;
  });
}

/** @throws ZferryError `loss-not-agreed` */
async function agreedLosses(
  { ways, journal }: Planned,
  { agree }: Pick<RollbackOptions, "agree">,
): Promise<Loss[]> {
  const losses = ways.map(({ loss }) => loss).filter((loss) => describeLoss(loss).length > 0);
  const obstacles = new Obstacles();
  for (const loss of losses) await obstacles.unless(async () => requireAgreed(loss, journal?.lost ?? []));
  if (obstacles.isEmpty) return journal?.lost ?? losses;
  if (!(await agree(losses))) obstacles.throwAny();
  return losses;
}

async function makePlan(
  options: Omit<RollbackOptions, "agree">,
  folder: StateFolder,
  scratchDir: string,
): Promise<Planned> {
  const { site } = options;
  const known = await readSite(site, folder);
  const { installation, journal } = known;
  if (journal !== undefined && isWritten(journal))
    return { ...known, recorded: false, ways: [], root: journal.root, rootSpace: [], rootSettled: [] };

  const obstacles = new Obstacles();
  await obstacles.unless(async () => requireProduct(known.state, site.product));
  await obstacles.unless(() => requireStateOffStreams(site));
  await obstacles.unless(async () => requireStateWritable(site));
  const ways: WayBack[] = [];
  for (const stream of installation.streams) {
    const way = await obstacles.unless(() => findWayBack(stream));
    if (way === undefined) continue;
    ways.push(way);
    if (way.done) continue;
    await obstacles.unless(() => requirePassable(way));
    await obstacles.unless(() => requireUnused(stream.dataset, options.live, "rollback"));
  }
  const rootSpace: RootSpace[] = [];
  const rootSettled: SettledConflict[] = [];
  const root = await obstacles.unless(() =>
    planRootHalf(options, known, folder, scratchDir, {
      space: (spaces) => rootSpace.push(...spaces),
      settled: (conflicts) => rootSettled.push(...conflicts),
    }),
  );
  obstacles.throwAny();
  return { ...known, recorded: false, ways, root: root ?? null, rootSpace, rootSettled };
}

/**
 * What there is to be rolled back.
 * @throws ZferryError `rollback-impossible`, `install-pending`, `not-configured`
 */
async function readSite(
  site: SiteConfig,
  folder: StateFolder,
): Promise<Pick<Planned, "state" | "journal" | "installation">> {
  const state = await folder.readState();
  const found = await folder.readJournal();
  const journal = found === undefined || isRecorded(state, found) ? undefined : found;
  const why = "and nothing is rolled back before that is done";
  if (journal !== undefined && journal.operation !== "rollback") throw await pending(journal, why);
  // What cannot be given up any more goes on, though somebody began to.
  if (journal?.undoing && (await canBeGivenUp(journal))) throw await pending(journal, why);
  if (journal !== undefined) requireSameSite(journal, site);
  const installation = requireInstallation(state);
  requireConfigured(installation, site);
  return { state: state as SiteState, journal, installation };
}

const impossible = (message: string, details: ZferryError["details"] = {}, hint?: string): ZferryError =>
  new ZferryError("rollback-impossible", message, { details, hint });

const nameOf = ({ release: { name, sequence } }: Pick<Installation, "release">): string =>
  `release ${name} (${sequence})`;

/**
 * The installation that can be rolled back.
 * @throws ZferryError `rollback-impossible`
 */
function requireInstallation(state: SiteState | undefined): Installation {
  const last = state?.installations.at(-1);
  if (last === undefined)
    throw impossible("nothing can be rolled back: no release was installed by zferry yet");
  const { confirmedAt, rolledBack } = last;
  const details = { release: last.release.name };
  if (rolledBack !== undefined) {
    throw impossible(
      `nothing can be rolled back: ${nameOf(last)} was, at ${formatTime(rolledBack.finishedAt)}, and what an earlier one goes back to was let go when it was installed`,
      details,
      last.environment === undefined
        ? "forward again: bundle install FILE"
        : `forward again: bundle activate ${basename(last.environment.dataset)}`,
    );
  }
  if (confirmedAt !== undefined) {
    throw impossible(
      `nothing can be rolled back: ${nameOf(last)} was confirmed at ${formatTime(confirmedAt)}, and what it goes back to let go`,
      details,
      last.environment && "bundle environments lists those before, and bundle activate has one boot next",
    );
  }
  if (last.environment !== undefined) {
    const { dataset, previous } = last.environment;
    throw impossible(
      `${nameOf(last)} was installed as the boot environment ${dataset}, and the one before is as it was`,
      { ...details, dataset, previous },
      `bundle rollback has that boot next`,
    );
  }
  const full = streamWithoutBase(last);
  if (full !== undefined) {
    throw impossible(
      `${nameOf(last)} cannot be rolled back: stream ${full.role} has no base that ${full.dataset} could go back to`,
      details,
    );
  }
  if (isPlanLost(last)) {
    throw impossible(
      `${nameOf(last)} cannot be rolled back: an older zferry installed it, and did not keep what it changed in /`,
      details,
    );
  }
  return last;
}

/** @throws ZferryError `not-configured` where the site's configuration names other datasets since */
function requireConfigured({ release, streams }: Installation, site: SiteConfig): void {
  const differences = otherDatasets(streams, site);
  if (differences.length === 0) return;
  throw new ZferryError(
    "not-configured",
    `the site's configuration has changed since ${release.name} was installed: ${differences.join("; ")}`,
    { details: { differences }, hint: "bring it back for the rollback" },
  );
}

/** @throws ZferryError `rollback-impossible`, `site-busy` for what zfs does not go back over, whoever agrees */
async function requirePassable({ stream: { dataset }, blocked }: WayBack): Promise<void> {
  if (blocked.length > 0) {
    throw impossible(
      `${dataset} cannot be rolled back over ${blocked.join(", ")}`,
      { dataset, blocked },
      "remove these first: zfs destroy a clone, which would take the base with it if it was promoted; zfs release a hold",
    );
  }
  if ((await tokenOf(dataset)) === undefined) return;
  throw new ZferryError("site-busy", `dataset ${dataset} has a partial receive that is not zferry's`, {
    details: { dataset },
    hint: `let it end, or discard it: zfs receive -A ${dataset}`,
  });
}

async function planRootHalf(
  {
    site,
    now,
    warn,
    progress,
    commitDrift,
  }: Pick<RollbackOptions, "site" | "now" | "warn" | "progress" | "commitDrift">,
  { journal, installation }: Pick<Planned, "journal" | "installation">,
  folder: StateFolder,
  scratchDir: string,
  more: Pick<RootRollbackOptions, "space" | "settled" | "conflicts" | "resolutions">,
): Promise<RootPlan | null> {
  const { plan: hash, release } = installation;
  if (typeof hash !== "string") return null;
  const { git, rootDir } = await siteRoot(site);
  await requireStateUntracked(site, rootDir, git);
  const plan = await planRootRollback({
    git,
    rootDir,
    scratchDir,
    installed: await folder.readPlan(hash),
    release: release.name,
    warn,
    progress,
    ...rootOptions(site, { journal, now, commitDrift }),
    ...more,
  });
  requireOwnUntouched(site, rootDir, plan);
  return plan;
}

/**
 * Takes what a person settled of the conflicts that a rollback has in `/`, and puts what is left into a folder. Datasets are not
 * asked.
 * @param options.folder by default `resolve` in the state folder
 * @throws ZferryError as `resolveConflicts`; `rollback-impossible`, `install-pending`
 */
export async function resolveRollback(
  options: Pick<RollbackOptions, "site" | "now" | "warn" | "progress" | "commitDrift"> &
    Pick<ResolveOptions, "chosen" | "tool"> & { readonly folder: string | undefined },
): Promise<Resolved & { readonly folder: string; readonly installation: Installation }> {
  const { site, folder = join(site.state, "resolve"), chosen, tool } = options;
  return withLock(site, async (stateFolder, scratchDir) => {
    const { installation, journal } = await readSite(site, stateFolder);
    if (journal !== undefined && isWritten(journal))
      throw await pending(journal, "and its conflicts are settled");
    const { name } = installation.release;
    const resolved = await resolveConflicts({
      state: site.state,
      folder,
      scratchDir,
      with: `the rollback of release ${name}`,
      theirs: `before ${name}`,
      chosen,
      tool,
      plan: (how) => planRootHalf(options, { installation, journal }, stateFolder, scratchDir, how),
    });
    return { ...resolved, folder, installation };
  });
}

/** The streams that a rollback would take back, so that a process can be moved to their bases. */
export async function streamsToRollBack({ state }: SiteConfig): Promise<readonly InstalledStream[]> {
  return undoable(await openState(state).readState())?.streams ?? [];
}

/**
 * Gives up the possibility to roll the newest install back: what it would go back to is let go.
 * @param options.begin called when nothing stands against it any more, before anything is written
 * @param options.warn told what could not be let go
 * @param options.isToMerge whether a merge was asked for, for the hint
 * @returns the installation; `isNew` when it was not confirmed already. Undefined when there is none to be confirmed.
 * @throws ZferryError `install-pending` while something is under way
 */
export const confirmInstall = (
  site: SiteConfig,
  now: () => Date,
  {
    begin,
    warn,
    isToMerge,
  }: {
    readonly begin: () => Promise<void>;
    readonly warn: (what: string) => void;
    readonly isToMerge: boolean;
  },
): Promise<{ readonly installation: Installation; readonly isNew: boolean } | undefined> =>
  withState(site, warn, async (folder) => {
    const [state, journal] = [await folder.readState(), await folder.readJournal()];
    // A merge may have been cut off by what ended the confirmation that it came with.
    if (journal !== undefined && journal.operation !== "merge")
      throw await pending(journal, "and nothing is confirmed before that is done");
    const last = state?.installations.at(-1);
    if (state === undefined || last === undefined || last.rolledBack !== undefined) return undefined;
    requireProduct(state, site.product);
    const running = last.environment && (await requireRunning(last, last.environment, isToMerge));
    await begin();
    // It failed once, and was activated, and is kept.
    if (running !== undefined) await dropProperties(running, ["zferry:failed"]);
    const isNew = last.confirmedAt === undefined;
    const installation = isNew ? { ...last, confirmedAt: Math.floor(now().getTime() / 1000) } : last;
    if (isNew) {
      const installations = [...state.installations.slice(0, -1), installation];
      await folder.writeState({ ...state, installations });
    }
    // Also what a run before that was interrupted left.
    await releaseBases(last.streams, [], warn);
    await folder.removePlans();
    return { installation, isNew };
  });

const mergeHint = (name: string): string =>
  `boot it, and run the same command there: it merges what was changed in the running one after ${name} was made from it; ` +
  `to merge into the running one first: bundle rollback, bundle confirm --merge, and bundle activate ${name}`;

/**
 * What was not booted yet cannot be known to be good.
 * @returns the dataset of the running environment, which may have been renamed since it was recorded
 */
async function requireRunning(
  installation: Installation,
  { dataset, guid }: NonNullable<Installation["environment"]>,
  isToMerge: boolean,
): Promise<string> {
  const mount = ownMounts().get("/");
  const running = datasetOf(mount);
  if (running !== undefined && (await hasGuid(running, guid))) return running;
  throw new ZferryError(
    "install-pending",
    `${nameOf(installation)} was installed as the boot environment ${dataset}, which is not the running one`,
    {
      details: { dataset, running: mount?.source ?? "" },
      hint: isToMerge ? mergeHint(basename(dataset)) : "boot it first; bundle status says what boots next",
    },
  );
}
