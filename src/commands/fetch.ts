import { existsSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import { CHAIN_HINT, chooseChain, FULL_HINT, type Chain, type ChainStart } from "../carry/chain.js";
import {
  fetchBundle,
  fetchIndex,
  mirrorAt,
  removeLeftParts,
  startFrom,
  type FetchOptions,
  type Mirror,
} from "../carry/fetch.js";
import { entryLink, type IndexEntry, type MirrorIndex } from "../carry/index-format.js";
import type { SiteRequest } from "../carry/request.js";
import { openSeenIndexes } from "../carry/seen.js";
import type { Trust, VerifiedBundle } from "../bundle/reader.js";
import type { BuildConfig } from "../config.js";
import { EXIT_STATUS, ofFile, ZferryError } from "../errors.js";
import { formatBytes, formatTime, printable, type Environment } from "../report.js";
import { openBundleFile } from "../system/bundle-file.js";
import { openHttp, parseUrl } from "../system/http.js";
import { requireFolder } from "../system/files.js";
import { processVariables, userStateFolder } from "../system/settings.js";
import { usualThreads } from "../system/threads.js";
import { changeKeys, NO_KEYS, trustedKeys } from "../trust/keys.js";
import { byteCount, readTrust, repeatable, wholeNumber, type GivenTrust } from "./summary.js";
import { verifyWhole } from "./verify.js";

interface FetchCommandOptions {
  readonly key?: readonly string[];
  readonly config?: string;
  readonly from?: readonly string[];
  readonly for?: string;
  readonly siteKey?: string;
  readonly full?: boolean;
  readonly to?: string;
  readonly output?: string;
  readonly connections?: string;
  readonly retries?: string;
  readonly timeout?: string;
  readonly limitRate?: string;
  readonly caFile?: string;
}

const CONNECTIONS = { usual: 4, most: 16 };
const RETRIES = { usual: 5, most: 100 };
const TIMEOUT = { usual: 30, most: 600 };
const LONGEST_PAUSE_SECONDS = 30;

export function define(command: Command, environment: () => Environment): void {
  command
    .argument("<urls...>", "mirrors of one publisher, as http:// or https:// addresses of their folders")
    .option("-k, --key <file>", "a public key that may have signed; can be repeated", repeatable)
    .option(
      "--config <file>",
      "the site's configuration, where this is a site (default: /etc/zferry/site.toml)",
    )
    .option("--from <guid>", "the snapshot to start from; can be repeated, one for each stream", repeatable)
    .option("--for <file>", "a site's request, which says what it has")
    .option(
      "--site-key <file>",
      "with --for: the site's public key, which must have signed it (default: as sites.keys of /etc/zferry/build.toml has it, if there)",
    )
    .option("--full", "for a new site: start from nothing")
    .option("--to <release>", "the release to lead to (default: the newest)")
    .option("-o, --output <folder>", "where the bundles go (default: the working folder)")
    .option(
      "--connections <number>",
      `at a time (default: ${CONNECTIONS.usual}, at most ${CONNECTIONS.most})`,
    )
    .option(
      "--retries <number>",
      `failures in a row until a mirror is left alone (default: ${RETRIES.usual})`,
    )
    .option(
      "--timeout <seconds>",
      `until a server that gives nothing counts as failed (default: ${TIMEOUT.usual})`,
    )
    .option("--limit-rate <rate>", "bytes a second at most, of all connections; with k, M or G: times 1024")
    .option("--ca-file <file>", "certificates to believe instead of the usual ones, in PEM")
    .addHelpText(
      "after",
      "\nWhat was downloaded in part is gone on with by the same command. http_proxy, https_proxy and no_proxy are respected." +
        "\n\nExamples:\n  bundle fetch https://mirror.example/gentoo/ -o /var/cache/bundles      # on a site" +
        "\n  bundle fetch https://mirror.example/gentoo/ --key release.pub --from 1234605616436508552 -o /srv/carry      # then bundle copy to a stick",
    )
    .action((urls: readonly string[], options: FetchCommandOptions) =>
      runFetch(urls, options, environment()),
    );
}

/** Downloads the bundles that lead to a release, from one mirror or several. */
export async function runFetch(
  urls: readonly string[],
  options: FetchCommandOptions,
  env: Environment,
): Promise<void> {
  const addresses = urls.map(parseUrl);
  const connections = wholeNumber(options.connections, "--connections", 1, CONNECTIONS.most);
  const retries = wholeNumber(options.retries, "--retries", 0, RETRIES.most);
  const timeoutSeconds = wholeNumber(options.timeout, "--timeout", 1, TIMEOUT.most) ?? TIMEOUT.usual;
  const bytesPerSecond = byteCount(options.limitRate, "--limit-rate", 1);
  const starts = [options.from, options.for, options.full].filter((each) => each !== undefined);
  if (starts.length > 1) throw new ZferryError("usage", "--from, --for and --full contradict each other");
  if (options.siteKey !== undefined && options.for === undefined) {
    throw new ZferryError("usage", "--site-key is of a request: it goes with --for");
  }
  if (options.key !== undefined && starts.length === 0) {
    throw new ZferryError("usage", "with --key, --from, --for or --full must say what to start from");
  }
  const { output = "." } = options;
  requireFolder(output);
  const trust = await readTrust(options);
  const request = options.for === undefined ? undefined : await requestFor(options.for, options, env);
  const client = await openHttp({
    caFile: options.caFile,
    bytesPerSecond,
    timeoutSeconds,
    signal: env.signal,
    env: processVariables(),
  });
  try {
    const fetching: FetchOptions = {
      client,
      connections: connections ?? CONNECTIONS.usual,
      retries: retries ?? RETRIES.usual,
      pause(failures, reason) {
        const seconds = Math.min(LONGEST_PAUSE_SECONDS, 2 ** (failures - 1));
        // A line that breaks now and then goes on after a second.
        if (seconds > 1) env.note(`trying again in ${seconds} s: ${reason}`);
        return sleep(seconds * 1000, undefined, { signal: env.signal });
      },
      note: (line) => env.note(line),
      progress: env.progress,
      signal: env.signal,
    };
    const seen = await openSeenIndexes(await stateFolder(options));
    const choosing = async (): Promise<Chosen> => {
      const mirrors = addresses.map(mirrorAt);
      const index = await fetchIndex(mirrors, trust.keys, seen, env.now(), fetching);
      if (trust.product !== undefined && trust.product !== index.product) {
        throw new ZferryError(
          "product-mismatch",
          `the mirror is of product ${index.product}, this site has ${trust.product}`,
          { details: { found: index.product, expected: trust.product } },
        );
      }
      const chain =
        request === undefined
          ? choose(index, await startOf(index, options), options)
          : chooseFor(request, options.for as string, index, options);
      return { mirrors, index, chain };
    };
    const brought = new Map<string, FetchedFile>();
    const bring = async ({ mirrors, index, chain }: Chosen): Promise<void> => {
      let trusted = trust;
      for (const { entry } of chain.links) {
        const file = join(output, entry.path);
        const isThere = existsSync(file);
        const bundle = isThere
          ? await requireSame(file, entry, trusted, env)
          : await fetchBundle(entry, index.product, mirrors, file, trusted, fetching);
        trusted = trustAfter(trusted, bundle);
        if (brought.has(file)) continue;
        brought.set(file, { file, bytes: entry.size, release: entry.release, fetched: !isThere });
        if (!env.json) await env.write(`${printable(file)}\n`);
        if (entry.expires !== undefined && entry.expires * 1000 < env.now().getTime())
          env.note(`${file} expired at ${formatTime(entry.expires)}`);
      }
    };
    let chosen = await choosing();
    try {
      await bring(chosen);
    } catch (error) {
      if (!(error instanceof ZferryError) || ![error, ...error.also].some(isGone)) throw error;
      // What was taken out of the mirror meanwhile is in no index of now.
      const { index } = chosen;
      chosen = await choosing();
      if (chosen.index.counter === index.counter) throw error;
      env.note(`the mirror was changed, and its index is read again: ${error.message}`);
      await bring(chosen);
    }
    const { index, chain } = chosen;
    await removeLeftParts(output, index, trust, (line) => env.note(printable(line)));
    const files = chain.links.map(({ entry }) => brought.get(join(output, entry.path)) as FetchedFile);
    const bytes = files.reduce((sum, file) => sum + (file.fetched ? file.bytes : 0), 0);
    if (env.json) {
      const { product, counter, expires } = index;
      const result = { product, release: chain.release, counter, expires, files };
      return await env.write(`${JSON.stringify(result)}\n`);
    }
    env.note(
      files.length === 0
        ? `nothing to do: release ${chain.release.name} is there`
        : `release ${chain.release.name}: ${files.length} ${files.length === 1 ? "bundle" : "bundles"}, ${formatBytes(bytes)} downloaded`,
    );
  } finally {
    env.progress.end();
    client.close();
  }
}

/** What is to be fetched, as an index has it. */
interface Chosen {
  readonly mirrors: readonly Mirror[];
  readonly index: MirrorIndex;
  readonly chain: Chain<EntryLink>;
}

/** formats/mirror.md, The folder: a client may come while it changes. */
const isGone = ({ details: { status } }: ZferryError): boolean => status === 404 || status === 410;

interface FetchedFile {
  readonly file: string;
  readonly bytes: number;
  readonly release: IndexEntry["release"];
  /** False for one that was there. */
  readonly fetched: boolean;
}

/** Where the indexes are remembered that were seen: a site's state, or the user's. */
async function stateFolder({ key, config }: FetchCommandOptions): Promise<string> {
  if (key !== undefined) return userStateFolder();
  const { readSiteConfig } = await import("../system/settings.js");
  return (await readSiteConfig(config)).state;
}

type EntryLink = ReturnType<typeof entryLink>;

const choose = (index: MirrorIndex, start: ChainStart, { to, full }: FetchCommandOptions): Chain<EntryLink> =>
  chooseChain(
    index.bundles.map((entry) => entryLink(entry, index.product)),
    start,
    { to, full },
  );

/** The request that bundles are fetched for, signed by its site as far as the site's key is known. */
async function requestFor(
  path: string,
  { siteKey }: FetchCommandOptions,
  env: Environment,
): Promise<{ readonly request: SiteRequest; readonly start: ChainStart }> {
  const { startOfRequest } = await import("../carry/request.js");
  const { readRequest } = await import("../carry/sites.js");
  const signer = siteKey === undefined ? await sitesOfThisHost() : { keyFile: siteKey };
  const { request, warnings } = await readRequest(path, signer, env.now());
  if (!env.json) for (const warning of warnings) env.note(`warning: ${warning}`);
  return { request, start: startOfRequest(request) };
}

/** Where a build host has the keys of its sites; undefined elsewhere. */
async function sitesOfThisHost(): Promise<BuildConfig["sites"] | undefined> {
  const { readBuildConfig } = await import("../system/settings.js");
  const config = await readBuildConfig().catch((error: unknown) => {
    if (error instanceof ZferryError && error.code === "not-configured") return undefined;
    throw error;
  });
  return config?.sites;
}

/** The bundles that another site needs; where there are none for it, why not. */
function chooseFor(
  { request, start }: { readonly request: SiteRequest; readonly start: ChainStart },
  path: string,
  index: MirrorIndex,
  options: FetchCommandOptions,
): Chain<EntryLink> {
  const { site, product, streams } = request;
  if (product !== index.product) {
    throw new ZferryError(
      "product-mismatch",
      `site ${site} has product ${product}, the mirror is of ${index.product}`,
      { details: { site, expected: product, found: index.product } },
    );
  }
  try {
    // A site that has nothing yet is a new one.
    return choose(index, start, { ...options, full: streams.every(({ guids }) => guids.length === 0) });
  } catch (error) {
    if (!(error instanceof ZferryError)) throw error;
    const { code, message, details, hint } = error;
    // As the chain tells it to the site itself.
    const made = `have a bundle made for it: bundle create --for ${path}`;
    const about = message.replace(/^you have /, "it has ").replaceAll("this site", "it");
    throw new ZferryError(code, `for site ${site}: ${about}`, {
      details,
      hint: hint?.replace(CHAIN_HINT, made).replace(FULL_HINT, made),
      cause: error,
    });
  }
}

async function startOf(index: MirrorIndex, options: FetchCommandOptions): Promise<ChainStart> {
  if (options.from !== undefined || options.full === true) return startFrom(index, options.from ?? []);
  const { readSiteConfig } = await import("../system/settings.js");
  const { readChainStart } = await import("../carry/site.js");
  const { openState } = await import("../install/state.js");
  const site = await readSiteConfig(options.config);
  return readChainStart(site, await openState(site.state).readState());
}

/** Whom a site believes once it has installed a bundle: what comes after it may be signed by the keys that it brings. */
function trustAfter(trust: GivenTrust, { manifest: { keys: change } }: VerifiedBundle): GivenTrust {
  const { folder = trust.keys, set = NO_KEYS } = trust;
  if (change === undefined || change.counter <= set.counter) return trust;
  const changed = changeKeys(set, change);
  return { ...trust, keys: trustedKeys(folder, changed), folder, set: changed };
}

/** One that is there already counts if it is the one that the index names, whole. */
async function requireSame(
  path: string,
  entry: IndexEntry,
  trust: Trust,
  env: Environment,
): Promise<VerifiedBundle> {
  const file = await openBundleFile(path, usualThreads());
  try {
    const bundle = await verifyWhole(file, trust, env).catch((error: unknown) => {
      // A file that cannot be read, or whose signer is not trusted, is not better after that.
      const isDamaged = error instanceof ZferryError && [10, 12].includes(EXIT_STATUS[error.code]);
      throw isDamaged ? ofFile(error, path, `remove ${path}: the same command fetches it again`) : error;
    });
    const { identity } = bundle;
    if (identity === entry.identity) return bundle;
    throw new ZferryError("output-exists", `${path}: there is another bundle of this name already`, {
      details: { file: path, expected: entry.identity, found: identity },
      hint: "remove it, or name another folder with -o",
    });
  } finally {
    await file.close();
  }
}
