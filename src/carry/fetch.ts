import { createHash, type Hash } from "node:crypto";
import { join } from "node:path";
import { encodeHead } from "../bundle/writer.js";
import { SUMS_NAME, TRAILER, encodeHeader, paddingOf, BLOCK_BYTES } from "../bundle/layout.js";
import { VerifiedBundle, type Trust } from "../bundle/reader.js";
import type { ByteSource, StoredMember } from "../bundle/members.js";
import { canonicalJson } from "../canonical-json.js";
import { ofFile, throwAll, ZferryError } from "../errors.js";
import { throwIfInterrupted, type ProgressReport } from "../report.js";
import { isLasting, type Download, type HttpClient } from "../system/http.js";
import { listParts, openPartFile, partOf, removeStalePart, type PartFile } from "../system/part-file.js";
import type { PublicKey } from "../trust/minisign.js";
import {
  entryOf,
  INDEX_LIMITS,
  INDEX_NAME,
  isBundleName,
  otherHead,
  verifyIndex,
  type IndexEntry,
  type MirrorIndex,
} from "./index-format.js";
import type { ChainStart } from "./chain.js";
import type { SeenIndexes } from "./seen.js";

// formats/mirror.md, Fetching.

export interface FetchOptions {
  readonly client: HttpClient;
  readonly connections: number;
  /** How often in a row a mirror may fail before it is left alone. */
  readonly retries: number;
  /** Waits before the so-manieth try in a row, and may tell why. */
  pause(failures: number, reason: string): Promise<void>;
  note(line: string): void;
  readonly progress: ProgressReport;
  readonly signal: AbortSignal;
}

/** A mirror, and what is known of it. */
export interface Mirror {
  /** Ends with a slash. */
  readonly url: URL;
  /** Whether it heeds `Range`; until it shows that it does not. */
  hasRanges: boolean;
  /** In a row. */
  failures: number;
  /** Why it is left alone. */
  fault: ZferryError | undefined;
  /** How many rests it was given, in all. */
  rests: number;
  /** Requests under way. */
  active: number;
  resting: Promise<void>;
}

export const mirrorAt = (url: URL): Mirror => {
  const folder = new URL(url.href);
  folder.search = folder.hash = "";
  if (!folder.pathname.endsWith("/")) folder.pathname += "/";
  return {
    url: folder,
    hasRanges: true,
    failures: 0,
    fault: undefined,
    rests: 0,
    active: 0,
    resting: Promise.resolve(),
  };
};

/**
 * Reads the index of each mirror, and takes the newest that is believed. A mirror whose own is older may still have its bundles;
 * one that gives no index that counts is left alone.
 * @throws ZferryError of the first mirror, where none has an index that counts
 */
export async function fetchIndex(
  mirrors: readonly Mirror[],
  keys: readonly PublicKey[],
  seen: SeenIndexes,
  now: Date,
  options: FetchOptions,
): Promise<MirrorIndex> {
  const found = await Promise.all(
    mirrors.map(async (mirror) => {
      const url = new URL(INDEX_NAME, mirror.url);
      try {
        const bytes = await retried(mirror, options, isTransfer, () => readWhole(options.client, url));
        const verified = await verifyIndex(bytes, keys, url.href);
        seen.judge(verified.index, verified.signer, url.href, now);
        return verified;
      } catch (error) {
        if (!(error instanceof ZferryError) || error.code === "interrupted") throw error;
        mirror.fault = error;
        return undefined;
      }
    }),
  );
  const counting = found.filter((each) => each !== undefined);
  const [newest] = counting.sort(
    (a, b) => b.index.created - a.index.created || b.index.counter - a.index.counter,
  );
  const faults = faultsOf(mirrors);
  if (newest === undefined) {
    const [first, ...also] = faults as [ZferryError, ...ZferryError[]];
    throw new ZferryError(first.code, first.message, {
      details: first.details,
      hint: first.hint ?? `a mirror is named by the address of its folder, in which ${INDEX_NAME} lies`,
      also,
      cause: first,
    });
  }
  for (const { message } of faults) options.note(`left alone: ${message}`);
  await seen.accept(newest.index, newest.signer);
  return newest.index;
}

