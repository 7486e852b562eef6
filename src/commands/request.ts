import type { Command } from "commander";
import { encodeRequest } from "../carry/request.js";
import { describeSite, readSiteKey, requireIdentity } from "../carry/site.js";
import { openState } from "../install/state.js";
import { readSiteTrust } from "../install/trust.js";
import { formatBytes, printable, type Environment } from "../report.js";
import { writeBundleFile } from "../system/bundle-file.js";
import { requireFileName } from "../system/files.js";
import { readSiteConfig } from "../system/settings.js";

interface RequestOptions {
  readonly output?: string;
  readonly config?: string;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .option("-o, --output <file>", "the request to write (default: <site>.request)")
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .addHelpText(
      "after",
      "\nExample:\n  bundle request -o /media/stick/plant.request\n\n" +
        "On the build host: bundle create --for plant.request",
    )
    .action((options: RequestOptions) => runRequest(options, environment()));
}

/** Writes what a site has, signed with the site's key. */
async function runRequest(options: RequestOptions, env: Environment): Promise<void> {
  const site = await readSiteConfig(options.config);
  const itself = requireIdentity(site);
  const output = options.output ?? `${itself.name}.request`;
  requireFileName(output, "--output");
  const key = await readSiteKey(itself, (prompt) => env.askPassphrase(prompt));
  const state = await openState(site.state).readState();
  const request = await describeSite(site, state, await readSiteTrust(site), {
    made: Math.floor(env.now().getTime() / 1000),
    zferry: env.version,
  });
  const bytes = await writeBundleFile(output, once(encodeRequest(request, key)), env.signal);
  const signedBy = key?.keyId ?? null;
  if (env.json) {
    return env.write(`${JSON.stringify({ file: output, bytes, signedBy, request })}\n`);
  }
  const { installed, streams } = request;
  const what = installed === null ? "no known release" : `release ${installed.name} (${installed.sequence})`;
  const lines = [
    `${output}: site ${itself.name} with ${what}, ${signedBy === null ? "not signed" : `signed by ${signedBy}`}`,
    ...streams.map(({ role, guids, freeBytes }) => {
      const at = guids[0] === undefined ? "nothing yet" : `guid ${guids[0]}`;
      return `  ${role}: ${at}, ${formatBytes(freeBytes)} free`;
    }),
  ];
  await env.write(`${lines.map(printable).join("\n")}\n`);
}

/** For a file that is written whole or not at all. */
export async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
