import type { Command } from "commander";
import { encodeReceipt, makeReceipt } from "../carry/receipt.js";
import { requireProduct } from "../install/policy.js";
import { readUnderWay } from "../install/under-way.js";
import { printable, type Environment } from "../report.js";
import { writeStatement, type StatementOptions } from "./statement.js";

export function define(command: Command, environment: () => Environment): void {
  command
    .option("-o, --output <file>", "the receipt to write (default: <site>.receipt)")
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .addHelpText(
      "after",
      "\nExample:\n  bundle receipt -o /media/stick/plant.receipt\n\n" +
        "On the build host: bundle sites add plant.receipt",
    )
    .action((options: StatementOptions) => runReceipt(options, environment()));
}

/** Writes what was installed on a site, signed with the site's key. */
async function runReceipt(options: StatementOptions, env: Environment): Promise<void> {
  const written = await writeStatement("receipt", options, env, {
    make: async (site, state, heading) => {
      if (state !== undefined) requireProduct(state, site.product);
      return makeReceipt(state, await readUnderWay(site), { ...heading, product: site.product });
    },
    encode: encodeReceipt,
  });
  if (written === undefined) return;
  const { value: receipt, output, site, signedBy } = written;
  const { installed } = receipt;
  const what =
    installed === null ? "no release by zferry" : `release ${installed.name} (${installed.sequence})`;
  const signed = signedBy === null ? "not signed: bundle sites refuses it" : `signed by ${signedBy}`;
  await env.write(`${printable(`${output}: site ${site} with ${what}, ${signed}`)}\n`);
}