async function readWhole(client: HttpClient, url: URL): Promise<Buffer> {
  const { body, total } = await client.get(url);
  const pieces: Buffer[] = [];
  let bytes = 0;
  for await (const piece of body) {
    bytes += piece.length;
    if (bytes > INDEX_LIMITS.indexBytes) {
      throw new ZferryError("index-malformed", `${url.href}: is over ${INDEX_LIMITS.indexBytes} bytes`, {
        details: { file: url.href },
      });
    }
    pieces.push(piece);
  }
  if (total !== undefined && total !== bytes) throw cutOff(url, bytes, total);
  return Buffer.concat(pieces);
}

const cutOff = (url: URL, bytes: number, total: number): ZferryError =>
  new ZferryError("download-failed", `${url.href}: the server ends at byte ${bytes} of ${total}`, {
    details: { url: url.href, reason: "length" },
  });

const isTransfer = ({ code }: ZferryError): boolean => code === "download-failed";

/** A head that arrived wrong fails in many ways; but for what is told of one whose signatures are right, next time it may be right. */
const isHeads = ({ code }: ZferryError): boolean =>
  ![
    "interrupted",
    "io-failed",
    "no-space",
    "signature-missing",
    "format-unsupported",
    "index-malformed",
  ].includes(code);

/** Tries again what may go better next time. */
async function retried<Result>(
  mirror: Mirror,
  { retries, pause, signal }: FetchOptions,
  mayPass: (error: ZferryError) => boolean,
  work: () => Promise<Result>,
): Promise<Result> {
  for (;;) {
    throwIfInterrupted(signal);
    try {
      const result = await work();
      mirror.failures = 0;
      return result;
    } catch (error) {
      if (!(error instanceof ZferryError && mayPass(error))) throw error;
      mirror.failures += 1;
      if (isLasting(error) || mirror.failures > retries) throw error;
      await pause(mirror.failures, error.message);
    }
  }
}

/** A member, and how much of it is there. */
interface Wanted {
  readonly member: StoredMember;
  /** Bytes from its beginning. */
  done: number;
  hash: Hash;
  /** Whose bytes these are; none: they were there before. */
  from: Set<Mirror>;
  /** How often each mirror had a hand in a wrong content. */
  readonly wrong: Map<Mirror, number>;
  /** Once its content was wrong, it is taken from one mirror at a time, so that it is known whose it was. */
  single: boolean;
  state: "open" | "taken" | "done";
}

/** What one request asks for, at most. */
const RUN_BYTES_MAX = 32 << 20;
const RUN_BYTES_MIN = 256 << 10;
const HEAD_BYTES = 256 << 10;
/** So much in one go shows that a mirror works, though it breaks off again. */
const PROGRESS_BYTES = 64 << 10;

/**
 * Downloads one bundle. Each member is hashed as it arrives, and what does not have its hash is fetched again; the file has its
 * name only after the whole of it was verified. What was downloaded stays for the next run.
 * @throws ZferryError `download-failed`, `content-mismatch`, `index-malformed` for an index that is not true of the bundle, `no-space`, and
 * what a bundle that is not trusted gives
 */
export async function fetchBundle(
  entry: IndexEntry,
  product: string,
  mirrors: readonly Mirror[],
  path: string,
  trust: Trust,
  options: FetchOptions,
): Promise<VerifiedBundle> {
  const part = await openPartFile(path, entry.size);
  try {
    const bundle =
      (await headOf(part, entry, product, trust)) ??
      (await fetchHead(entry, product, mirrors, part, trust, options));
    const wanted = await missingOf(part, bundle, options);
    await fetchMembers(entry, wanted, mirrors, part, options);
    await writeFrame(part, bundle);
    const whole = await VerifiedBundle.verify(part, trust);
    await whole.checkContents((done, total) => {
      throwIfInterrupted(options.signal);
      options.progress.update(`verifying ${entry.path}`, done, total);
    });
    throwIfInterrupted(options.signal);
    await part.finish();
    return whole;
  } finally {
    options.progress.end();
    await part.close();
  }
}

/**
 * Removes parts of bundles that left the mirror since they were begun: no run goes on with them. A part that another process is
 * downloading stays, and so does one of another product, or whose head does not count.
 * formats/mirror.md, Fetching
 */
export async function removeLeftParts(
  folder: string,
  { product, bundles }: MirrorIndex,
  trust: Trust,
  note: FetchOptions["note"],
): Promise<void> {
  const listed = new Set(bundles.map(({ path }) => path));
  for (const name of await listParts(folder)) {
    if (!isBundleName(name) || listed.has(name)) continue;
    const isLeft = async (part: ByteSource): Promise<boolean> => {
      const bundle = await VerifiedBundle.verify(part, trust).catch(() => undefined);
      return bundle?.manifest.product === product;
    };
    const path = join(folder, name);
    if (await removeStalePart(path, isLeft))
      note(`removed ${partOf(path)}: the mirror does not have that bundle any more`);
  }
}

