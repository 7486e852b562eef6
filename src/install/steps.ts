import type { VerifiedBundle } from "../bundle/reader.js";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { asZferryError, formatBytes } from "../report.js";
import {
  commitRoot,
  discardRoot,
  importObjects,
  prepareRoot,
  requireAsPlanned,
  revertRoot,
} from "../root/apply.js";
import type { RootPlan } from "../root/plan.js";
import { parseResumeToken } from "../stream/resume-token.js";
import { openRepository, type Git } from "../system/git.js";
import {
  datasetExists,
  destroy,
  fullName,
  getProperties,
  holdSnapshots,
  listSnapshots,
  releaseSnapshot,
  rollback,
  type Snapshot,
} from "../system/zfs.js";
import { changeKeys } from "../trust/keys.js";
import { requireUnused, type Live, type StreamPlan } from "./plan.js";
import { discardPartial, isReceived, receiveStream, tokenOf, type ReceiveOptions } from "./receive.js";
import {
  isRecorded,
  PHASES,
  type InstalledStream,
  type Journal,
  type Phase,
  type SiteState,
  type StateFolder,
} from "./state.js";
import { keySetOf } from "./trust.js";

// The steps of an install, one a phase. Each is journalled before it begins, can be done again from its beginning, and can be
// taken back. formats/state.md, journal.json

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

interface Step {
  /** What must hold before it is journalled as begun. */
  check?(journal: Journal, work: Work): Promise<void>;
  do(journal: Journal, work: Work): Promise<void>;
  /** What was not done is no error. */
  undo(journal: Journal, work: Work): Promise<void>;
}

const STEPS: Record<Phase, Step> = {
  holding: {
    async do({ streams }) {
      for (const { dataset, base } of streams) {
        if (base !== null) await holdSnapshots(HOLD_TAG, [{ dataset, name: base.snapshot }]);
      }
    },
    async undo({ streams }, { state }) {
      const last = state?.installations.at(-1)?.streams ?? [];
      const kept = new Set(last.map(({ base }) => base?.guid));
      for (const { dataset, base } of streams) {
        if (base !== null && !kept.has(base.guid)) {
          await releaseSnapshot(HOLD_TAG, { dataset, name: base.snapshot });
        }
      }
    },
  },

  preparing: {
    async do({ root }, { site, scratchDir, step, progress, signal }) {
      if (root === null) return;
      const place = await siteRoot(site);
      step(`preparing ${root.changes.length} changed files of /`);
      await importObjects(root, { ...place, scratchDir });
      await prepareRoot(root, { ...place, progress, signal });
    },
    async undo({ root }, { site }) {
      if (root !== null) await discardRoot(root, await siteRoot(site));
    },
  },

  receiving: {
    async do(_, { bundle, streams, ...options }) {
      for (const stream of streams) {
        if (!stream.received && bundle !== undefined) await receiveStream(bundle, stream, options);
      }
    },
    async undo(journal, options) {
      for (const stream of ownStreams(journal).toReversed()) {
        if (await isReceived(stream)) {
          options.step(`taking ${stream.dataset} back to what it was`);
          await takeBack(stream);
        } else {
          await discardPartial(stream.dataset, options);
        }
      }
    },
  },

  writing: {
    async check({ root }, { site }) {
      if (root !== null) await requireAsPlanned(root, await siteRoot(site));
    },
    async do({ root }, { site, scratchDir, step, progress }) {
      if (root === null) return;
      step("writing the changed files of /");
      await commitRoot(root, { ...(await siteRoot(site)), scratchDir, progress });
    },
    async undo({ root }, { site, scratchDir, step, progress }) {
      if (root === null) return;
      step("bringing back the files of /");
      await revertRoot(root, { ...(await siteRoot(site)), scratchDir, progress });
    },
  },

  recording: {
    do: record,
    // Once it is recorded, the install is done.
    undo: async () => undefined,
  },
};

/**
 * Brings an install from the journal's phase to its end.
 * @param outdated a plan of `/` for which an earlier run prepared files
 * @throws ZferryError; before anything was received, the site is as it was
 */
