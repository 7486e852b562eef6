import type { Command } from "commander";
import { confirmInstall } from "../install/rollback.js";
import { formatTime, printable, type Environment } from "../report.js";
import { readSiteConfig } from "../system/settings.js";

interface ConfirmOptions {
  readonly config?: string;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .addHelpText(
      "after",
      "\nExample:\n  bundle confirm\n\n" +
        "The snapshots that bundle rollback would go back to are let go, and the space that they keep can be freed.",
    )
    .action((options: ConfirmOptions) => runConfirm(options, environment()));
}

/** Ends the possibility to roll the newest install back. */
async function runConfirm(options: ConfirmOptions, env: Environment): Promise<void> {
  const site = await readSiteConfig(options.config);
  const found = await confirmInstall(site, env.now);
  const { release = null, confirmedAt = null } = found?.installation ?? {};
  if (env.json) {
    const outcome = found?.isNew === true ? "confirmed" : "present";
    return env.write(`${JSON.stringify({ outcome, product: site.product, release, confirmedAt })}\n`);
  }
  const what = `${site.product} release ${release?.name ?? ""} (${release?.sequence ?? 0})`;
  const text =
    found === undefined
      ? "no release is installed that could be rolled back; nothing to confirm"
      : found.isNew
        ? `confirmed ${what}; it cannot be rolled back any more`
        : `${what} was confirmed at ${formatTime(confirmedAt ?? 0)}; nothing to confirm`;
  await env.write(`${printable(text)}\n`);
}
