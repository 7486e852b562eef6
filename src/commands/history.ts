import type { Command } from "commander";
import { requireProduct } from "../install/policy.js";
import {
  openState,
  resultOf,
  type Installation,
  type InstallJournal,
  type RollbackJournal,
} from "../install/state.js";
import type { TrialStatus } from "../install/trial.js";
import { describeFailure } from "../install/trial-rules.js";
import { readUnderWay } from "../install/under-way.js";
import { formatDuration, formatTable, formatTime, type Environment } from "../report.js";
import { readSiteConfig } from "../system/settings.js";
import { askTrials } from "./status.js";

interface HistoryOptions {
  readonly config?: string;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .addHelpText("after", "\nExample:\n  bundle history")
    .action((options: HistoryOptions) => runHistory(options, environment()));
}

/** Lists what was installed on this site, and what became of it, newest first. */
async function runHistory(options: HistoryOptions, env: Environment): Promise<void> {
  const site = await readSiteConfig(options.config);
  const state = await openState(site.state).readState();
  const underWay = await readUnderWay(site);
  // A merge is no release's.
  const journal = underWay?.operation === "merge" ? undefined : underWay;
  if (state !== undefined) requireProduct(state, site.product);
  const trials = await askTrials(state?.installations.at(-1), site);
  const installations = (state?.installations.toReversed() ?? []).map((each) => withTrial(each, trials));
  await env.write(env.json ? asJson(site.product, installations, journal) : asText(installations, journal));
}

/** An installation, with what became of the boot environment that it made. */
type Told = Installation & Pick<TrialStatus, "failed">;

function withTrial(installation: Installation, trials: readonly TrialStatus[]): Told {
  const { failed } = trials.find(({ guid }) => guid === installation.environment?.guid) ?? {};
  return failed === undefined ? installation : { ...installation, failed };
}

type ReleaseJournal = InstallJournal | RollbackJournal;

function asJson(
  product: string,
  installations: readonly Told[],
  journal: ReleaseJournal | undefined,
): string {
  const { operation, release, startedAt, phase, undoing } = journal ?? {};
  return `${JSON.stringify({
    product,
    underWay: journal === undefined ? null : { operation, release, startedAt, phase, undoing },
    installations: installations.map((each) => ({ ...each, result: resultOf(each) })),
  })}\n`;
}

function asText(installations: readonly Told[], journal: ReleaseJournal | undefined): string {
  const rows = [
    ["RELEASE", "SEQUENCE", "INSTALLED", "TOOK", "SIGNERS", "RESULT"],
    ...(journal === undefined ? [] : [rowUnderWay(journal)]),
    ...installations.map(rowOf),
  ];
  if (rows.length === 1) return "no release was installed by zferry yet\n";
  return formatTable(rows);
}

function rowUnderWay(journal: ReleaseJournal): string[] {
  const { operation, release, startedAt, undoing } = journal;
  const signers = operation === "install" ? (journal.origin?.signers ?? []) : [];
  const what = operation === "install" ? "being installed" : "being rolled back";
  const result = `${what} since ${formatTime(startedAt)}${undoing ? ", which is being given up" : ""}`;
  return row(release, "-", "-", signers, result);
}

function rowOf(installation: Told): string[] {
  const { release, startedAt, finishedAt, signers, confirmedAt, rolledBack, failed } = installation;
  const result =
    failed !== undefined
      ? `failed ${describeFailure(failed)}`
      : rolledBack !== undefined
        ? `rolled back at ${formatTime(rolledBack.finishedAt)}`
        : confirmedAt !== undefined
          ? `confirmed at ${formatTime(confirmedAt)}`
          : "installed";
  const took = formatDuration(Math.max(0, finishedAt - startedAt));
  return row(release, formatTime(finishedAt), took, signers, result);
}

const row = (
  { name, sequence }: Installation["release"],
  at: string,
  took: string,
  signers: readonly string[],
  result: string,
): string[] => [name, String(sequence), at, took, signers.length === 0 ? "-" : signers.join(","), result];
