import type { Command } from "commander";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import {
  describeShared,
  environmentToLeave,
  planEnvironmentRollback,
  rollBackEnvironment,
  type EnvironmentRollback,
} from "../install/environment-rollback.js";
import { runMoved } from "../install/live.js";
import { planRollback, rollBack, streamsToRollBack, type Rollback } from "../install/rollback.js";
import type { Loss } from "../install/state.js";
import { describeLoss } from "../install/take-back.js";
import { showPath } from "../raw-path.js";
import { formatBytes, printable, type Environment } from "../report.js";
import { pathOf, type PathName } from "../root/paths.js";
import { RESULT } from "../system/relay.js";
import { fullName } from "../system/zfs.js";
import { readSiteConfig } from "../system/settings.js";
import { describeFiles, listChanges, collectWarnings, workOf } from "./install.js";

interface RollbackCommandOptions {
  readonly plan?: boolean;
  readonly discard?: boolean;
  readonly live?: boolean;
  readonly commitDrift?: boolean;
  readonly config?: string;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .option("-n, --plan", "do everything that changes nothing, and show what would be lost")
    .option("--discard", "lose what came into the datasets since, without being asked")
    .option("--live", "also of a dataset that the running system uses: what runs from it will likely die")
    .option(
      "--commit-drift",
      "commit first what was changed in / and not committed, as this site's own changes",
    )
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .addHelpText(
      "after",
      "\nExample:\n  bundle rollback --plan\n\n" +
        "Both halves go back to what the newest install found; what the site changed in / since stays.\n" +
        "Of a boot environment the one before boots next; the newest stays, and can be activated again.\n" +
        "After an interruption the same command goes on.",
    )
    .action((options: RollbackCommandOptions) => runRollback(options, environment()));
}

/** Takes the newest install back, or goes on with that. */
export async function runRollback(options: RollbackCommandOptions, env: Environment): Promise<void> {
  const site = await readSiteConfig(options.config);
  const dryRun = options.plan === true;
  if ((await environmentToLeave(site)) !== undefined) return runLeave(site, options, env);
  if (options.live && !dryRun && (await runMoved(site, env, await streamsToRollBack(site)))) return;
  const dangers: string[] = [];
  const { warnings, warn } = collectWarnings(env);
  const work = {
    ...workOf(site, env, { ...(options.live ? { live: true } : {}), dryRun }, dangers),
    commitDrift: options.commitDrift ?? false,
    warn,
  };
  const agree = async (losses: readonly Loss[]): Promise<boolean> => {
    if (options.discard) return true;
    if (env.json) return false;
    env.progress.end();
    for (const line of losses.flatMap(lossLines)) env.note(`would be lost: ${line}`);
    return env.askToAgree("lose this, and roll back? yes or no:");
  };
  try {
    const done = dryRun ? await planRollback(work) : await rollBack({ ...work, agree });
    const outcome = dryRun ? "planned" : "rolled-back";
    // For who reads the log: the result goes to who is still there to take it.
    if (env.moved) work.step(`${RESULT}${outcome} release ${done.installation.release.name}`);
    const told = [...new Set([...warnings, ...dangers])];
    await env.write(env.json ? asJson(site, done, outcome, told) : asText(site, done, dryRun));
  } finally {
    env.progress.end();
  }
}

