import type { Command } from "commander";
import type { SiteConfig } from "../config.js";
import { runPrivately } from "../install/live.js";
import { confirmInstall } from "../install/rollback.js";
import { openState } from "../install/state.js";
import { confirmTrial, judgeRunning, runningTrial, type TrialStatus } from "../install/trial.js";
import { changesBefore, type ChangesBefore } from "../install/trial-changes.js";
import { asZferryError, formatTime, printable, type Environment } from "../report.js";
import { reboot } from "../system/health.js";
import { isPrivate } from "../system/private-mounts.js";
import { readSiteConfig } from "../system/settings.js";

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
        "A boot environment that is on trial is kept. What bundle setup has at boot does it with --or-go-back.",
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
  const told = { site, found, tried, changed };
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
}

function asJson({ site: { product }, found, tried, changed }: Told): string {
  const { release = null, confirmedAt = null } = found?.installation ?? {};
  const outcome = found?.isNew === true || tried !== undefined ? "confirmed" : "present";
  const environment = tried && { name: tried.name, dataset: tried.dataset, changed: changed ?? null };
  return `${JSON.stringify({ outcome, product, release, confirmedAt, ...(environment && { environment }) })}\n`;
}

const SHOWN = 200;

function asText({ site, found, tried, changed }: Told): string {
  const { release, confirmedAt = 0 } = found?.installation ?? {};
  const what = `${site.product} release ${release?.name ?? ""} (${release?.sequence ?? 0})`;
  const lines: string[] = [];
  if (found?.isNew) lines.push(`confirmed ${what}; it cannot be rolled back any more`);
  if (tried !== undefined) lines.push(`boot environment ${tried.name} is kept: it is not on trial any more`);
  if (lines.length === 0 && found === undefined)
    lines.push("no release is installed that could be rolled back; nothing to confirm");
  if (lines.length === 0)
    lines.push(`${what} was confirmed at ${formatTime(confirmedAt)}; nothing to confirm`);
  const { environment = "", paths = [] } = changed ?? {};
  if (paths.length > 0) {
    lines.push(`changed in ${environment} after this one was made from it, and not here: ${paths.length}`);
    lines.push(...paths.slice(0, SHOWN).map((path) => `  ${path}`));
    if (paths.length > SHOWN) lines.push(`  and ${paths.length - SHOWN} more`);
  }
  return `${lines.map(printable).join("\n")}\n`;
}
