import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { VerifiedBundle, type Bundle } from "../bundle/reader.js";
import { encodeHead, resigned } from "../bundle/writer.js";
import { ZferryError } from "../errors.js";
import { throwIfInterrupted, type Environment } from "../report.js";
import { linkBundleFile, openBundleFile, writeBundleFile, type OpenedFile } from "../system/bundle-file.js";
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
}

/** What a mirror has after a change of it. */
export interface ChangedMirror {
  readonly index: MirrorIndex;
  readonly added: readonly IndexEntry[];
  readonly removed: readonly IndexEntry[];
}

const DAY_SECONDS = 86_400;

/**
 * Verifies bundles and adds them, each under a name of its own; one that is there already, with the same signatures, stays.
 * @throws ZferryError `product-mismatch`, `site-busy`, and what is wrong with a bundle, before anything is added
 */
export async function addToMirror(
  folder: string,
  paths: readonly string[],
  options: MirrorOptions,
  env: Environment,
): Promise<ChangedMirror> {
  guarded(folder, () => mkdirSync(folder, { mode: 0o755, recursive: true }));
  return whileLocked(folder, async () => {
    const before = await readIndex(folder, options);
    const entries = new Map((before?.bundles ?? []).map((entry) => [entry.identity, entry]));
    const added: IndexEntry[] = [];
    const removed: IndexEntry[] = [];
    const files: OpenedFile[] = [];
    try {
      const bundles: { file: OpenedFile; bundle: Bundle }[] = [];
      for (const path of paths) {
        const file = await openBundleFile(path, options.threads);
        files.push(file);
        bundles.push({ file, bundle: await verified(file, options, env) });
      }
      const product = productOf(
        bundles.map(({ bundle }) => bundle),
        before,
      );
      for (const { file, bundle } of bundles) {
        const entry = entryOf(bundle, pathOf(bundle));
        const present = entries.get(entry.identity);
        if (present?.path === entry.path && isFile(join(folder, entry.path), entry.size)) continue;
        await bringIn(file, bundle, join(folder, entry.path), env);
        entries.set(entry.identity, entry);
        added.push(entry);
        if (present !== undefined && present.path !== entry.path) removed.push(present);
      }
      const index = writeIndex(folder, product, [...entries.values()], before, options, env);
      removeFiles(folder, removed);
      return { index, added, removed };
    } finally {
      env.progress.end();
      await Promise.all(files.map((file) => file.close()));
    }
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
    const before = await readIndex(folder, options);
    const present = await readFolder(folder, options, env);
    const taken = present.filter(({ entry }) => releases.includes(entry.release.name));
    const missing = releases.find((name) => !taken.some(({ entry }) => entry.release.name === name));
    if (missing !== undefined) {
      throw new ZferryError("usage", `${folder}: has no bundle of release ${missing}`, {
        details: { folder, release: missing },
      });
    }
    const left = present.filter((each) => !taken.includes(each));
    const removed = taken.map(({ entry }) => entry);
    const product = before?.product ?? (taken[0] as Found).product;
    const index = writeIndex(folder, product, onlyOnce(left, env), before, options, env);
    removeFiles(folder, removed);
    return { index, added: [], removed };
  });
}

/**
 * Makes the index anew, of all the bundles that lie in the folder, and renews its expiry. Their heads are verified.
 * @throws ZferryError `usage` for a folder without a bundle that never was a mirror
 */