/** The head, if an earlier run brought it. */
async function headOf(
  source: ByteSource,
  entry: IndexEntry,
  product: string,
  trust: Trust,
): Promise<VerifiedBundle | undefined> {
  try {
    const bundle = await VerifiedBundle.verify(source, trust);
    requireListed(bundle, entry, product, source.name);
    return bundle;
  } catch (error) {
    if (error instanceof ZferryError) return undefined;
    throw error;
  }
}

async function fetchHead(
  entry: IndexEntry,
  product: string,
  mirrors: readonly Mirror[],
  part: PartFile,
  trust: Trust,
  options: FetchOptions,
): Promise<VerifiedBundle> {
  const before = faultsOf(mirrors);
  const faults: ZferryError[] = [];
  for (const mirror of mirrors) {
    if (mirror.fault !== undefined) continue;
    const url = new URL(entry.path, mirror.url);
    const begin = (): RemoteSource => remoteSource(options.client, url, entry.size, mirror);
    let source = begin();
    let isWrong = false;
    try {
      return await retried(mirror, options, isHeads, async () => {
        const before = source.have();
        const bundle = await VerifiedBundle.verify(source, trust).catch((error: unknown) => {
          if (!(error instanceof ZferryError && isTransfer(error))) {
            isWrong = true;
            source = begin();
          } else if (!isWrong && source.have() - before >= PROGRESS_BYTES) {
            // Not once it was wrong: what came would end no row, then.
            mirror.failures = 0;
          }
          throw error;
        });
        try {
          requireListed(bundle, entry, product, url.href);
        } catch (error) {
          [source, isWrong] = [begin(), true];
          throw error;
        }
        await part.write(0, encodeHead(bundle.manifest, bundle.sums, bundle.signatures));
        return bundle;
      });
    } catch (error) {
      const fault = ofFile(error, url.href);
      if (!(fault instanceof ZferryError) || fault.code === "interrupted") throw fault;
      faults.push(fault);
      mirror.fault = fault;
      noteLeft(fault, mirrors, options.note);
    }
  }
  // Why a mirror was left alone long ago says nothing of this bundle.
  throwAll([...faults, ...before]);
  throw new RangeError("no mirror");
}

const faultsOf = (mirrors: readonly Mirror[]): ZferryError[] => mirrors.flatMap(({ fault }) => fault ?? []);

/** Where no other mirror is left it is the error that the command ends with. */
function noteLeft({ message }: ZferryError, mirrors: readonly Mirror[], note: FetchOptions["note"]): void {
  if (mirrors.some(({ fault }) => fault === undefined)) note(`left alone: ${message}`);
}

interface RemoteSource extends ByteSource {
  /** Bytes from its beginning that came so far. */
  have(): number;
}

/** A file on a server, of which as much is read as is looked at. What came before a failure stays, and is gone on with. */
function remoteSource(client: HttpClient, url: URL, size: number, mirror: Mirror): RemoteSource {
  let bytes: Buffer = Buffer.alloc(0);
  const growTo = async (end: number): Promise<void> => {
    const pieces: Buffer[] = [bytes];
    let have = bytes.length;
    const to = Math.min(size, Math.max(end, have + HEAD_BYTES));
    try {
      const download = await getPart(client, url, { start: have, end: to }, size, mirror);
      let at = download.start;
      for await (const piece of download.body) {
        const from = Math.max(0, have - at);
        at += piece.length;
        if (from < piece.length) {
          const fresh = piece.subarray(from, Math.min(piece.length, from + to - have));
          pieces.push(fresh);
          have += fresh.length;
        }
        if (have >= to) break;
      }
    } catch (error) {
      // More was asked for than is needed now.
      if (have < end || !(error instanceof ZferryError && isTransfer(error))) throw error;
    } finally {
      bytes = Buffer.concat(pieces);
    }
    if (have < end) throw cutOff(url, have, size);
  };
  return {
    name: url.href,
    size,
    have: () => bytes.length,
    async read(offset, length) {
      if (bytes.length < offset + length) await growTo(offset + length);
      return bytes.subarray(offset, offset + length);
    },
  };
}

