import type { Command } from "commander";
import * as v from "valibot";
import { makeRelease } from "../build/release.js";
import { releaseName } from "../bundle/manifest.js";
import { ZferryError } from "../errors.js";
import { describeSecret } from "../root/secrets.js";
import type { Environment } from "../report.js";
import { readBuildConfig } from "../system/settings.js";
import { fullName } from "../system/zfs.js";

interface SnapshotOptions {
  readonly message?: string;
  readonly config?: string;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .argument("<release>", "the release's name, which its snapshots and its tag get")
    .option("-m, --message <text>", "commit what is not committed in /, with this message")
    .option("--config <file>", "the build host's configuration (default: /etc/zferry/build.toml)")
    .addHelpText("after", '\nExample:\n  bundle snapshot R2 -m "November updates"')
    .action((name: string, options: SnapshotOptions) => runSnapshot(name, options, environment()));
}

/** Makes a release on the build host. */
export async function runSnapshot(name: string, options: SnapshotOptions, env: Environment): Promise<void> {
  if (!v.is(releaseName, name)) {
    throw new ZferryError("usage", `${JSON.stringify(name)} is not a release name`, {
      hint: "1 to 64 of A-Z a-z 0-9 . _ -, starting with a letter or digit, without .. and not ending in .lock",
    });
  }
  const release = await makeRelease(await readBuildConfig(options.config), name, options.message);
  const { sequence, commit, snapshots, committed } = release;
  const warnings = release.secrets.map(
    (secret) => `bundle create will refuse ${describeSecret(secret)}: formats/root.md, What never travels`,
  );
  if (!env.json) for (const warning of warnings) env.note(`warning: ${warning}`);
  await env.write(
    env.json
      ? `${JSON.stringify({ release: { name, sequence }, commit, committed, snapshots, warnings })}\n`
      : `release ${name} (${sequence}), commit ${commit.slice(0, 12)}${committed ? " (new)" : ""}\n` +
          snapshots.map((snapshot) => `  ${fullName(snapshot)} (guid ${snapshot.guid})\n`).join(""),
  );
}
