import type { Command } from "commander";
import { encodeReceipt, makeReceipt } from "../carry/receipt.js";
import { readSiteKey, requireIdentity } from "../carry/site.js";
import { requireProduct } from "../install/policy.js";
import { openState } from "../install/state.js";
import { readUnderWay } from "../install/under-way.js";
import { printable, type Environment } from "../report.js";
import { writeBundleFile } from "../system/bundle-file.js";
import { requireFileName } from "../system/files.js";
import { readSiteConfig } from "../system/settings.js";
import { once } from "./request.js";

interface ReceiptOptions {
  readonly output?: string;
  readonly config?: string;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .option("-o, --output <file>", "the receipt to write (default: <site>.receipt)")
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .addHelpText(
      "after",
      "\nExample:\n  bundle receipt -o /media/stick/plant.receipt\n\n" +
        "On the build host: bundle sites add plant.receipt",
    )
    .action((options: ReceiptOptions) => runReceipt(options, environment()));
}

/** Writes what was installed on a site, signed with the site's key. */
async function runReceipt(options: ReceiptOptions, env: Environment): Promise<void> {
  const site = await readSiteConfig(options.config);
  const itself = requireIdentity(site);
  const output = options.output ?? `${itself.name}.receipt`;
  requireFileName(output, "--output");
  const key = await readSiteKey(itself, (prompt) => env.askPassphrase(prompt));
  const state = await openState(site.state).readState();
  if (state !== undefined) requireProduct(state, site.product);
  const receipt = makeReceipt(state, await readUnderWay(site), {
    site: itself.name,
    product: site.product,
    made: Math.floor(env.now().getTime() / 1000),
    zferry: env.version,
  });
  const bytes = await writeBundleFile(output, once(encodeReceipt(receipt, key)), env.signal);
  const signedBy = key?.keyId ?? null;
  if (env.json) {
    return env.write(`${JSON.stringify({ file: output, bytes, signedBy, receipt })}\n`);
  }
  const { installed } = receipt;
  const what =
    installed === null ? "no release by zferry" : `release ${installed.name} (${installed.sequence})`;
  const signed = signedBy === null ? "not signed: bundle sites refuses it" : `signed by ${signedBy}`;
  await env.write(`${printable(`${output}: site ${itself.name} with ${what}, ${signed}`)}\n`);
}
