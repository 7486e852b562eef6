import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { formatBytes } from "../report.js";
import { rootPlanSchema } from "../root/plan.js";
import { parseResumeToken } from "../stream/resume-token.js";
import { datasetOf, ownMounts } from "../system/mounts.js";
import { tokenOf } from "./receive.js";
import {
  isPlanName,
  isRecorded,
  openState,
  planName,
  undoable,
  type InstallJournal,
  type Journal,
} from "./state.js";

/**
 * What is under way; what is only left to be cleaned up is not.
 * @throws ZferryError `journal-malformed`, which tells what else shows that something was under way
 */
export async function readUnderWay(
  site: Pick<SiteConfig, "state" | "streams">,
): Promise<Journal | undefined> {
  const folder = openState(site.state);
  const state = await folder.readState();
  const journal = await withTraces(site, () => folder.readJournal());
  return journal === undefined || isRecorded(state, journal) ? undefined : journal;
}

/** Whether it is an install that makes another environment than the one that runs: nothing that runs is half-changed by it. */
export const isBeside = (journal: Journal | undefined): journal is InstallJournal =>
  journal?.operation === "install" &&
  journal.environment !== null &&
  datasetOf(ownMounts().get("/")) !== journal.environment.dataset;

/**
 * Runs what reads the journal.
 * @throws ZferryError `journal-malformed`, which tells what else shows that something was under way
 */
export async function withTraces<Result>(
  site: Pick<SiteConfig, "state" | "streams">,
  read: () => Promise<Result>,
): Promise<Result> {
  try {
    return await read();
  } catch (error) {
    if (!(error instanceof ZferryError) || error.code !== "journal-malformed") throw error;
    const traces = await findTraces(site, undoable(await openState(site.state).readState())?.plan);
    if (traces.length === 0) throw error;
    throw new ZferryError(error.code, `${error.message}; of what was under way, ${traces.join("; ")}`, {
      details: { ...error.details, traces },
      hint: error.hint,
      cause: error,
    });
  }
}

/**
 * What an install, or a rollback, left that is not in its journal. What cannot be read is no trace: the journal's own error counts.
 * @param kept the plan of what was installed before
 */
async function findTraces(
  { state, streams }: Pick<SiteConfig, "state" | "streams">,
  kept: string | null | undefined,
): Promise<readonly string[]> {
  const plans = readdirSync(state)
    .filter((name) => isPlanName(name) && name !== planName(kept ?? ""))
    .sort()
    .flatMap((name) => describePlan(join(state, name)));
  const received = await Promise.all(
    Object.values(streams).map((dataset) => describeToken(dataset).catch(() => [])),
  );
  return [...plans, ...received.flat()];
}

function describePlan(path: string): string[] {
  try {
    const { head, mergeCommit, changes } = v.parse(rootPlanSchema, JSON.parse(readFileSync(path, "utf8")));
    return [`${path} takes / from commit ${head} to ${mergeCommit}, ${changes.length} files`];
  } catch {
    return [];
  }
}

async function describeToken(dataset: string): Promise<string[]> {
  const token = await tokenOf(dataset);
  if (token === undefined) return [];
  const { toname, bytes } = parseResumeToken(token);
  return [`${dataset} has ${formatBytes(Number(bytes))} of the stream to ${toname}`];
}
