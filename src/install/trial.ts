import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { asZferryError } from "../report.js";
import { guarded } from "../system/files.js";
import { failedServices, isUp, readUptime } from "../system/health.js";
import { describeEnd, runFor } from "../system/process.js";
import { dropProperties, setProperties, setProperty } from "../system/zfs.js";
import { HOOK_MARK } from "./boot-hooks.js";
import {
  describeShared,
  environmentToLeave,
  planEnvironmentRollback,
  rollBackEnvironment,
} from "./environment-rollback.js";
import {
  activate,
  endTrial,
  isOwnGuid,
  look,
  ownValue,
  readStanding,
  runningOf,
  tellTrial,
  type Candidate,
  type Survey,
} from "./environments.js";
import { wantMerge } from "./merge-mark.js";
import { requireNothingPending } from "./pending.js";
import { judgeBoot, writeFailure, type Trial, type TrialFailure } from "./trial-rules.js";
import { readUnderWay } from "./under-way.js";

// formats/environments.md, On trial

/** An environment that runs, and is on trial. */
interface Tried {
  readonly survey: Survey;
  readonly environment: Candidate;
  readonly trial: Trial;
  /** What it goes back to; undefined where that is not there. */
  readonly previous: Candidate | undefined;
}

/** Undefined where what runs is not on trial, or no environment. */
async function readTried(site: SiteConfig): Promise<Tried | undefined> {
  const survey = await lookIfAny(site);
  const environment = survey && runningOf(survey);
  if (survey === undefined || environment === undefined) return undefined;
  const { trial } = tellTrial(environment);
  if (trial === undefined) return undefined;
  const previous = survey.candidates.find(
    (each) => each !== environment && isOwnGuid(environment.properties["zferry:previous"], each),
  );
  return { survey, environment, trial, previous };
}

/** Undefined where the system has no environments. */
async function lookIfAny(site: SiteConfig): Promise<Survey | undefined> {
  try {
    return await look(site);
  } catch (error) {
    if (error instanceof ZferryError && error.code === "not-configured") return undefined;
    throw error;
  }
}

/** How the environments of a site stand that are on trial, or failed. */
export interface TrialStatus {
  readonly name: string;
  readonly dataset: string;
  readonly guid: string;
  readonly running: boolean;
  readonly trial?: Trial;
  readonly failed?: TrialFailure;
  /** What it goes back to, or went back to; null where that is not there any more. */
  readonly previous: string | null;
}

/** Nothing where a system has no environments. */
export async function listTrials(site: SiteConfig): Promise<TrialStatus[]> {
  const survey = await lookIfAny(site);
  return (survey?.candidates ?? []).flatMap((each) => {
    const told = tellTrial(each);
    if (Object.keys(told).length === 0) return [];
    const previous = survey?.candidates.find((other) => isOwnGuid(each.properties["zferry:previous"], other));
    return [
      {
        name: each.name,
        dataset: each.dataset,
        guid: each.properties.guid.value,
        running: each.dataset === survey?.running,
        ...told,
        previous: previous?.name ?? null,
      },
    ];
  });
}

/** The running environment, if it is on trial. */
export const runningTrial = async (site: SiteConfig): Promise<TrialStatus | undefined> =>
  (await listTrials(site)).find(({ running, trial }) => running && trial !== undefined);

/**
 * What is set before an installation counts as confirmed: from then on nothing goes back from the environment by itself, whatever
 * ends this run.
 */
export const beginConfirming = (dataset: string): Promise<void> =>
  setProperty(dataset, "zferry:confirmed", "yes");

/**
 * Keeps the running environment, if it is on trial.
 * @param isMergeWanted whether what was changed in the environment before is to be merged then, which is kept in mind
 * @throws ZferryError `install-pending`
 */
export async function confirmTrial(site: SiteConfig, isMergeWanted: boolean): Promise<void> {
  const tried = await readTried(site);
  if (tried === undefined) return;
  const journal = await readUnderWay(site);
  if (journal?.operation !== "merge")
    await requireNothingPending(journal, "and nothing is confirmed before that is done");
  const { dataset } = tried.environment;
  await beginConfirming(dataset);
  await dropProperties(dataset, ["zferry:failed"]);
  if (isMergeWanted) await wantMerge(dataset);
  await endTrial(tried.environment);
}

export interface TrialOptions {
  readonly site: SiteConfig;
  readonly now: () => Date;
  readonly signal: AbortSignal;
  /** Told what is seen, and what is done next. */
  readonly step: (what: string) => void;
}

