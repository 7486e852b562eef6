import type { Command } from "commander";
import { encodeRequest } from "../carry/request.js";
import { describeSite } from "../carry/site.js";
import { readSiteTrust } from "../install/trust.js";
import { formatBytes, printable, type Environment } from "../report.js";
import { writeStatement, type StatementOptions } from "./statement.js";

export function define(command: Command, environment: () => Environment): void {
  command
    .option("-o, --output <file>", "the request to write (default: <site>.request)")
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .addHelpText(
      "after",
      "\nExample:\n  bundle request -o /media/stick/plant.request\n\n" +
        "On the build host: bundle create --for plant.request",
    )
    .action((options: StatementOptions) => runRequest(options, environment()));
}

/** Writes what a site has, signed with the site's key. */
async function runRequest(options: StatementOptions, env: Environment): Promise<void> {
  const written = await writeStatement("request", options, env, {
    make: async (site, state, heading) => describeSite(site, state, await readSiteTrust(site), heading),
    encode: encodeRequest,
  });
  if (written === undefined) return;
  const { value: request, output, site, signedBy } = written;
  const { installed, streams } = request;
  const what = installed === null ? "no known release" : `release ${installed.name} (${installed.sequence})`;
  const lines = [
    `${output}: site ${site} with ${what}, ${signedBy === null ? "not signed" : `signed by ${signedBy}`}`,
    ...streams.map(({ role, guids, freeBytes }) => {
      const at = guids[0] === undefined ? "nothing yet" : `guid ${guids[0]}`;
      return `  ${role}: ${at}, ${formatBytes(freeBytes)} free`;
    }),
  ];
  await env.write(`${lines.map(printable).join("\n")}\n`);
}
