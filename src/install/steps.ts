import type { VerifiedBundle } from "../bundle/reader.js";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { showPath } from "../raw-path.js";
import { asZferryError, formatBytes, listFirst } from "../report.js";
import {
  commitRoot,
  discardFiles,
  discardRoot,
  importObjects,
  prepareRoot,
  requireAsPlanned,
  requireFilesAsPlanned,
  revertFiles,
  revertRoot,
} from "../root/apply.js";
import type { RootPlan } from "../root/plan.js";
import { parseResumeToken } from "../stream/resume-token.js";
import { findMountOf } from "../system/mounts.js";
import {
  datasetExists,
  findDataset,
  findHeld,
  findInHistory,
  fullName,
  getProperties,
  hasGuid,
  holdSnapshots,
  listDepended,
  listProperties,
  poolOf,
  releaseSnapshot,
} from "../system/zfs.js";
import { changeKeys } from "../trust/keys.js";
import {
  finishEnvironment,
  freeClone,
  makeClone,
  removeClone,
  runAfter,
  streamsDone,
  withContainer,
} from "./environment-install.js";
import { restoreNext } from "./environments.js";
import { requireAnswer, requireUnused, type Live, type StreamPlan } from "./plan.js";
import { discardPartial, isReceived, receiveStream, tokenOf, type ReceiveOptions } from "./receive.js";
import { forgetMerge, rememberMerge } from "./merge-mark.js";
import { apartFrom, composeParts, sharedPart, sharedPaths } from "./shared-mounts.js";
import { datasetOfRoot, rootMount, siteRoot, withRoot, type SiteRoot } from "./site-root.js";
import {
  baseOf,
  beganAt,
  doneLinks,
  emptyState,
  installed,
  isRecorded,
  isWritten,
  phasesOf,
  PHASES,
  undoable,
  type InstalledStream,
  type InstallJournal,
  type Journal,
  type Loss,
  type MergeJournal,
  type NewEnvironment,
  type RollbackJournal,
  type SiteState,
  type StateFolder,
} from "./state.js";
import {
  describeLoss,
  findWayBack,
  forgetWayBack,
  isPromotedAway,
  isReturning,
  removeLeft,
  requireDataset,
  snapshotsOfMade,
  takeBack,
} from "./take-back.js";
import { keySetOf } from "./trust.js";

// The steps of an install and of a rollback, one a phase. Each is journalled before it begins, can be done again from its
// beginning, and can be taken back, if that is possible at all. formats/state.md, journal.json

/** Keeps the base snapshots of the last install, for going back. */
const HOLD_TAG = "zferry:base";

/** What the steps work on. */
export interface Work extends ReceiveOptions {
  readonly site: SiteConfig;
  readonly folder: StateFolder;
  readonly scratchDir: string;
  readonly now: () => Date;
  /** Undefined where no stream is left to be received. */
  readonly bundle: VerifiedBundle | undefined;
  readonly streams: readonly StreamPlan[];
  readonly state: SiteState | undefined;
}

interface Step<Kind extends Journal = Journal> {
  /** What must hold before it is journalled as begun. */
  check?(journal: Kind, work: Work): Promise<void>;
  do(journal: Kind, work: Work): Promise<void>;
  /** What was not done is no error. */
  undo(journal: Kind, work: Work): Promise<void>;
}

type Steps<Kind extends Journal> = Readonly<Record<Kind["phase"], Step<Kind>>>;

/** The boot environment that is made; null where the site itself is changed. */
const environmentOf = (journal: Journal): NewEnvironment | null =>
  journal.operation === "install" ? journal.environment : null;

/** Runs `use` on the `/` that is changed. */
function inRoot(journal: Journal, site: SiteConfig, use: (place: SiteRoot) => Promise<void>): Promise<void> {
  if (journal.operation !== "merge") return withRoot(environmentOf(journal), site, use);
  // Another environment may have been booted since.
  const { into } = journal;
  return withRoot(datasetOfRoot(site) === into ? null : { dataset: into }, site, use);
}

const checkPlanned = async (journal: Journal, { site }: Pick<Work, "site">): Promise<void> => {
  const { root } = journal;
  if (root === null) return;
  await inRoot(journal, site, (place) => requireAsPlanned(root, place, !isWritten(journal)));
};

