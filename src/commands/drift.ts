import type { Command } from "commander";
import { requireRoot } from "../config.js";
import { ZferryError } from "../errors.js";
import { showPath } from "../raw-path.js";
import { printable, printableLines, type Environment } from "../report.js";
import { readDrift, readDriftPatch, type Drift, type DriftEntry, type DriftKind } from "../root/drift.js";
import { pathName } from "../root/paths.js";
import { readSiteConfig } from "../system/settings.js";

interface DriftOptions {
  readonly config?: string;
  readonly patch?: boolean;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .option("--patch", "print the difference as a patch")
    .addHelpText(
      "after",
      "\nExamples:\n  bundle drift\n  bundle drift --patch | less\n\n" +
        "Compared are contents and the executable bit of files that git tracks; git does not keep owners,\n" +
        "other permissions and extended attributes. A patch shows what is in the files, passwords too.",
    )
    .action((options: DriftOptions) => runDrift(options, environment()));
}

/** Shows how this site's `/` differs from the release that it was made from. */
export async function runDrift(options: DriftOptions, env: Environment): Promise<void> {
  if (options.patch && env.json) {
    throw new ZferryError("usage", "--patch and --json contradict each other");
  }
  const root = requireRoot(await readSiteConfig(options.config));
  if (options.patch) {
    const patch = await readDriftPatch(root.path);
    // What could command a terminal does not go to one.
    return env.write(env.terminal ? printableLines(patch) : patch);
  }
  const drift = await readDrift(root.path);
  await env.write(env.json ? asJson(drift) : asText(drift));
}

function asJson({ committed, uncommitted, ...commits }: Drift): string {
  const entry = ({ kind, path, from }: DriftEntry): object => ({
    kind,
    path: pathName(path),
    ...(from === undefined ? {} : { from: pathName(from) }),
  });
  const lists = { committed: committed.map(entry), uncommitted: uncommitted.map(entry) };
  return `${JSON.stringify({ ...commits, ...lists })}\n`;
}

/** As `git status` has them. */
const LETTERS: Record<DriftKind, string> = {
  added: "A",
  modified: "M",
  deleted: "D",
  renamed: "R",
  retyped: "T",
};

function asText({ release, committed, uncommitted }: Drift): string {
  const list = (title: string, entries: readonly DriftEntry[]): string[] => [
    `${title}: ${entries.length === 0 ? "none" : entries.length}`,
    ...entries.map(
      ({ kind, path, from }) =>
        `  ${LETTERS[kind]} ${from === undefined ? "" : `${showPath(from)} -> `}${showPath(path)}`,
    ),
  ];
  const lines = [
    `release:     ${release}`,
    ...list("committed", committed),
    ...list("uncommitted", uncommitted),
    "not compared: owners, permissions and extended attributes, and files that git does not track",
  ];
  return `${lines.map(printable).join("\n")}\n`;
}