/** A part, from a server that says how long the whole is only if it says the truth. */
async function getPart(
  client: HttpClient,
  url: URL,
  part: { readonly start: number; readonly end: number },
  size: number,
  mirror: Mirror,
): Promise<Download> {
  const download = await client.get(url, part);
  if (download.total !== undefined && download.total !== size) {
    throw new ZferryError(
      "download-failed",
      `${url.href}: has ${download.total} bytes, the index says ${size}`,
      { details: { url: url.href, reason: "length", expected: size, found: download.total } },
    );
  }
  if (download.start !== part.start) mirror.hasRanges = false;
  return download;
}

/**
 * A bundle that is swapped for another, though that is signed too, or whose signatures are others, is not what the index names; and an
 * index that tells of a bundle what is not so is no use to choose by.
 * @param name of the file, for messages
 * @throws ZferryError `content-mismatch`, `index-malformed`
 */
function requireListed(bundle: VerifiedBundle, entry: IndexEntry, product: string, name: string): void {
  const differs = (what: string, expected: string, found: string): ZferryError =>
    new ZferryError("content-mismatch", `${name}: ${what} ${found}, the index says ${expected}`, {
      details: { url: name, expected, found },
    });
  if (bundle.identity !== entry.identity) {
    throw differs(`${SUMS_NAME} has SHA-256`, entry.identity, bundle.identity);
  }
  // It covers the signatures, which the identity does not. formats/mirror.md, The folder
  const other = otherHead(bundle, entry.path);
  if (other !== undefined) throw differs("its head has a SHA-256 of", other.expected, other.found);
  const found = entryOf(bundle, entry.path);
  if (bundle.manifest.product === product && canonicalJson(found) === canonicalJson(entry)) return;
  throw new ZferryError(
    "index-malformed",
    `${name}: the index says something else of release ${entry.release.name} than the bundle itself`,
    { details: { file: name } },
  );
}

/** The members that are not there yet; of each, what an earlier run brought. */
async function missingOf(part: PartFile, bundle: VerifiedBundle, options: FetchOptions): Promise<Wanted[]> {
  const wanted: Wanted[] = [];
  for (const member of bundle.storedMembers) {
    throwIfInterrupted(options.signal);
    const { offset, storedBytes, sha256 } = member;
    const end = await part.dataEnd(offset, offset + storedBytes);
    const hash = createHash("sha256");
    for (let at = offset; at < end; at += HEAD_BYTES) {
      hash.update(await part.read(at, Math.min(HEAD_BYTES, end - at)));
      options.progress.update("looking what is there", at, bundle.size);
    }
    // A content may end with zeros, which cannot be told from what is missing.
    const left = offset + storedBytes - end;
    const isWhole = left <= BLOCK_BYTES;
    if (isWhole && hash.copy().update(new Uint8Array(left)).digest("hex") === sha256) continue;
    const isWrong = left === 0;
    wanted.push({
      member,
      done: isWrong ? 0 : end - offset,
      hash: isWrong ? createHash("sha256") : hash,
      from: new Set(),
      wrong: new Map(),
      single: false,
      state: "open",
    });
  }
  return wanted;
}