/** What warns where only steps are told. */
export const warnBy =
  (step: ReceiveOptions["step"]) =>
  (what: string): void =>
    step(`warning: ${what}`);

const preparing: Step = {
  // What is cloned may have been changed between the plan and the snapshot.
  check: async (journal, work) => {
    if (environmentOf(journal) !== null) await checkPlanned(journal, work);
  },
  async do(journal, { site, scratchDir, step, progress, signal }) {
    const { root } = journal;
    if (root === null) return;
    step(`preparing ${root.changes.length} changed files of /`);
    await inRoot(journal, site, async (place) => {
      await importObjects(root, { ...place, scratchDir });
      await prepareRoot(root, { ...place, progress, signal });
    });
  },
  async undo(journal, { site, step }) {
    const { root } = journal;
    const environment = environmentOf(journal);
    if (environment === null) {
      if (root === null) return;
      await inRoot(journal, site, async (place) => {
        const left = (await discardRoot(root, place)).map(showPath);
        if (left.length > 0)
          warnBy(step)(
            `what was prepared may be where the folder was moved to, and can be removed there: ${listFirst(left)}`,
          );
      });
      return;
    }
    // All else goes with the clone.
    const part = sharedPart(root, environment);
    if (part !== undefined)
      await withShared(environment, site, async (place) => void discardFiles(part, place));
  },
};

const writing: Step = {
  check: checkPlanned,
  async do(journal, { site, scratchDir, step, progress }) {
    const { root } = journal;
    if (root === null) return;
    step("writing the changed files of /");
    await inRoot(journal, site, (place) => commitRoot(root, { ...place, scratchDir, progress }));
  },
  async undo(journal, work) {
    const { root } = journal;
    const environment = environmentOf(journal);
    if (environment !== null) return revertShared(sharedPart(root, environment), environment, work);
    if (root === null) return;
    const { site, scratchDir, step, progress } = work;
    step("bringing back the files of /");
    await inRoot(journal, site, (place) => revertRoot(root, { ...place, scratchDir, progress }));
  },
};

/** @param part of a plan of `/`, on what all environments share */
async function revertShared(
  part: RootPlan | undefined,
  environment: NewEnvironment,
  { site, step, progress }: Work,
): Promise<void> {
  if (part === undefined) return;
  step(`bringing back ${part.changes.length} files that all boot environments share`);
  await withShared(environment, site, (place) => revertFiles(part, { ...place, progress }));
}

/** Runs `use` on the clone, or, where that is gone already, on the site's own `/`, which has the same shared file systems. */
const withShared = async (
  environment: NewEnvironment,
  site: SiteConfig,
  use: (place: SiteRoot) => Promise<void>,
): Promise<void> =>
  (await datasetExists(environment.dataset)) ? withRoot(environment, site, use) : use(await siteRoot(site));

const nothing = async (): Promise<void> => undefined;

/** A step of an install that makes a boot environment, and no other. */
const inEnvironment =
  (use: (journal: InstallJournal & { readonly environment: NewEnvironment }, work: Work) => Promise<void>) =>
  async ({ environment, ...journal }: InstallJournal, work: Work): Promise<void> => {
    if (environment !== null) await use({ ...journal, environment }, work);
  };

/** The streams of the first bundle that has each role: what they start from is the site's. */
function firstStreams(journal: InstallJournal): InstalledStream[] {
  const first = new Map<string, InstalledStream>();
  for (const { streams } of [...doneLinks(journal), journal]) {
    for (const stream of streams) if (!first.has(stream.role)) first.set(stream.role, stream);
  }
  return [...first.values()];
}

/** What all bundles together received: from where the first one starts to where the last one ends. */
const allStreams = (journal: InstallJournal): InstalledStream[] =>
  firstStreams(journal).map((first) => {
    const all = [...doneLinks(journal), journal].flatMap(({ streams }) =>
      streams.filter(({ role }) => role === first.role),
    );
    const rawBytes = all.reduce((sum, stream) => sum + (stream.rawBytes ?? 0), 0);
    return { ...first, target: all.at(-1)?.target ?? first.target, ...(rawBytes === 0 ? {} : { rawBytes }) };
  });

