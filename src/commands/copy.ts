import { stat } from "node:fs/promises";
import type { Command } from "commander";
import { VerifiedBundle, type Trust } from "../bundle/reader.js";
import { VOLUME_LIMITS } from "../bundle/volumes.js";
import { copyBundles, type Copy } from "../carry/copy.js";
import type { VolumeRange } from "../carry/volumes.js";
import { ZferryError } from "../errors.js";
import { formatBytes, printable, type Environment } from "../report.js";
import type { OpenedFile } from "../system/bundle-file.js";
import type { ReadBack } from "../system/medium.js";
import { addSearchOption, byteCount, openGiven, readTrust, repeatable } from "./summary.js";

interface CopyOptions {
  readonly key?: readonly string[];
  readonly config?: string;
  readonly volumeSize?: string;
  readonly volumes?: string;
  readonly search?: readonly string[];
}

export function define(command: Command, environment: () => Environment): void {
  addSearchOption(command)
    .usage("[options] <file...> <folder>")
    .argument("<file...>", "bundles, each a file or the first of its volumes; last a folder on the medium")
    .option("-k, --key <file>", "a public key that may have signed them; can be repeated", repeatable)
    .option(
      "--config <file>",
      "the site's configuration, which names its key folder (default: /etc/zferry/site.toml)",
    )
    .option(
      "--volume-size <bytes>",
      "write volumes of this size, such as 700M (default: one file; on FAT volumes of 4095M, if it has 4 GiB)",
    )
    .option("--volumes <numbers>", "only these volumes, such as 4-5: the others go to other media")
    .addHelpText(
      "after",
      "\nNothing gets its name before it was read back from the medium. After an interruption the same command goes on." +
        "\n\nExamples:\n  bundle copy R2.bundle /media/stick --key release.pub" +
        "\n  bundle copy R2.bundle /media/one --volume-size 2000000000 --volumes 1-2",
    )
    .action((paths: readonly string[], options: CopyOptions) => runCopy(paths, options, environment()));
}

/** Copies bundles to a folder, and says whether what arrived there is what was signed. */
export async function runCopy(
  paths: readonly string[],
  options: CopyOptions,
  env: Environment,
): Promise<void> {
  const [files, folder] = [paths.slice(0, -1), paths.at(-1)];
  if (files.length === 0 || folder === undefined) {
    throw new ZferryError("usage", "missing required argument 'folder'", {
      hint: "bundle copy --help shows how",
    });
  }
  const volumeBytes = byteCount(options.volumeSize, "--volume-size", VOLUME_LIMITS.volumeBytes);
  const volumes = rangeOf(options.volumes);
  if (volumes !== undefined && files.length > 1) {
    throw new ZferryError("usage", "--volumes is of one bundle, and several are named");
  }
  const trust = await trustIfKnown(options);
  const opened: OpenedFile[] = [];
  try {
    for (const file of files) opened.push(await openGiven(file, options, env));
    const warnings = await warningsOf(opened, folder);
    for (const warning of warnings) env.note(`warning: ${warning}`);
    const { signal, progress } = env;
    const copies = await copyBundles(opened, { folder, trust, volumeBytes, volumes, signal, progress });
    await env.write(env.json ? asJson(copies, folder, warnings) : asText(copies, folder, warnings));
  } finally {
    env.progress.end();
    for (const file of opened) await file.close();
  }
}

/** The keys that are named, or the site's where there is a site; undefined where there is none. */
async function trustIfKnown(options: CopyOptions): Promise<Trust | undefined> {
  try {
    return await readTrust(options);
  } catch (error) {
    const named = options.key !== undefined || options.config !== undefined;
    if (named || !(error instanceof ZferryError && error.code === "not-configured")) throw error;
    return undefined;
  }
}

/** @throws ZferryError `usage` */
function rangeOf(text: string | undefined): VolumeRange | undefined {
  if (text === undefined) return undefined;
  const [, first = "", last = first] = /^([0-9]{1,3})(?:-([0-9]{1,3}))?$/.exec(text) ?? [];
  const range = { first: Number(first), last: Number(last) };
  if (range.first >= 1 && range.first <= range.last) return range;
  throw new ZferryError("usage", `--volumes: ${text} is not a number, or two such as 4-5`);
}

/** Where nothing is mounted, the folder is one of this machine's own disk. */
async function warningsOf(files: readonly OpenedFile[], folder: string): Promise<string[]> {
  const deviceOf = async (path: string): Promise<number | undefined> =>
    (await stat(path).catch(() => undefined))?.dev;
  const device = await deviceOf(folder);
  if (device === undefined) return [];
  const same = files.find((file) => file.stat.isFile() && file.stat.dev === device);
  const what = same?.name ?? (device === (await deviceOf("/")) ? "/" : undefined);
  if (what === undefined) return [];
  return [`${folder} is on the file system that ${what} is on: is the medium mounted there?`];
}

const HOW: Record<ReadBack, string> = {
  direct: "read back from the medium, past the kernel's cache",
  asked: "read back after the kernel was asked to forget it, which it may not have done",
  fuse: "read back through a driver (FUSE) that may have kept it in memory",
  zfs: "read back through ZFS, which may have kept it in memory",
  memory: "read back from memory: there is no medium",
};

function asText(copies: readonly Copy[], folder: string, warnings: readonly string[]): string {
  const lines = copies.flatMap(({ bundle, files, parts, readBack }) => {
    const signed =
      bundle instanceof VerifiedBundle
        ? `signed by ${bundle.signers.map(({ keyId, name }) => `${keyId} (${name})`).join(", ")}`
        : "hashes checked, SIGNATURES NOT CHECKED: name a key with --key";
    const count = parts === 1 ? "" : `, ${files.length} of ${parts} volumes`;
    return [
      `${bundle.name}: ${formatBytes(bundle.size)}${count}, ${signed}`,
      ...files.map(({ file, bytes, outcome, resumed }) => {
        const what = outcome === "present" ? "is there already" : "copied";
        const from = resumed === 0 ? "" : `, ${formatBytes(resumed)} were there`;
        return `  ${file}: ${what}, ${formatBytes(bytes)}${from}; ${HOW[readBack]}`;
      }),
    ];
  });
  // Where there may be no medium, nothing is said of one.
  if (warnings.length === 0 && copies.every(({ readBack }) => readBack !== "memory")) {
    lines.push(`all of it is on the medium: ${folder} can be unmounted, and then taken out`);
  }
  return lines.map((line) => `${printable(line)}\n`).join("");
}

const asJson = (copies: readonly Copy[], folder: string, warnings: readonly string[]): string =>
  `${JSON.stringify({
    folder,
    warnings,
    copies: copies.map(({ bundle, files, parts, readBack }) => ({
      file: bundle.name,
      bytes: bundle.size,
      identity: bundle.identity,
      signers: bundle instanceof VerifiedBundle ? bundle.signers : null,
      volumes: parts,
      readBack,
      files,
    })),
  })}\n`;
