import { VerifiedBundle } from "../bundle/reader.js";
import { chooseChain, type Chain, type ChainStart } from "../carry/chain.js";
import { readBundleFolder, type FileLink, type LeftFile } from "../carry/folder.js";
import { afterDone, afterLink, readChainStart } from "../carry/site.js";
import type { SiteConfig } from "../config.js";
import { ofFile, ZferryError } from "../errors.js";
import { finishInstall, isStanding, needsBundle } from "../install/install.js";
import { runMoved, runPrivately } from "../install/live.js";
import { readSite } from "../install/mode.js";
import { pending } from "../install/pending.js";
import { checkRelease } from "../install/policy.js";
import type { ChainEnd } from "../install/environment-install.js";
import { installed, openState, type InstallJournal, type Journal, type SiteState } from "../install/state.js";
import { keySetOf, readSiteTrust } from "../install/trust.js";
import { readUnderWay } from "../install/under-way.js";
import { formatBytes, printable, type Environment } from "../report.js";
import {
  asText,
  describeTime,
  exceptionsOf,
  installFile,
  requireIdentity,
  resultOf,
  warnIn,
  workOf,
  type CommandOptions,
  type Done,
} from "./install.js";
import { openGiven, threadsOf } from "./summary.js";
import { checkWhole } from "./verify.js";

/** What is chosen of a folder. */
interface Chosen extends Chain<FileLink> {
  /** What the site has: the name of its release. */
  readonly from: string;
  /** Where they lead together, if they make one boot environment. */
  readonly end: ChainEnd | undefined;
  readonly leftFiles: readonly LeftFile[];
}

/** Installs the bundles of a folder that lead to its newest release, one after the other, or plans to. */
export async function runInstallFolder(
  path: string,
  options: CommandOptions,
  env: Environment,
): Promise<void> {
  if (options.allowDowngrade !== undefined) {
    throw new ZferryError(
      "usage",
      "--allow-downgrade is for one bundle: what is chosen from a folder leads forward",
      {
        hint: "name the file of the older release",
      },
    );
  }
  exceptionsOf(options);
  threadsOf(options);
  const site = await readSite(options.config, options.live);
  if (await runPrivately(site, options)) return;
  if (options.dryRun) return planFolder(path, site, options, env);
  if (options.live && (await runMoved(site, env))) return;

  const done: Done[] = [];
  const told = new Set<string>();
  const left = new Map<string, LeftFile>();
  await finishBegun(path, site, options, env, done);
  let chosen: Chosen;
  do {
    const begun = await readGoingForward(site);
    chosen = await chooseFrom(path, site, options, env, begun);
    for (const each of chosen.leftFiles) left.set(each.file, each);
    tellLeft(chosen, env, told);
    if (!env.quiet && chosen.links.length > 0) env.note(describeChain(chosen));
    // Its keys may be what bundles after it are signed with, or are not believed any more.
  } while (await installLinks(chosen, site, options, env, done));

  const outcome = done.length === 0 ? "present" : "installed";
  if (env.json) {
    const result = {
      outcome,
      product: site.product,
      release: chosen.release,
      installed: done.map((each) => resultOf(each, options)),
      left: [...left.values()],
    };
    return env.write(`${JSON.stringify(result)}\n`);
  }
  const { name, sequence } = chosen.release;
  const present = `${printable(`${site.product} release ${name} (${sequence}) is installed; nothing to do`)}\n`;
  await env.write(outcome === "present" ? present : done.map((each) => asText(each, options)).join(""));
}

/** @returns whether bundles are to be chosen anew, since one changed the site's keys */
async function installLinks(
  { links, end }: Pick<Chosen, "links" | "end">,
  site: SiteConfig,
  options: CommandOptions,
  env: Environment,
  done: Done[],
): Promise<boolean> {
  for (const [index, link] of links.entries()) {
    // Of what is only on the way it does not count that its time is over.
    const last = index === links.length - 1;
    const allowed = last ? options : { ...options, allowExpired: String(link.release.sequence) };
    try {
      done.push(await installFile(link.file, site, allowed, env, { identity: link.id, chain: end }));
    } catch (error) {
      throw links.length > 1 && error instanceof ZferryError ? inChain(error, links, index, end) : error;
    }
    if (done.at(-1)?.plan.keys !== undefined) return true;
  }
  return false;
}

/**
 * Where several bundles lead that make one boot environment; undefined of one, and of those that are installed one after the other.
 * @param begun what is under way
 * @throws ZferryError `chain-missing` where one of them changes the keys that those after it are signed with
 */
