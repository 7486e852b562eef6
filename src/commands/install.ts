import type { Command } from "commander";
import type { VerifiedBundle } from "../bundle/reader.js";
import { installBundle, planInstall, type InstallOptions, type Plan } from "../install/install.js";
import { fullName } from "../system/zfs.js";
import { printable, type Environment } from "../report.js";
import { openBundleFile } from "../system/bundle-file.js";
import { readSiteTrust } from "../install/trust.js";
import { readSiteConfig } from "../system/settings.js";
import { addThreadsOption, describeKeyChange, threadsOf, wholeNumber } from "./summary.js";
import { verifyWhole } from "./verify.js";

export interface CommandOptions {
  readonly dryRun?: boolean;
  readonly allowDowngrade?: string;
  readonly allowExpired?: string;
  readonly acceptTime?: boolean;
  readonly config?: string;
  readonly threads?: string;
}

/** What `install` and `plan` have in common. */
export const addInstallOptions = (command: Command): Command =>
  addThreadsOption(
    command
      .option(
        "--allow-downgrade <sequence>",
        "take the release of this number, though this site has had a newer one",
      )
      .option("--allow-expired <sequence>", "take the release of this number, though it expired")
      .option(
        "--accept-time",
        "take a release that was made after what the clock says, and its time for this site's",
      )
      .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)"),
  );

export function define(command: Command, environment: () => Environment): void {
  addInstallOptions(
    command
      .argument("<file>", "the bundle")
      .option("-n, --dry-run", "do everything that changes nothing, as bundle plan does"),
  )
    .addHelpText(
      "after",
      "\nExample:\n  bundle install /media/stick/R2.bundle\n\n" +
        "After an interruption the same command goes on, or says that there is nothing to do.",
    )
    .action((file: string, options: CommandOptions) => runInstall(file, options, environment()));
}

/** Verifies a bundle whole, then installs it in place. */
export async function runInstall(path: string, options: CommandOptions, env: Environment): Promise<void> {
  const site = await readSiteConfig(options.config);
  const exceptions = {
    allowDowngrade: wholeNumber(options.allowDowngrade, "--allow-downgrade", 1, Number.MAX_SAFE_INTEGER),
    allowExpired: wholeNumber(options.allowExpired, "--allow-expired", 1, Number.MAX_SAFE_INTEGER),
    acceptTime: options.acceptTime,
  };
  const threads = threadsOf(options);
  const trust = await readSiteTrust(site);
  const file = await openBundleFile(path, threads);
  const step = (what: string): void => {
    env.progress.end();
    if (!env.quiet) env.note(what);
  };
  try {
    step(`verifying ${path}`);
    const bundle = await verifyWhole(file, trust, env);
    const { now, signal, progress } = env;
    const install: InstallOptions = { site, trust, exceptions, now, signal, progress, step };
    const plan = options.dryRun ? await planInstall(bundle, install) : await installBundle(bundle, install);
    await env.write(env.json ? asJson(bundle, plan, options) : asText(bundle, plan, options));
  } finally {
    env.progress.end();
    await file.close();
  }
}

const outcome = (plan: Plan, options: CommandOptions): "present" | "planned" | "installed" => {
  if (plan.present) return "present";
  return options.dryRun ? "planned" : "installed";
};

function asJson(bundle: VerifiedBundle, plan: Plan, options: CommandOptions): string {
  const { release, product } = bundle.manifest;
  return `${JSON.stringify({
    outcome: outcome(plan, options),
    product,
    release: { ...release, identity: bundle.identity },
    streams: plan.streams.map(({ stream, dataset, base, received }) => ({
      role: stream.role,
      dataset,
      base: base === undefined ? null : { snapshot: base.name, guid: base.guid },
      target: stream.target,
      received,
    })),
    keys: plan.keys ?? null,
    root:
      plan.root === undefined ? null : { changes: plan.root.changes.length, commit: plan.root.mergeCommit },
  })}\n`;
}

function asText(bundle: VerifiedBundle, plan: Plan, options: CommandOptions): string {
  const { release, product } = bundle.manifest;
  const name = `${product} release ${release.name} (${release.sequence})`;
  if (plan.present) return `${name} is installed; nothing to do\n`;
  const lines = plan.streams.map(({ stream, dataset, base, received }) => {
    const from = base === undefined ? "new" : `from ${fullName(base)}`;
    return `  ${stream.role}: ${dataset}, ${from} to ${stream.target.snapshot}${received && options.dryRun ? " (received already)" : ""}`;
  });
  if (plan.root !== undefined) lines.push(`  /: ${plan.root.changes.length} files change`);
  if (plan.keys !== undefined) lines.push(`  keys: ${describeKeyChange(plan.keys)}`);
  const title = options.dryRun ? `${name} would be installed; nothing was changed` : `installed ${name}`;
  return `${[title, ...lines].map(printable).join("\n")}\n`;
}
