import { basename, join } from "node:path";
import type { SiteConfig } from "../config.js";
import { showPath } from "../raw-path.js";
import { planChanges, readChanges, type RootChanges } from "../root/changes.js";
import { pathOf } from "../root/paths.js";
import type { RootPlan } from "../root/plan.js";
import type { SettledConflict } from "../root/settle.js";
import { createBorrower } from "../system/git.js";
import { ownPaths, requireOwnUntouched, requireStateWritable } from "./apart.js";
import type { GoOnOptions, InstallOptions } from "./install.js";
import { forgetMerge, isMerged, isMergeWanted, rememberMerge } from "./merge-mark.js";
import { pending, placeOf, requireSameSite, withState } from "./pending.js";
import { rootOptions } from "./root-options.js";
import { datasetOfRoot, rootDataset, siteRoot, withMountedRoot } from "./site-root.js";
import { isWritten, type MergeJournal } from "./state.js";
import { carryOut, undo, type Work } from "./steps.js";
import { environmentBefore, mountsOf, type EnvironmentBefore } from "./trial-changes.js";
import { readUnderWay } from "./under-way.js";

// formats/environments.md, Merging what was changed before

export interface MergeBeforeOptions
  extends Omit<GoOnOptions, "live">, Pick<InstallOptions, "commitDrift" | "warn"> {
  /** Whether a merge is begun; otherwise one that is under way goes on, if that is what its environment runs for. */
  readonly begin: boolean;
}

export interface MergedBefore {
  /**
   * `present`: all of it is there; `none`: the running environment was made from no other that is there; `given-up`: what was cut off
   * before it wrote anything was for an environment that does not run.
   */
  readonly outcome: "merged" | "present" | "none" | "given-up";
  /** The name of the environment that it was changed in. */
  readonly environment: string;
  readonly root: RootPlan | null;
  /** Conflicts that were settled. */
  readonly settled: readonly SettledConflict[];
  /** All that took part, as paths without a slash at their beginning. */
  readonly paths: readonly string[];
}

/**
 * Whether there is a merge that nobody has to ask for: one that is under way, or that was to come after the running environment was
 * confirmed.
 */
export async function findDueMerge(site: SiteConfig): Promise<"under-way" | "wanted" | undefined> {
  if (site.install.mode === "in-place" || site.root === undefined) return undefined;
  if ((await readUnderWay(site))?.operation === "merge") return "under-way";
  const dataset = datasetOfRoot(site);
  return dataset !== undefined && (await isMergeWanted(dataset)) ? "wanted" : undefined;
}

/**
 * Merges what was changed in the environment that the running one was cloned from, after that, into `/`. Goes on with a merge that is
 * under way; one that has written nothing yet begins anew. To be called where nobody else sees what is mounted.
 * @throws ZferryError; nothing is changed then, or the error's hint says how to go on
 */
export const mergeBefore = (options: MergeBeforeOptions): Promise<MergedBefore> =>
  withState(options.site, options.warn, async (folder, scratchDir) => {
    const { site } = options;
    const state = await folder.readState();
    const work: Work = {
      ...{ ...options, live: undefined, folder, scratchDir, state },
      ...{ bundle: undefined, streams: [] },
    };
    const journal = await folder.readJournal();
    if (journal !== undefined) {
      if (journal.operation !== "merge" || (journal.undoing && isWritten(journal)))
        throw await pending(journal, "and nothing is merged before that is done");
      requireSameSite(journal, site);
      if (isWritten(journal)) {
        await carryOut(journal, null, work);
        return describe(journal);
      }
      await undo(journal, work);
    }
    const isLeft = journal === undefined || journal.undoing || datasetOfRoot(site) !== journal.into;
    const own = isLeft ? undefined : journal;
    if (options.begin || own !== undefined) return begin(options, work, own);
    if (journal === undefined) return NONE;
    return { ...NONE, outcome: "given-up", environment: basename(journal.from) };
  });

const NONE: MergedBefore = { outcome: "none", environment: "", root: null, settled: [], paths: [] };

const describe = ({ from, root }: MergeJournal): MergedBefore => ({
  ...{ outcome: "merged", environment: basename(from), root, settled: [] },
  paths: root?.changes.map(({ path }) => showPath(pathOf(path))) ?? [],
});

/** @param earlier that was cut off before it wrote anything */
async function begin(
  options: MergeBeforeOptions,
  work: Work,
  earlier: MergeJournal | undefined,
): Promise<MergedBefore> {
  const { site } = options;
  const into = rootDataset(site);
  const before = await environmentBefore(into);
  if (before === undefined) {
    await forgetMerge(into);
    return NONE;
  }
  requireStateWritable(site);
  const settled: SettledConflict[] = [];
  const startedAt = earlier?.startedAt ?? Math.floor(options.now().getTime() / 1000);
  options.step(`comparing ${before.dataset} with ${before.origin}`);
  const { found, root } = await plan(options, work, {
    ...{ before, into, settled },
    journal: { startedAt, root: earlier?.root ?? null },
  });
  const told = {
    environment: before.name,
    root,
    settled,
    paths: found.changes.map(({ path }) => showPath(path)),
  };
  if (root === null) {
    await rememberMerge(into, found.id);
    return { outcome: "present", ...told };
  }
  const journal: MergeJournal = {
    ...{ operation: "merge", startedAt, phase: "preparing", undoing: false, site: placeOf(site) },
    ...{ into, from: before.dataset, difference: found.id, root },
  };
  await carryOut(journal, null, work);
  return { outcome: "merged", ...told };
}

/** Decides everything, and changes nothing but the scratch folder. */
async function plan(
  { site, now, commitDrift, progress, warn }: MergeBeforeOptions,
  { scratchDir }: Pick<Work, "scratchDir">,
  {
    before,
    into,
    journal,
    settled,
  }: {
    readonly before: EnvironmentBefore;
    readonly into: string;
    /** Of what goes on, or is begun. */
    readonly journal: Pick<MergeJournal, "startedAt" | "root">;
    readonly settled: SettledConflict[];
  },
): Promise<{ readonly found: RootChanges; readonly root: RootPlan | null }> {
  const { git, rootDir } = await siteRoot(site);
  const scratch = createBorrower(join(scratchDir, "root.git"), git);
  const mounts = mountsOf(before);
  const found = await withMountedRoot(
    mounts.then,
    { site, shown: `${before.origin}:`, name: "-then" },
    (then) =>
      withMountedRoot(mounts.now, { site, shown: `${before.dataset}:`, name: "-now" }, (now) =>
        readChanges(scratch, { then, now, scratchDir, isOwn: ownPaths(site, rootDir) }),
      ),
  );
  if (await isMerged(into, found.id)) return { found, root: null };
  const root = await planChanges(scratch, {
    ...{ git, rootDir, scratchDir, progress, warn, found, environment: before.name },
    message: messageOf(before, into, found),
    settled: (conflicts) => settled.push(...conflicts),
    ...rootOptions(site, { journal, now, commitDrift }),
  });
  if (root !== null) requireOwnUntouched(site, rootDir, root);
  return { found, root };
}

function messageOf({ name, dataset, origin }: EnvironmentBefore, into: string, found: RootChanges): string {
  const more = found.isCommitted ? "" : ", and what was not committed there";
  return `Merge changes of ${name} into ${basename(into)}\n\nMade in ${dataset} after ${origin}, up to its commit ${found.head}${more}.`;
}
