import type { Command } from "commander";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { listEnvironments, type BootEnvironment, type BootEnvironments } from "../install/environments.js";
import { describeShort, planPruning, pruneEnvironments, type Pruning } from "../install/prune.js";
import { describeFailure } from "../install/trial-rules.js";
import { formatBytes, formatTable, formatTime, printable, type Environment } from "../report.js";
import { readSiteConfig } from "../system/settings.js";

interface EnvironmentsOptions {
  readonly config?: string;
  readonly prune?: boolean;
  readonly plan?: boolean;
  readonly dryRun?: boolean;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .option(
      "--prune",
      "remove those that zferry made and that are more than keep of [boot-environment], or in the way of its keep_free",
    )
    .option("-n, --plan", "with --prune: show what would be removed, and change nothing")
    .option("--dry-run", "the same as --plan")
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .addHelpText(
      "after",
      "\nExamples:\n  bundle environments\n  bundle environments --prune --plan\n\n" +
        "The running one, the one that boots next and the one before are never removed, nor is what is held.",
    )
    .action((options: EnvironmentsOptions) => runEnvironments(options, environment()));
}

/** Lists the boot environments of the site, or removes old ones. */
export async function runEnvironments(options: EnvironmentsOptions, env: Environment): Promise<void> {
  const isPlan = options.plan === true || options.dryRun === true;
  if (isPlan && !options.prune) throw new ZferryError("usage", "--plan and --dry-run are for --prune");
  const site = await readSiteConfig(options.config);
  if (options.prune) return runPrune(site, isPlan, env);
  const found = await listEnvironments(site);
  const old = await listOld(site, found);
  if (env.json) return env.write(`${JSON.stringify({ ...found, old })}\n`);
  await env.write(asText(found));
  for (const line of remarksOn(found, old)) env.note(printable(line));
}

/** The names of what would be removed; null where nothing may be now. */
async function listOld(site: SiteConfig, found: BootEnvironments): Promise<string[] | null> {
  try {
    return (await planPruning(site, found)).removed.map(({ name }) => name);
  } catch (error) {
    if (error instanceof ZferryError) return null;
    throw error;
  }
}

async function runPrune(site: SiteConfig, isPlan: boolean, env: Environment): Promise<void> {
  const done = isPlan ? await planPruning(site) : await pruneEnvironments(site, stepsIn(env));
  const short = describeShort(done, isPlan);
  const warnings = short === undefined ? [] : [short];
  if (env.json)
    return env.write(`${JSON.stringify({ outcome: outcomeOf(done, isPlan), ...done, warnings })}\n`);
  await env.write(`${describePruning(done, isPlan).map(printable).join("\n")}\n`);
  for (const warning of warnings) env.note(printable(`warning: ${warning}`));
}

/** What removing is done with. */
export const stepsIn = ({ signal, quiet, note }: Environment) => ({
  signal,
  step: (what: string): void => {
    if (!quiet) note(what);
  },
});

function outcomeOf({ removed }: Pruning, isPlan: boolean): "pruned" | "planned" | "present" {
  if (isPlan) return "planned";
  return removed.length === 0 ? "present" : "pruned";
}

function describePruning({ container, keep, removed, staying }: Pruning, isPlan: boolean): string[] {
  const bytes = formatBytes(removed.reduce((sum, { frees }) => sum + frees, 0));
  const what = `${removed.length} boot environment${removed.length === 1 ? "" : "s"} of ${container}`;
  const title = isPlan
    ? `${what} would be removed, at least ${bytes} would be freed; nothing was changed`
    : `removed ${what}, ${bytes} freed`;
  return [
    removed.length === 0 ? `no boot environment of ${container} is to be removed: keep is ${keep}` : title,
    ...removed.map((each) => {
      const what = `  ${each.name}: ${[each.dataset, ...each.datasets].join(", ")}`;
      return each.for === "keep" ? what : `${what}; ${isPlan ? "if that is needed " : ""}for keep_free`;
    }),
    ...staying.map(({ name, why }) => `  ${name} stays: ${why}`),
  ];
}

const HEADER = ["name", "state", "release", "created", "used", "refers", "held", "datasets"];

function asText({ container, environments }: BootEnvironments): string {
  if (environments.length === 0) return `${printable(container)} has no boot environments\n`;
  return formatTable([HEADER, ...environments.map(asRow)]);
}

const asRow = (each: BootEnvironment): string[] => [
  each.name,
  statesOf(each).join(", ") || "-",
  each.release?.name ?? "-",
  formatTime(each.created),
  formatBytes(each.used),
  formatBytes(each.refers),
  String(each.holds.length),
  each.datasets?.map(({ path, dataset }) => `${path} ${dataset}`).join(", ") ?? "?",
];

const statesOf = ({ states, trial, failed }: BootEnvironment): string[] => [
  ...states,
  ...(trial === undefined ? [] : ["on trial"]),
  ...(failed === undefined ? [] : ["failed"]),
];

/** What the table has no place for. */
function remarksOn(
  { container, next, environments }: BootEnvironments,
  old: readonly string[] | null,
): string[] {
  const isElsewhere = next !== null && !environments.some(({ dataset }) => dataset === next);
  return [
    ...environments.flatMap(({ name, fault }) => (fault === null ? [] : [`${name}: ${fault}`])),
    ...environments.flatMap(({ name, failed }) =>
      failed === undefined ? [] : [`${name} was tried, and failed ${describeFailure(failed)}`],
    ),
    ...(isElsewhere ? [`what boots next is ${next}, which is no boot environment in ${container}`] : []),
    ...(old === null || old.length === 0
      ? []
      : [`bundle environments --prune would remove ${old.join(", ")}`]),
  ];
}
