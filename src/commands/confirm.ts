import type { Command } from "commander";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { pruneEnvironments, type RemovedEnvironment } from "../install/prune.js";
import { confirmInstall } from "../install/rollback.js";
import { formatBytes, formatTime, printable, type Environment } from "../report.js";
import { readSiteConfig } from "../system/settings.js";
import { stepsIn } from "./environments.js";

interface ConfirmOptions {
  readonly config?: string;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .addHelpText(
      "after",
      "\nExample:\n  bundle confirm\n\n" +
        "The snapshots that bundle rollback would go back to are let go, and the space that they keep can be freed.\n" +
        "Of boot environments that zferry made, those that are more than keep of [boot-environment] are removed.",
    )
    .action((options: ConfirmOptions) => runConfirm(options, environment()));
}

/** Ends the possibility to roll the newest install back. */
async function runConfirm(options: ConfirmOptions, env: Environment): Promise<void> {
  const site = await readSiteConfig(options.config);
  const found = await confirmInstall(site, env.now);
  const { release = null, confirmedAt = null } = found?.installation ?? {};
  const isEnvironment = found?.installation.environment !== undefined;
  const { removed, warnings } = isEnvironment ? await prune(site, env) : { removed: [], warnings: [] };
  if (env.json) {
    const outcome = found?.isNew === true ? "confirmed" : "present";
    const told = { outcome, product: site.product, release, confirmedAt, removed, warnings };
    return env.write(`${JSON.stringify(told)}\n`);
  }
  const what = `${site.product} release ${release?.name ?? ""} (${release?.sequence ?? 0})`;
  const text =
    found === undefined
      ? "no release is installed that could be rolled back; nothing to confirm"
      : found.isNew
        ? `confirmed ${what}; it cannot be rolled back any more`
        : `${what} was confirmed at ${formatTime(confirmedAt ?? 0)}; nothing to confirm`;
  const gone = removed.map(
    ({ name, frees }) => `  removed the boot environment ${name}, ${formatBytes(frees)} freed`,
  );
  await env.write(`${[text, ...gone].map(printable).join("\n")}\n`);
}

/** Old environments may go now. Whatever keeps them, what was confirmed stays confirmed. */
async function prune(
  site: SiteConfig,
  env: Environment,
): Promise<{ removed: readonly RemovedEnvironment[]; warnings: readonly string[] }> {
  try {
    return { removed: (await pruneEnvironments(site, stepsIn(env))).removed, warnings: [] };
  } catch (error) {
    if (!(error instanceof ZferryError) || error.code === "interrupted") throw error;
    const warning = `old boot environments are not removed: ${error.message}; bundle environments --prune goes on`;
    if (!env.json) env.note(printable(`warning: ${warning}`));
    return { removed: [], warnings: [warning] };
  }
}
