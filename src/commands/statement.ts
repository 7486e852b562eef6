import { readSiteKey, requireIdentity } from "../carry/site.js";
import type { SiteConfig } from "../config.js";
import { openState, type SiteState } from "../install/state.js";
import type { Environment } from "../report.js";
import { writeBundleFile } from "../system/bundle-file.js";
import { requireFileName } from "../system/files.js";
import { readSiteConfig } from "../system/settings.js";
import type { SecretKey } from "../trust/minisign.js";

/** What `bundle request` and `bundle receipt` have in common: a site that says something of itself, signed with its key. */
export interface StatementOptions {
  readonly output?: string;
  readonly config?: string;
}

/** What any statement says first. */
interface Heading {
  readonly site: string;
  readonly made: number;
  readonly zferry: string;
}

/**
 * Writes a statement to a new file, and with `--json` the result.
 * @returns undefined after that; otherwise what is to be told of it
 */
export async function writeStatement<Value>(
  kind: "request" | "receipt",
  options: StatementOptions,
  env: Environment,
  {
    make,
    encode,
  }: {
    readonly make: (site: SiteConfig, state: SiteState | undefined, heading: Heading) => Promise<Value>;
    readonly encode: (value: Value, key: SecretKey | undefined) => Uint8Array;
  },
): Promise<{ value: Value; output: string; site: string; signedBy: string | null } | undefined> {
  const config = await readSiteConfig(options.config);
  const itself = requireIdentity(config);
  const output = options.output ?? `${itself.name}.${kind}`;
  requireFileName(output, "--output");
  const key = await readSiteKey(itself, (prompt) => env.askPassphrase(prompt));
  const state = await openState(config.state).readState();
  const made = Math.floor(env.now().getTime() / 1000);
  const value = await make(config, state, { site: itself.name, made, zferry: env.version });
  const bytes = await writeBundleFile(output, once(encode(value, key)), env.signal);
  const signedBy = key?.keyId ?? null;
  if (!env.json) return { value, output, site: itself.name, signedBy };
  await env.write(`${JSON.stringify({ file: output, bytes, signedBy, [kind]: value })}\n`);
  return undefined;
}

/** For a file that is written whole or not at all. */
async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
