import { existsSync, statSync } from "node:fs";
import { dirname } from "node:path";
import type { Command } from "commander";
import { VerifiedBundle } from "../bundle/reader.js";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import {
  finishInstall,
  installBundle,
  needsBundle,
  placeInLine,
  planInstall,
  type Plan,
} from "../install/install.js";
import { dangerOf, faceDanger, runMoved, runPrivately } from "../install/live.js";
import { subjectOf } from "../install/pending.js";
import type { ChainEnd } from "../install/environment-install.js";
import { readSite } from "../install/mode.js";
import { sharedPart, sharedPaths } from "../install/shared-mounts.js";
import { isOnTheWay, type InstallJournal, type Journal, type NewEnvironment } from "../install/state.js";
import { canBeGivenUp } from "../install/steps.js";
import { isBeside, readUnderWay } from "../install/under-way.js";
import { showPath } from "../raw-path.js";
import { pathOf, type PathName } from "../root/paths.js";
import type { RootPlan } from "../root/plan.js";
import type { Uses } from "../system/in-use.js";
import { fullName } from "../system/zfs.js";
import { formatBytes, formatDuration, printable, type Environment } from "../report.js";
import { RESULT } from "../system/relay.js";
import { readSiteTrust } from "../install/trust.js";
import {
  addSearchOption,
  addThreadsOption,
  describeKeyChange,
  describeMode,
  modeAsJson,
  openGiven,
  threadsOf,
  wholeNumber,
} from "./summary.js";
import { checkWhole } from "./verify.js";

export interface CommandOptions {
  readonly dryRun?: boolean;
  readonly allowDowngrade?: string;
  readonly allowExpired?: string;
  readonly acceptTime?: boolean;
  readonly config?: string;
  readonly threads?: string;
  readonly search?: readonly string[];
  readonly live?: boolean;
  readonly commitDrift?: boolean;
  readonly replaceUntracked?: boolean;
  readonly to?: string;
  readonly full?: boolean;
  /** False with --no-activate. */
  readonly activate?: boolean;
  readonly atBoot?: boolean;
}

/** What `install` and `plan` have in common. */
export const addInstallOptions = (command: Command): Command =>
  addReleaseOptions(command)
    .option(
      "--live",
      "in place, also into a dataset that the running system uses: what runs from it will likely die",
    )
    .option("--to <release>", "of a folder: as far as this release (default: the newest that is there)")
    .option("--full", "of a folder: also a bundle that makes the datasets of a new site");

/** What every command has that judges a release for this site. */
export const addReleaseOptions = (command: Command): Command =>
  addThreadsOption(
    addSearchOption(command)
      .option(
        "--allow-downgrade <sequence>",
        "take the release of this number, though this site has had a newer one",
      )
      .option("--allow-expired <sequence>", "take the release of this number, though it expired")
      .option(
        "--accept-time",
        "take a release that was made after what the clock says, and its time for this site's",
      )
      .option(
        "--commit-drift",
        "commit first what was changed in / and not committed, as this site's own changes",
      )
      .option(
        "--replace-untracked",
        "save files that git does not track where the release has one, in git, and replace them",
      )
      .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)"),
  );

export function define(command: Command, environment: () => Environment): void {
  addInstallOptions(
    command
      .argument("[file]", "a folder of bundles, or the bundle; without it, what is under way goes on")
      .option("-n, --dry-run", "do everything that changes nothing, as bundle plan does")
      .option(
        "--no-activate",
        "with mode boot-environment: make it, and let the one that would boot next do so",
      )
      .option(
        "--at-boot",
        "as bundle setup has it at boot: leave a boot environment that is being made until the system is up",
      ),
  )
    .addHelpText(
      "after",
      "\nExamples:\n  bundle install /media/stick/R2.bundle\n  bundle install /media/stick\n\n" +
        "From a folder the bundles are installed that lead to its newest release, one after the other.\n" +
        "After an interruption bundle install goes on from where it was, or says that there is nothing to do;\n" +
        "bundle abort gives it up. Another copy of the bundle may be named to go on.",
    )
    .action((file: string | undefined, options: CommandOptions) =>
      file === undefined ? runGoOn(options, environment()) : runInstall(file, options, environment()),
    );
}

