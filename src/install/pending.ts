import { mkdirSync } from "node:fs";
import { rm } from "node:fs/promises";
import { basename, join } from "node:path";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { requireAsPlanned } from "../root/apply.js";
import type { RootPlan } from "../root/plan.js";
import { guarded } from "../system/files.js";
import { parentOf } from "../system/zfs.js";
import { modeOf } from "./mode.js";
import { requireAnswer } from "./plan.js";
import {
  lockState,
  type InstalledStream,
  type InstallJournal,
  type Journal,
  type NewEnvironment,
  type StateFolder,
} from "./state.js";
import { siteRoot } from "./site-root.js";
import { canBeGivenUp, finishRecorded } from "./steps.js";
import { withTraces } from "./under-way.js";

/**
 * Runs `use` with the site's lock, and with what was recorded and left something behind cleaned up: the journal of that, if any.
 * @param warn told what that could not clean up
 */
export async function withState<Result>(
  site: SiteConfig,
  warn: (what: string) => void,
  use: (folder: StateFolder, scratch: string, finished: Journal | undefined) => Promise<Result>,
): Promise<Result> {
  for (const dataset of Object.values(site.streams)) await requireAnswer(dataset);
  return withLock(site, async (folder, scratch) => {
    const finished = await withTraces(site, () => finishRecorded(folder, warn));
    return use(folder, scratch, finished);
  });
}

/** Runs `use` with the site's lock, and a scratch folder that goes with it. No dataset is asked anything. */
export async function withLock<Result>(
  site: SiteConfig,
  use: (folder: StateFolder, scratch: string) => Promise<Result>,
): Promise<Result> {
  const folder = await lockState(site.state);
  const scratch = join(folder.path, "scratch");
  try {
    await rm(scratch, { recursive: true, force: true });
    guarded(scratch, () => mkdirSync(scratch, { mode: 0o700 }));
    return await use(folder, scratch);
  } finally {
    await rm(scratch, { recursive: true, force: true });
    await folder.release();
  }
}

/** The configuration that a journal keeps. */
export const placeOf = ({ product, root }: SiteConfig): NonNullable<Journal["site"]> => ({
  product,
  root: root?.path ?? null,
});

/** Streams that the site's configuration has another dataset for, in words. */
export const otherDatasets = (
  streams: readonly Pick<InstalledStream, "role" | "dataset">[],
  site: SiteConfig,
): string[] =>
  streams.flatMap(({ role, dataset }) =>
    site.streams[role] === dataset ? [] : [`${role} is ${site.streams[role] ?? "missing"}, not ${dataset}`],
  );

/**
 * What is under way is finished, or given up, where it was begun.
 * @throws ZferryError `install-pending` when the configuration names another place since
 */
export function requireSameSite(journal: Journal, site: SiteConfig): void {
  const { site: begun } = journal;
  const differences = otherPlaces(journal, site);
  const mode = modeOf(journal);
  if (journal.operation !== "rollback" && site.install.mode !== mode)
    differences.push(`mode is ${site.install.mode}, not ${mode}`);
  if (begun !== null) {
    if (site.product !== begun.product) differences.push(`product is ${site.product}, not ${begun.product}`);
    const path = site.root?.path ?? null;
    if (path !== begun.root) differences.push(`root is ${path ?? "missing"}, not ${begun.root ?? "missing"}`);
  }
  if (differences.length === 0) return;
  throw new ZferryError(
    "install-pending",
    `${subjectOf(journal)} is under way, and the site's configuration has changed: ${differences.join("; ")}`,
    {
      details: { pending: nameOf(journal), differences },
      hint: "bring the configuration back until that is finished or given up",
    },
  );
}

/** What is under way, in words. */
export const subjectOf = (journal: Journal): string =>
  journal.operation === "merge"
    ? `a merge of changes of ${basename(journal.from)} into ${basename(journal.into)}`
    : `release ${journal.release.name} (${journal.release.sequence})`;

const nameOf = (journal: Journal): string =>
  journal.operation === "merge" ? basename(journal.into) : journal.release.name;

/** Datasets that the configuration names otherwise, in words. */
function otherPlaces(journal: Journal, site: SiteConfig): string[] {
  if (journal.operation === "merge") return [];
  const environment = journal.operation === "install" ? journal.environment : null;
  return environment === null ? otherDatasets(journal.streams, site) : otherEnvironment(environment, site);
}

/** The same of a boot environment. */
function otherEnvironment({ dataset, configured }: NewEnvironment, site: SiteConfig): string[] {
  const { container } = site["boot-environment"];
  const begun = parentOf(dataset);
  return [
    ...Object.entries(configured).flatMap(([role, each]) => otherDatasets([{ role, dataset: each }], site)),
    ...(container === undefined || container === begun ? [] : [`container is ${container}, not ${begun}`]),
  ];
}

/** That another command must come first. */
export async function pending(journal: Journal, why: string): Promise<ZferryError> {
  const { undoing, operation } = journal;
  const givenUp = undoing ? ", which is being given up" : "";
  const what = {
    install: `${subjectOf(journal)} is being ${undoing ? "given up" : "installed"}`,
    rollback: `${subjectOf(journal)} is being rolled back${givenUp}`,
    merge: `${subjectOf(journal)} is under way${givenUp}`,
  };
  const wayOn = operation === "install" ? wayOnOf(journal) : `: ${GOES_ON[operation]}`;
  const hasWayBack = operation !== "rollback" || (await canBeGivenUp(journal));
  return new ZferryError("install-pending", `${what[operation]}, ${why}`, {
    details: { pending: nameOf(journal) },
    hint:
      undoing && hasWayBack
        ? "finish that first: bundle abort"
        : `finish it first${wayOn}${hasWayBack ? "; or give it up: bundle abort" : ""}`,
  });
}

const GOES_ON = { rollback: "bundle rollback", merge: "bundle confirm --merge" } as const;

function wayOnOf({ release, environment }: InstallJournal): string {
  const chain = environment?.chain;
  return chain === undefined
    ? `, with the bundle of ${release.name}: bundle install FILE`
    : `, with the bundles from ${release.name} to ${chain.release}: bundle install FOLDER`;
}

/** @throws ZferryError `install-pending` */
export async function requireNothingPending(journal: Journal | undefined, why: string): Promise<void> {
  if (journal !== undefined) throw await pending(journal, why);
}

/** Whether everything of `/` is as it was when the plan was made, or as the plan leaves it. */
export async function isAsPlanned(root: RootPlan, site: SiteConfig): Promise<boolean> {
  try {
    await requireAsPlanned(root, await siteRoot(site));
    return true;
  } catch (error) {
    if (error instanceof ZferryError && error.code === "worktree-dirty") return false;
    throw error;
  }
}