export async function indexMirror(
  folder: string,
  options: MirrorOptions,
  env: Environment,
): Promise<ChangedMirror> {
  return whileLocked(folder, async () => {
    const before = await readIndex(folder, options).catch((error: unknown) => {
      if (!(error instanceof ZferryError)) throw error;
      env.note(`the index of before counts for nothing: ${error.message}`);
      return undefined;
    });
    const present = await readFolder(folder, options, env);
    const product = before?.product ?? present[0]?.product;
    if (product === undefined) throw new ZferryError("usage", `${folder}: has no bundle`);
    const index = writeIndex(folder, product, onlyOnce(present, env), before, options, env);
    return { index, added: [], removed: [] };
  });
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

/** The index that is there, if it is one of ours. */
async function readIndex(folder: string, { key, trusted }: MirrorOptions): Promise<MirrorIndex | undefined> {
  const path = join(folder, INDEX_NAME);
  const bytes = await readSmallFile(path, "index", INDEX_LIMITS.indexBytes, "index-malformed").catch(
    (error: unknown) => {
      if (isMissing(error)) return undefined;
      throw error;
    },
  );
  if (bytes === undefined) return undefined;
  try {
    return (await verifyIndex(bytes, [publicKeyOf(key), ...trusted], path)).index;
  } catch (error) {
    if (!(error instanceof ZferryError)) throw error;
    throw new ZferryError(error.code, error.message, {
      details: error.details,
      hint: "bundle mirror index makes it anew, of all the bundles that are there",
      cause: error,
    });
  }
}

async function verified(file: OpenedFile, { trusted }: MirrorOptions, env: Environment): Promise<Bundle> {
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

/** Every bundle of the folder, as its verified head has it. */
async function readFolder(folder: string, { trusted }: MirrorOptions, env: Environment): Promise<Found[]> {
  const found: Found[] = [];
  for (const name of readdirSync(folder).filter(isBundleName).sort()) {
    throwIfInterrupted(env.signal);
    const file = await openBundleFile(join(folder, name));
    try {
      const bundle = await VerifiedBundle.verify(file, { keys: trusted, threshold: 1 });
      found.push({ entry: entryOf(bundle, name), product: bundle.manifest.product });
    } finally {
      await file.close();
    }
  }
  requireOneProduct(found.map(({ entry, product }) => ({ name: join(folder, entry.path), product })));
  return found;
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

function productOf(bundles: readonly Bundle[], before: MirrorIndex | undefined): string {
  return requireOneProduct([
    ...(before === undefined ? [] : [{ name: "the mirror", product: before.product }]),
    ...bundles.map(({ name, manifest }) => ({ name, product: manifest.product })),
  ]);
}

/** @throws ZferryError `product-mismatch` */
function requireOneProduct(found: readonly { readonly name: string; readonly product: string }[]): string {
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

/**
 * The name of a bundle's file: by its head, from which all of its bytes follow. So what has a name never changes, and a
 * client that reads while the mirror changes never joins two files.
 */
function pathOf({ manifest, sums, signatures }: Bundle): string {
  const head = createHash("sha256")
    .update(encodeHead(manifest, sums, signatures))
    .digest("hex");
  return `${manifest.release.name}-${head.slice(0, 16)}.bundle`;
}

const isFile = (path: string, size: number): boolean => {
  const stat = statSync(path, { throwIfNoEntry: false });
  return stat?.isFile() === true && stat.size === size;
};

/** Links the file, or copies it, checking each byte again. One that is there is of an add that did not end. */
async function bringIn(file: OpenedFile, bundle: Bundle, path: string, env: Environment): Promise<void> {
  const present = statSync(path, { throwIfNoEntry: false });
  if (present?.ino === file.stat.ino && present.dev === file.stat.dev) return;
  guarded(path, () => rmSync(path, { force: true }));
  if (await linkBundleFile(file, path)) return;
  const copied = async function* (): AsyncGenerator<Uint8Array> {
    let done = 0;
    for await (const piece of resigned(bundle, bundle.signatures)) {
      yield piece;
      env.progress.update(`copying ${file.name}`, (done += piece.length), bundle.size);
    }
  };
  await writeBundleFile(path, copied(), env.signal);
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
  const created = Math.max(Math.floor(env.now().getTime() / 1000), before?.created ?? 0);
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
  writeFileDurably(join(folder, PAGE_NAME), mirrorPage(index, publicKeyOf(key)), 0o644);
  return index;
}

/** Only once no index names them. */
function removeFiles(folder: string, entries: readonly IndexEntry[]): void {
  for (const { path } of entries) {
    const file = join(folder, path);
    guarded(file, () => rmSync(file, { force: true }));
  }
  if (entries.length > 0) syncPath(folder);
}