function endOf(
  links: readonly FileLink[],
  { install: { mode } }: SiteConfig,
  state: SiteState | undefined,
  begun: Journal | undefined,
): ChainEnd | undefined {
  const last = links.at(-1);
  const known = chainOf(begun);
  if (mode === "in-place" || last === undefined || (known === undefined && links.length === 1)) return known;
  const { counter } = keySetOf(state);
  const changing = links.slice(0, -1).find(({ keysCounter }) => keysCounter > counter);
  if (changing === undefined) return known ?? { release: last.release.name, identity: last.id };
  throw new ZferryError(
    "chain-missing",
    `release ${changing.release.name} changes the trusted keys, and only counts once it is installed; it is not the last of ${links.length} bundles`,
    {
      details: { bundles: links.map(({ file }) => file), release: changing.release.name },
      hint: `install as far as that first: bundle install --to ${changing.release.name}; reboot, and the same for the rest`,
    },
  );
}

const chainOf = (begun: Journal | undefined) =>
  begun?.operation === "install" ? begun.environment?.chain : undefined;

/** Says where the site stands when a bundle of several cannot be installed; `end` is of those that make one boot environment. */
function inChain(
  error: ZferryError,
  links: readonly FileLink[],
  index: number,
  end: ChainEnd | undefined,
): ZferryError {
  const { file, release } = links[index] as FileLink;
  const before = links.slice(0, index).map((each) => each.release.name);
  const what = end === undefined ? "installed before it" : "in the new boot environment before it";
  const stands = before.length === 0 ? "" : `; ${what}: ${before.join(", ")}`;
  const hint = error.hint?.replaceAll("bundle resolve FILE", `bundle resolve ${file}`);
  const goOn = "then the same command goes on from there";
  return new ZferryError(
    error.code,
    `release ${release.name}, ${index + 1} of ${links.length}: ${error.message}${stands}`,
    {
      details: { ...error.details, bundle: file, installed: before },
      hint: hint === undefined ? `${goOn}, or leave it at ${before.at(-1) ?? "that"}` : `${hint}; ${goOn}`,
      also: error.also,
      cause: error,
    },
  );
}

/** What is under way comes first, whatever the folder leads to. */
async function finishBegun(
  path: string,
  site: SiteConfig,
  options: CommandOptions,
  env: Environment,
  done: Done[],
): Promise<void> {
  const journal = await readGoingForward(site);
  if (journal === undefined) return;
  // The bundle itself is in the environment.
  if (journal.phase === "linking") return;
  const { links } = await readBundleFolder(path, await readSiteTrust(site), options.search ?? [], env);
  const begun = links.find(({ id }) => id === journal.release.identity);
  const chain = chainOf(journal);
  if (begun !== undefined) {
    done.push(await installFile(begun.file, site, options, env, { identity: begun.id, chain }));
  } else if (await needsBundle(journal, site))
    throw await pending(journal, `and its bundle is not in ${path}`);
  else await finishInstall(workOf(site, env, options));
}

/** @throws ZferryError `install-pending` where what is under way does not lead forward */
async function readGoingForward(site: SiteConfig): Promise<InstallJournal | undefined> {
  const journal = await readUnderWay(site);
  if (journal === undefined) return undefined;
  if (journal.undoing || journal.operation !== "install") {
    throw await pending(journal, "and nothing is installed before that is done");
  }
  return journal;
}

/**
 * @throws ZferryError `chain-missing` and what else `chooseChain` gives; what the site refuses the release for that the chain
 * leads to
 */
async function chooseFrom(
  path: string,
  site: SiteConfig,
  options: CommandOptions,
  env: Environment,
  begun?: InstallJournal,
): Promise<Chosen> {
  const { links, left } = await readBundleFolder(path, await readSiteTrust(site), options.search ?? [], env);
  const state = await openState(site.state).readState();
  try {
    const isIn = begun?.phase === "linking";
    const first = isIn ? undefined : links.find(({ id }) => id === begun?.release.identity);
    if (begun !== undefined && first === undefined && !isIn) {
      throw await pending(begun, `and its bundle is not in ${path}`);
    }
    const has = await readChainStart(site, state);
    const start = isIn ? afterDone(has, begun) : await withMade(has, state, links, options);
    const from = start.installed?.name ?? "what this site has";
    const wanted = { ...options, to: chainOf(begun)?.release ?? options.to };
    const rest = choose(path, links, first === undefined ? start : afterLink(start, first), wanted);
    const chain = { ...rest, links: [...(first === undefined ? [] : [first]), ...rest.links] };
    const last = rest.links.at(-1);
    if (last !== undefined) {
      checkRelease(last, last.id, site.product, state, env.now(), exceptionsOf(options));
    }
    const foreign = chain.left.map(({ link, reason }) => ({ file: link.file, reason }));
    const end = endOf(chain.links, site, state, begun);
    if (end !== undefined && chain.links.at(-1)?.id !== end.identity) {
      throw await pending(
        begun as Journal,
        `and the bundle of release ${end.release} that it was begun with is not in ${path}`,
      );
    }
    return { ...chain, from, end, leftFiles: [...left, ...foreign] };
  } catch (error) {
    // What was left out may be what is missing.
    tellLeft({ leftFiles: left }, env);
    throw error;
  }
}

