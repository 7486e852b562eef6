import type { Command } from "commander";
import { VerifiedBundle } from "../bundle/reader.js";
import { ZferryError } from "../errors.js";
import { throwIfInterrupted, type Environment } from "../report.js";
import { openBundleFile } from "../system/bundle-file.js";
import { readTrust } from "../install/trust.js";
import { repeatable } from "./summary.js";

interface SendOptions {
  readonly key?: readonly string[];
  readonly config?: string;
  readonly stream?: string;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .argument("<file>", "the bundle")
    .option("-k, --key <file>", "a public key that may have signed it; can be repeated", repeatable)
    .option("-s, --stream <role>", "which stream (default: the only one)")
    .option(
      "--config <file>",
      "the site's configuration, which names its key folder (default: /etc/zferry/site.toml)",
    )
    .addHelpText(
      "after",
      "\nExample:\n  bundle send R2.bundle --key release.pub --stream usr | zfs receive -u rpool/SYSTEM/USR/gentoo",
    )
    .action((file: string, options: SendOptions) => runSend(file, options, environment()));
}

/** Writes a verified stream to standard output. Each chunk is checked before its bytes leave. */
export async function runSend(path: string, options: SendOptions, env: Environment): Promise<void> {
  if (env.terminal) {
    throw new ZferryError("usage", "standard output is a terminal, and a send stream is binary", {
      hint: "give it to zfs receive, or to a file",
    });
  }
  const trust = await readTrust(options);
  const file = await openBundleFile(path);
  try {
    const bundle = await VerifiedBundle.verify(file, trust);
    const stream = chooseStream(bundle, options.stream);
    let done = 0;
    for await (const chunk of bundle.chunks(stream)) {
      throwIfInterrupted(env.signal);
      await env.write(chunk);
      done += chunk.length;
      env.progress.update(`sending ${stream.role}`, done, stream.rawBytes);
    }
  } finally {
    env.progress.end();
    await file.close();
  }
}

function chooseStream({ manifest: { streams } }: VerifiedBundle, role: string | undefined) {
  const roles = streams.map((stream) => stream.role).join(", ");
  if (role === undefined && streams.length > 1) {
    throw new ZferryError("usage", `the bundle has streams ${roles}`, { hint: "choose one with --stream" });
  }
  const chosen = role === undefined ? streams[0] : streams.find((stream) => stream.role === role);
  if (chosen === undefined) {
    throw new ZferryError("usage", `the bundle has no stream ${role}, only ${roles}`);
  }
  return chosen;
}
