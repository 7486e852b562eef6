import type { Command } from "commander";
import { VerifiedBundle, type Bundle, type Trust } from "../bundle/reader.js";
import type { ByteSource } from "../bundle/members.js";
import { formatBytes, formatTime, printable, throwIfInterrupted, type Environment } from "../report.js";
import { openBundleFile } from "../system/bundle-file.js";
import { readTrust } from "../install/trust.js";
import { addThreadsOption, describeStreams, isExpired, repeatable, summaryOf, threadsOf } from "./summary.js";

interface VerifyOptions {
  readonly key?: readonly string[];
  readonly config?: string;
  readonly threads?: string;
}

export function define(command: Command, environment: () => Environment): void {
  addThreadsOption(
    command
      .argument("<file>", "the bundle")
      .option("-k, --key <file>", "a public key that may have signed it; can be repeated", repeatable)
      .option(
        "--config <file>",
        "the site's configuration, which names its key folder (default: /etc/zferry/site.toml)",
      ),
  )
    .addHelpText("after", "\nExample:\n  bundle verify R2.bundle --key release.pub")
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

/** Checks a whole bundle: signatures, then every byte. */
export async function runVerify(path: string, options: VerifyOptions, env: Environment): Promise<void> {
  const file = await openBundleFile(path, threadsOf(options));
  try {
    const trust = await readTrust(options);
    const bundle = await verifyWhole(file, trust, env);
    const { manifest } = bundle;
    const { release, product, expires } = manifest;
    const expired = isExpired(manifest, env.now());
    if (env.json) {
      return await env.write(`${JSON.stringify({ verified: true, expired, ...summaryOf(bundle) })}\n`);
    }
    const signers = bundle.signers.map(({ keyId, name }) => `${keyId} (${name})`).join(", ");
    const line =
      `OK ${path}: ${product} release ${release.name} (${release.sequence}), ${describeStreams(manifest)}, ` +
      `${formatBytes(bundle.size)}, signed by ${signers}`;
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