/** Verifies a bundle whole, then installs it; of a folder those that lead to its newest release. */
export async function runInstall(path: string, options: CommandOptions, env: Environment): Promise<void> {
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory()) {
    const { runInstallFolder } = await import("./install-folder.js");
    return runInstallFolder(path, options, env);
  }
  if (options.to !== undefined || options.full) {
    throw new ZferryError("usage", `--to and --full choose from a folder, and ${path} is none`);
  }
  if (options.atBoot)
    throw new ZferryError("usage", "--at-boot goes on with what is under way, and takes no file");
  const site = await readSite(options.config, options.live);
  if (await runPrivately(site, options)) return;
  if (options.live && !options.dryRun && (await runMoved(site, env))) return;
  const done = await installFile(path, site, options, env);
  await env.write(env.json ? `${JSON.stringify(resultOf(done, options))}\n` : asText(done, options));
}

/** A bundle that was installed, or planned to be. */
export interface Done {
  readonly bundle: VerifiedBundle;
  readonly plan: Plan;
  /** The lines that were told of a dataset in use. */
  readonly dangers: readonly string[];
}

/**
 * Installs the bundle in a file, or plans to. The file is closed when this is done.
 * @param chosen the identity that the file had when it was chosen, and where the others lead that make one boot environment with it
 */
export async function installFile(
  path: string,
  site: SiteConfig,
  options: CommandOptions,
  env: Environment,
  { identity, chain }: { readonly identity?: string; readonly chain?: ChainEnd | undefined } = {},
): Promise<Done> {
  const exceptions = exceptionsOf(options);
  const threads = threadsOf(options);
  const trust = await readSiteTrust(site);
  const dangers: string[] = [];
  const work = workOf(site, env, options, dangers);
  const file = await openGiven(path, options, env, threads);
  try {
    work.step(`verifying ${path}`);
    const bundle = await VerifiedBundle.verify(file, trust);
    if (identity !== undefined) requireIdentity(bundle, identity);
    const { journal } = await placeInLine(bundle, await readUnderWay(site));
    // Of what is under way only the rest is read, each piece checked as it is used.
    if (journal === undefined) await checkWhole(bundle, env);
    const { commitDrift = false, replaceUntracked = false } = options;
    const judged = { trust, exceptions, commitDrift, replaceUntracked, warn: warnIn(env) };
    const install = { ...work, ...judged, activate: options.activate === false ? false : undefined, chain };
    const plan = options.dryRun ? await planInstall(bundle, install) : await installBundle(bundle, install);
    // For who reads the log: the result goes to who is still there to take it.
    if (env.moved)
      work.step(`${RESULT}${outcome({ bundle, plan }, options)} release ${bundle.manifest.release.name}`);
    return { bundle, plan, dangers };
  } finally {
    env.progress.end();
    await file.close();
  }
}

/** The medium may have been changed for another. */
export function requireIdentity({ name, identity }: VerifiedBundle, expected: string): void {
  if (identity === expected) return;
  throw new ZferryError("io-failed", `${name}: is another bundle than when its folder was read`, {
    details: { file: name, expected, found: identity },
    hint: "run the same command again",
  });
}

/** @throws ZferryError `usage` */
export const exceptionsOf = (options: CommandOptions) => ({
  allowDowngrade: wholeNumber(options.allowDowngrade, "--allow-downgrade", 1, Number.MAX_SAFE_INTEGER),
  allowExpired: wholeNumber(options.allowExpired, "--allow-expired", 1, Number.MAX_SAFE_INTEGER),
  acceptTime: options.acceptTime,
});

export const warnIn =
  (env: Environment) =>
  (what: string): void => {
    env.progress.end();
    if (!env.json) env.note(`warning: ${what}`);
  };

