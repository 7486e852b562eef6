import type { Command } from "commander";
import { activateEnvironment } from "../install/environments.js";
import { printable, type Environment } from "../report.js";
import { readSiteConfig } from "../system/settings.js";

interface ActivateOptions {
  readonly force?: boolean;
  readonly config?: string;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .argument("<name>", "the boot environment, as bundle environments names it")
    .option("--force", "also when no kernel and initramfs are where the loader looks for them")
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .addHelpText(
      "after",
      "\nExample:\n  bundle activate R2\n\n" +
        "The running system is not changed: reboot. The one before stays, and is activated in the same way.",
    )
    .action((name: string, options: ActivateOptions) => runActivate(name, options, environment()));
}

/** Has a boot environment boot next. */
export async function runActivate(name: string, options: ActivateOptions, env: Environment): Promise<void> {
  const site = await readSiteConfig(options.config);
  const activated = await activateEnvironment(site, name, { force: options.force ?? false });
  if (env.json) return env.write(`${JSON.stringify(activated)}\n`);
  for (const warning of activated.warnings) env.note(printable(`warning: ${warning}`));
  const already = activated.outcome === "present" ? " already" : "";
  await env.write(`${printable(activated.name)} boots next${already}: ${activated.dataset}\n`);
}
