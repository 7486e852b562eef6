import { basename, dirname } from "node:path";
import type { Command } from "commander";
import { ZferryError } from "../errors.js";
import type { InstallMode, SiteConfig } from "../config.js";
import { needsBundle } from "../install/install.js";
import { readSite } from "../install/mode.js";
import {
  installed,
  isReversible,
  openState,
  undoable,
  type Installation,
  type InstalledStream,
  type Journal,
  type MergeJournal,
  type NewEnvironment,
  type Phase,
  type RollbackJournal,
  type SiteState,
} from "../install/state.js";
import { subjectOf } from "../install/pending.js";
import { canBeGivenUp, progressOf, type StreamProgress } from "../install/steps.js";
import type { TrialStatus } from "../install/trial.js";
import { describeFailure } from "../install/trial-rules.js";
import { readUnderWay } from "../install/under-way.js";
import { formatBytes, formatTime, printable, type Environment } from "../report.js";
import { requireProduct } from "../install/policy.js";
import { describeMode, modeAsJson } from "./summary.js";

interface StatusOptions {
  readonly config?: string;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .addHelpText("after", "\nExample:\n  bundle status")
    .action((options: StatusOptions) => runStatus(options, environment()));
}

/** Shows the installed release and what is under way. */
export async function runStatus(options: StatusOptions, env: Environment): Promise<void> {
  const site = await readSite(options.config);
  const state = await openState(site.state).readState();
  const journal = await readUnderWay(site);
  if (state !== undefined) requireProduct(state, site.product);
  const underWay = journal && {
    journal,
    needed: await isNeeded(journal, site),
    hasWayBack: journal.operation !== "rollback" || (await canBeGivenUp(journal)),
    streams: journal.operation === "merge" ? [] : await Promise.all(journal.streams.map(askProgress)),
  };
  const environment = await askEnvironment(installed(state), site);
  const trials = await askTrials(installed(state), site);
  const told = { product: site.product, mode: site.install, state, underWay, environment, trials };
  await env.write(env.json ? asJson(told) : asText(told));
}

interface Status {
  readonly product: string;
  readonly mode: InstallMode;
  readonly state: SiteState | undefined;
  readonly underWay: UnderWay | undefined;
  readonly environment: EnvironmentStatus | null;
  /** The boot environments that are on trial, or failed. */
  readonly trials: readonly TrialStatus[];
}

/** Nothing on a site without boot environments, and where it cannot be told. */
export async function askTrials(
  installation: Installation | undefined,
  site: SiteConfig,
): Promise<readonly TrialStatus[]> {
  if (installation?.environment === undefined && site.install.mode !== "boot-environment") return [];
  // Loaded only where it is needed.
  const { listTrials } = await import("../install/trial.js");
  try {
    return await listTrials(site);
  } catch (error) {
    if (error instanceof ZferryError) return [];
    throw error;
  }
}

/** Where the boot environment stands that a release was installed as; `running` and `next` are null where that cannot be told. */
interface EnvironmentStatus {
  readonly dataset: string;
  readonly running: boolean | null;
  readonly next: boolean | null;
}

async function askEnvironment(
  installation: Installation | undefined,
  site: SiteConfig,
): Promise<EnvironmentStatus | null> {
  if (installation?.environment === undefined) return null;
  const { dataset, guid } = installation.environment;
  // Loaded only where it is needed.
  const [{ withContainer }, { readStanding }, { hasGuid }] = await Promise.all([
    import("../install/environment-install.js"),
    import("../install/environments.js"),
    import("../system/zfs.js"),
  ]);
  try {
    const { running, next } = await readStanding(withContainer(site, { dataset }));
    return { dataset, running: await hasGuid(running, guid), next: await hasGuid(next, guid) };
  } catch (error) {
    if (error instanceof ZferryError) return { dataset, running: null, next: null };
    throw error;
  }
}

