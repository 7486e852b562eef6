import type { Command } from "commander";
import type { Receipt } from "../carry/receipt.js";
import {
  checkReceipt,
  listSites,
  placeOf,
  takeReceipt,
  type CheckedReceipt,
  type KnownSite,
} from "../carry/sites.js";
import { throwAll, ZferryError } from "../errors.js";
import { formatTable, formatTime, printable, type Environment } from "../report.js";
import { readBuildConfig } from "../system/settings.js";

interface SitesOptions {
  readonly config?: string;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .argument("[action]", "list, or add")
    .argument("[files...]", "with add: the receipts")
    .option("--config <file>", "the build host's configuration (default: /etc/zferry/build.toml)")
    .addHelpText("after", "\nExamples:\n  bundle sites\n  bundle sites add /media/stick/plant.receipt")
    .action((action: string | undefined, files: readonly string[], options: SitesOptions) =>
      runSites(action ?? "list", files, options, environment()),
    );
}

/** Takes receipts of sites, or shows which site is where. */
async function runSites(
  action: string,
  files: readonly string[],
  options: SitesOptions,
  env: Environment,
): Promise<void> {
  if (action === "add") return runAdd(files, options, env);
  if (action !== "list") {
    throw new ZferryError("usage", `bundle sites ${action}: is neither list nor add`, {
      hint: "bundle sites --help shows how",
    });
  }
  if (files.length > 0) throw new ZferryError("usage", "bundle sites list takes no file");
  const sites = await listSites(await readBuildConfig(options.config));
  if (env.json) {
    return env.write(
      `${JSON.stringify({ sites: sites.map(({ site, receipt, fault = null }) => ({ site, ...receipt, fault })) })}\n`,
    );
  }
  await env.write(asText(sites));
}

async function runAdd(files: readonly string[], options: SitesOptions, env: Environment): Promise<void> {
  if (files.length === 0) throw new ZferryError("usage", "bundle sites add: name a receipt");
  const config = await readBuildConfig(options.config);
  // All are verified before one is taken.
  const checked: CheckedReceipt[] = [];
  const faults: ZferryError[] = [];
  for (const file of files) {
    try {
      checked.push(await checkReceipt(file, config));
    } catch (error) {
      if (!(error instanceof ZferryError)) throw error;
      faults.push(error);
    }
  }
  throwAll(faults);
  const added = [];
  for (const each of checked) {
    const { path: file, receipt } = each;
    const taken = await takeReceipt(each, config);
    added.push({ file, site: receipt.site, taken, installed: receipt.installed });
    if (env.json) continue;
    const what = `site ${receipt.site} with ${describeInstalled(receipt)}`;
    await env.write(
      `${printable(taken ? `${file}: ${what}` : `${file}: not later than what is known of ${receipt.site}; nothing to do`)}\n`,
    );
    if (!taken)
      env.note(`a site that was made anew begins again: remove ${placeOf(receipt.site, config)} first`);
  }
  if (env.json) await env.write(`${JSON.stringify({ added })}\n`);
}

const describeInstalled = ({ installed }: Receipt): string =>
  installed === null ? "no release" : `release ${installed.name} (${installed.sequence})`;

function asText(sites: readonly KnownSite[]): string {
  if (sites.length === 0) return "no receipt of any site yet\n";
  const rows = sites.map(rowOf);
  return formatTable([["SITE", "RELEASE", "SEQUENCE", "LAST", "RECEIPT OF", ""], ...rows]);
}

function rowOf({ site: name, receipt, fault = "" }: KnownSite): string[] {
  if (receipt === undefined) return [name, "-", "-", "-", "-", `does not count: ${fault}`];
  const { site, installed, installations, underWay, made } = receipt;
  const [last] = installations;
  const result =
    underWay !== null
      ? `${underWay.operation} of ${underWay.release.name} under way`
      : last === undefined
        ? "-"
        : `${last.release.name} ${last.result} at ${formatTime(last.resultAt)}`;
  return [
    site,
    installed?.name ?? "-",
    String(installed?.sequence ?? "-"),
    result,
    formatTime(made),
    fault === "" ? "" : `does not count: ${fault}`,
  ];
}