/** Of a boot environment. */
async function runLeave(
  site: SiteConfig,
  { live, commitDrift, plan: dryRun = false, discard = false }: RollbackCommandOptions,
  env: Environment,
): Promise<void> {
  if (live || commitDrift) {
    throw new ZferryError(
      "usage",
      "--live and --commit-drift are of no use: a boot environment is left as it is",
    );
  }
  const agree = async ({ installation: { environment }, to }: EnvironmentRollback): Promise<boolean> => {
    if (discard) return true;
    if (env.json) return false;
    env.note(
      printable(
        `${environment.dataset} is running: what was written to its / stays there, and is not in ${to}`,
      ),
    );
    return env.askToAgree("have that one boot next? yes or no:");
  };
  const { warnings, warn } = collectWarnings(env);
  const done = dryRun
    ? await planEnvironmentRollback(site)
    : await rollBackEnvironment(site, env.now, agree, warn);
  const { installation, to, isRunning } = done;
  const { release, environment } = installation;
  if (env.json) {
    const outcome = dryRun ? "planned" : "rolled-back";
    const left = {
      dataset: environment.dataset,
      running: isRunning,
      next: to,
      shared: environment.shared ?? [],
    };
    const told = {
      outcome,
      product: site.product,
      release,
      recorded: false,
      streams: [],
      root: null,
      environment: left,
      warnings,
    };
    return env.write(`${JSON.stringify(told)}\n`);
  }
  const what = `${site.product} release ${release.name} (${release.sequence})`;
  const lines = [
    dryRun ? `${what} would be rolled back; nothing was changed` : `rolled back ${what}`,
    `  boots next: ${to}`,
    `  stays as it is: ${environment.dataset}${isRunning ? ", which runs until the reboot" : ""}`,
    ...describeShared(environment).map((line) => `  ${line}`),
  ];
  await env.write(`${lines.map(printable).join("\n")}\n`);
}

const lossLines = (loss: Loss): string[] => describeLoss(loss).map((what) => `${loss.dataset}: ${what}`);

function asJson(
  { product }: SiteConfig,
  { installation, recorded, ways, root, rootSpace, rootSettled }: Rollback,
  outcome: "planned" | "rolled-back",
  warnings: readonly string[],
): string {
  return `${JSON.stringify({
    outcome,
    product,
    release: installation.release,
    recorded,
    streams: ways.map(({ stream: { role, dataset, base, target }, done, loss }) => {
      const { snapshots, bookmarks = [], written } = loss;
      return { role, dataset, base, target, done, lost: { snapshots, bookmarks, written } };
    }),
    root: root && {
      changes: root.changes.length,
      commit: root.mergeCommit,
      drift: root.drift ?? null,
      returning: root.returning ?? null,
      space: rootSpace,
      settled: rootSettled.map((each) => ({ ...each, path: showPath(each.path) })),
    },
    warnings,
  })}\n`;
}

function asText(
  { product }: SiteConfig,
  { installation, recorded, ways, root, rootSpace, rootSettled }: Rollback,
  dryRun: boolean,
): string {
  const { name, sequence } = installation.release;
  const what = `${product} release ${name} (${sequence})`;
  if (dryRun && recorded)
    return `${printable(`${what} is rolled back, and only what that left is to be removed: bundle rollback`)}\n`;
  const lines = [dryRun ? `${what} would be rolled back; nothing was changed` : `rolled back ${what}`];
  for (const { stream, to, done, loss } of ways) {
    const back = to === null ? "" : `, ${done ? "is back at" : "back to"} ${fullName(to)}`;
    lines.push(`  ${stream.role}: ${stream.dataset}${back}`);
    for (const lost of describeLoss(loss)) lines.push(`    ${dryRun ? "would be lost" : "lost"}: ${lost}`);
  }
  if (root !== null) {
    lines.push(`  /: ${describeFiles(root)}`);
    if (dryRun) lines.push(...listChanges(root));
    lines.push(...listed("own changes, committed first", root.drift?.paths, dryRun));
    lines.push(...listed("untracked files that come back", root.returning?.paths, dryRun));
    for (const settled of rootSettled)
      lines.push(`    conflict of ${settled.what} in ${showPath(settled.path)}: settled by ${settled.by}`);
    for (const { folder, needed, free } of dryRun ? rootSpace : [])
      lines.push(`    takes at most ${formatBytes(needed)} of ${formatBytes(free)} in ${folder}`);
  }
  return `${lines.map(printable).join("\n")}\n`;
}

function listed(what: string, paths: readonly PathName[] = [], dryRun: boolean): string[] {
  if (paths.length === 0) return [];
  return [
    `    ${what}: ${paths.length}`,
    ...(dryRun ? paths.map((path) => `      ${showPath(pathOf(path))}`) : []),
  ];
}