/** What the datasets of an install are marked with: of several bundles that make one environment, all with the last one's. */
const identityOf = ({ environment, release }: InstallJournal): string =>
  environment?.chain?.identity ?? release.identity;

async function takeStreamBack(stream: InstalledStream, journal: InstallJournal, work: Work): Promise<void> {
  const identity = identityOf(journal);
  if ((await isReceived(stream)) || (await isReturning(stream))) {
    work.step(`taking ${stream.dataset} back to what it was`);
    return takeBack(await findWayBack(stream), identity, work);
  }
  await discardPartial(stream.dataset, work);
  await removeLeft(stream, identity, work);
}

const INSTALL: Steps<InstallJournal> = {
  holding: {
    async do(journal) {
      // What the bundles before made needs no hold.
      if (doneLinks(journal).length > 0) return;
      for (const base of journal.streams.map(baseOf)) {
        if (base !== undefined) await holdSnapshots(HOLD_TAG, [base]);
      }
    },
    undo: (journal, { state, step }) =>
      releaseBases(firstStreams(journal), undoable(state)?.streams ?? [], warnBy(step)),
  },

  cloning: {
    do: inEnvironment(async (journal, { site, step }) => {
      if (doneLinks(journal).length > 0) return;
      step(`cloning ${journal.environment.origin} to ${journal.environment.dataset}`);
      await makeClone(journal);
      await freeClone(journal, site, step);
    }),
    undo: inEnvironment(async (journal, options) => {
      for (const stream of streamsDone(journal.environment).toReversed())
        await takeStreamBack(stream, journal, options);
      const parts = doneLinks(journal).map(({ shared }) => shared);
      await revertShared(composeParts(parts), journal.environment, options);
      await removeClone(journal, options);
    }),
  },

  preparing,

  receiving: {
    async do(_, { bundle, streams, ...options }) {
      for (const stream of streams) {
        if (!stream.received && bundle !== undefined) await receiveStream(bundle, stream, options);
      }
    },
    async undo(journal, options) {
      for (const stream of ownStreams(journal).toReversed()) await takeStreamBack(stream, journal, options);
    },
  },

  writing,

  // The next bundle goes on from here.
  linking: { do: nothing, undo: nothing },

  finishing: {
    do: inEnvironment((journal, { site, step }) =>
      runAfter(journal.environment, allStreams(journal), site, step),
    ),
    undo: nothing,
  },

  activating: {
    do: inEnvironment(async ({ environment }, { site, step }) => {
      step(`${environment.activate ? "activating" : "checking"} ${environment.dataset}`);
      for (const line of await finishEnvironment(environment, site)) step(`warning: ${line}`);
    }),
    undo: inEnvironment(async ({ environment }, { site, step }) => {
      const other = await restoreNext(withContainer(site, environment), environment);
      if (other !== undefined) warnBy(step)(other);
    }),
  },

  recording: {
    do: record,
    // Once it is recorded, the install is done.
    undo: nothing,
  },
};

const ROLLBACK: Steps<RollbackJournal> = {
  preparing,

  "rolling-back": {
    async do({ streams, lost, release }, options) {
      for (const stream of streams) {
        const way = await findWayBack(stream);
        if (!way.done) {
          requireAgreed(way.loss, lost);
          options.step(`rolling ${stream.dataset} back to ${stream.base?.snapshot ?? ""}`);
        }
        await takeBack(way, release.identity, options);
      }
    },
    // Only while nothing is rolled back.
    async undo({ streams }) {
      for (const stream of streams) await forgetWayBack(stream);
    },
  },

  writing,

  recording: {
    async do({ startedAt }, { folder, now, state }) {
      const last = undoable(state);
      if (state === undefined || last === undefined)
        throw new RangeError("nothing to be rolled back is recorded");
      const rolledBack = { startedAt, finishedAt: Math.floor(now().getTime() / 1000) };
      await folder.writeState({
        ...state,
        installations: [...state.installations.slice(0, -1), { ...last, rolledBack }],
      });
    },
    undo: nothing,
  },
};

const MERGE: Steps<MergeJournal> = {
  preparing,
  writing,
  recording: {
    do: ({ into, difference }) => rememberMerge(into, difference),
    undo: ({ into, difference }) => forgetMerge(into, difference),
  },
};

