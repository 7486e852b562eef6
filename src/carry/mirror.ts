import { chmodSync, lstatSync, mkdirSync, readdirSync, rmSync, type Stats } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { VerifiedBundle, type Bundle } from "../bundle/reader.js";
import { resigned } from "../bundle/writer.js";
import { canonicalJson } from "../canonical-json.js";
import { ofFile, throwAll, ZferryError } from "../errors.js";
import { inOrder } from "../in-order.js";
import { formatTime, throwIfInterrupted, type Environment } from "../report.js";
import { openBundleFile, writeBundleFile, type OpenedFile } from "../system/bundle-file.js";
import { guarded, syncPath, writeFileDurably } from "../system/files.js";
import { isMissing, readSmallFile } from "../system/key-files.js";
import { lockFolder } from "../system/lock.js";
import { publicKeyOf, type PublicKey, type SecretKey } from "../trust/minisign.js";
import {
  encodeIndex,
  entryOf,
  INDEX_LIMITS,
  INDEX_NAME,
  inIndexOrder,
  isBundleName,
  PAGE_NAME,
  pathOf,
  verifyIndex,
  type IndexEntry,
  type MirrorIndex,
} from "./index-format.js";
import { mirrorPage } from "./page.js";

// formats/mirror.md, The folder.

export interface MirrorOptions {
  /** Signs the index. */
  readonly key: SecretKey;
  /** A bundle must be signed by one of these. */
  readonly trusted: readonly PublicKey[];
  readonly expiresDays: number;
  /** How many take part in reading a file. */
  readonly threads: number;
  /** Whether every byte of every bundle of the folder is read, and nothing taken from the index that is there. */
  readonly verifyAll?: boolean;
}

/** What a mirror has after a change of it. */
export interface ChangedMirror {
  readonly index: MirrorIndex;
  readonly added: readonly IndexEntry[];
  readonly removed: readonly IndexEntry[];
}

const DAY_SECONDS = 86_400;

/**
 * Verifies bundles and adds them, each under a name of its own. One that is there already stays, if it has the same signatures, or
 * one more.
 * @throws ZferryError `product-mismatch`, `site-busy`, and what is wrong with a bundle, before anything is added
 */
export async function addToMirror(
  folder: string,
  files: readonly OpenedFile[],
  options: MirrorOptions,
  env: Environment,
): Promise<ChangedMirror> {
  guarded(folder, () => makeFolder(folder));
  return whileLocked(folder, async () => {
    const before = (await readIndex(folder, options))?.index;
    const unlisted = before === undefined ? await readUnlisted(folder, options, env) : [];
    const listed = before?.bundles ?? onlyOnce(unlisted, env);
    const entries = new Map(listed.map((entry) => [entry.identity, entry]));
    const added: IndexEntry[] = [];
    const removed: IndexEntry[] = [];
    const bundles: { file: OpenedFile; bundle: Bundle }[] = [];
    for (const file of files) {
      const bundle = await verified(file, options.trusted, env).catch((error: unknown) => {
        throw ofFile(error, file.name, isForeign(error) ? TRUST_ITS_KEY : undefined);
      });
      bundles.push({ file, bundle });
    }
    const product = productOf(
      [
        ...namesOf(folder, unlisted),
        ...bundles.map(({ bundle }) => ({ name: bundle.name, product: bundle.manifest.product })),
      ],
      before,
    );
    const adding = new Set(bundles.map(({ bundle }) => bundle.identity));
    requireListed(
      folder,
      [...entries.values()].filter(({ identity }) => !adding.has(identity)),
    );
    for (const { file, bundle } of bundles) {
      const entry = entryOf(bundle, pathOf(bundle));
      const present = entries.get(entry.identity);
      if (present !== undefined) {
        const more = present.signers.filter((id) => !entry.signers.includes(id));
        // By another name it could be changed: older versions made hard links.
        const isSame = present.path === entry.path && statIn(folder, present)?.nlink === 1;
        if ((isSame || more.length > 0) && (await isWhole(folder, present, file, options, env))) {
          env.note(
            isSame
              ? `${file.name} is there already: ${present.path}`
              : `${file.name} is the same bundle as ${present.path}, which stays: that one is also signed by ${more.join(", ")}`,
          );
          continue;
        }
      }
      await bringIn(file, bundle, join(folder, entry.path), env);
      entries.set(entry.identity, entry);
      added.push(entry);
      if (present !== undefined && present.path !== entry.path) removed.push(present);
    }
    const index = writeIndex(folder, product, [...entries.values()], before, options, env);
    removeFiles(folder, removed);
    writePage(folder, index, options);
    return { index, added, removed };
  });
}

