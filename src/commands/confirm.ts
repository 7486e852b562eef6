import type { Command } from "commander";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { runPrivately } from "../install/live.js";
import { describeShort, pruneEnvironments, type RemovedEnvironment } from "../install/prune.js";
import { confirmInstall } from "../install/rollback.js";
import { openState } from "../install/state.js";
import {
  confirmTrial,
  judgeRunning,
  recordFailure,
  runningTrial,
  type TrialStatus,
} from "../install/trial.js";
import { changesBefore, type ChangesBefore } from "../install/trial-changes.js";
import { asZferryError, formatBytes, formatTime, printable, type Environment } from "../report.js";
import { reboot } from "../system/health.js";
import { isPrivate } from "../system/private-mounts.js";
import { readSiteConfig } from "../system/settings.js";
import { stepsIn } from "./environments.js";

interface ConfirmOptions {
  readonly config?: string;
  readonly orGoBack?: boolean;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .option(
      "--or-go-back",
      "only after the site's checks; if they fail until the deadline, have the environment before boot, and reboot",
    )
    .addHelpText(
      "after",
      "\nExample:\n  bundle confirm\n\n" +
        "The snapshots that bundle rollback would go back to are let go, and the space that they keep can be freed.\n" +
        "A boot environment that is on trial is kept; of those that zferry made, what is more than keep of [boot-environment] is removed.\n" +
        "What bundle setup has at boot does it with --or-go-back.",
    )
    .action((options: ConfirmOptions) => runConfirm(options, environment()));
}

/** Ends the possibility to roll the newest install back, and the trial of the running boot environment. */
async function runConfirm(options: ConfirmOptions, env: Environment): Promise<void> {
  const site = await readSiteConfig(options.config);
  // Started once more by ourselves, the checks are passed.
  if (options.orGoBack && !isPrivate() && !(await passChecks(site, env))) return;
  const tried = await runningTrial(site);
  if (tried !== undefined && (await runPrivately(site))) return;
  const changed = tried === undefined ? undefined : await lookBefore(tried, env);
  const found =
    tried !== undefined && (await isOther(site, tried)) ? undefined : await confirmInstall(site, env.now);
  if (tried !== undefined) await confirmTrial(site);
  const isEnvironment = found?.installation.environment !== undefined;
  const pruned = isEnvironment ? await prune(site, env) : { removed: [], warnings: [] };
  const told = { site, found, tried, changed, pruned };
  await env.write(env.json ? asJson(told) : asText(told));
}

/** @returns whether the running environment is to be confirmed; when it is not, the machine reboots */
async function passChecks(site: SiteConfig, env: Environment): Promise<boolean> {
  const step = (line: string): void => env.note(printable(line));
  const judged = await judgeRunning({ site, now: env.now, signal: env.signal, step });
  if (judged.outcome === "confirm") return true;
  if (judged.outcome === "go-back") {
    step(`rebooting into ${judged.previous}`);
    await reboot(env.signal);
    return false;
  }
  await recordFailure({ site, now: env.now, signal: env.signal, step });
  if (env.json) await env.write(`${JSON.stringify({ outcome: "present", environment: null })}\n`);
  else await env.write("no boot environment that runs is on trial; nothing to do\n");
  return false;
}

/** Whether the newest install made another environment than this one. */
async function isOther(site: SiteConfig, { dataset }: TrialStatus): Promise<boolean> {
  const last = (await openState(site.state).readState())?.installations.at(-1)?.environment;
  return last !== undefined && last.dataset !== dataset;
}

/** What cannot be told does not stand against the environment. */
async function lookBefore({ dataset }: TrialStatus, env: Environment): Promise<ChangesBefore | undefined> {
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
  readonly pruned: Awaited<ReturnType<typeof prune>>;
}

function asJson({ site: { product }, found, tried, changed, pruned }: Told): string {
  const { release = null, confirmedAt = null } = found?.installation ?? {};
  const outcome = found?.isNew === true || tried !== undefined ? "confirmed" : "present";
  const environment = tried && { name: tried.name, dataset: tried.dataset, changed: changed ?? null };
  const told = { outcome, product, release, confirmedAt, ...(environment && { environment }), ...pruned };
  return `${JSON.stringify(told)}\n`;
}

const SHOWN = 200;

function asText({ site, found, tried, changed, pruned }: Told): string {
  const { release, confirmedAt = 0 } = found?.installation ?? {};
  const what = `${site.product} release ${release?.name ?? ""} (${release?.sequence ?? 0})`;
  const lines: string[] = [];
  if (found?.isNew) lines.push(`confirmed ${what}; it cannot be rolled back any more`);
  if (tried !== undefined) lines.push(`boot environment ${tried.name} is kept: it is not on trial any more`);
  if (lines.length === 0 && found === undefined)
    lines.push("no release is installed that could be rolled back; nothing to confirm");
  if (lines.length === 0)
    lines.push(`${what} was confirmed at ${formatTime(confirmedAt)}; nothing to confirm`);
  for (const { name, frees } of pruned.removed)
    lines.push(`  removed the boot environment ${name}, ${formatBytes(frees)} freed`);
  const { environment = "", paths = [] } = changed ?? {};
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
