import type { Command } from "commander";
import { isRecorded, openState, type Installation, type Journal, type SiteState } from "../install/state.js";
import { formatTime, printable, type Environment } from "../report.js";
import { requireProduct } from "../install/policy.js";
import { readSiteConfig } from "../system/settings.js";

interface StatusOptions {
  readonly config?: string;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .addHelpText("after", "\nExample:\n  bundle status")
    .action((options: StatusOptions) => runStatus(options, environment()));
}

/** Shows the installed release and an install that is under way. */
export async function runStatus(options: StatusOptions, env: Environment): Promise<void> {
  const site = await readSiteConfig(options.config);
  const folder = openState(site.state);
  const state = await folder.readState();
  const found = await folder.readJournal();
  const journal = found === undefined || isRecorded(state, found) ? undefined : found;
  if (state !== undefined) requireProduct(state, site.product);
  await env.write(env.json ? asJson(site.product, state, journal) : asText(site.product, state, journal));
}

function asJson(product: string, state: SiteState | undefined, journal: Journal | undefined): string {
  return `${JSON.stringify({
    product,
    installed: state?.installations.at(-1) ?? null,
    highestSequence: state?.highestSequence ?? 0,
    underWay:
      journal === undefined
        ? null
        : { release: journal.release, startedAt: journal.startedAt, phase: journal.phase },
  })}\n`;
}

function asText(product: string, state: SiteState | undefined, journal: Journal | undefined): string {
  const installed = state?.installations.at(-1);
  const lines = [
    `product: ${product}`,
    ...(installed === undefined ? ["installed: no release by zferry yet"] : describe(installed)),
    journal === undefined
      ? "under way: nothing"
      : `under way: release ${journal.release.name} (${journal.release.sequence}) since ${formatTime(journal.startedAt)}, ${journal.phase}; ` +
        `go on: bundle install, with the bundle of ${journal.release.name}`,
  ];
  return `${lines.map(printable).join("\n")}\n`;
}

const describe = ({ release, finishedAt, streams, signers }: Installation): string[] => [
  `installed: release ${release.name} (${release.sequence}) at ${formatTime(finishedAt)}, signed by ${signers.join(", ")}`,
  ...streams.map(({ role, dataset, base, target }) => {
    const from = base === null ? "no base" : `base ${base.snapshot} (guid ${base.guid})`;
    return `  ${role}: ${dataset}@${target.snapshot} (guid ${target.guid}), ${from}`;
  }),
];
