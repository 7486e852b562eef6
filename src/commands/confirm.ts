import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import type { SiteConfig } from "../config.js";
import { ToldElsewhere, ZferryError, type ErrorCode } from "../errors.js";
import { runPrivately } from "../install/live.js";
import { findDueMerge, mergeBefore, type MergedBefore } from "../install/merge-before.js";
import { forgetMerge } from "../install/merge-mark.js";
import { describeShort, pruneEnvironments, type RemovedEnvironment } from "../install/prune.js";
import { withLock } from "../install/pending.js";
import { confirmInstall } from "../install/rollback.js";
import { datasetOfRoot } from "../install/site-root.js";
import { openState } from "../install/state.js";
import {
  beginConfirming,
  confirmTrial,
  judgeRunning,
  recordFailure,
  runningTrial,
  waitUntilUp,
  type TrialStatus,
} from "../install/trial.js";
import { changesBefore, type ChangesBefore } from "../install/trial-changes.js";
import { isBeside, readUnderWay } from "../install/under-way.js";
import { showPath } from "../raw-path.js";
import { asZferryError, formatBytes, formatTime, printable, type Environment } from "../report.js";
import { reboot } from "../system/health.js";
import { ownCommand } from "../system/init-system.js";
import { isPrivate } from "../system/private-mounts.js";
import { runVisibly } from "../system/process.js";
import { readSiteConfig } from "../system/settings.js";
import { hasGuid } from "../system/zfs.js";
import { stepsIn } from "./environments.js";
import { collectWarnings, describeFiles, listChanges, warnIn, workOf } from "./install.js";

interface ConfirmOptions {
  readonly config?: string;
  readonly orGoBack?: boolean;
  readonly merge?: boolean;
  readonly commitDrift?: boolean;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .option(
      "--or-go-back",
      "only after the site's checks; if they fail until the deadline, have the environment before boot, and reboot",
    )
    .option(
      "--merge",
      "then merge into / what was changed in the environment before after this one was made from it, also of one that is confirmed",
    )
    .option(
      "--commit-drift",
      "with --merge: commit first what was changed in / and not committed, as this site's own changes",
    )
    .addHelpText(
      "after",
      "\nExamples:\n  bundle confirm\n  bundle confirm --merge\n\n" +
        "The snapshots that bundle rollback would go back to are let go, and the space that they keep can be freed.\n" +
        "A boot environment that is on trial is kept; of those that zferry made, what is more than keep of [boot-environment] is removed.\n" +
        'What was changed in the environment before is named, or merged with --merge, or changes = "merge" of [boot-environment].\n' +
        "What bundle setup has at boot does it with --or-go-back.",
    )
    .action((options: ConfirmOptions) => runConfirm(options, environment()));
}

/** Ends the possibility to roll the newest install back, and the trial of the running boot environment. */
async function runConfirm(options: ConfirmOptions, env: Environment): Promise<void> {
  const site = await readSiteConfig(options.config);
  requireMergeable(options, site);
  // Started once more by ourselves, the checks are passed.
  if (options.orGoBack && !isPrivate() && !(await passChecks(site, options, env))) return;
  const tried = await runningTrial(site);
  const due = await findDueMerge(site);
  const begin = options.merge === true || due === "wanted" || (tried !== undefined && mergesByItself(site));
  const isMerge = begin || due !== undefined;
  if ((tried !== undefined || isMerge) && (await runPrivately(site))) return;
  const dataset = tried?.dataset ?? (isMerge ? datasetOfRoot(site) : undefined);
  const changed = dataset === undefined ? undefined : await lookBefore(dataset, env);
  // At boot nothing is confirmed but what is on trial. What is under way goes on in any environment.
  const isLeft =
    (tried === undefined && options.orGoBack === true) ||
    ((tried !== undefined || due === "under-way") && (await isOther(site, dataset)));
  const mark = async (): Promise<void> => {
    if (tried !== undefined) await beginConfirming(tried.dataset);
  };
  const { warnings, warn } = collectWarnings(env);
  const confirm = () =>
    confirmInstall(site, env.now, { begin: mark, warn, isToMerge: options.merge === true });
  const found = isLeft ? undefined : await (options.orGoBack === true ? whenFree(confirm, env) : confirm());
  if (tried !== undefined) await confirmTrial(site, begin);
  const isConfirmed = tried !== undefined || found?.isNew === true || options.orGoBack === true;
  const merge = isMerge ? await runMerge(site, options, env, { begin, isConfirmed }) : undefined;
  const isEnvironment = found?.installation.environment !== undefined;
  const { removed, warnings: left } = isEnvironment ? await prune(site, env) : { removed: [], warnings: [] };
  const pruned = { removed, warnings: [...warnings, ...left] };
  const told = { site, found, tried, changed, merge, pruned, isLeft };
  await env.write(env.json ? asJson(told) : asText(told));
}