/** Has the members come over several connections at once, from whichever mirrors give them. */
async function fetchMembers(
  entry: IndexEntry,
  wanted: readonly Wanted[],
  mirrors: readonly Mirror[],
  part: PartFile,
  { client, connections, retries, pause, note, progress, signal }: FetchOptions,
): Promise<void> {
  const total = wanted.reduce((sum, { member, done }) => sum + member.storedBytes - done, 0);
  const runBytes = Math.min(RUN_BYTES_MAX, Math.max(RUN_BYTES_MIN, total / (2 * connections)));
  const before = new Set(faultsOf(mirrors));
  let arrived = 0;
  let stopped: { readonly error: unknown } | undefined;
  const waiting: (() => void)[] = [];
  const wake = (): void => {
    for (const go of waiting.splice(0)) go();
  };

  const usableFor = ({ wrong }: Wanted): Mirror[] => {
    const alive = mirrors.filter(
      (mirror) => mirror.fault === undefined && (wrong.get(mirror) ?? 0) <= retries,
    );
    // A server that has whole files only is asked where no other is left.
    return alive.some(({ hasRanges }) => hasRanges) ? alive.filter(({ hasRanges }) => hasRanges) : alive;
  };

  const reset = (each: Wanted): void => {
    arrived -= each.done;
    each.done = 0;
    each.hash = createHash("sha256");
    each.from = new Set();
  };

  /** What one request asks for: members that follow one another; of a server without ranges all that are missing. */
  const take = (first: Wanted, mirror: Mirror): Wanted[] => {
    const run: Wanted[] = [];
    let bytes = 0;
    for (const each of wanted.slice(wanted.indexOf(first))) {
      const fits =
        each.state === "open" &&
        usableFor(each).includes(mirror) &&
        (run.length === 0 || (bytes + each.member.storedBytes <= runBytes && follows(run.at(-1), each)));
      if (!fits && mirror.hasRanges) break;
      if (each.state !== "open" || !usableFor(each).includes(mirror)) continue;
      if (each.single && [...each.from].some((other) => other !== mirror)) reset(each);
      each.state = "taken";
      bytes += each.member.storedBytes - each.done;
      run.push(each);
    }
    return run;
  };

  const complete = (each: Wanted, mirror: Mirror): void => {
    const found = each.hash.digest("hex");
    const { name, sha256 } = each.member;
    if (found === sha256) {
      each.state = "done";
      mirror.failures = 0;
      return;
    }
    for (const who of each.from) each.wrong.set(who, (each.wrong.get(who) ?? 0) + 1);
    reset(each);
    each.single = true;
    throw new ZferryError(
      "content-mismatch",
      `${new URL(entry.path, mirror.url).href}: ${name} has SHA-256 ${found}, not ${sha256}`,
      { details: { url: mirror.url.href, member: name, expected: sha256, found } },
    );
  };

  const download = async (mirror: Mirror, run: readonly Wanted[]): Promise<void> => {
    const url = new URL(entry.path, mirror.url);
    const [first, last] = [run[0] as Wanted, run.at(-1) as Wanted];
    const start = first.member.offset + first.done;
    const end = last.member.offset + last.member.storedBytes;
    const { start: begins, body, cancel } = await getPart(client, url, { start, end }, entry.size, mirror);
    if (begins !== start && usableFor(first).some(({ hasRanges }) => hasRanges)) return cancel();
    let at = begins;
    let fresh = 0;
    let next = 0;
    for await (const piece of body) {
      for (let from = 0; from < piece.length && next < run.length;) {
        if (stopped !== undefined) return;
        const each = run[next] as Wanted;
        const skipped = each.member.offset + each.done - (at + from);
        if (skipped > 0) {
          from += skipped;
          continue;
        }
        const bytes = piece.subarray(from, from + each.member.storedBytes - each.done);
        each.hash.update(bytes);
        each.from.add(mirror);
        await part.write(at + from, bytes);
        each.done += bytes.length;
        from += bytes.length;
        fresh += bytes.length;
        progress.update(`downloading ${entry.path}`, (arrived += bytes.length), total);
        if (each.done < each.member.storedBytes) continue;
        complete(each, mirror);
        next += 1;
      }
      if (fresh >= PROGRESS_BYTES) mirror.failures = 0;
      at += piece.length;
      if (next === run.length) return;
    }
    throw cutOff(url, at, end);
  };

  /** @param rests of the mirror when the request began: what failed since then is one failure with it, over all connections */
  const failed = (mirror: Mirror, rests: number, error: unknown): void => {
    const isMirrors =
      error instanceof ZferryError && (error.code === "download-failed" || error.code === "content-mismatch");
    if (!isMirrors) throw error;
    if (!isLasting(error) && mirror.rests > rests) return;
    mirror.failures += 1;
    if (isLasting(error) || mirror.failures > retries) {
      const isNews = mirror.fault === undefined;
      mirror.fault = error;
      if (isNews) noteLeft(error, mirrors, note);
    } else {
      mirror.rests += 1;
      // Who waits for it notices an interruption by itself.
      mirror.resting = pause(mirror.failures, error.message).catch(() => undefined);
    }
  };

  const work = async (): Promise<void> => {
    while (stopped === undefined && wanted.some(({ state }) => state !== "done")) {
      throwIfInterrupted(signal);
      const first = wanted.find(({ state }) => state === "open");
      const candidates = first === undefined ? [] : usableFor(first);
      if (first !== undefined && candidates.length === 0) throw impossible(first, entry, mirrors, before);
      const wrongs = (each: Mirror): number => first?.wrong.get(each) ?? 0;
      const [mirror] = candidates
        .filter(({ hasRanges, active }) => hasRanges || active === 0)
        .sort((a, b) => wrongs(a) - wrongs(b) || a.failures - b.failures || a.active - b.active);
      if (first === undefined || mirror === undefined) {
        await new Promise<void>((resolve) => waiting.push(resolve));
        continue;
      }
      const run = take(first, mirror);
      mirror.active += 1;
      let { rests } = mirror;
      try {
        await mirror.resting;
        ({ rests } = mirror);
        throwIfInterrupted(signal);
        await download(mirror, run);
      } catch (error) {
        failed(mirror, rests, error);
      } finally {
        mirror.active -= 1;
        for (const each of run) if (each.state === "taken") each.state = "open";
        wake();
      }
    }
  };

  const stopping = async (): Promise<void> => {
    try {
      await work();
    } catch (error) {
      stopped ??= { error };
    } finally {
      wake();
    }
  };
  await Promise.all(Array.from({ length: connections }, stopping));
  if (stopped !== undefined) throw stopped.error;
}

