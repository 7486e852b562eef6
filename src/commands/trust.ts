import type { Command } from "commander";
import { changeTrust } from "../install/change-trust.js";
import { readSiteTrust, type SiteTrust } from "../install/trust.js";
import { ZferryError } from "../errors.js";
import { printable, type Environment } from "../report.js";
import { readSiteConfig } from "../system/settings.js";
import { identityOf } from "../trust/keys.js";
import { parsePublicKey, publicKeyLine } from "../trust/minisign.js";

interface TrustOptions {
  readonly add?: string;
  readonly revoke?: string;
  readonly config?: string;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .option("--add <file>", "trust this public key from now on")
    .option("--revoke <key>", "never trust this key again: its id, or a file of the public key")
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .addHelpText(
      "after",
      "\nExamples:\n  bundle trust\n  bundle trust --add second.pub\n  bundle trust --revoke 0E07B77755AB6E15",
    )
    .action((options: TrustOptions) => runTrust(options, environment()));
}

/** Shows whom the site believes, after having changed it where that is asked for. */
export async function runTrust(options: TrustOptions, env: Environment): Promise<void> {
  if (options.add !== undefined && options.revoke !== undefined) {
    throw new ZferryError("usage", "--add and --revoke are two changes: make one after the other");
  }
  const site = await readSiteConfig(options.config);
  if (options.add !== undefined) await changeTrust(site, { add: options.add });
  if (options.revoke !== undefined) await changeTrust(site, { revoke: options.revoke });
  const trust = await readSiteTrust(site);
  await env.write(env.json ? asJson(trust) : asText(trust));
}

const idOf = (line: string): string => parsePublicKey(line, line).keyId;

const asJson = ({ keys, threshold, set }: SiteTrust): string =>
  `${JSON.stringify({
    threshold,
    counter: set.counter,
    trusted: keys.map((key) => ({ keyId: key.keyId, name: key.name, key: identityOf(key) })),
    revoked: set.revoked.map((line) => ({ keyId: idOf(line), publicKey: line })),
  })}\n`;

function asText({ keys, threshold, set, known }: SiteTrust): string {
  const lines = [
    `signatures by ${threshold} of these keys are needed:`,
    // Whole, for comparing: a key can be made with any id.
    ...keys.flatMap((key) => [`  ${key.keyId} (${key.name})`, `    ${publicKeyLine(key)}`]),
    ...set.revoked.map((line) => `  ${idOf(line)} is revoked`),
    ...(keys.length < threshold
      ? ["they are too few: no bundle can be accepted; bundle trust --add adds one"]
      : []),
    set.counter === 0 ? "no key change by a release yet" : `last key change by a release: ${set.counter}`,
    ...(known ? [] : ["this site has no state yet"]),
  ];
  return `${lines.map(printable).join("\n")}\n`;
}