/** How far a stream is; of a pool that does not answer, why that cannot be told. */
type Progress = StreamProgress | (Pick<StreamProgress, "role" | "dataset" | "rawBytes"> & { fault: string });

interface UnderWay {
  readonly journal: Journal;
  /** Whether its bundle must be read to go on. */
  readonly needed: boolean;
  /** Whether it can be given up. */
  readonly hasWayBack: boolean;
  readonly streams: readonly Progress[];
}

/** Of a pool that does not answer it is not known: then the bundle is named. */
async function isNeeded(journal: Journal, site: SiteConfig): Promise<boolean> {
  try {
    return await needsBundle(journal, site);
  } catch (error) {
    if (error instanceof ZferryError) return true;
    throw error;
  }
}

async function askProgress(stream: InstalledStream): Promise<Progress> {
  try {
    return await progressOf(stream);
  } catch (error) {
    if (!(error instanceof ZferryError)) throw error;
    const { role, dataset, rawBytes = null } = stream;
    return { role, dataset, rawBytes, fault: error.message };
  }
}

function asJson({ product, mode, state, underWay, environment, trials }: Status): string {
  return `${JSON.stringify({
    product,
    mode: modeAsJson(mode),
    installed: installed(state) ?? null,
    environment,
    trials,
    highestSequence: state?.highestSequence ?? 0,
    underWay: underWay === undefined ? null : describeUnderWay(underWay),
  })}\n`;
}

const describeUnderWay = ({ journal, needed, streams }: UnderWay): object => {
  const { operation, startedAt, phase, undoing } = journal;
  const { origin = null, environment = null } = operation === "install" ? journal : {};
  const file = origin?.file ?? null;
  const isMerge = operation === "merge";
  const release = isMerge ? null : journal.release;
  const merge = isMerge ? { into: journal.into, from: journal.from } : {};
  return { operation, release, startedAt, phase, undoing, file, needed, environment, streams, ...merge };
};

function asText({ product, mode, state, underWay, environment, trials }: Status): string {
  const installation = installed(state);
  const last = undoable(state);
  const lines = [
    `product: ${product}`,
    `mode: ${describeMode(mode)}`,
    ...(installation === undefined
      ? [`installed: no release by zferry${state?.installations.length ? " any more" : " yet"}`]
      : describe(installation)),
    ...(environment === null ? [] : [`  ${describeEnvironment(environment)}`]),
    ...trials.flatMap(describeTrial),
    ...(last === undefined || (!isReversible(last) && environment === null) || underWay !== undefined
      ? []
      : ["  can be rolled back: bundle rollback; bundle confirm gives that up"]),
    ...(underWay === undefined ? ["under way: nothing"] : describeWay(underWay)),
  ];
  return `${lines.map(printable).join("\n")}\n`;
}

function describeEnvironment({ dataset, running, next }: EnvironmentStatus): string {
  const name = basename(dataset);
  if (running === null) return `boot environment ${dataset}: whether it runs cannot be told`;
  if (running && next === true) return `boot environment ${dataset}, which is running`;
  if (running) return `boot environment ${dataset}, which is running; another one boots next`;
  return next === true
    ? `boot environment ${dataset}, which boots next: reboot`
    : `boot environment ${dataset}, which is not running; to have it boot next: bundle activate ${name}`;
}

function describeTrial({ name, running, trial, failed, previous }: TrialStatus): string[] {
  const lines: string[] = [];
  const back = previous ?? "another one, which is not there any more";
  if (trial !== undefined) {
    const boots = running
      ? `boot ${trial.counted} of ${trial.allowed}`
      : trial.allowed === 1
        ? "1 boot"
        : `${trial.allowed} boots`;
    lines.push(`  on trial: ${name}, ${boots}; bundle confirm keeps it, else it goes back to ${back}`);
  }
  const since = running ? "it runs all the same" : `went back to ${back}`;
  if (failed !== undefined) lines.push(`  failed: ${name}, ${describeFailure(failed)}; ${since}`);
  return lines;
}

