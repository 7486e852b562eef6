import type { Command } from "commander";
import { abortInstall } from "../install/install.js";
import { runMoved, runPrivately } from "../install/live.js";
import { readSite } from "../install/mode.js";
import type { Journal } from "../install/state.js";
import { readUnderWay } from "../install/under-way.js";
import type { Environment } from "../report.js";
import { tellEnd, workOf } from "./install.js";

interface AbortOptions {
  readonly live?: boolean;
  readonly config?: string;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .option("--live", "also of a dataset that the running system uses: what runs from it will likely die")
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .addHelpText(
      "after",
      "\nExample:\n  bundle abort\n\n" +
        "What was received is discarded, / becomes what it was, also of a merge by bundle confirm --merge.\n" +
        "After an interruption the same command goes on.",
    )
    .action((options: AbortOptions) => runAbort(options, environment()));
}

/** Whether what is given up may be mounted once more: another environment than the running one, or what all of them share. */
const isMounted = (journal: Journal | undefined): boolean =>
  journal?.operation === "merge" ||
  (journal?.operation === "install" && journal.environment?.shared !== undefined);

/** Takes back what an install that is not done has changed. */
export async function runAbort(options: AbortOptions, env: Environment): Promise<void> {
  const site = await readSite(options.config, options.live);
  if (isMounted(await readUnderWay(site)) && (await runPrivately(site, options))) return;
  if (options.live && (await runMoved(site, env))) return;
  await tellEnd(await abortInstall(workOf(site, env, options)), "aborted", site, env);
}