/** What a file system in use writes by itself, times of access and the like, is not asked for again. */
const AGREED_MORE_BYTES = 1 << 20;

/**
 * Whether somebody agreed to lose this.
 * @throws ZferryError `loss-not-agreed`
 */
export function requireAgreed(loss: Loss, agreed: readonly Loss[]): void {
  const known = agreed.find(({ dataset }) => dataset === loss.dataset);
  const allowed = known === undefined || known.written === 0 ? 0 : known.written + AGREED_MORE_BYTES;
  const left = {
    ...loss,
    snapshots: loss.snapshots.filter(
      ({ guid }) => known?.snapshots.some((each) => each.guid === guid) !== true,
    ),
    bookmarks: loss.bookmarks?.filter(
      ({ bookmark, guid }) =>
        known?.bookmarks?.some((each) => each.bookmark === bookmark && each.guid === guid) !== true,
    ),
    written: loss.written > allowed ? loss.written : 0,
  };
  const lost = describeLoss(left);
  if (lost.length === 0) return;
  throw new ZferryError("loss-not-agreed", `rolling back would lose of ${loss.dataset}: ${lost.join(", ")}`, {
    details: { dataset: loss.dataset, lost },
    hint: "save what is needed of it; to lose it: bundle rollback --discard",
  });
}

/**
 * Brings what is under way from the journal's phase to its end.
 * @param outdated a plan of `/` for which an earlier run prepared files
 * @throws ZferryError; before anything was received or rolled back, the site is as it was
 */
export async function carryOut(journal: Journal, outdated: RootPlan | null, work: Work): Promise<void> {
  if (outdated !== null) await discardOutdated(outdated, environmentOf(journal), work);
  if (journal.operation === "install") {
    await receiveMissing(journal, work);
    await advance(journal, INSTALL, phasesOf(journal), work);
  } else if (journal.operation === "rollback") await advance(journal, ROLLBACK, PHASES.rollback, work);
  else {
    await advance(journal, MERGE, PHASES.merge, work);
    await work.folder.removeJournal();
  }
  await finishRecorded(work.folder, warnBy(work.step));
}

/**
 * Receives what somebody took back by hand after `/` was written. The journal keeps its phase meanwhile: what goes on, or is given up,
 * after a failure has to know how far `/` is.
 */
async function receiveMissing(journal: InstallJournal, work: Work): Promise<void> {
  if (!isWritten(journal) || work.streams.every(({ received }) => received)) return;
  try {
    // Neither into what is not there any more, nor beside a / that has become another.
    if (journal.environment !== null) await rootMount(journal.environment);
    await INSTALL[journal.phase].check?.(journal, work);
    await work.folder.writeJournal(journal);
    await INSTALL.receiving.do(journal, work);
  } catch (error) {
    throw await afterFailure(error, journal, work);
  }
}

async function discardOutdated(
  outdated: RootPlan,
  environment: NewEnvironment | null,
  { site }: Work,
): Promise<void> {
  // As long as there is no clone, nothing was prepared in it.
  if (environment !== null && !(await datasetExists(environment.dataset))) return;
  await withRoot(environment, site, async (place) => void (await discardRoot(outdated, place)));
}

async function advance<Kind extends Journal>(
  journal: Kind,
  steps: Steps<Kind>,
  phases: readonly Kind["phase"][],
  work: Work,
): Promise<void> {
  let reached = journal;
  for (const phase of phases.slice(phases.indexOf(journal.phase))) {
    try {
      await steps[phase].check?.(reached, work);
      const next = { ...journal, phase };
      await work.folder.writeJournal(next);
      reached = next;
      await steps[phase].do(reached, work);
    } catch (error) {
      throw await afterFailure(error, reached, work);
    }
  }
}

/**
 * Gives up what is under way: takes back each step, the last one first.
 * @throws ZferryError; the next call goes on where this one was
 */
export async function undo(journal: Journal, work: Work): Promise<void> {
  if (journal.operation === "install")
    await retreat({ ...journal, phase: await reachedPhase(journal) }, INSTALL, phasesOf(journal), work);
  else if (journal.operation === "rollback") await retreat(journal, ROLLBACK, PHASES.rollback, work);
  // What somebody destroyed needs nothing to be taken back.
  else if (await datasetExists(journal.into)) await retreat(journal, MERGE, PHASES.merge, work);
  await work.folder.removeJournal();
}

