import { resolve } from "node:path";
import type { Command } from "commander";
import { VerifiedBundle } from "../bundle/reader.js";
import { ZferryError } from "../errors.js";
import { resolveBundle } from "../install/install.js";
import { requireMergeTool } from "../install/merge-tool.js";
import { readSiteTrust } from "../install/trust.js";
import { readUnderWay } from "../install/under-way.js";
import { rawPath } from "../raw-path.js";
import { printable, type Environment } from "../report.js";
import { openBundleFile } from "../system/bundle-file.js";
import { readSiteConfig } from "../system/settings.js";
import { addReleaseOptions, exceptionsOf, warnIn, workOf, type CommandOptions } from "./install.js";
import { repeatable, threadsOf } from "./summary.js";
import { checkWhole } from "./verify.js";

interface ResolveCommandOptions extends CommandOptions {
  readonly to?: string;
  readonly ours?: readonly string[];
  readonly theirs?: readonly string[];
  readonly tool?: string | true;
}

export function define(command: Command, environment: () => Environment): void {
  addReleaseOptions(
    command
      .usage("[options] <file>")
      .argument("[file]", "the bundle")
      .option("--to <folder>", "where the conflicts are put (default: resolve in the state folder)")
      .option("--ours <path>", "keep what the site has of this path; can be repeated", repeatable)
      .option("--theirs <path>", "take what the release has of this path; can be repeated", repeatable)
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
      runResolve(...fileAndTool(file, options), environment()),
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

/** Verifies a bundle whole, then lets a person settle its conflicts apart from the live system. */
async function runResolve(path: string, options: ResolveCommandOptions, env: Environment): Promise<void> {
  const site = await readSiteConfig(options.config);
  const exceptions = exceptionsOf(options);
  const { commitDrift = false, replaceUntracked = false } = options;
  const chosen = { ours: pathsOf(options.ours), theirs: pathsOf(options.theirs) };
  const tool =
    options.tool === undefined
      ? undefined
      : { name: options.tool === true ? undefined : options.tool, signal: env.signal, warn: warnIn(env) };
  if (tool !== undefined) {
    if (!env.interactive)
      throw new ZferryError("usage", "--tool needs a terminal", {
        hint: "without it, bundle resolve puts the conflicts into a folder, for any editor",
      });
    await requireMergeTool(tool);
  }
  const trust = await readSiteTrust(site);
  const file = await openBundleFile(path, threadsOf(options));
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
      chosen,
      tool,
      folder: options.to === undefined ? undefined : resolve(options.to),
    });
    const { settled, left, folder } = found;
    const outcome = left.length === 0 ? "settled" : "open";
    if (env.json) {
      const result = {
        outcome,
        product,
        release: { ...release, identity: bundle.identity },
        settled,
        left,
        folder,
      };
      return await env.write(`${JSON.stringify(result)}\n`);
    }
    const name = `${product} release ${release.name} (${release.sequence})`;
    const lines =
      left.length === 0
        ? [`no conflict of ${name} is left, ${settled} settled; bundle install ${path} goes on with it`]
        : [
            `${settled} of ${settled + left.length} conflicts of ${name} settled; those left are in ${folder}:`,
            ...left.map(({ path: place, reason, how }) => `  ${place} (${reason}): ${how}`),
            `then run the same command again; nothing of / was changed`,
          ];
    await env.write(`${lines.map(printable).join("\n")}\n`);
  } finally {
    env.progress.end();
    await file.close();
  }
}

/** Paths of `/`, as they are shown or absolute. */
const pathsOf = (paths: readonly string[] = []) =>
  paths.map((path) => rawPath(Buffer.from(path.replace(/^\/+/, ""))));