export async function carryOut(journal: Journal, outdated: RootPlan | null, work: Work): Promise<void> {
  const { folder, site } = work;
  if (outdated !== null) await discardRoot(outdated, await siteRoot(site));
  let reached = journal;
  for (const phase of PHASES.slice(PHASES.indexOf(journal.phase))) {
    try {
      await STEPS[phase].check?.(reached, work);
      await folder.writeJournal({ ...journal, phase });
      reached = { ...journal, phase };
      await STEPS[phase].do(reached, work);
    } catch (error) {
      throw await afterFailure(error, reached, work);
    }
  }
  await finishRecorded(folder);
}

/**
 * Gives up an install: takes back each step, the last one first.
 * @throws ZferryError; the next call goes on where this one was
 */
export async function undo(journal: Journal, work: Work): Promise<void> {
  for (const phase of PHASES.slice(0, PHASES.indexOf(journal.phase) + 1).toReversed()) {
    const reached = { ...journal, phase, undoing: true };
    await work.folder.writeJournal(reached);
    await STEPS[phase].undo(reached, work);
  }
  await work.folder.removeJournal();
}

/** What fails before anything is received leaves the site as it was. After that, only going on leads to both halves. */
async function afterFailure(cause: unknown, journal: Journal, work: Work): Promise<ZferryError> {
  const error = asZferryError(cause);
  // A pool that does not answer must not be asked.
  const isSilent = "health" in error.details;
  const kept = isSilent ? STAYS : await describeReceived(journal).catch(() => STAYS);
  if (kept !== undefined) return withWays(error, kept);
  try {
    // Also after an interruption, to its end.
    if (await isBegun(work)) await undo(journal, { ...work, signal: new AbortController().signal });
    return withHint(error, "nothing was received; the site is as it was before");
  } catch (failure) {
    const why = failure instanceof Error ? failure.message : String(failure);
    return withWays(error, `what was prepared is not taken back: ${why}`);
  }
}

const STAYS = "what is received stays";

const isBegun = async ({ folder }: Work): Promise<boolean> => (await folder.readJournal()) !== undefined;

