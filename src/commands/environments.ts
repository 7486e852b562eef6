import type { Command } from "commander";
import { listEnvironments, type BootEnvironment, type BootEnvironments } from "../install/environments.js";
import { describeFailure } from "../install/trial-rules.js";
import { formatBytes, formatTable, formatTime, printable, type Environment } from "../report.js";
import { readSiteConfig } from "../system/settings.js";

interface EnvironmentsOptions {
  readonly config?: string;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .option("--config <file>", "the site's configuration (default: /etc/zferry/site.toml)")
    .addHelpText("after", "\nExample:\n  bundle environments")
    .action((options: EnvironmentsOptions) => runEnvironments(options, environment()));
}

/** Lists the boot environments of the site. */
export async function runEnvironments(options: EnvironmentsOptions, env: Environment): Promise<void> {
  const found = await listEnvironments(await readSiteConfig(options.config));
  if (env.json) return env.write(`${JSON.stringify(found)}\n`);
  await env.write(asText(found));
  for (const line of remarksOn(found)) env.note(printable(line));
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
function remarksOn({ container, next, environments }: BootEnvironments): string[] {
  const isElsewhere = next !== null && !environments.some(({ dataset }) => dataset === next);
  return [
    ...environments.flatMap(({ name, fault }) => (fault === null ? [] : [`${name}: ${fault}`])),
    ...environments.flatMap(({ name, failed }) =>
      failed === undefined ? [] : [`${name} was tried, and failed ${describeFailure(failed)}`],
    ),
    ...(isElsewhere ? [`what boots next is ${next}, which is no boot environment in ${container}`] : []),
  ];
}