const DOING: Record<Phase, string> = {
  holding: "holding the base snapshots",
  cloning: "cloning /",
  preparing: "preparing the files of /",
  receiving: "receiving",
  "rolling-back": "rolling back the datasets",
  writing: "writing the files of /",
  linking: "waiting for the next bundle",
  finishing: "running the commands of the site",
  activating: "having it boot next",
  recording: "recording it as installed",
};

function describeWay({ journal, needed, hasWayBack, streams }: UnderWay): string[] {
  if (journal.operation === "rollback") return describeRollback(journal, hasWayBack);
  if (journal.operation === "merge") return describeMerge(journal);
  const { release, startedAt, phase, undoing, origin, environment } = journal;
  const what = `release ${release.name} (${release.sequence}), begun at ${formatTime(startedAt)}`;
  const where = environment?.chain === undefined ? origin?.file : origin && dirname(origin.file);
  const from = where == null ? `, and the bundle of ${release.name}` : ` (from ${where})`;
  return [
    `under way: ${what}, ${undoing ? `being given up (${phase})` : DOING[phase]}`,
    ...(environment === null ? [] : [`  boot environment: ${describeMade(environment)}`]),
    ...streams.map((stream) => `  ${stream.role}: ${stream.dataset}, ${describeProgress(stream)}`),
    undoing
      ? "  goes on with: bundle abort"
      : `  goes on with: bundle install${needed ? from : ""}; gives it up: bundle abort`,
  ];
}

function describeMade({ dataset, chain }: NewEnvironment): string {
  if (chain === undefined) return dataset;
  const done = chain.done.map(({ release }) => release.name);
  return `${dataset}, by several bundles up to release ${chain.release}${done.length === 0 ? "" : `; in it: ${done.join(", ")}`}`;
}

function describeRollback(
  { release, startedAt, phase, undoing }: RollbackJournal,
  hasWayBack: boolean,
): string[] {
  const what = `rollback of release ${release.name} (${release.sequence}), begun at ${formatTime(startedAt)}`;
  const doing = phase === "recording" ? "recording it as rolled back" : DOING[phase];
  return [
    `under way: ${what}, ${undoing ? `being given up (${phase})` : doing}`,
    undoing && hasWayBack
      ? "  goes on with: bundle abort"
      : `  goes on with: bundle rollback${hasWayBack ? "; gives it up: bundle abort" : ""}`,
  ];
}

function describeMerge(journal: MergeJournal): string[] {
  const { startedAt, phase, undoing } = journal;
  const doing = phase === "recording" ? "recording it" : DOING[phase];
  return [
    `under way: ${subjectOf(journal)}, begun at ${formatTime(startedAt)}, ${undoing ? `being given up (${phase})` : doing}`,
    undoing
      ? "  goes on with: bundle abort"
      : "  goes on with: bundle confirm --merge; gives it up: bundle abort",
  ];
}

function describeProgress(stream: Progress): string {
  if ("fault" in stream) return stream.fault;
  const { received, taken, rawBytes } = stream;
  if (received) return "received";
  const of = rawBytes === null ? "" : ` of ${formatBytes(rawBytes)}`;
  const share = rawBytes === null || rawBytes === 0 ? "" : ` (${Math.floor((taken / rawBytes) * 100)} %)`;
  return `${formatBytes(taken)}${of}${share} received`;
}

const describe = ({ release, finishedAt, streams, signers }: Installation): string[] => [
  `installed: release ${release.name} (${release.sequence}) at ${formatTime(finishedAt)}, signed by ${signers.join(", ")}`,
  ...streams.map(({ role, dataset, base, target }) => {
    const from = base === null ? "no base" : `base ${base.snapshot} (guid ${base.guid})`;
    return `  ${role}: ${dataset}@${target.snapshot} (guid ${target.guid}), ${from}`;
  }),
];