/** The error, with what became of the site and how to go on. */
function withWays(error: ZferryError, kept: string): ZferryError {
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

/** "usr is received", "43 MiB of usr are received"; undefined when nothing is. */
async function describeReceived(journal: Journal): Promise<string | undefined> {
  const { phase } = journal;
  const found: string[] = [];
  for (const stream of ownStreams(journal)) {
    const { role, rawBytes, taken, received } = await progressOf(stream);
    const of = rawBytes === null ? "" : ` of ${formatBytes(rawBytes)}`;
    if (received) found.push(`${role} is received`);
    else if (taken > 0) found.push(`${formatBytes(taken)}${of} of ${role} are received`);
  }
  // A bundle may have no stream that was left to be received.
  if (found.length === 0 && (phase === "writing" || phase === "recording")) return "/ may be written in part";
  return found.length === 0 ? undefined : found.join(", ");
}

/** Those that were not there before the install began. */
const ownStreams = ({ streams, present }: Journal): InstalledStream[] =>
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
 * @throws ZferryError `base-modified`, `base-missing`, `dataset-in-use`, `worktree-dirty`
 */
export async function requireUndoable(
  journal: Journal,
  site: SiteConfig,
  live: Live | undefined,
): Promise<void> {
  for (const stream of ownStreams(journal)) {
    const { dataset, base } = stream;
    if (await isReceived(stream)) await requireRollback(stream, live);
    else if (base !== null && !(await datasetExists(dataset))) {
      throw new ZferryError("base-missing", `there is no dataset ${dataset}, which the install began with`, {
        details: { dataset, expected: base.guid },
        hint: "bring it back to its name, or import its pool",
      });
    }
  }
  const { root, phase } = journal;
  if (root !== null && PHASES.indexOf(phase) >= PHASES.indexOf("writing")) {
    await requireAsPlanned(root, await siteRoot(site));
  }
}

async function requireRollback(stream: InstalledStream, live: Live | undefined): Promise<void> {
  const { dataset, base, target } = stream;
  const snapshots = await listSnapshots(dataset);
  if (base !== null && !snapshots.some(({ guid }) => guid === base.guid)) {
    throw new ZferryError("base-missing", `${dataset} has no snapshot with guid ${base.guid} to go back to`, {
      details: { dataset, expected: base.guid },
    });
  }
  const position = snapshots.findIndex(({ guid }) => guid === target.guid);
  const received = snapshots[position] as Snapshot;
  const { written } = await getProperties(dataset, ["written"]);
  const lost = snapshots.slice(position + 1).map(fullName);
  if (written !== "0") lost.push(`${formatBytes(Number(written))} written since`);
  const { clones, userrefs } = await getProperties(fullName(received), ["clones", "userrefs"]);
  if (!["", "-"].includes(clones)) lost.push(`clones of ${fullName(received)}: ${clones}`);
  if (!["0", "-"].includes(userrefs)) lost.push(`holds on ${fullName(received)}: zfs holds shows them`);
  if (lost.length > 0) {
    throw new ZferryError("base-modified", `giving it up would lose of ${dataset}: ${lost.join(", ")}`, {
      details: { dataset, lost },
      hint: "save and remove that first",
    });
  }
  await requireUnused(dataset, live);
}

/** Only after {@link requireUndoable}. What was there before the target stays, also snapshots of others. */
async function takeBack({ dataset, base, target }: InstalledStream): Promise<void> {
  const snapshots = await listSnapshots(dataset);
  const position = snapshots.findIndex(({ guid }) => guid === target.guid);
  const [before, received] = [snapshots[position - 1], snapshots[position]];
  if (base !== null && before !== undefined) return rollback(before);
  if (received !== undefined) await destroy(fullName(received));
  await destroy(dataset);
}

/** The release counts as installed from here on. The key change is a part of it: both are written at once. */
async function record({ release, startedAt, streams, origin, root }: Journal, work: Work): Promise<void> {
  const { folder, site, now, state } = work;
  if (origin === null) throw new RangeError("an install is recorded whose bundle is not known");
  const set = keySetOf(state);
  const keys =
    origin.keys === null || origin.keys.counter <= set.counter ? state?.keys : changeKeys(set, origin.keys);
  await folder.writeState({
    version: 1,
    product: site.product,
    highestSequence: Math.max(state?.highestSequence ?? 0, release.sequence),
    installations: [
      ...(state?.installations ?? []),
      {
        release,
        created: origin.created,
        startedAt,
        finishedAt: Math.floor(now().getTime() / 1000),
        signers: origin.signers,
        streams,
        commit: root?.mergeCommit ?? null,
      },
    ],
    ...(keys === undefined ? {} : { keys }),
  });
}

/**
 * What is left to be done for an install that is recorded: the bases of the one before it are let go, and the journal
 * goes. It needs no bundle, whose signers may be revoked by now.
 */
export async function finishRecorded(folder: StateFolder): Promise<void> {
  const [state, journal] = [await folder.readState(), await folder.readJournal()];
  if (journal === undefined || !isRecorded(state, journal)) return;
  const kept = new Set(journal.streams.map(({ base }) => base?.guid));
  for (const { dataset, base } of state?.installations.at(-2)?.streams ?? []) {
    if (base !== null && !kept.has(base.guid)) {
      await releaseSnapshot(HOLD_TAG, { dataset, name: base.snapshot });
    }
  }
  await folder.removeJournal();
}

/** @throws ZferryError `not-configured` where the site has no repository of `/` */
export async function siteRoot({ root }: SiteConfig): Promise<{ git: Git; rootDir: string }> {
  if (root === undefined) {
    throw new ZferryError(
      "not-configured",
      "the bundle changes /, and the site's configuration has no [root]",
      {
        hint: 'add [root] with path = "/"',
      },
    );
  }
  return { git: await openRepository(root.path), rootDir: root.path };
}