/** How far an install came. One that is planned anew begins again, with what it made and received there already. */
async function reachedPhase(journal: InstallJournal): Promise<InstallJournal["phase"]> {
  const { phase, undoing, environment } = journal;
  if (undoing || isWritten(journal)) return phase;
  if (environment !== null) return "receiving";
  for (const stream of ownStreams(journal))
    if ((await isReceived(stream)) || (await tokenOf(stream.dataset)) !== undefined) return "receiving";
  return phase;
}

async function retreat<Kind extends Journal>(
  journal: Kind,
  steps: Steps<Kind>,
  phases: readonly Kind["phase"][],
  work: Work,
): Promise<void> {
  for (const phase of phases.slice(0, phases.indexOf(journal.phase) + 1).toReversed()) {
    const reached = { ...journal, phase, undoing: true };
    await work.folder.writeJournal(reached);
    await steps[phase].undo(reached, work);
  }
}

/** What fails before anything is received or rolled back leaves the site as it was. After that, only going on leads to both halves. */
async function afterFailure(cause: unknown, journal: Journal, work: Work): Promise<ZferryError> {
  const error = asZferryError(cause);
  const { stays, none } = WORDS[journal.operation];
  // A pool that does not answer must not be asked.
  const isSilent = "health" in error.details;
  const kept = isSilent ? stays : await describeDone(journal).catch(() => stays);
  if (kept !== undefined) return withWays(error, kept, journal);
  try {
    // Also after an interruption, to its end.
    if (await isBegun(work)) {
      const environment = environmentOf(journal);
      // It may have been booted since it was activated.
      if (environment !== null) await requireRemovable(environment);
      await undo(journal, { ...work, signal: new AbortController().signal });
    }
    return withHint(error, `${none}; the site is as it was before`);
  } catch (failure) {
    const why = failure instanceof Error ? failure.message : String(failure);
    return withWays(error, `what was prepared is not taken back: ${why}`, journal);
  }
}

const WORDS = {
  install: { stays: "what is received stays", none: "nothing was received" },
  rollback: { stays: "what is rolled back stays so", none: "nothing was rolled back" },
  merge: { stays: "what is merged stays so", none: "nothing was merged" },
} as const;

const isBegun = async ({ folder }: Work): Promise<boolean> => (await folder.readJournal()) !== undefined;

/** The error, with what became of the site and how to go on. */
function withWays(error: ZferryError, kept: string, journal: Journal): ZferryError {
  if (journal.operation === "rollback") return withHint(error, `${kept}; to go on: bundle rollback`);
  if (journal.operation === "merge")
    return withHint(error, `${kept}; to go on: bundle confirm --merge; to give it up: bundle abort`);
  const copy = "member" in error.details ? ", or from another copy: bundle install FILE" : "";
  return withHint(error, `${kept}; to go on: bundle install${copy}; to give it up: bundle abort`);
}

function withHint(error: ZferryError, more: string): ZferryError {
  const { code, message, details, hint } = error;
  return new ZferryError(code, message, {
    details,
    hint: hint === undefined ? more : `${hint}; ${more}`,
    cause: error,
  });
}

const PARTLY = "/ may be written in part";

async function describeDone(journal: Journal): Promise<string | undefined> {
  if (journal.operation === "install") return describeReceived(journal);
  if (journal.operation === "rollback") return describeRolledBack(journal);
  return isWritten(journal) ? PARTLY : undefined;
}

/** "usr is received", "43 MiB of usr are received"; undefined when nothing is, and the rest can be taken back. */
async function describeReceived(journal: InstallJournal): Promise<string | undefined> {
  const found: string[] = [];
  for (const stream of ownStreams(journal)) {
    const { role, rawBytes, taken, received } = await progressOf(stream);
    const of = rawBytes === null ? "" : ` of ${formatBytes(rawBytes)}`;
    if (received) found.push(`${role} is received`);
    else if (taken > 0) found.push(`${formatBytes(taken)}${of} of ${role} are received`);
  }
  for (const { release } of doneLinks(journal)) found.unshift(`release ${release.name} is in it`);
  if (found.length > 0) return found.join(", ");
  if (!isWritten(journal)) return undefined;
  const environment = environmentOf(journal);
  // A bundle may have no stream that was left to be received.
  if (environment === null) return PARTLY;
  // Where there were any, somebody took them back by hand: the rest is not given up by itself.
  return ownStreams(journal).length === 0 ? undefined : `${environment.dataset} stays`;
}

