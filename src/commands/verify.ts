import { join } from "node:path";
import type { Command } from "commander";
import { VerifiedBundle, type Bundle, type Trust } from "../bundle/reader.js";
import type { ByteSource } from "../bundle/members.js";
import { formatBytes, formatTime, printable, throwIfInterrupted, type Environment } from "../report.js";
import { keepAt, withScratch } from "../system/scratch.js";
import {
  addSearchOption,
  addThreadsOption,
  describeStreams,
  isExpired,
  openGiven,
  readTrust,
  repeatable,
  summaryOf,
  threadsOf,
} from "./summary.js";

interface VerifyOptions {
  readonly key?: readonly string[];
  readonly config?: string;
  readonly deep?: boolean;
  readonly threads?: string;
  readonly search?: readonly string[];
}

export function define(command: Command, environment: () => Environment): void {
  addThreadsOption(
    addSearchOption(command)
      .argument("<file>", "the bundle")
      .option("-k, --key <file>", "a public key that may have signed it; can be repeated", repeatable)
      .option(
        "--config <file>",
        "the site's configuration, which names its key folder (default: /etc/zferry/site.toml)",
      )
      .option("--deep", "also decompress everything, and check each record of the streams and the manifest"),
  )
    .addHelpText(
      "after",
      "\nSignatures and hashes say that it is what its publisher made; --deep, that the streams in it are sound." +
        "\n\nExamples:\n  bundle verify R2.bundle --key release.pub\n  bundle verify R2.bundle --key release.pub --deep",
    )
    .action((file: string, options: VerifyOptions) => runVerify(file, options, environment()));
}

/** Checks signatures, then every byte, telling how far it is. */
export async function verifyWhole(
  source: ByteSource,
  trust: Trust,
  env: Environment,
): Promise<VerifiedBundle> {
  const bundle = await VerifiedBundle.verify(source, trust);
  await checkWhole(bundle, env);
  return bundle;
}

/** Checks every byte against the list of hashes, telling how far it is. */
export async function checkWhole(bundle: Bundle, env: Environment): Promise<void> {
  await bundle.checkContents((done, total) => {
    throwIfInterrupted(env.signal);
    env.progress.update("verifying", done, total);
  });
  env.progress.end();
}

/** Checks what the members hold: every record of every stream, the root half, and what the manifest says of them. */
async function checkDeep(bundle: Bundle, env: Environment): Promise<void> {
  // Loaded only when they are needed.
  const { checkStreams } = await import("../bundle/streams.js");
  await checkStreams(bundle, (role, done, total) => {
    throwIfInterrupted(env.signal);
    env.progress.update(`checking ${role}`, done, total);
  });
  env.progress.end();
  const { root } = bundle.manifest;
  if (root === undefined) return;
  const { readChanges } = await import("./inspect.js");
  await readChanges(bundle);
  await withScratch(async (folder) => {
    for (const kind of ["patch", "objects"] as const) {
      let done = 0;
      for await (const { length } of bundle.rootMemberPieces(kind, keepAt(join(folder, kind)))) {
        throwIfInterrupted(env.signal);
        env.progress.update(`checking ${kind} of /`, (done += length), root[kind].rawBytes);
      }
    }
  });
  env.progress.end();
}

/** Checks a whole bundle: signatures, then every byte. */
export async function runVerify(path: string, options: VerifyOptions, env: Environment): Promise<void> {
  const file = await openGiven(path, options, env, threadsOf(options));
  try {
    const trust = await readTrust(options);
    const bundle = await verifyWhole(file, trust, env);
    const { deep = false } = options;
    if (deep) await checkDeep(bundle, env);
    const { manifest } = bundle;
    const { release, product, expires } = manifest;
    const expired = isExpired(manifest, env.now());
    if (env.json) {
      return await env.write(`${JSON.stringify({ verified: true, deep, expired, ...summaryOf(bundle) })}\n`);
    }
    const signers = bundle.signers.map(({ keyId, name }) => `${keyId} (${name})`).join(", ");
    const line =
      `OK ${path}: ${product} release ${release.name} (${release.sequence}), ${describeStreams(manifest)}, ` +
      `${formatBytes(bundle.size)}, signed by ${signers}${deep ? ", every record checked" : ""}`;
    await env.write(`${printable(line)}\n`);
    if (trust.product !== undefined && product !== trust.product) {
      env.note(`this site has product ${trust.product}: bundle install refuses it`);
    }
    if (expired) {
      env.note(`it expired at ${formatTime(expires as number)}: bundle install refuses it`);
    }
  } finally {
    env.progress.end();
    await file.close();
  }
}
