import { resolve } from "node:path";
import type { Command } from "commander";
import { VerifiedBundle } from "../bundle/reader.js";
import { ZferryError } from "../errors.js";
import { resolveBundle } from "../install/install.js";
import { runPrivately } from "../install/live.js";
import { requireMergeTool } from "../install/merge-tool.js";
import { readSite } from "../install/mode.js";
import type { Resolved } from "../install/resolve.js";
import { readSiteTrust } from "../install/trust.js";
import { readUnderWay } from "../install/under-way.js";
import { rawPath } from "../raw-path.js";
import { printable, type Environment } from "../report.js";
import { readSiteConfig } from "../system/settings.js";
import { addReleaseOptions, exceptionsOf, warnIn, workOf, type CommandOptions } from "./install.js";
import { repeatable, openGiven, threadsOf } from "./summary.js";
import { checkWhole } from "./verify.js";

interface ResolveCommandOptions extends CommandOptions {
  readonly to?: string;
  readonly ours?: readonly string[];
  readonly theirs?: readonly string[];
  readonly again?: readonly string[];
  readonly tool?: string | true;
  readonly rollback?: boolean;
}

export function define(command: Command, environment: () => Environment): void {
  addReleaseOptions(
    command
      .usage("[options] <file>")
      .argument("[file]", "the bundle")
      .option("--rollback", "instead of a bundle's conflicts those of bundle rollback")
      .option("--live", "for an install with --live, which is in place")
      .option("--to <folder>", "where the conflicts are put (default: resolve in the state folder)")
      .option(
        "--ours <path>",
        "keep what the site has of this path, the whole file; can be repeated",
        repeatable,
      )
      .option(
        "--theirs <path>",
        "take what the release has of this path, the whole file; can be repeated",
        repeatable,
      )
      .option("--again <path>", "open this path again, however it was settled; can be repeated", repeatable)
      .option(
        "--tool [=name]",
        "open git mergetool on the texts, with the tool that git's own settings name",
      ),
  )
    .addHelpText(
      "after",
      "\nExample:\n  bundle resolve /media/stick/R2.bundle\n\n" +
        "Edit what it names, and run it again, until nothing is left; then bundle install goes on with it.\n" +
        "With --tool, or --tool=vimdiff, git mergetool opens what can be merged as text.\n" +
        "The site's / is not changed.",
    )
    .action((file: string | undefined, options: ResolveCommandOptions) =>
      options.rollback
        ? runResolveRollback(file, options, environment())
        : runResolve(...fileAndTool(file, options), environment()),
    );
}

/** A value that stands apart from --tool is the bundle: a tool is named with `=`. */
function fileAndTool(
  file: string | undefined,
  options: ResolveCommandOptions,
): [string, ResolveCommandOptions] {
  if (file !== undefined) return [file, options];
  if (typeof options.tool === "string") return [options.tool, { ...options, tool: true }];
  throw new ZferryError("usage", "missing required argument 'file'", {
    hint: "bundle resolve --help shows how",
  });
}

/** Lets a person settle the conflicts of a rollback. */
async function runResolveRollback(
  file: string | undefined,
  options: ResolveCommandOptions,
  env: Environment,
): Promise<void> {
  if (file !== undefined) throw new ZferryError("usage", `${file}: with --rollback no bundle is named`);
  const { allowDowngrade, allowExpired, acceptTime, replaceUntracked, commitDrift = false } = options;
  if ([allowDowngrade, allowExpired, acceptTime, replaceUntracked].some((value) => value !== undefined)) {
    throw new ZferryError("usage", "with --rollback no release is judged, and no file is replaced");
  }
  threadsOf(options);
  const tool = await toolOf(options, env);
  const site = await readSiteConfig(options.config);
  const { resolveRollback } = await import("../install/rollback.js");
  const found = await resolveRollback({
    ...workOf(site, env, {}),
    warn: warnIn(env),
    commitDrift,
    chosen: chosenOf(options),
    tool,
    folder: folderOf(options),
  });
  const { release } = found.installation;
  const name = `the rollback of ${site.product} release ${release.name} (${release.sequence})`;
  await tellResolved(
    found,
    { product: site.product, release },
    name,
    `bundle rollback${commitDrift ? " --commit-drift" : ""}`,
    env,
  );
}

