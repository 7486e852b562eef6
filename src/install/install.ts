import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { VerifiedBundle } from "../bundle/reader.js";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { throwIfInterrupted, type ProgressReport } from "../report.js";
import { commitRoot, discardRoot, importObjects, prepareRoot } from "../root/apply.js";
import { planRoot } from "../root/merge.js";
import type { RootPlan } from "../root/plan.js";
import { openRepository, type Git } from "../system/git.js";
import {
  abortReceive,
  datasetExists,
  fullName,
  holdSnapshots,
  listSnapshots,
  receive,
  releaseSnapshot,
  resumeToken,
  zfsFailure,
} from "../system/zfs.js";
import { changeKeys, requireEnough, type KeyChange } from "../trust/keys.js";
import { requireOwnUntouched, requireStateOffStreams, requireStateUntracked } from "./apart.js";
import { planStreams, type StreamPlan } from "./plan.js";
import { checkRelease, type Exceptions } from "./policy.js";
import { keySetOf, type SiteTrust } from "./trust.js";
import {
  isRecorded,
  lockState,
  openState,
  type InstalledStream,
  type Journal,
  type SiteState,
  type StateFolder,
} from "./state.js";

/** Keeps the base snapshots of the last install, for going back. */
const HOLD_TAG = "zferry:base";

export interface InstallOptions {
  readonly site: SiteConfig;
  readonly trust: SiteTrust;
  readonly exceptions: Exceptions;
  readonly now: () => Date;
  readonly signal: AbortSignal;
  readonly progress: ProgressReport;
  /** Told what is done next, in a few words for people. */
  readonly step: (what: string) => void;
}

export interface Plan {
  /** What lies in the state folder. */
  readonly state: SiteState | undefined;
  readonly journal: Journal | undefined;
  readonly streams: readonly StreamPlan[];
  readonly root: RootPlan | undefined;
  /** The bundle's change of the site's keys, if it is newer than what the site had. */
  readonly keys: KeyChange | undefined;
  /** Nothing is left to do. */
  readonly present: boolean;
}

/**
 * Everything that an install does before it changes anything.
 * @throws ZferryError whatever the install would be refused for
 */