/**
 * "usr is rolled back"; undefined when nothing is.
 * @throws ZferryError `base-missing` where a dataset is not there any more, of which that cannot be told
 */
async function describeRolledBack(journal: RollbackJournal): Promise<string | undefined> {
  const found: string[] = [];
  for (const stream of ownStreams(journal)) {
    await requireDataset(stream);
    if (!(await isReceived(stream)) && !(await isPromotedAway(stream)))
      found.push(`${stream.role} is rolled back`);
  }
  if (found.length === 0 && isWritten(journal)) return PARTLY;
  return found.length === 0 ? undefined : found.join(", ");
}

/** Those that were not there before it began. */
const ownStreams = ({ streams, present }: InstallJournal | RollbackJournal): InstalledStream[] =>
  streams.filter(({ role }) => !present.includes(role));

/** How far the receive of a stream has come. */
export interface StreamProgress {
  readonly role: string;
  readonly dataset: string;
  readonly received: boolean;
  /** Bytes of the stream that ZFS has taken. */
  readonly taken: number;
  /** Of the whole stream; null where that is not known. */
  readonly rawBytes: number | null;
}

export async function progressOf(stream: InstalledStream): Promise<StreamProgress> {
  const { role, dataset, rawBytes = null } = stream;
  const received = await isReceived(stream);
  const token = received ? undefined : await tokenOf(dataset);
  const taken = token === undefined ? 0 : Number(parseResumeToken(token).bytes);
  return { role, dataset, received, taken: received ? (rawBytes ?? 0) : taken, rawBytes };
}

/**
 * Whether the site can be brought back to what it was, without anything else being lost.
 * @throws ZferryError `base-modified`, `base-missing`, `dataset-in-use`, `worktree-dirty`; `install-pending` for a rollback that
 * only its end is left of
 */
export async function requireUndoable(
  journal: Journal,
  site: SiteConfig,
  live: Live | undefined,
): Promise<void> {
  if (journal.operation === "rollback") return requireNotRolledBack(journal);
  if (journal.operation === "merge") {
    if (isWritten(journal) && (await datasetExists(journal.into))) await checkPlanned(journal, { site });
    return;
  }
  const { environment } = journal;
  if (environment !== null) await requireRemovable(environment);
  const streams = [...(environment === null ? [] : streamsDone(environment)), ...ownStreams(journal)];
  const own = new Set(streams.map(({ target }) => target.guid));
  for (const stream of streams) {
    const { dataset, base } = stream;
    if ((await isReceived(stream)) || (await isReturning(stream)) || (await isPromotedAway(stream)))
      await requireRollback(stream, own, live);
    else if (environment === null && base !== null && !(await datasetExists(dataset))) {
      throw new ZferryError("base-missing", `there is no dataset ${dataset}, which the install began with`, {
        details: { dataset, expected: base.guid },
        hint: "bring it back to its name, or import its pool",
      });
    } else {
      const left = (await snapshotsOfMade(stream, identityOf(journal))) ?? [];
      requireNoLoss(dataset, left.filter(({ guid }) => !own.has(guid)).map(fullName));
    }
  }
  const { root } = journal;
  if (environment !== null) {
    const part = isWritten(journal) ? sharedPart(root, environment) : undefined;
    const parts = apartFrom(part, composeParts(doneLinks(journal).map(({ shared }) => shared)));
    if (parts.length === 0) return;
    return withShared(environment, site, async ({ rootDir }) => {
      for (const each of parts) await requireFilesAsPlanned(each, rootDir);
    });
  }
  if (root === null || (await reachedPhase(journal)) === "holding") return;
  // Without its repository what is prepared cannot be taken back, and /usr is not to be the only half that is.
  const place = await siteRoot(site);
  if (isWritten(journal)) await requireAsPlanned(root, place);
}

/** @throws ZferryError `dataset-in-use`, `base-modified` */
async function requireRemovable(environment: NewEnvironment): Promise<void> {
  requireNotRunning(environment);
  await requireNeverUsed(environment);
}

