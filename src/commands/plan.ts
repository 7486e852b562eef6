import type { Command } from "commander";
import type { Environment } from "../report.js";
import { addInstallOptions, runInstall, type CommandOptions } from "./install.js";

export function define(command: Command, environment: () => Environment): void {
  addInstallOptions(command.argument("<file>", "the bundle, or a folder of bundles"))
    .addHelpText("after", "\nExamples:\n  bundle plan /media/stick/R2.bundle\n  bundle plan /media/stick")
    .action((file: string, options: CommandOptions) =>
      runInstall(file, { ...options, dryRun: true }, environment()),
    );
}