const AGAIN_MS = 5_000;

/** At boot nobody runs the command again, and what passed its checks is not to go back since another command was running. */
async function whenFree<Result>(act: () => Promise<Result>, env: Environment): Promise<Result> {
  for (let last: string | undefined; ;) {
    try {
      return await act();
    } catch (error) {
      const { code, message } = asZferryError(error);
      if (code !== "site-busy") throw error;
      if (message !== last) env.note(printable(`waiting: ${message}`));
      last = message;
      await sleep(AGAIN_MS, undefined, { signal: env.signal });
    }
  }
}

const mergesByItself = (site: SiteConfig): boolean =>
  site["boot-environment"].changes === "merge" &&
  site.install.mode === "boot-environment" &&
  site.root !== undefined;

/** @throws ZferryError `usage` */
function requireMergeable({ merge = false, commitDrift = false }: ConfirmOptions, site: SiteConfig): void {
  const { mode } = site.install;
  if (merge && mode === "in-place")
    throw new ZferryError(
      "usage",
      `--merge is of no use with mode = "${mode}": there is no environment before`,
    );
  if (commitDrift && !merge) throw new ZferryError("usage", "--commit-drift is for --merge");
}

/** What became of a merge: what was done, or why nothing was. */
type Merge = MergedBefore | { readonly outcome: "failed"; readonly failure: ZferryError };

/**
 * An environment that was confirmed stays so, whatever stands against the merge.
 * @param how.isConfirmed whether this command confirmed one; otherwise the merge is all that it was run for
 * @throws ZferryError `interrupted`; of what is all that it was run for, as `mergeBefore`
 */
async function runMerge(
  site: SiteConfig,
  { commitDrift = false }: Pick<ConfirmOptions, "commitDrift">,
  env: Environment,
  { begin, isConfirmed }: { readonly begin: boolean; readonly isConfirmed: boolean },
): Promise<Merge> {
  try {
    return await mergeBefore({ ...workOf(site, env, {}), commitDrift, warn: warnIn(env), begin });
  } catch (error) {
    const failure = asZferryError(error);
    if (failure.code === "interrupted") throw failure;
    if (!LATER.includes(failure.code)) await forgetRefused(site);
    if (!isConfirmed) throw failure;
    const hint = failure.hint === undefined ? "" : `; ${failure.hint}`;
    warnIn(env)(
      printable(`what was changed in the environment before is not merged: ${failure.message}${hint}`),
    );
    return { outcome: "failed", failure };
  } finally {
    env.progress.end();
  }
}

/** What says that something else comes first: the merge is still wanted. */
const LATER: readonly ErrorCode[] = ["site-busy", "install-pending"];

/** What was refused is not begun again by itself; what was cut off goes on. */
async function forgetRefused(site: SiteConfig): Promise<void> {
  const isCut = (await readUnderWay(site))?.operation === "merge";
  const dataset = site.root && datasetOfRoot(site);
  if (!isCut && dataset !== undefined) await forgetMerge(dataset);
}

/** Goes on with a merge that is under way, and begins none. */
export async function runGoOnMerging(site: SiteConfig, env: Environment): Promise<void> {
  const merge = await runMerge(site, {}, env, { begin: false, isConfirmed: false });
  if (!env.json) return env.write(`${describeMerge(merge).map(printable).join("\n")}\n`);
  const outcome = merge.outcome === "merged" ? "merged" : "present";
  const told = { outcome, product: site.product, release: null, streams: [], merge: mergeAsJson(merge) };
  await env.write(`${JSON.stringify(told)}\n`);
}