/** Between members lie only padding and a header. */
const follows = (before: Wanted | undefined, { member, done }: Wanted): boolean =>
  before !== undefined &&
  done === 0 &&
  member.offset - (before.member.offset + before.member.storedBytes) < 2 * BLOCK_BYTES;

/** @param before why mirrors were left alone already when the download began: what is told first is of this one */
function impossible(
  { member, wrong }: Wanted,
  entry: IndexEntry,
  mirrors: readonly Mirror[],
  before: ReadonlySet<ZferryError>,
): ZferryError {
  const arisen = faultsOf(mirrors).filter((fault) => !before.has(fault));
  const faults = [...arisen, ...before];
  const hint = "what came stays: run the same command again, or name another mirror";
  const [first, ...also] = faults;
  const isWrong = wrong.size === mirrors.length || (wrong.size > 0 && arisen.length === 0);
  if (first === undefined || isWrong) {
    return new ZferryError("content-mismatch", `${entry.path}: ${member.name} is wrong on every mirror`, {
      details: { file: entry.path, member: member.name, expected: member.sha256 },
      hint,
      also: faults,
    });
  }
  return new ZferryError(first.code, first.message, {
    details: first.details,
    hint: first.hint ?? hint,
    also,
    cause: first,
  });
}

/** Headers, padding and end, of which nothing needs to be downloaded: they follow from the head. */
async function writeFrame(part: PartFile, bundle: VerifiedBundle): Promise<void> {
  const { created } = bundle.manifest;
  for (const { name, offset, storedBytes } of bundle.storedMembers) {
    await part.write(offset - BLOCK_BYTES, encodeHeader({ name, size: storedBytes, mtime: created }));
    await part.write(offset + storedBytes, new Uint8Array(paddingOf(storedBytes)));
  }
  await part.write(bundle.size - TRAILER.length, TRAILER);
}

/**
 * What a chain starts from where guids are all that is known. The other streams of a release that a guid is the target of, or else
 * of a bundle that it is the base of, are taken to be that one's too.
 * @param guids none: a new site
 * @throws ZferryError `chain-missing` for a guid that no bundle knows
 */
export function startFrom({ product, bundles }: MirrorIndex, guids: readonly string[]): ChainStart {
  const streams = new Map<string, readonly string[]>();
  for (const { role } of bundles.flatMap((entry) => entry.streams)) streams.set(role, []);
  let installed: ChainStart["installed"];
  let tree: string | null = null;
  const explicit = new Set<string>();
  for (const guid of guids) {
    const made = bundles.find((entry) => entry.streams.some(({ target }) => target.guid === guid));
    const based = bundles.find((entry) => entry.streams.some(({ base }) => base?.guid === guid));
    const known = made ?? based;
    if (known === undefined) {
      throw new ZferryError("chain-missing", `no bundle of the mirror has to do with guid ${guid}`, {
        details: { guid },
        hint: "zfs get guid shows it, of the newest snapshot of the site's dataset",
      });
    }
    if (made !== undefined) {
      if (installed === undefined || installed.sequence < made.release.sequence) installed = made.release;
      tree = made.root?.target ?? tree;
    } else {
      tree = based?.root?.base ?? tree;
    }
    for (const { role, base, target } of known.streams) {
      const there = made === undefined ? base?.guid : target.guid;
      if (there === guid) explicit.add(role);
      else if (explicit.has(role)) continue;
      if (there !== undefined) streams.set(role, [there]);
    }
  }
  return {
    product,
    installed,
    highestSequence: installed?.sequence ?? 0,
    accepted: new Set(),
    streams,
    tree: guids.length === 1 ? tree : null,
  };
}