function requireNotRunning({ dataset }: NewEnvironment): void {
  const mounted = findMountOf([dataset]);
  if (mounted === undefined) return;
  throw new ZferryError(
    "dataset-in-use",
    `the boot environment ${dataset}, which would be given up, is mounted on ${mounted.point}`,
    {
      details: { dataset, path: mounted.point },
      hint: mounted.point === "/" ? "finish the install: bundle install" : `umount ${mounted.point}`,
    },
  );
}

/** What was written to its / since it booted has no other place, nor has what somebody took snapshots of. */
async function requireNeverUsed({ dataset }: NewEnvironment): Promise<void> {
  if (!(await datasetExists(dataset))) return;
  const marks = ["zferry:boots", "zferry:confirmed", "zferry:failed"] as const;
  const [own] = await listProperties(dataset, marks);
  const isUsed = marks.some((name) => own?.properties[name].local && own.properties[name].value !== "0");
  const born = Number((await getProperties(dataset, ["createtxg"])).createtxg);
  const taken = (await listDepended(dataset)).filter(
    ({ createtxg, name }) => createtxg >= born && !name.startsWith("zferry-"),
  );
  const lost = [...(isUsed ? ["what was written since it booted"] : []), ...taken.map(fullName)];
  requireNoLoss(
    dataset,
    lost,
    "finish the install: bundle install; then bundle rollback goes back, and leaves it as it is",
  );
}

/** Whether `bundle abort` gives a rollback up, as far as its datasets are concerned; not where one cannot be asked. */
export async function canBeGivenUp(journal: RollbackJournal): Promise<boolean> {
  if (isWritten(journal)) return false;
  try {
    for (const { dataset } of journal.streams) await requireAnswer(dataset);
    await requireNotRolledBack(journal);
    return true;
  } catch (error) {
    if (error instanceof ZferryError) return false;
    throw error;
  }
}

/** What a rollback took is lost, so that only its end leads to both halves. */
async function requireNotRolledBack(journal: RollbackJournal): Promise<void> {
  const done = await describeRolledBack(journal);
  if (done === undefined) return;
  const { name, sequence } = journal.release;
  throw new ZferryError(
    "install-pending",
    `release ${name} (${sequence}) is being rolled back, and that cannot be given up any more: ${done}`,
    { details: { pending: name }, hint: "finish it: bundle rollback" },
  );
}

/** @param own guids of all that is being given up */
async function requireRollback(
  stream: InstalledStream,
  own: ReadonlySet<string>,
  live: Live | undefined,
): Promise<void> {
  const { dataset } = stream;
  const { loss, blocked } = await findWayBack(stream);
  const { bookmarks } = loss;
  // A later bundle's stream into the same dataset is asked by itself, and has what was written since.
  const snapshots = loss.snapshots.filter(({ guid }) => !own.has(guid));
  const written = snapshots.length === loss.snapshots.length ? loss.written : 0;
  requireNoLoss(dataset, [...describeLoss({ dataset, snapshots, bookmarks, written }), ...blocked]);
  await requireUnused(dataset, live, "abort");
}

function requireNoLoss(dataset: string, lost: readonly string[], hint = "save and remove that first"): void {
  if (lost.length === 0) return;
  throw new ZferryError("base-modified", `giving it up would lose of ${dataset}: ${lost.join(", ")}`, {
    details: { dataset, lost },
    hint,
  });
}

/** The release counts as installed from here on. The key change is a part of it: both are written at once. */
async function record(journal: InstallJournal, work: Work): Promise<void> {
  const { release, origin, root, environment } = journal;
  const [streams, done] = [allStreams(journal), doneLinks(journal)];
  const { folder, site, now, state } = work;
  if (origin === null) throw new RangeError("an install is recorded whose bundle is not known");
  const set = keySetOf(state);
  const keys =
    origin.keys === null || origin.keys.counter <= set.counter ? state?.keys : changeKeys(set, origin.keys);
  await folder.writeState({
    ...emptyState(site.product),
    highestSequence: Math.max(state?.highestSequence ?? 0, release.sequence),
    installations: [
      ...(state?.installations ?? []),
      {
        release,
        created: origin.created,
        startedAt: beganAt(journal),
        finishedAt: Math.floor(now().getTime() / 1000),
        signers: origin.signers,
        streams,
        commit: root?.mergeCommit ?? done.findLast(({ commit }) => commit !== null)?.commit ?? null,
        // There, going back is to boot another one.
        plan: environment === null ? folder.keepPlan(root) : null,
        ...(environment === null ? {} : { environment: await describeEnvironment(environment, root) }),
        ...(done.length === 0 ? {} : { onTheWay: done.map((link) => link.release) }),
      },
    ],
    ...(keys === undefined ? {} : { keys }),
  });
}