/** @throws ZferryError as `chooseChain`, of the folder */
function choose(path: string, ...args: Parameters<typeof chooseChain<FileLink>>): Chain<FileLink> {
  try {
    return chooseChain(...args);
  } catch (error) {
    throw ofFile(error, path);
  }
}

/** A boot environment that was made and does not run yet is what the site has, unless the bundles lead further than it. */
async function withMade(
  start: ChainStart,
  state: SiteState | undefined,
  links: readonly FileLink[],
  { to }: CommandOptions,
): Promise<ChainStart> {
  const last = installed(state);
  if (last?.environment === undefined || !(await isStanding(last.environment))) return start;
  const wanted = links.filter(
    ({ product, release }) => product === start.product && (to ?? release.name) === release.name,
  );
  const isFurther = wanted.some(({ release }) => release.sequence > last.release.sequence);
  return isFurther || wanted.length === 0 ? start : { ...start, installed: last.release };
}

function tellLeft(
  { leftFiles }: Pick<Chosen, "leftFiles">,
  env: Environment,
  told: Set<string> = new Set(),
): void {
  for (const { file, reason } of leftFiles) {
    const line = `${file} is left out: ${reason}`;
    if (!told.has(line)) warnIn(env)(line);
    told.add(line);
  }
}

const bytesOf = (links: readonly FileLink[]): number => links.reduce((sum, { bytes }) => sum + bytes, 0);

/** "R3, R4 lead from R2 to R4: 2 bundles, 8.1 MiB" */
function describeChain({ links, from, release }: Chosen): string {
  const names = links.map((link) => link.release.name).join(", ");
  const count = links.length === 1 ? "1 bundle leads" : `${links.length} bundles lead`;
  return printable(`${count} from ${from} to ${release.name}, ${formatBytes(bytesOf(links))}: ${names}`);
}

async function planFolder(
  path: string,
  site: SiteConfig,
  options: CommandOptions,
  env: Environment,
): Promise<void> {
  const begun = await readGoingForward(site);
  const chosen = await chooseFrom(path, site, options, env, begun);
  tellLeft(chosen, env);
  const { links, release } = chosen;
  const [first, ...others] = links;
  if (first === undefined) {
    const present = { outcome: "present", product: site.product, release, chain: [], left: chosen.leftFiles };
    const text = `${site.product} release ${release.name} (${release.sequence}) is installed; nothing to do`;
    return env.write(`${env.json ? JSON.stringify(present) : printable(text)}\n`);
  }
  const onTheWay = { ...options, allowExpired: String(first.release.sequence) };
  const chain = chosen.end;
  const allowed = others.length > 0 ? onTheWay : options;
  const done = await installFile(first.file, site, allowed, env, { identity: first.id, chain });
  for (const link of others) await checkFile(link, site, options, env);

  const { bytesPerSecond, assumed, seconds } = done.plan.time;
  const rest = others.reduce((sum, { rawBytes }) => sum + rawBytes, 0);
  const time = { seconds: seconds + Math.ceil(rest / bytesPerSecond), bytesPerSecond, assumed };
  if (env.json) {
    const result = {
      outcome: "planned",
      product: site.product,
      release,
      chain: links.map(({ file, release: { name, sequence }, id, bytes, rawBytes }) => ({
        file,
        release: { name, sequence, identity: id },
        bytes,
        rawBytes,
      })),
      first: resultOf(done, options),
      time,
      left: chosen.leftFiles,
    };
    return env.write(`${JSON.stringify(result)}\n`);
  }
  const lines = [
    `${describeChain(chosen)}; nothing was changed`,
    ...links.map((link) => {
      const { name, sequence } = link.release;
      return `  ${name} (${sequence}), ${formatBytes(link.bytes)}: ${link.file}`;
    }),
    ...(others.length === 0 ? [] : describeRest(others, chosen)),
    `  time: ${describeTime(time)}`,
  ];
  await env.write(`${lines.map(printable).join("\n")}\n${asText(done, options)}`);
}

function describeRest(others: readonly FileLink[], { release, links, end }: Chosen): string[] {
  const previous = links.at(-2)?.release.name;
  const back =
    end === undefined
      ? `bundle rollback leads from ${release.name} to ${previous}, and no further`
      : "all are one boot environment, and bundle rollback leads back to the one that it is made from";
  const rest = others.map((link) => link.release.name).join(", ");
  return [
    `  each file was read and is whole; whether there are conflicts or too little space for ${rest} shows only then`,
    `  afterwards ${back}`,
  ];
}

/** What can be checked of a bundle before its base is there. */
async function checkFile(
  { file: path, id }: FileLink,
  site: SiteConfig,
  options: CommandOptions,
  env: Environment,
): Promise<void> {
  const file = await openGiven(path, options, env, threadsOf(options));
  try {
    const bundle = await VerifiedBundle.verify(file, await readSiteTrust(site));
    requireIdentity(bundle, id);
    await checkWhole(bundle, env);
  } finally {
    env.progress.end();
    await file.close();
  }
}