/**
 * Takes all bundles of some releases out.
 * @throws ZferryError `usage` for a release of which there is none
 */
export async function removeFromMirror(
  folder: string,
  releases: readonly string[],
  options: MirrorOptions,
  env: Environment,
): Promise<ChangedMirror> {
  return whileLocked(folder, async () => {
    const known = await readIndex(folder, options);
    const before = known?.index;
    const present = await readFolder(folder, known, options, env);
    const taken = present.filter(({ entry }) => releases.includes(entry.release.name));
    const missing = releases.find((name) => !taken.some(({ entry }) => entry.release.name === name));
    if (missing !== undefined) {
      throw new ZferryError("usage", `${folder}: has no bundle of release ${missing}`, {
        details: { folder, release: missing },
      });
    }
    const left = present.filter((each) => !taken.includes(each));
    const removed = taken.map(({ entry }) => entry);
    const product = productOf(namesOf(folder, present), before);
    const index = writeIndex(folder, product, onlyOnce(left, env), before, options, env);
    removeFiles(folder, removed);
    writePage(folder, index, options);
    const changed = changedSince(before, index);
    return { index, added: changed.added, removed: inEither(removed, changed.removed) };
  });
}

/**
 * Makes the index anew, of all the bundles that lie in the folder, and renews its expiry. Of those that changed since the index of
 * before the heads are verified; with `verifyAll` every byte of all of them is.
 * @throws ZferryError `usage` for a folder without a bundle that never was a mirror
 */
export async function indexMirror(
  folder: string,
  options: MirrorOptions,
  env: Environment,
): Promise<ChangedMirror> {
  return whileLocked(folder, async () => {
    const known = await readIndex(folder, options).catch((error: unknown) => {
      if (!(error instanceof ZferryError)) throw error;
      env.note(`the index of before counts for nothing: ${error.message}`);
      return undefined;
    });
    const before = known?.index;
    const present = await readFolder(folder, known, options, env);
    const product = present[0]?.product ?? before?.product;
    if (product === undefined) throw new ZferryError("usage", `${folder}: has no bundle`);
    if (before !== undefined && before.product !== product) {
      env.note(`the index of before counts for nothing: it is of product ${before.product}`);
    }
    const index = writeIndex(folder, product, onlyOnce(present, env), before, options, env);
    writePage(folder, index, options);
    return { index, ...changedSince(before, index) };
  });
}

/** Makes a folder, and those above it, which a web server can read whatever the umask is. */
function makeFolder(folder: string): void {
  const first = mkdirSync(folder, { recursive: true });
  if (first === undefined) return;
  for (let made = resolve(folder); made.startsWith(resolve(first)); made = dirname(made)) {
    chmodSync(made, 0o755);
  }
}

/** What a folder has whose index is missing: one that has only what is added now would have all the rest unpublished. */
async function readUnlisted(folder: string, options: MirrorOptions, env: Environment): Promise<Found[]> {
  const found = await readFolder(folder, undefined, options, env);
  if (found.length > 0) {
    env.note(`${folder} has no ${INDEX_NAME}: what lies there is listed, bundles: ${found.length}`);
  }
  return found;
}

async function whileLocked<Result>(folder: string, work: () => Promise<Result>): Promise<Result> {
  const unlock = await lockFolder(folder);
  try {
    for (const name of readdirSync(folder)) {
      if (/^\..+\.[0-9a-f]{12}$/.test(name)) rmSync(join(folder, name), { force: true });
    }
    return await work();
  } finally {
    await unlock();
  }
}

/** An index that is there. */
interface KnownIndex {
  readonly index: MirrorIndex;
  readonly signer: PublicKey;
  /** When its file was written, by the clock of the file system, in nanoseconds. */
  readonly writtenAt: bigint;
}