async function describeEnvironment(environment: NewEnvironment, root: RootPlan | null) {
  const { dataset, origin } = environment;
  const parts = [...doneLinks({ environment }).map((link) => link.shared), sharedPart(root, environment)];
  const shared = sharedPaths(composeParts(parts));
  const { guid } = await getProperties(dataset, ["guid"]);
  const described = { dataset, guid, previous: origin };
  return shared.length === 0 ? described : { ...described, shared };
}

/**
 * What is left to be done for what is recorded: bases that nothing goes back to any more are let go, and the journal goes. It
 * needs no bundle, whose signers may be revoked by now.
 * @param warn as of `releaseBases`
 * @returns the journal; undefined where there was nothing to be done
 */
export async function finishRecorded(
  folder: StateFolder,
  warn: (what: string) => void,
): Promise<Journal | undefined> {
  const [state, journal] = [await folder.readState(), await folder.readJournal()];
  if (journal === undefined || journal.operation === "merge" || !isRecorded(state, journal)) return undefined;
  if (journal.operation === "rollback") await releaseBases(journal.streams, [], warn);
  else {
    const before = state && { ...state, installations: state.installations.slice(0, -1) };
    await releaseBases(installed(before)?.streams ?? [], state?.installations.at(-1)?.streams ?? [], warn);
  }
  await folder.removeJournal();
  return journal;
}

/**
 * @param kept has the bases that stay held
 * @param warn told of a base that cannot be found, and may be held
 */
export async function releaseBases(
  streams: readonly InstalledStream[],
  kept: readonly InstalledStream[],
  warn: (what: string) => void,
): Promise<void> {
  const guids = new Set(kept.map(({ base }) => base?.guid));
  for (const stream of streams) {
    const { dataset, origin, base } = stream;
    if (base === null || guids.has(base.guid)) continue;
    const place = await findBaseDataset(stream);
    // By its guid: where an environment was promoted, as zectl does, another dataset has it now.
    const found =
      (place === undefined ? undefined : await findInHistory(place, base.guid)) ??
      (origin === undefined ? undefined : await findInHistory(dataset, base.guid));
    if (found !== undefined) await releaseSnapshot(HOLD_TAG, found);
    else if (place === undefined) await tellHeld(stream, base, warn);
  }
}

/** The dataset that had the base when it was installed, by its name now; undefined where it is not there, or cannot be told. */
async function findBaseDataset({
  dataset,
  origin = dataset,
  baseDataset,
}: InstalledStream): Promise<string | undefined> {
  const isThere = await datasetExists(origin);
  if (baseDataset === undefined) return isThere ? origin : undefined;
  if (isThere && (await hasGuid(origin, baseDataset))) return origin;
  return findDataset(poolOf(origin), baseDataset);
}

/** Other sites may have copies in the same pool, held with the same tag: what is not known to be ours is for a person to release. */
async function tellHeld(
  { dataset, origin = dataset }: InstalledStream,
  base: NonNullable<InstalledStream["base"]>,
  warn: (what: string) => void,
): Promise<void> {
  const pool = poolOf(origin);
  const release = (name: string): string => `zfs release ${HOLD_TAG} ${name}`;
  if (!(await datasetExists(pool))) {
    const name = fullName({ dataset: origin, name: base.snapshot });
    warn(`pool ${pool} is not there, and ${name} stays held in it; when it is back: ${release(name)}`);
    return;
  }
  const held = (await findHeld(pool, base.guid, HOLD_TAG)).map(fullName);
  for (const name of held) {
    warn(
      `dataset ${origin} is not there any more, and its base (guid ${base.guid}) may be ${name}, which is held; if no other site needs it: ${release(name)}`,
    );
  }
}