/** How a boot was judged; `previous` is the environment that boots next. */
export type BootOutcome =
  | { readonly outcome: "none" | "confirm" }
  | { readonly outcome: "go-back"; readonly reason: string; readonly previous: string };

const AGAIN_MS = 5_000;
const AGAIN_AFTER_FAILURE_MS = 60_000;

/**
 * Looks at a boot of an environment on trial until it is as it should be, or too late; then has the one before boot next.
 * @throws ZferryError `environment-missing` where that is not there
 */
export async function judgeRunning(options: TrialOptions): Promise<BootOutcome> {
  const { site, signal, step } = options;
  const found = await readTried(site);
  if (found === undefined) return { outcome: "none" };
  // A run before this one was ended while it confirmed it.
  if (isConfirmed(found)) return { outcome: "confirm" };
  const tried = await countBoot(found);
  const { deadline, loader } = site["boot-environment"];
  const { name } = tried.environment;
  step(`${name} is on trial: boot ${tried.trial.counted} of ${tried.trial.allowed}`);
  for (let last: string | undefined; ; await sleep(AGAIN_MS, undefined, { signal })) {
    const isSpent = tried.trial.counted > tried.trial.allowed;
    // What a loader is told may lie on a file system that is not mounted yet.
    const isEarly =
      isSpent && loader !== "bootfs" && readWatched() < deadline && !(await isUp().catch(() => false));
    if (isEarly) continue;
    const fault = isSpent ? describeSpent(tried.trial) : await findFault(tried, options);
    // A check may take long: somebody may have confirmed it meanwhile, or gone back.
    const now = await readTried(site);
    if (now !== undefined && isConfirmed(now)) return { outcome: "confirm" };
    const trial = now && tried.trial;
    const verdict = judgeBoot({
      trial,
      hasPrevious: tried.previous !== undefined,
      watched: readWatched(),
      deadline,
      fault,
    });
    if (verdict === "none" || verdict === "confirm") return { outcome: verdict };
    const reason = fault ?? "";
    if (verdict === "stay") throw noWayBack(tried, reason);
    if (verdict === "go-back") {
      const previous = await goBack(tried, reason, options).catch((error: unknown) => {
        step(`not gone back yet: ${asZferryError(error).message}`);
      });
      if (previous !== undefined) return { outcome: verdict, reason, previous };
      await sleep(AGAIN_AFTER_FAILURE_MS, undefined, { signal });
    } else if (fault !== last) step(`not yet: ${reason}`);
    last = fault;
  }
}

const isConfirmed = ({ environment }: Tried): boolean =>
  ownValue(environment.properties["zferry:confirmed"]) !== "";

const describeSpent = ({ allowed }: Trial): string => `boot ${allowed} of ${allowed} was not confirmed`;

const noWayBack = ({ environment }: Tried, reason: string): ZferryError =>
  new ZferryError(
    "environment-missing",
    `${environment.name} is not confirmed (${reason}), and the environment before it is not there any more`,
    {
      details: { name: environment.name, reason },
      hint: "nothing is changed; to keep it all the same: bundle confirm",
    },
  );

/** A boot that no hook counted in the initramfs is counted now. */
async function countBoot(tried: Tried): Promise<Tried> {
  const { environment, trial } = tried;
  const counted = existsSync(HOOK_MARK) && readFileSync(HOOK_MARK, "utf8").trim() === environment.dataset;
  if (counted) return tried;
  const boots = trial.counted + 1;
  if (boots <= MAX_COUNT) await setProperty(environment.dataset, "zferry:boots", String(boots));
  // Started again, it is the same boot.
  guarded(HOOK_MARK, () => writeFileSync(HOOK_MARK, `${environment.dataset}\n`));
  return { ...tried, trial: { ...trial, counted: boots } };
}

const MAX_COUNT = 99;

/** When a boot was looked after first, in seconds of its uptime. */
const WATCH_MARK = "/run/zferry-trial-since";

/**
 * Seconds that this boot has been looked after. Its uptime has more: an initramfs may have waited for a passphrase for a night.
 * Started again, what looks after it goes on counting.
 */
function readWatched(): number {
  const uptime = readUptime();
  const since = existsSync(WATCH_MARK) ? Number.parseFloat(readFileSync(WATCH_MARK, "utf8")) : Number.NaN;
  if (since >= 0 && since <= uptime) return uptime - since;
  guarded(WATCH_MARK, () => writeFileSync(WATCH_MARK, `${uptime}\n`));
  return 0;
}