/** @returns whether the running environment is to be confirmed, or a merge is left of that; when it is not to be, the machine reboots */
async function passChecks(
  site: SiteConfig,
  { config }: Pick<ConfirmOptions, "config">,
  env: Environment,
): Promise<boolean> {
  const step = (line: string): void => env.note(printable(line));
  const judged = await judgeRunning({ site, now: env.now, signal: env.signal, step });
  if (judged.outcome === "confirm") return true;
  if (judged.outcome === "go-back") {
    step(`rebooting into ${judged.previous}`);
    await reboot(env.signal);
    return false;
  }
  await recordFailure({ site, now: env.now, signal: env.signal, step });
  await finishBeside(site, config, env);
  const isDue = async (): Promise<boolean> => (await findDueMerge(site)) !== undefined;
  // What is under way may be brought to its end meanwhile.
  if ((await isDue()) && (await waitUntilUp({ site, signal: env.signal })) && (await isDue())) return true;
  if (env.json) await env.write(`${JSON.stringify({ outcome: "present", environment: null })}\n`);
  else await env.write(`${NOT_ON_TRIAL}\n`);
  return false;
}

/**
 * Goes on, when the system is up, with an install that makes another environment: what boots before that leaves it.
 * @throws ToldElsewhere where it does not come to its end
 */
async function finishBeside(site: SiteConfig, config: string | undefined, env: Environment): Promise<void> {
  if (!isBeside(await readUnderWay(site)) || !(await waitUntilUp({ site, signal: env.signal }))) return;
  // Somebody may be at it.
  await whenFree(() => withLock(site, async () => undefined), env);
  const journal = await readUnderWay(site);
  if (!isBeside(journal)) return;
  env.note(printable(`going on with release ${journal.release.name} (${journal.release.sequence})`));
  const options = config === undefined ? [] : ["--config", config];
  const { status, signal } = await runVisibly([...ownCommand(), "install", ...options], env.signal);
  if (signal !== null) {
    throw new ZferryError("interrupted", `the install was ended by ${signal}`, {
      details: { signal },
      hint: "the next boot goes on, or bundle install",
    });
  }
  if (status !== 0) throw new ToldElsewhere(status ?? 1);
}

/** Whether the newest install made another environment than this one, which may have been renamed since. */
async function isOther(site: SiteConfig, dataset: string | undefined): Promise<boolean> {
  const last = (await openState(site.state).readState())?.installations.at(-1)?.environment;
  return last !== undefined && !(await hasGuid(dataset, last.guid));
}

/** What cannot be told does not stand against the environment. */
async function lookBefore(dataset: string, env: Environment): Promise<ChangesBefore | undefined> {
  if (!isPrivate()) return undefined;
  try {
    return await changesBefore(dataset);
  } catch (error) {
    const { message } = asZferryError(error);
    env.note(printable(`warning: what was changed in the environment before cannot be told: ${message}`));
    return undefined;
  }
}

interface Told {
  readonly site: SiteConfig;
  readonly found: Awaited<ReturnType<typeof confirmInstall>>;
  readonly tried: TrialStatus | undefined;
  readonly changed: ChangesBefore | undefined;
  readonly merge: Merge | undefined;
  /** Whether the newest install is none of what was to be confirmed. */
  readonly isLeft: boolean;
  readonly pruned: Awaited<ReturnType<typeof prune>>;
}

function asJson({ site: { product }, found, tried, changed, merge, pruned }: Told): string {
  const { release = null, confirmedAt = null } = found?.installation ?? {};
  const outcome = found?.isNew === true || tried !== undefined ? "confirmed" : "present";
  const environment = tried && { name: tried.name, dataset: tried.dataset, changed: changed ?? null };
  const merged = merge === undefined ? {} : { merge: mergeAsJson(merge, changed) };
  const told = {
    ...{ outcome, product, release, confirmedAt },
    ...(environment && { environment }),
    ...merged,
    ...pruned,
  };
  return `${JSON.stringify(told)}\n`;
}