/** Warns, and keeps what it warned of, for the result. */
export function collectWarnings(env: Environment): {
  readonly warnings: string[];
  readonly warn: (what: string) => void;
} {
  const warnings: string[] = [];
  const tell = warnIn(env);
  return {
    warnings,
    warn: (what) => {
      warnings.push(what);
      tell(printable(what));
    },
  };
}

/** Goes on with what is under way, from the bundle where it was, if that is still needed. */
async function runGoOn(options: CommandOptions, env: Environment): Promise<void> {
  const { dryRun, allowDowngrade, allowExpired, acceptTime, commitDrift, replaceUntracked } = options;
  const judged = [allowDowngrade, allowExpired].some((sequence) => sequence !== undefined);
  const chosen = options.to !== undefined || options.full || options.activate === false;
  if (dryRun || judged || acceptTime || commitDrift || replaceUntracked || chosen) {
    throw new ZferryError("usage", "without a file, the install that is under way goes on as it was begun", {
      hint: "name the bundle",
    });
  }
  threadsOf(options);
  const site = await readSite(options.config, options.live);
  const begun = await readUnderWay(site);
  if (options.atBoot && isBeside(begun)) return tellEnd(begun, "left", site, env);
  if (begun !== undefined && (await runPrivately(site, options))) return;
  if (options.live && (await runMoved(site, env))) return;
  const journal = await readUnderWay(site);
  if (journal?.operation === "rollback" && !(journal.undoing && (await canBeGivenUp(journal)))) {
    const { runRollback } = await import("./rollback.js");
    return runRollback(options, env);
  }
  if (journal?.operation === "merge" && !journal.undoing) {
    const { runGoOnMerging } = await import("./confirm.js");
    return runGoOnMerging(site, env);
  }
  if (journal?.operation === "install" && journal.environment?.chain && !journal.undoing) {
    const [{ runInstallFolder }, bundle] = [
      await import("./install-folder.js"),
      await locateBundle(journal, site, env),
    ];
    return runInstallFolder(dirname(bundle), options, env);
  }
  if (journal?.operation === "install" && (await needsBundle(journal, site))) {
    return runInstall(await locateBundle(journal, site, env), options, env);
  }
  const done = await finishInstall(workOf(site, env, options));
  await tellEnd(done, done?.undoing === true ? "aborted" : "installed", site, env);
}

/** Says how what was under way ended. */
export async function tellEnd(
  journal: Journal | undefined,
  outcome: "installed" | "aborted" | "left",
  { product }: SiteConfig,
  env: Environment,
): Promise<void> {
  const isMerge = journal?.operation === "merge";
  if (env.json) {
    const { release = null, streams = [] } = isMerge ? {} : (journal ?? {});
    return env.write(
      `${JSON.stringify({ outcome: journal === undefined ? "present" : outcome, product, release, streams })}\n`,
    );
  }
  if (journal === undefined) return env.write("no install is under way; nothing to do\n");
  if (isMerge)
    return env.write(`${printable(`gave up ${subjectOf(journal)}; the site is as it was before`)}\n`);
  const { name, sequence } = journal.release;
  const what = `${product} release ${name} (${sequence})`;
  const given = journal.operation === "rollback" ? `the rollback of ${what}` : what;
  const text = {
    installed: `installed ${what}`,
    aborted: `gave up ${given}; the site is as it was before`,
    left: `${what} is beside what runs: it is left until the system is up`,
  }[outcome];
  await env.write(`${printable(text)}\n`);
}

/**
 * What the steps of an install, and of giving it up, are done with.
 * @param dangers takes the lines that are told before a dataset is received into that is in use
 */
export const workOf = (
  site: SiteConfig,
  { now, signal, progress, quiet, note }: Environment,
  { live, dryRun }: { readonly live?: boolean; readonly dryRun?: boolean },
  dangers: string[] = [],
) => ({
  site,
  now,
  signal,
  progress,
  step: (what: string): void => {
    progress.end();
    if (!quiet) note(what);
  },
  live: live
    ? async (dataset: string, uses: Uses): Promise<void> => {
        const lines = dangerOf(dataset, uses);
        dangers.push(...lines);
        lines.forEach(note);
        if (!dryRun) await faceDanger(dataset, uses);
      }
    : undefined,
});

