import type { Command } from "commander";
import { Bundle } from "../bundle/reader.js";
import type { Environment } from "../report.js";
import { addSearchOption, openGiven } from "./summary.js";
import { checkWhole } from "./verify.js";

interface SumsOptions {
  readonly search?: readonly string[];
}

export function define(command: Command, environment: () => Environment): void {
  addSearchOption(command)
    .argument("<file>", "the bundle")
    .addHelpText(
      "after",
      "\nExample:\n" +
        "  bundle sums R2.bundle >SHA256SUMS              # the key is on another machine\n" +
        "  minisign -S -s second.key -m SHA256SUMS        # there\n" +
        "  bundle sign R2.bundle --attach SHA256SUMS.minisig --key second.pub",
    )
    .action((file: string, options: SumsOptions) => runSums(file, options, environment()));
}

/** Prints what is signed, the exact bytes of `SHA256SUMS`, once the whole file was found to be what they say. */
export async function runSums(path: string, options: SumsOptions, env: Environment): Promise<void> {
  const file = await openGiven(path, options, env);
  try {
    const bundle = await Bundle.readUnverified(file);
    await checkWhole(bundle, env);
    await env.write(
      env.json
        ? `${JSON.stringify({ file: path, identity: bundle.identity, sums: Buffer.from(bundle.sums).toString() })}\n`
        : bundle.sums,
    );
  } finally {
    env.progress.end();
    await file.close();
  }
}