function mergeAsJson(merge: Merge, changed?: ChangesBefore): object {
  const left = changed === undefined ? null : leftOf({ changed, merge });
  if (merge.outcome === "failed") {
    const { code, message, hint = null, details } = merge.failure;
    return { outcome: merge.outcome, error: { code, message, hint, ...details }, left };
  }
  const { outcome, environment, root, settled } = merge;
  return {
    outcome,
    environment: environment === "" ? null : environment,
    root: root && { changes: root.changes.length, commit: root.mergeCommit, drift: root.drift ?? null },
    settled: settled.map((each) => ({ ...each, path: showPath(each.path) })),
    left,
  };
}

function describeMerge(merge: Merge): string[] {
  if (merge.outcome === "failed") return ["what was changed in the environment before is not merged"];
  const { outcome, environment, root, settled } = merge;
  if (outcome === "none")
    return ["the running environment was made from no other that is there; nothing to merge"];
  if (outcome === "given-up")
    return [`what was cut off of merging changes of ${environment} had changed nothing, and is given up`];
  if (root === null) return [`what was changed in ${environment} is here already; nothing to merge`];
  return [
    `merged what was changed in ${environment}: ${describeFiles(root)}`,
    ...listChanges(root),
    ...(root.drift === undefined ? [] : [`    own changes, committed first: ${root.drift.paths.length}`]),
    ...settled.map(({ what, path, by }) => `    conflict of ${what} in ${showPath(path)}: settled by ${by}`),
  ];
}

const NOT_ON_TRIAL = "no boot environment that runs is on trial; nothing to do";
const SHOWN = 200;

/** What was changed and is not here, now. */
function leftOf({ changed, merge }: Pick<Told, "changed" | "merge">): readonly string[] {
  const merged = new Set(merge === undefined || merge.outcome === "failed" ? [] : merge.paths);
  return changed?.paths.filter((path) => !merged.has(path)) ?? [];
}

function asText({ site, found, tried, changed, merge, pruned, isLeft }: Told): string {
  const { release, confirmedAt = 0 } = found?.installation ?? {};
  const what = `${site.product} release ${release?.name ?? ""} (${release?.sequence ?? 0})`;
  const lines: string[] = [];
  if (found?.isNew) lines.push(`confirmed ${what}; it cannot be rolled back any more`);
  if (tried !== undefined) lines.push(`boot environment ${tried.name} is kept: it is not on trial any more`);
  if (lines.length === 0 && found === undefined && !isLeft)
    lines.push("no release is installed that could be rolled back; nothing to confirm");
  if (lines.length === 0 && found !== undefined)
    lines.push(`${what} was confirmed at ${formatTime(confirmedAt)}; nothing to confirm`);
  for (const { name, frees } of pruned.removed)
    lines.push(`  removed the boot environment ${name}, ${formatBytes(frees)} freed`);
  if (merge !== undefined) lines.push(...describeMerge(merge));
  if (lines.length === 0) lines.push(NOT_ON_TRIAL);
  const { environment = "" } = changed ?? {};
  const paths = leftOf({ changed, merge });
  if (paths.length > 0) {
    lines.push(`changed in ${environment} after this one was made from it, and not here: ${paths.length}`);
    lines.push(...paths.slice(0, SHOWN).map((path) => `  ${path}`));
    if (paths.length > SHOWN) lines.push(`  and ${paths.length - SHOWN} more`);
  }
  return `${lines.map(printable).join("\n")}\n`;
}

/** Old environments may go now. Whatever keeps them, what was confirmed stays confirmed. */
async function prune(
  site: SiteConfig,
  env: Environment,
): Promise<{ removed: readonly RemovedEnvironment[]; warnings: readonly string[] }> {
  try {
    const done = await pruneEnvironments(site, stepsIn(env));
    const short = describeShort(done, false);
    if (short === undefined) return { removed: done.removed, warnings: [] };
    return { removed: done.removed, warnings: [warned(short, env)] };
  } catch (error) {
    if (!(error instanceof ZferryError) || error.code === "interrupted") throw error;
    const warning = `old boot environments are not removed: ${error.message}; bundle environments --prune goes on`;
    return { removed: [], warnings: [warned(warning, env)] };
  }
}

function warned(warning: string, env: Environment): string {
  if (!env.json) env.note(printable(`warning: ${warning}`));
  return warning;
}