/** The index that is there, if it is one of ours. */
async function readIndex(folder: string, { key, trusted }: MirrorOptions): Promise<KnownIndex | undefined> {
  const path = join(folder, INDEX_NAME);
  const writtenAt = lstatSync(path, { bigint: true, throwIfNoEntry: false })?.mtimeNs ?? 0n;
  const bytes = await readSmallFile(path, "index", INDEX_LIMITS.indexBytes, "index-malformed").catch(
    (error: unknown) => {
      if (isMissing(error)) return undefined;
      throw error;
    },
  );
  if (bytes === undefined) return undefined;
  try {
    return { ...(await verifyIndex(bytes, [publicKeyOf(key), ...trusted], path)), writtenAt };
  } catch (error) {
    if (!(error instanceof ZferryError)) throw error;
    throw new ZferryError(error.code, error.message, {
      details: error.details,
      hint: "bundle mirror index makes it anew, of all the bundles that are there",
      cause: error,
    });
  }
}

async function verified(file: OpenedFile, trusted: readonly PublicKey[], env: Environment): Promise<Bundle> {
  const bundle = await VerifiedBundle.verify(file, { keys: trusted, threshold: 1 });
  await bundle.checkContents((done, total) => {
    throwIfInterrupted(env.signal);
    env.progress.update(`verifying ${file.name}`, done, total);
  });
  return bundle;
}

/** A bundle that lies in the folder. */
interface Found {
  readonly entry: IndexEntry;
  readonly product: string;
}

/** Whether a bundle was refused since none of its signers is trusted. */
const isForeign = (error: unknown): boolean =>
  error instanceof ZferryError && error.code === "signature-missing";

const TRUST_ITS_KEY = "if you trust one of these signers, name its public key with --trust";

/** Files whose heads are read at a time. */
const HEADS_AT_A_TIME = 16;
const NAME_ITS_KEY =
  "nothing was changed: name the public key that signed it with --trust, or move it out of the folder";
const LEFT_AS_IT_IS = "nothing was changed: move it out of the folder, and run the same command again";

/**
 * Every bundle of the folder, as its verified head has it, or as the index of before has it.
 * @throws ZferryError what is wrong with a bundle, and with others also
 */
async function readFolder(
  folder: string,
  before: KnownIndex | undefined,
  options: MirrorOptions,
  env: Environment,
): Promise<Found[]> {
  const listed = options.verifyAll === true ? undefined : unchangedBy(before, folder, options);
  const names = readdirSync(folder).filter(isBundleName).sort();
  const read = async (name: string): Promise<Found | ZferryError> => {
    throwIfInterrupted(env.signal);
    try {
      return listed?.(name) ?? (await readBundle(join(folder, name), name, options, env));
    } catch (error) {
      const fault = ofFile(error, join(folder, name), isForeign(error) ? NAME_ITS_KEY : LEFT_AS_IT_IS);
      if (!(fault instanceof ZferryError) || fault.code === "interrupted") throw fault;
      return fault;
    }
  };
  const found: Found[] = [];
  const faults: ZferryError[] = [];
  // Threads are for one file at a time.
  for await (const each of inOrder(names, options.verifyAll === true ? 1 : HEADS_AT_A_TIME, read)) {
    if (each instanceof ZferryError) faults.push(each);
    else found.push(each);
  }
  throwAll(faults);
  requireOneProduct(namesOf(folder, found));
  return found;
}

async function readBundle(
  path: string,
  name: string,
  { trusted, threads, verifyAll }: MirrorOptions,
  env: Environment,
): Promise<Found> {
  const file = await openBundleFile(path, verifyAll === true ? threads : 0);
  try {
    const bundle =
      verifyAll === true
        ? await verified(file, trusted, env)
        : await VerifiedBundle.verify(file, { keys: trusted, threshold: 1 });
    return { entry: entryOf(bundle, name), product: bundle.manifest.product };
  } finally {
    await file.close();
  }
}

/**
 * What an index, which this key signed, says of files that nobody touched since it was written. It gave their heads, verified.
 * formats/mirror.md, What is verified
 */