/** Where the bundle of an install that is under way is; whoever is at a terminal is asked for it. */
async function locateBundle(
  { release, origin }: InstallJournal,
  site: SiteConfig,
  env: Environment,
): Promise<string> {
  const what = `release ${release.name} (${release.sequence})`;
  const ways = "or name a copy of it: bundle install FILE; or give it up: bundle abort";
  if (origin === null) {
    throw new ZferryError("install-pending", `${what} is being installed, and its bundle is needed`, {
      details: { pending: release.name },
      hint: ways.slice("or ".length),
    });
  }
  for (;;) {
    if (existsSync(origin.file)) return origin.file;
    const question = `${what} is being installed: insert the medium with ${origin.file}, then press Enter`;
    if (await env.askToGoOn(question)) {
      // Somebody else may have finished it or given it up meanwhile.
      const found = await readUnderWay(site);
      if (found?.operation === "install" && found.release.identity === release.identity) continue;
      throw new ZferryError("install-pending", `${what} is not under way any more`, {
        details: { pending: release.name },
        hint: "bundle status tells what is",
      });
    }
    throw new ZferryError(
      "io-failed",
      `${what} is being installed, and its bundle is not at ${origin.file}`,
      {
        details: { pending: release.name, file: origin.file },
        hint: `insert the medium with release ${release.name} and run the same command again; ${ways}`,
      },
    );
  }
}

function outcome(
  done: Pick<Done, "bundle" | "plan">,
  options: CommandOptions,
): "present" | "planned" | "brought" | "installed" {
  if (done.plan.present) return "present";
  if (options.dryRun) return "planned";
  return isBefore(done) ? "brought" : "installed";
}

/** Whether others come after it, into the same boot environment. */
const isBefore = ({ bundle, plan: { environment } }: Pick<Done, "bundle" | "plan">): boolean =>
  isOnTheWay({ environment, release: { ...bundle.manifest.release, identity: bundle.identity } });

/** As `--json` prints it. */
export function resultOf(done: Done, options: CommandOptions): object {
  const { bundle, plan, dangers } = done;
  const { release, product } = bundle.manifest;
  return {
    outcome: outcome(done, options),
    product,
    release: { ...release, identity: bundle.identity },
    streams: plan.streams.map(({ stream, dataset, base, received, taken, space }) => ({
      role: stream.role,
      dataset,
      base: base === undefined ? null : { snapshot: base.name, guid: base.guid },
      target: stream.target,
      received,
      taken,
      rawBytes: stream.rawBytes,
      space,
    })),
    mode: modeAsJson(plan.mode),
    environment: plan.environment && {
      dataset: plan.environment.dataset,
      activate: plan.environment.activate,
    },
    keys: plan.keys ?? null,
    root:
      plan.root === undefined
        ? null
        : {
            changes: plan.root.changes.length,
            commit: plan.root.mergeCommit,
            drift: plan.root.drift ?? null,
            replaced: plan.root.replaced ?? null,
            shared: sharedPaths(sharedPart(plan.root, plan.environment)),
            space: plan.rootSpace,
            settled: plan.rootSettled.map((each) => ({ ...each, path: showPath(each.path) })),
          },
    time: plan.time,
    warnings: [
      ...plan.streams.flatMap(({ warnings }) => warnings),
      ...plan.rootWarnings,
      ...new Set(dangers),
    ],
  };
}