/** What keeps the running system from being confirmed; undefined where nothing does. */
async function findFault({ environment }: Tried, options: TrialOptions): Promise<string | undefined> {
  const { site } = options;
  try {
    if (!(await isUp())) return "the system is still starting";
    const journal = await readUnderWay(site);
    if (journal !== undefined && journal.operation !== "merge")
      return `release ${journal.release.name} is under way`;
    const known = ownValue(environment.properties["zferry:failing"]).split(" ");
    const failed = (await failedServices()).filter((name) => !known.includes(name));
    if (failed.length > 0) return `failed: ${failed.join(", ")}`;
    for (const command of site["boot-environment"].checks) {
      const fault = await runCheck(command, site);
      if (fault !== undefined) return fault;
    }
    return undefined;
  } catch (error) {
    return asZferryError(error).message;
  }
}

/** The least that a check gets, in milliseconds: one that begins late is not ended at once. */
const LEAST_CHECK_MS = 30_000;

async function runCheck(command: readonly string[], site: SiteConfig): Promise<string | undefined> {
  const [program = "", ...args] = command;
  const left = (site["boot-environment"].deadline - readWatched()) * 1000;
  const result = await runFor(Math.max(left, LEAST_CHECK_MS), program, args);
  return result.status === 0 ? undefined : `${command.join(" ")}: ${result.stderr || describeEnd(result)}`;
}

/** @returns the name of the environment that boots next */
async function goBack(tried: Tried, reason: string, { site, now, step }: TrialOptions): Promise<string> {
  const { environment, previous, survey } = tried;
  if (previous === undefined) throw noWayBack(tried, reason);
  step(`${environment.name} is not confirmed: ${reason}; going back to ${previous.name}`);
  const at = Math.floor(now().getTime() / 1000);
  await setProperties(environment.dataset, { "zferry:failed": writeFailure({ at, reason }) });
  await activate(previous, survey);
  // Last: until then the next boot goes back too.
  await endTrial(environment);
  await tellShared(site, environment.properties.guid.value, step);
  return previous.name;
}

/** What going back does not turn back; nothing where the state cannot be read. */
async function tellShared(site: SiteConfig, guid: string, step: TrialOptions["step"]): Promise<void> {
  const left = await environmentToLeave(site).catch(() => undefined);
  if (left?.environment.guid === guid) describeShared(left.environment).forEach((line) => step(line));
}

/**
 * Until the init system has started everything the state folder may not be mounted.
 * @returns false where that takes longer than the deadline
 */
export async function waitUntilUp({ site, signal }: Pick<TrialOptions, "site" | "signal">): Promise<boolean> {
  while (!(await isUp())) {
    if (readWatched() >= site["boot-environment"].deadline) return false;
    await sleep(AGAIN_MS, undefined, { signal });
  }
  return true;
}

/**
 * Where the newest installation is the environment that failed, and the one before it runs: records it as rolled back, when the system
 * is up. What boots next is the one that runs, already or then.
 * @throws ZferryError as `rollBackEnvironment`; nothing is lost by it: `bundle rollback` does the same
 */
export async function recordFailure({ site, now, signal, step }: TrialOptions): Promise<void> {
  const failed = (await listTrials(site)).filter((each) => each.failed !== undefined && !each.running);
  if (failed.length === 0) return;
  if (!(await waitUntilUp({ site, signal }))) return;
  const left = await environmentToLeave(site);
  const tried = failed.find(({ guid }) => guid === left?.environment.guid);
  if (left === undefined || tried === undefined) return;
  const { isRunning, to } = await planEnvironmentRollback(site);
  if (isRunning || !(await isLeft(site, to, tried.dataset))) return;
  step(`${tried.name} failed: recording release ${left.release.name} as rolled back`);
  describeShared(left.environment).forEach((line) => step(line));
  await rollBackEnvironment(
    site,
    now,
    async () => false,
    (what) => step(`warning: ${what}`),
  );
}

/** Whether the environment that a failed one went back to boots next, or is to: a hook cannot tell the loaders that are not ZFS's own. */
async function isLeft(site: SiteConfig, to: string, failed: string): Promise<boolean> {
  const { next, running } = await readStanding(site);
  return next === to || (site["boot-environment"].loader !== "bootfs" && next === failed && running === to);
}