function unchangedBy(
  before: KnownIndex | undefined,
  folder: string,
  { key, trusted }: MirrorOptions,
): ((name: string) => Found | undefined) | undefined {
  if (before === undefined || Buffer.compare(before.signer.key, publicKeyOf(key).key) !== 0) return undefined;
  const ids = new Set(trusted.map(({ keyId }) => keyId));
  const entries = new Map(before.index.bundles.map((entry) => [entry.path, entry]));
  return (name) => {
    const entry = entries.get(name);
    // A key that is not trusted any more may have been the one that counted.
    if (entry === undefined || !entry.signers.every((id) => ids.has(id))) return undefined;
    const stat = lstatSync(join(folder, name), { bigint: true, throwIfNoEntry: false });
    const isSame =
      stat?.isFile() === true && stat.size === BigInt(entry.size) && stat.ctimeNs < before.writtenAt;
    return isSame ? { entry, product: before.index.product } : undefined;
  };
}

/** Of the files with one identity the one with the most signatures: it took the place of the others, or was about to. */
function onlyOnce(found: readonly Found[], env: Environment): IndexEntry[] {
  const chosen = new Map<string, IndexEntry>();
  for (const { entry } of found) {
    const other = chosen.get(entry.identity);
    if (other === undefined || other.signers.length < entry.signers.length) chosen.set(entry.identity, entry);
    if (other !== undefined) {
      const [kept, left] = other === chosen.get(entry.identity) ? [other, entry] : [entry, other];
      env.note(`${left.path} is the same bundle as ${kept.path}, and is left out`);
    }
  }
  return [...chosen.values()];
}

interface OfProduct {
  readonly name: string;
  readonly product: string;
}

const namesOf = (folder: string, found: readonly Found[]): OfProduct[] =>
  found.map(({ entry, product }) => ({ name: join(folder, entry.path), product }));

const productOf = (bundles: readonly OfProduct[], before: MirrorIndex | undefined): string =>
  requireOneProduct([
    ...(before === undefined ? [] : [{ name: "the mirror", product: before.product }]),
    ...bundles,
  ]);

/** @throws ZferryError `product-mismatch` */
function requireOneProduct(found: readonly OfProduct[]): string {
  const [first, ...others] = found;
  const other = others.find(({ product }) => product !== first?.product);
  if (first === undefined || other === undefined) return first?.product ?? "";
  throw new ZferryError(
    "product-mismatch",
    `${other.name} is of product ${other.product}, ${first.name} of ${first.product}`,
    {
      details: { found: other.product, expected: first.product },
      hint: "each product has a mirror of its own",
    },
  );
}

const statIn = (folder: string, { path }: IndexEntry): Stats | undefined =>
  lstatSync(join(folder, path), { throwIfNoEntry: false });

/** Whether a listed file is what the index says of it, every byte; if not, it is told that another takes its place. */
async function isWhole(
  folder: string,
  entry: IndexEntry,
  by: OpenedFile,
  { trusted, threads }: MirrorOptions,
  env: Environment,
): Promise<boolean> {
  const path = join(folder, entry.path);
  const stat = statIn(folder, entry);
  if (stat === undefined) return false;
  // Then it was verified just now.
  if (stat.ino === by.stat.ino && stat.dev === by.stat.dev) return true;
  const faultOf = async (): Promise<string | undefined> => {
    const file = await openBundleFile(path, threads);
    try {
      const found = entryOf(await verified(file, trusted, env), entry.path);
      return canonicalJson(found) === canonicalJson(entry) ? undefined : "is not what the index says of it";
    } finally {
      await file.close();
    }
  };
  const fault = await faultOf().catch((error: unknown) => {
    if (!(error instanceof ZferryError) || error.code === "interrupted") throw error;
    return error.message;
  });
  if (fault !== undefined) env.note(`${path} is replaced by ${by.name}: ${fault}`);
  return fault === undefined;
}

/**
 * Refuses to sign again that a mirror has what is not there as the index has it.
 * @throws ZferryError `content-mismatch`, of all such files
 */