export async function planInstall(bundle: VerifiedBundle, options: InstallOptions): Promise<Plan> {
  const scratch = await mkdtemp(join(tmpdir(), "zferry-"));
  try {
    return await makePlan(bundle, options, openState(options.site.state), scratch);
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

/**
 * Installs a verified bundle in place: both halves or neither. Called again with the same bundle after an
 * interruption, it brings the install to its end.
 * @returns the plan that was carried out
 * @throws ZferryError; the site is then as it was, or, once a stream was received, the error's hint says so
 */
export async function installBundle(bundle: VerifiedBundle, options: InstallOptions): Promise<Plan> {
  const { site } = options;
  const folder = await lockState(site.state);
  const scratch = join(folder.path, "scratch");
  try {
    await rm(scratch, { recursive: true, force: true });
    await mkdir(scratch, { mode: 0o700 });
    await finishRecorded(folder);
    const plan = await makePlan(bundle, options, folder, scratch);
    if (!plan.present) await carryOut(bundle, options, folder, plan, scratch);
    return plan;
  } finally {
    await rm(scratch, { recursive: true, force: true });
    await folder.release();
  }
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
  const journal = found === undefined || isRecorded(state, found) ? undefined : found;
  const { release } = bundle.manifest;
  if (journal !== undefined && journal.release.identity !== bundle.identity) {
    const pending = journal.release;
    throw new ZferryError(
      "install-pending",
      `release ${pending.name} (${pending.sequence}) is being installed, the bundle is another: release ${release.name} (${release.sequence})`,
      {
        details: { pending: pending.name, offered: release.name },
        hint: `finish it first: bundle install, with the bundle of ${pending.name}`,
      },
    );
  }
  // An install that began is finished, though the bundle expired since.
  if (journal === undefined) {
    checkRelease(bundle.manifest, bundle.identity, site.product, state, options.now(), options.exceptions);
  }
  await requireStateOffStreams(site);
  const streams = await planStreams(bundle, site, journal !== undefined);
  const keys = planKeys(bundle, options, state);
  const known = { state, journal, streams, keys };
  if (journal?.phase === "writing") return { ...known, root: journal.root ?? undefined, present: false };
  const last = state?.installations.at(-1)?.release;
  if (
    journal === undefined &&
    last?.identity === bundle.identity &&
    streams.every(({ received }) => received)
  ) {
    return { ...known, root: undefined, present: true };
  }
  const root = await planRootHalf(bundle, options, scratch);
  return { ...known, root, present: false };
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

async function planRootHalf(
  bundle: VerifiedBundle,
  { site, now }: InstallOptions,
  scratchDir: string,
): Promise<RootPlan | undefined> {
  const { root, release } = bundle.manifest;
  if (root === undefined) return undefined;
  const { git, rootDir } = await siteRoot(site);
  await requireStateUntracked(site, rootDir, git);
  const plan = await planRoot({
    git,
    rootDir,
    scratchDir,
    summary: root,
    release: release.name,
    date: Math.floor(now().getTime() / 1000),
    patch: await bundle.rootMember("patch"),
    objects: await bundle.rootMember("objects"),
    metadata: await bundle.rootMember("metadata"),
  });
  requireOwnUntouched(site, rootDir, plan);
  return plan;
}

async function siteRoot({ root }: SiteConfig): Promise<{ git: Git; rootDir: string }> {
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

/** Steps 3 to 7 of the design's order; each may have been done before. */
async function carryOut(
  bundle: VerifiedBundle,
  options: InstallOptions,
  folder: StateFolder,
  plan: Plan,
  scratchDir: string,
): Promise<void> {
  const { site, now, step } = options;
  const seconds = (): number => Math.floor(now().getTime() / 1000);
  const place = plan.root === undefined ? undefined : await siteRoot(site);
  const journal: Journal = {
    version: 1,
    release: { ...bundle.manifest.release, identity: bundle.identity },
    startedAt: plan.journal?.startedAt ?? seconds(),
    phase: "receiving",
    streams: plan.streams.map(describeStream),
    root: plan.root ?? null,
  };
  if (plan.journal?.phase !== "writing") {
    if (plan.journal?.root != null && place !== undefined) await discardRoot(plan.journal.root, place);
    await folder.writeJournal(journal);
    await undoingOnFailure(journal, folder, place, async () => {
      for (const { base } of plan.streams) if (base !== undefined) await holdSnapshots(HOLD_TAG, [base]);
      if (plan.root !== undefined && place !== undefined) {
        step(`preparing ${plan.root.changes.length} changed files of /`);
        await importObjects(plan.root, { ...place, scratchDir });
        await prepareRoot(plan.root, place);
      }
      for (const stream of plan.streams) {
        if (stream.received) continue;
        step(`receiving ${stream.stream.role} into ${stream.dataset}`);
        await receiveStream(bundle, stream, options);
      }
    });
    await folder.writeJournal({ ...journal, phase: "writing" });
  }
  if (plan.root !== undefined && place !== undefined) {
    step("writing the changed files of /");
    await commitRoot(plan.root, { ...place, scratchDir });
  }
  await record(bundle, journal, plan, folder, seconds());
}

const describeStream = ({ stream, dataset, base }: StreamPlan): InstalledStream => ({
  role: stream.role,
  dataset,
  base: base === undefined ? null : { snapshot: base.name, guid: base.guid },
  target: stream.target,
});

/**
 * What fails or is interrupted before any stream was received leaves the site as it was. After that only going on
 * leads to both halves, and the journal stays for it.
 */
async function undoingOnFailure(
  journal: Journal,
  folder: StateFolder,
  place: { git: Git; rootDir: string } | undefined,
  work: () => Promise<void>,
): Promise<void> {
  try {
    await work();
  } catch (error) {
    const received = await Promise.all(journal.streams.map(isReceived));
    if (received.includes(true)) {
      if (!(error instanceof ZferryError)) throw error;
      throw new ZferryError(error.code, error.message, {
        details: error.details,
        hint: `${received.filter(Boolean).length} of ${received.length} streams are received; run the same command again to finish`,
        cause: error,
      });
    }
    for (const { dataset, base } of journal.streams) {
      if ((await datasetExists(dataset)) && (await resumeToken(dataset)) !== undefined)
        await abortReceive(dataset);
      if (base !== null) await releaseSnapshot(HOLD_TAG, { dataset, name: base.snapshot });
    }
    if (journal.root !== null && place !== undefined) await discardRoot(journal.root, place);
    await folder.removeJournal();
    throw error;
  }
}

async function isReceived({ dataset, target }: InstalledStream): Promise<boolean> {
  if (!(await datasetExists(dataset))) return false;
  return (await listSnapshots(dataset)).some(({ guid }) => guid === target.guid);
}

/** Feeds a stream to `zfs receive`, from its first record on. */
async function receiveStream(
  bundle: VerifiedBundle,
  { stream, dataset, partial }: StreamPlan,
  { progress, signal }: InstallOptions,
): Promise<void> {
  if (partial) await abortReceive(dataset);
  const target = { dataset, name: stream.target.snapshot };
  const receiver = receive(target);
  let reading = true;
  try {
    let done = 0;
    for await (const chunk of bundle.chunks(stream)) {
      throwIfInterrupted(signal);
      reading = await receiver.write(chunk);
      if (!reading) break;
      done += chunk.length;
      progress.update(`receiving ${stream.role}`, done, stream.rawBytes);
    }
  } catch (error) {
    await receiver.kill();
    throw error;
  } finally {
    progress.end();
  }
  const result = await receiver.finish();
  if (result.status !== 0) throw zfsFailure(`zfs receive ${fullName(target)}`, result);
  if (!(await isReceived({ role: stream.role, dataset, base: null, target: stream.target }))) {
    throw new ZferryError(
      "zfs-failed",
      `zfs receive ended well, but ${dataset} has no snapshot with guid ${stream.target.guid}`,
      { details: { dataset, expected: stream.target.guid } },
    );
  }
}

/** The release counts as installed from here on. The key change is a part of it: both are written at once. */
async function record(
  bundle: VerifiedBundle,
  journal: Journal,
  plan: Plan,
  folder: StateFolder,
  finishedAt: number,
): Promise<void> {
  const { product, created } = bundle.manifest;
  const { release, startedAt, streams } = journal;
  const keys = plan.keys === undefined ? plan.state?.keys : changeKeys(keySetOf(plan.state), plan.keys);
  await folder.writeState({
    version: 1,
    product,
    highestSequence: Math.max(plan.state?.highestSequence ?? 0, release.sequence),
    installations: [
      ...(plan.state?.installations ?? []),
      {
        release,
        created,
        startedAt,
        finishedAt,
        signers: bundle.signers.map(({ keyId }) => keyId),
        streams,
        commit: plan.root?.mergeCommit ?? null,
      },
    ],
    ...(keys === undefined ? {} : { keys }),
  });
  await finishRecorded(folder);
}

/**
 * What is left to be done for an install that is recorded: the bases of the one before it are let go, and the journal
 * goes. It needs no bundle, whose signers may be revoked by now.
 */
async function finishRecorded(folder: StateFolder): Promise<void> {
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