const chosenOf = ({ ours, theirs, again }: ResolveCommandOptions) => ({
  ours: pathsOf(ours),
  theirs: pathsOf(theirs),
  again: pathsOf(again),
});

/** @throws ZferryError `usage` without a terminal; `not-configured` where git has no such tool */
async function toolOf({ tool: named }: ResolveCommandOptions, env: Environment) {
  if (named === undefined) return undefined;
  const tool = { name: named === true ? undefined : named, signal: env.signal, warn: warnIn(env) };
  if (!env.interactive)
    throw new ZferryError("usage", "--tool needs a terminal", {
      hint: "without it, bundle resolve puts the conflicts into a folder, for any editor",
    });
  await requireMergeTool(tool);
  return tool;
}

const folderOf = ({ to }: ResolveCommandOptions): string | undefined =>
  to === undefined ? undefined : resolve(to);

/** Verifies a bundle whole, then lets a person settle its conflicts apart from the live system. */
async function runResolve(path: string, options: ResolveCommandOptions, env: Environment): Promise<void> {
  const site = await readSite(options.config, options.live);
  if (await runPrivately(site, options)) return;
  const exceptions = exceptionsOf(options);
  const { commitDrift = false, replaceUntracked = false } = options;
  const tool = await toolOf(options, env);
  const trust = await readSiteTrust(site);
  const file = await openGiven(path, options, env, threadsOf(options));
  try {
    workOf(site, env, options).step(`verifying ${path}`);
    const bundle = await VerifiedBundle.verify(file, trust);
    if ((await readUnderWay(site)) === undefined) await checkWhole(bundle, env);
    const { release, product } = bundle.manifest;
    const found = await resolveBundle(bundle, {
      site,
      now: env.now,
      progress: env.progress,
      warn: warnIn(env),
      exceptions,
      commitDrift,
      replaceUntracked,
      activate: undefined,
      chosen: chosenOf(options),
      tool,
      folder: folderOf(options),
    });
    const told = { product, release: { ...release, identity: bundle.identity } };
    const name = `${product} release ${release.name} (${release.sequence})`;
    // What the plan was made with, an install needs as well.
    const next = [
      `bundle install ${path}`,
      ...(options.live ? ["--live"] : []),
      ...(commitDrift ? ["--commit-drift"] : []),
      ...(replaceUntracked ? ["--replace-untracked"] : []),
    ].join(" ");
    await tellResolved(found, told, name, next, env);
  } finally {
    env.progress.end();
    await file.close();
  }
}

/** @param next the command that goes on when nothing is left */
async function tellResolved(
  { settled, left, folder }: Resolved & { readonly folder: string },
  { product, release }: { readonly product: string; readonly release: object },
  name: string,
  next: string,
  env: Environment,
): Promise<void> {
  if (env.json) {
    const outcome = left.length === 0 ? "settled" : "open";
    return env.write(`${JSON.stringify({ outcome, product, release, settled, left, folder })}\n`);
  }
  const lines =
    left.length === 0
      ? [`no conflict of ${name} is left, ${settled} settled; ${next} goes on with it`]
      : [
          `${settled} of ${settled + left.length} conflicts of ${name} settled; those left are in ${folder}:`,
          ...left.map(({ path: place, reason, how }) => `  ${place} (${reason}): ${how}`),
          `then run the same command again; nothing of / was changed`,
        ];
  await env.write(`${lines.map(printable).join("\n")}\n`);
}

/** Paths of `/`, as they are shown or absolute. */
const pathsOf = (paths: readonly string[] = []) =>
  paths.map((path) => rawPath(Buffer.from(path.replace(/^\/+/, ""))));