function requireListed(folder: string, entries: readonly IndexEntry[]): void {
  const faults = entries.flatMap((entry) => {
    const path = join(folder, entry.path);
    const stat = statIn(folder, entry);
    const isFile = stat?.isFile() === true;
    if (isFile && stat.size === entry.size) return [];
    const what = isFile ? `has ${stat.size} bytes` : "is no file that is there";
    return new ZferryError("content-mismatch", `${path}: ${what}, the index says ${entry.size} bytes`, {
      details: { file: path, expected: entry.size, found: stat?.size ?? 0 },
      hint: `add that bundle again in the same command, or list what is there: bundle mirror index ${folder}`,
    });
  });
  throwAll(faults);
}

/**
 * Copies the file, checking each byte again; volumes are joined. Not by another name of the same file: who writes to that one later
 * would change what is published.
 */
async function bringIn(file: OpenedFile, bundle: Bundle, path: string, env: Environment): Promise<void> {
  const copied = async function* (): AsyncGenerator<Uint8Array> {
    let done = 0;
    for await (const piece of resigned(bundle, bundle.signatures)) {
      yield piece;
      env.progress.update(`copying ${file.name}`, (done += piece.length), bundle.size);
    }
  };
  await writeBundleFile(path, copied(), env.signal, { over: true, mode: 0o644 });
}

function writeIndex(
  folder: string,
  product: string,
  bundles: readonly IndexEntry[],
  before: MirrorIndex | undefined,
  { key, expiresDays }: MirrorOptions,
  env: Environment,
): MirrorIndex {
  // Never earlier than before, though the clock was set back. A folder that is begun anew still counts on.
  const clock = Math.floor(env.now().getTime() / 1000);
  const created = Math.max(clock, before?.created ?? 0);
  if (created > clock + DAY_SECONDS) {
    env.note(
      `warning: the index of before is of ${formatTime(created)}, which is yet to come, and so is this one: clients refuse both. ` +
        `If the clock is right now, remove ${join(folder, INDEX_NAME)} and run bundle mirror index`,
    );
  }
  // Where the index of before was lost, the time alone tells that this one is newer.
  const newest = bundles.reduce((last, each) => Math.max(last, each.created), 0);
  if (newest > created + DAY_SECONDS) {
    env.note(
      `warning: the index is of ${formatTime(created)}, and a bundle in it was made at ${formatTime(newest)}: clients that saw a newer index refuse it. ` +
        `Set the clock, and run bundle mirror index ${folder}`,
    );
  }
  const index: MirrorIndex = {
    format: 1,
    product,
    counter: Math.max((before?.counter ?? 0) + 1, created),
    created,
    expires: created + expiresDays * DAY_SECONDS,
    bundles: [...bundles].sort(inIndexOrder),
  };
  const bytes = encodeIndex(index, key);
  writeFileDurably(join(folder, INDEX_NAME), bytes, 0o644);
  return index;
}

/** Last: a page that cannot be written must not have a file stay, which the next index would list again. */
function writePage(folder: string, index: MirrorIndex, { key }: MirrorOptions): void {
  writeFileDurably(join(folder, PAGE_NAME), mirrorPage(index, publicKeyOf(key)), 0o644);
}

/** What is listed that was not before, such as what a command that was cut off left, and the other way round. */
function changedSince(
  before: MirrorIndex | undefined,
  index: MirrorIndex,
): Pick<ChangedMirror, "added" | "removed"> {
  const notIn = ({ bundles }: Pick<MirrorIndex, "bundles">): ((entry: IndexEntry) => boolean) => {
    const paths = new Set(bundles.map(({ path }) => path));
    return ({ path }) => !paths.has(path);
  };
  const earlier = before ?? { bundles: [] };
  return { added: index.bundles.filter(notIn(earlier)), removed: earlier.bundles.filter(notIn(index)) };
}

const inEither = (some: readonly IndexEntry[], others: readonly IndexEntry[]): IndexEntry[] => [
  ...some,
  ...others.filter(({ path }) => some.every((each) => each.path !== path)),
];

/** Only once no index names them. */
function removeFiles(folder: string, entries: readonly IndexEntry[]): void {
  for (const { path } of entries) {
    const file = join(folder, path);
    guarded(file, () => rmSync(file, { force: true }));
  }
  if (entries.length > 0) syncPath(folder);
}