export function asText(done: Done, options: CommandOptions): string {
  const { bundle, plan } = done;
  const { release, product } = bundle.manifest;
  const { environment } = plan;
  const name = `${product} release ${release.name} (${release.sequence})`;
  if (plan.present) return `${name} is installed; nothing to do\n`;
  const lines = plan.streams.flatMap(({ stream, dataset, base, space }) => {
    const from = base === undefined ? "new" : `from ${fullName(base)}`;
    const what = `  ${stream.role}: ${dataset}, ${from} to ${stream.target.snapshot}`;
    if (!options.dryRun) return [what];
    if (space === null) return [`${what} (received already)`];
    return [what, `    takes at most ${formatBytes(space.needed)} of ${formatBytes(space.available)}`];
  });
  const where = environment === null ? "/" : environment.dataset;
  if (plan.root !== undefined) lines.push(`  ${where}: ${describeFiles(plan.root)}`);
  if (plan.root !== undefined && options.dryRun) lines.push(...listChanges(plan.root));
  if (plan.root !== undefined) lines.push(...describeOwn(plan.root, plan.environment, options));
  for (const { path, what, by } of plan.rootSettled) {
    lines.push(`    conflict of ${what} in ${showPath(path)}: settled by ${by}`);
  }
  if (options.dryRun) {
    for (const { folder, needed, free } of plan.rootSpace) {
      lines.push(`    takes at most ${formatBytes(needed)} of ${formatBytes(free)} in ${folder}`);
    }
  }
  if (plan.keys !== undefined) lines.push(`  keys: ${describeKeyChange(plan.keys)}`);
  if (options.dryRun) lines.push(`  time: ${describeTime(plan.time)}`, `  mode: ${describeMode(plan.mode)}`);
  const isLast = !isBefore(done);
  if (environment !== null && isLast) lines.push(`  ${describeNext(environment)}`);
  const brought = isLast ? `installed ${name}` : `brought ${name} into ${where}`;
  const title = options.dryRun ? `${name} would be installed; nothing was changed` : brought;
  return `${[title, ...lines].map(printable).join("\n")}\n`;
}

const describeNext = ({ dataset, activate }: NewEnvironment): string =>
  activate ? `boots next: ${dataset}` : `not activated: bundle activate ${dataset}`;

/** "1 file changes" */
export const describeFiles = ({ changes }: RootPlan): string =>
  changes.length === 1 ? "1 file changes" : `${changes.length} files change`;

const LISTED = 200;

/** What a plan does to each file of `/`: added, modified, deleted, of another type, or with other attributes alone. */
export function listChanges({ changes }: RootPlan): string[] {
  const lines = changes.slice(0, LISTED).map(({ path, before, after }) => {
    const name = showPath(pathOf(path));
    if (before === null) return `      A ${name}`;
    if (after === null) return `      D ${name}`;
    // The first three digits are the type.
    if (before.mode.slice(0, 3) !== after.mode.slice(0, 3)) return `      T ${name}`;
    return `      M ${name}${before.blob === after.blob ? " (attributes)" : ""}`;
  });
  return changes.length > LISTED ? [...lines, `      and ${changes.length - LISTED} more`] : lines;
}

/** What becomes of the site's own files, besides the merge. */
function describeOwn(
  root: RootPlan,
  environment: NewEnvironment | null,
  { dryRun }: CommandOptions,
): string[] {
  const { drift, replaced } = root;
  const list = (what: string, paths: readonly PathName[] = []): string[] => {
    if (paths.length === 0) return [];
    const shown = dryRun ? paths.map((path) => `      ${showPath(pathOf(path))}`) : [];
    return [`    ${what}: ${paths.length}`, ...shown];
  };
  return [
    ...list("own changes, committed first", drift?.paths),
    ...list(
      "shared by all boot environments, the running one too, and changed at once",
      sharedPaths(sharedPart(root, environment)),
    ),
    ...list(`untracked files replaced, kept in ${replaced?.ref ?? ""}`, replaced?.paths),
  ];
}

/** "about 2 min, at 34.2 MiB/s as before" */
export function describeTime({ seconds, bytesPerSecond, assumed }: Plan["time"]): string {
  const why = assumed ? "(assumed: no install of before tells it)" : "as before";
  return `about ${formatDuration(seconds)}, at ${formatBytes(bytesPerSecond)}/s ${why}`;
}
