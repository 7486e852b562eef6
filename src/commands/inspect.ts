import { join } from "node:path";
import type { Command } from "commander";
import { Bundle, VerifiedBundle } from "../bundle/reader.js";
import { ZferryError } from "../errors.js";
import { formatBytes, formatTime, printable, printableLines, type Environment } from "../report.js";
import { showPath } from "../raw-path.js";
import { checkCounts, parseMetadata, type RootMetadata } from "../root/metadata.js";
import { pathOf } from "../root/paths.js";
import { keepAt, withScratch } from "../system/scratch.js";
import { parseSignature } from "../trust/minisign.js";
import {
  addSearchOption,
  describeBase,
  describeKeyChange,
  isExpired,
  openGiven,
  readTrust,
  repeatable,
  summaryOf,
} from "./summary.js";

interface InspectOptions {
  readonly key?: readonly string[];
  readonly config?: string;
  readonly patch?: boolean;
  readonly search?: readonly string[];
}

export function define(command: Command, environment: () => Environment): void {
  addSearchOption(command)
    .argument("<file>", "the bundle")
    .option("-k, --key <file>", "verify the signatures with this public key; can be repeated", repeatable)
    .option("--config <file>", "verify the signatures with the keys of a site's configuration")
    .option("--patch", "print the patch of /")
    .addHelpText(
      "after",
      "\nExamples:\n  bundle inspect R2.bundle\n  bundle inspect R2.bundle --key release.pub --patch | less",
    )
    .action((file: string, options: InspectOptions) => runInspect(file, options, environment()));
}

/** Shows what a bundle says of itself. Without a key nothing of it is verified, and the output says so. */
export async function runInspect(path: string, options: InspectOptions, env: Environment): Promise<void> {
  const file = await openGiven(path, options, env);
  try {
    const bundle =
      options.key === undefined && options.config === undefined
        ? await Bundle.readUnverified(file)
        : await VerifiedBundle.verify(file, await readTrust(options));
    if (options.patch) return await writePatch(bundle, env);
    const changes = await readChanges(bundle);
    const expired = isExpired(bundle.manifest, env.now());
    await env.write(
      env.json
        ? `${JSON.stringify({ verified: bundle instanceof VerifiedBundle, expired, ...summaryOf(bundle), changes: changes ?? null })}\n`
        : asText(bundle, changes, expired),
    );
  } finally {
    await file.close();
  }
}

/** The changed paths of the root half, after all that can be checked of its metadata alone. */
export async function readChanges(bundle: Bundle): Promise<RootMetadata["changes"] | undefined> {
  const { root } = bundle.manifest;
  if (root === undefined) return undefined;
  const metadata = parseMetadata(await bundle.rootMember("metadata"));
  checkCounts(metadata, root);
  return metadata.changes;
}

const NOT_VERIFIED =
  "NOTHING IS VERIFIED: this is what the file says of itself. Use bundle verify, or give --key.";

async function writePatch(bundle: Bundle, env: Environment): Promise<void> {
  if (bundle.manifest.root === undefined) {
    throw new ZferryError("usage", `${bundle.name} has no root half, so there is no patch`);
  }
  if (!(bundle instanceof VerifiedBundle)) env.note(NOT_VERIFIED);
  // A patch goes to a file or a pager as it is; what could command a terminal does not go to one.
  if (env.terminal) return env.write(printableLines(await bundle.rootMember("patch")));
  await withScratch(async (folder) => {
    const pieces = bundle.rootMemberPieces("patch", keepAt(join(folder, "patch")));
    for await (const piece of pieces) await env.write(piece);
  });
}

function asText(bundle: Bundle, changes: RootMetadata["changes"] | undefined, expired: boolean): string {
  const { product, release, created, expires, notes, streams, root, keys, requires } = bundle.manifest;
  const lines = [
    bundle instanceof VerifiedBundle
      ? "The signatures are verified, the contents are NOT: use bundle verify."
      : NOT_VERIFIED,
    `product:   ${product}`,
    `release:   ${release.name} (sequence ${release.sequence})`,
    `created:   ${formatTime(created)}`,
    ...(expires === undefined
      ? []
      : [`expires:   ${formatTime(expires)}${expired ? " (expired: bundle install refuses it)" : ""}`]),
    ...(notes?.split("\n") ?? []).map((line, index) => `${index === 0 ? "notes:   " : "         "}  ${line}`),
    `file:      ${formatBytes(bundle.size)}`,
    ...signers(bundle),
    ...streams.flatMap((stream) => {
      const { role, dataset, target, features, rawBytes, chunks } = stream;
      const stored = chunks.reduce((sum, { storedBytes }) => sum + storedBytes, 0);
      return [
        `stream:    ${role}, of ${dataset}`,
        `  base:    ${describeBase(stream)}`,
        `  target:  ${target.snapshot} (guid ${target.guid})`,
        `  size:    ${formatBytes(rawBytes)}, ${formatBytes(stored)} stored in ${chunks.length} ${chunks.length === 1 ? "chunk" : "chunks"}`,
        `  flags:   ${features.join(", ") || "none"}`,
      ];
    }),
    ...(requires.poolFeatures.length === 0
      ? []
      : [`needs:     pool features ${requires.poolFeatures.join(", ")}`]),
    `needs:     ${formatBytes(requires.freeBytes)} free in the pool at most`,
  ];
  if (keys !== undefined) lines.push(`keys:      ${describeKeyChange(keys)}`);
  if (root === undefined) return `${[...lines, "root:      no change of /"].map(printable).join("\n")}\n`;
  const { added, modified, deleted } = root.counts;
  lines.push(
    `root:      commit ${root.base?.commit ?? "none"} to ${root.target.commit}`,
    `  changes: ${added} added, ${modified} modified, ${deleted} deleted`,
    ...(changes ?? []).map((change) => `  ${kindOf(change)} ${showPath(pathOf(change.path))}`),
  );
  return `${lines.map(printable).join("\n")}\n`;
}

/** Letters as `git status` has them; `m` where only owner, mode, extended attributes or hard links change. */
function kindOf({ before, after }: RootMetadata["changes"][number]): string {
  if (before === null) return "A";
  if (after === null) return "D";
  if (before.mode !== after.mode) return "T";
  return before.blob === after.blob ? "m" : "M";
}

const signers = (bundle: Bundle): string[] =>
  bundle.signatures.map(({ keyId, bytes }) => {
    const { trustedComment } = parseSignature(bytes, `signatures/${keyId}.minisig`);
    const trusted =
      bundle instanceof VerifiedBundle && bundle.signers.some((signer) => signer.keyId === keyId);
    return trusted
      ? `signed by: ${keyId} (verified), trusted comment: ${trustedComment.replaceAll("\t", " ")}`
      : `signed by: ${keyId} (not verified)`;
  });
