import { createHash, type Hash } from "node:crypto";
import { lstat, readdir } from "node:fs/promises";
import { join } from "node:path";
import type { ByteSource } from "../bundle/members.js";
import { Bundle, VerifiedBundle, type Trust } from "../bundle/reader.js";
import { parseVolumeName } from "../bundle/volumes.js";
import { ofFile, systemCode, ZferryError } from "../errors.js";
import { formatBytes, throwIfInterrupted, type ProgressReport } from "../report.js";
import type { OpenedFile } from "../system/bundle-file.js";
import {
  alignedMemory,
  dropPartial,
  nameFile,
  openMedium,
  openOnMedium,
  openPartial,
  partialOf,
  removePartial,
  requireThere,
  requireWritable,
  syncMedium,
  type Medium,
  type MediumFile,
  type PartialFile,
  type ReadBack,
} from "../system/medium.js";
import {
  bundleName,
  FAT_VOLUME_BYTES,
  partsOf,
  requireRoom,
  wantedParts,
  type Part,
  type VolumeRange,
} from "./volumes.js";

export interface CopyOptions {
  /** The folder to copy to. */
  readonly folder: string;
  /** Whose signatures count; without it none is checked. */
  readonly trust: Trust | undefined;
  readonly volumeBytes: number | undefined;
  /** Which volumes, if not all: of one source only. */
  readonly volumes: VolumeRange | undefined;
  readonly signal: AbortSignal;
  readonly progress: ProgressReport;
}

/** A file of a copy that is on the medium and was read back. */
export interface CopiedFile {
  /** Its path. */
  readonly file: string;
  readonly bytes: number;
  /** `present` if it was there already, and is what it must be. */
  readonly outcome: "copied" | "present";
  /** Bytes that an earlier copy had left of it. */
  readonly resumed: number;
}

export interface Copy {
  readonly bundle: Bundle;
  readonly files: readonly CopiedFile[];
  /** Of how many volumes they are; 1 for one file. */
  readonly parts: number;
  readonly readBack: ReadBack;
}

/** In which files are compared: a hash for each piece is kept, 32 bytes a MiB. */
const PIECE_BYTES = 1 << 20;
/** Within bytes that differ there are some that are equal by chance. */
const BLOCK_BYTES = 4096;

/** One bundle on its way. */
interface Work {
  readonly source: ByteSource;
  readonly bundle: Bundle;
  readonly parts: readonly Part[];
  readonly wanted: readonly Part[];
  /** The hashes of a part's pieces, as they were when every byte was verified. */
  hashesOf(part: Part): readonly string[];
}

/** A file of it. */
interface Target {
  readonly work: Work;
  readonly part: Part;
  /** Its final name. */
  readonly path: string;
  readonly present: boolean;
  resumed: number;
}

/**
 * Copies bundles to a folder on a medium. What is copied was verified, and what arrived is read back from the medium and
 * compared before anything gets its name. What an interrupted copy left is compared, too, and then gone on with.
 * @throws ZferryError what is wrong with a source; `output-exists`, `no-space`, `copy-damaged`, `io-failed`, `site-busy`
 */
export async function copyBundles(sources: readonly OpenedFile[], options: CopyOptions): Promise<Copy[]> {
  const { folder, signal, progress } = options;
  const medium = await openMedium(folder);
  const volumeBytes = options.volumeBytes ?? (medium.fat ? FAT_VOLUME_BYTES : undefined);
  if (medium.fat && volumeBytes !== undefined && volumeBytes > FAT_VOLUME_BYTES) {
    throw new ZferryError("usage", `--volume-size: ${folder} is on FAT, whose files have less than 4 GiB`, {
      hint: `${FAT_VOLUME_BYTES} at most`,
    });
  }
  const works: Work[] = [];
  for (const source of sources) {
    const work = await begin(source, volumeBytes, options).catch((error: unknown) => {
      throw ofFile(error, source.name);
    });
    works.push(work);
  }
  refuseSameNames(works);
  const targets: Target[] = [];
  for (const work of works) {
    await refuseMore(folder, work);
    for (const part of work.wanted) {
      const path = join(folder, part.name);
      targets.push({ work, part, path, present: await isPresent(path, part), resumed: 0 });
    }
  }
  // One that is write-protected can be compared all the same.
  if (targets.some(({ present }) => !present)) {
    await requireWritable(medium);
    for (const work of works) await dropOthers(folder, work);
  }
  await requireSpace(works, targets, await openMedium(folder), volumeBytes);
  for (const { bundle } of works) {
    await bundle.checkContents((done, total) => {
      throwIfInterrupted(signal);
      progress.update(`verifying ${bundle.name}`, done, total);
    });
  }
  const reading: Reading = { memory: alignedMemory(PIECE_BYTES), signal, progress };
  const present = targets.filter((target) => target.present);
  const missing = targets.filter((target) => !target.present);
  let how: ReadBack | undefined;
  for (const { work, part, path } of present) {
    const result = await readBack(work, part, path, path, "comparing", reading);
    how = result.how;
    if (result.bad === undefined) continue;
    const { first, end } = result.bad;
    const message = `bytes ${first} to ${end} are not the bundle's`;
    throw isDifferent(path, { message, details: { offset: first, end } });
  }
  const open: PartialFile[] = [];
  try {
    for (const target of missing) {
      const partial = await openPartial(target.path);
      open.push(partial);
      target.resumed = await writePart(target, partial, reading);
    }
    await requireThere(medium);
    // A medium that has less room than it says writes over what it has: so all is read once all is written.
    if (missing.length > 0) how = await readAllBack(targets, reading);
    await requireThere(medium);
    for (const { path } of missing) await nameFile(path);
    await syncMedium(folder);
  } finally {
    for (const partial of open) await partial.close();
    progress.end();
  }
  return works.map((work) => ({
    bundle: work.bundle,
    parts: work.parts.length,
    readBack: how as ReadBack,
    files: targets
      .filter((target) => target.work === work)
      .map(({ path, part, present, resumed }) => ({
        file: path,
        bytes: part.size,
        outcome: present ? "present" : "copied",
        resumed,
      })),
  }));
}

/** What all reading and writing has in common. */
interface Reading {
  /** Of one piece, as a direct read needs it. */
  readonly memory: Uint8Array;
  readonly signal: AbortSignal;
  readonly progress: ProgressReport;
}

/** Reads the head of a bundle, so that its size is known; what is read is recorded. */
async function begin(
  file: OpenedFile,
  volumeBytes: number | undefined,
  { trust, volumes }: CopyOptions,
): Promise<Work> {
  const { source, hashes } = recorded(file, volumeBytes ?? Infinity);
  const bundle =
    trust === undefined ? await Bundle.readUnverified(source) : await VerifiedBundle.verify(source, trust);
  const parts = partsOf(bundleName(file.name, file.inVolumes), bundle.size, volumeBytes);
  const perVolume = Math.ceil((volumeBytes ?? 0) / PIECE_BYTES);
  return {
    source,
    bundle,
    parts,
    wanted: wantedParts(parts, volumes),
    hashesOf({ number = 1, size }) {
      const first = (number - 1) * perVolume;
      return hashes.slice(first, first + Math.ceil(size / PIECE_BYTES));
    },
  };
}

/**
 * A source whose bytes are hashed as they are read for the first time, piece by piece of each volume: once the bundle is
 * verified, these are the hashes of the very bytes that were.
 */
function recorded(file: OpenedFile, volumeBytes: number): { source: ByteSource; hashes: string[] } {
  const hashes: string[] = [];
  let hash: Hash = createHash("sha256");
  let next = 0;
  let inVolume = 0;
  let inPiece = 0;
  const endPiece = (): void => {
    hashes.push(hash.digest("hex"));
    hash = createHash("sha256");
    inPiece = 0;
  };
  const record = (bytes: Uint8Array): void => {
    for (let at = 0; at < bytes.length;) {
      const count = Math.min(bytes.length - at, PIECE_BYTES - inPiece, volumeBytes - inVolume);
      hash.update(bytes.subarray(at, (at += count)));
      next += count;
      inPiece += count;
      inVolume += count;
      if (inVolume === volumeBytes) inVolume = 0;
      if (inPiece === PIECE_BYTES || inVolume === 0 || next === file.size) endPiece();
    }
  };
  const source: ByteSource = {
    name: file.name,
    get size() {
      return file.size;
    },
    ...(file.filesOf === undefined ? {} : { filesOf: file.filesOf.bind(file) }),
    ...(file.complete === undefined ? {} : { complete: file.complete.bind(file) }),
    async read(offset, length) {
      const bytes = await file.read(offset, length);
      if (offset > next) throw new RangeError(`${file.name} is not read in order: ${offset} after ${next}`);
      if (offset + length > next) record(bytes.subarray(next - offset));
      return bytes;
    },
  };
  return { source, hashes };
}

function refuseSameNames(works: readonly Work[]): void {
  const names = works.map(({ parts }) => parts[0]?.name ?? "");
  const twice = names.find((name, at) => names.indexOf(name) !== at);
  if (twice === undefined) return;
  throw new ZferryError("usage", `two bundles are to become ${twice}`, {
    hint: "copy one of them elsewhere",
  });
}

/** Refuses what cannot be the bundle's; the bytes are compared later. */
async function isPresent(path: string, part: Part): Promise<boolean> {
  const found = await lstat(path).catch(() => undefined);
  if (found === undefined) return false;
  if (!found.isFile()) throw isDifferent(path, { message: "it is no regular file", details: {} });
  if (found.size !== part.size) {
    const message = `it has ${found.size} bytes, not ${part.size}`;
    throw isDifferent(path, { message, details: { size: found.size, needed: part.size } });
  }
  return true;
}

const isDifferent = (
  path: string,
  { message, details }: Pick<ZferryError, "message" | "details">,
): ZferryError =>
  new ZferryError("output-exists", `${path}: there is another file of this name: ${message}`, {
    details: { ...details, file: path },
    hint: "remove it, or copy to another folder",
  });

/** What would be taken for volumes of the bundle by who joins them. */
async function refuseMore(folder: string, { parts }: Work): Promise<void> {
  const last = parts.at(-1);
  if (last?.number === undefined) return;
  const { bundle } = parseVolumeName(last.name) as { bundle: string };
  for (const name of await readdir(folder)) {
    const other = parseVolumeName(name);
    if (other?.bundle !== bundle || other.number <= last.number) continue;
    const message = `the bundle has ${last.number} volumes`;
    throw isDifferent(join(folder, name), { message, details: {} });
  }
}

/**
 * Lets go of what an interrupted copy of the same name left that was to be one file, or other volumes: nobody would see it, or go on
 * with it.
 */
async function dropOthers(folder: string, { parts }: Work): Promise<void> {
  const own = new Set(parts.map(({ name }) => partialOf(join(folder, name))));
  const nameOf = (part: string): string => parseVolumeName(part)?.bundle ?? part;
  for (const name of await readdir(folder)) {
    const [, left] = /^\.(.+)\.partial$/.exec(name) ?? [];
    if (left === undefined || own.has(join(folder, name))) continue;
    if (nameOf(left) === nameOf(parts[0]?.name ?? "")) await dropPartial(join(folder, left));
  }
}

/** @throws ZferryError `no-space` */
async function requireSpace(
  works: readonly Work[],
  targets: readonly Target[],
  { folder, free, blockBytes }: Medium,
  volumeBytes: number | undefined,
): Promise<void> {
  const has = new Map<Part, number>();
  for (const { part, path, present } of targets) {
    const partial = await lstat(partialOf(path)).catch(() => undefined);
    has.set(part, present ? part.size : Math.min(part.size, (partial?.blocks ?? 0) * 512));
  }
  const needs = (part: Part): number =>
    Math.ceil((part.size - (has.get(part) ?? 0)) / blockBytes) * blockBytes;
  requireRoom(
    works.map(({ wanted }) => wanted),
    { folder, free, needs },
    volumeBytes,
  );
}

/**
 * Writes what is missing of a part. What is there already counts as far as it is what was verified.
 * @returns the bytes that were there
 */
async function writePart(
  { work, part, path }: Target,
  partial: PartialFile,
  reading: Reading,
): Promise<number> {
  const { signal, progress } = reading;
  const hashes = work.hashesOf(part);
  const kept = partial.size === 0 ? 0 : await countEqual(part, hashes, partial, reading);
  let done = Math.min(kept * PIECE_BYTES, part.size);
  const resumed = done;
  await partial.truncate(done);
  for (const expected of hashes.slice(kept)) {
    throwIfInterrupted(signal);
    const bytes = await readPiece(work, part, done, expected);
    await partial.write(bytes, done);
    done += bytes.length;
    progress.update(`writing ${path}`, done, part.size);
  }
  await partial.sync();
  return resumed;
}

/** A piece of the source, which must be what it was when it was verified. */
async function readPiece(
  { source, bundle }: Work,
  { start, size }: Part,
  offset: number,
  expected: string,
): Promise<Uint8Array> {
  const bytes = await source.read(start + offset, Math.min(PIECE_BYTES, size - offset));
  if (sha256(bytes) === expected) return bytes;
  throw new ZferryError(
    "content-mismatch",
    `${bundle.name}: bytes ${start + offset} to ${start + offset + bytes.length} are not what they were when they were verified`,
    {
      details: { file: bundle.name, offset: start + offset, end: start + offset + bytes.length },
      hint: "the medium that it is on fails, or somebody writes to it; copy it from where it is whole",
    },
  );
}

/** How many pieces of a partial file are what they must be, from the first on. */
async function countEqual(
  { size }: Part,
  hashes: readonly string[],
  { path }: PartialFile,
  { memory, signal, progress }: Reading,
): Promise<number> {
  const file = await openOnMedium(path);
  try {
    for (const [index, expected] of hashes.entries()) {
      throwIfInterrupted(signal);
      const offset = index * PIECE_BYTES;
      // What cannot be read is written again.
      const length = await file.read(memory, offset).catch(() => 0);
      if (length < Math.min(PIECE_BYTES, size - offset)) return index;
      if (sha256(memory.subarray(0, Math.min(length, size - offset))) !== expected) return index;
      progress.update(`comparing ${path}`, offset + length, size);
    }
    return hashes.length;
  } finally {
    await file.close();
  }
}

/** @throws ZferryError `copy-damaged`, with all files that are; those of them that are new are gone */
async function readAllBack(targets: readonly Target[], reading: Reading): Promise<ReadBack> {
  let how: ReadBack | undefined;
  const faults: ZferryError[] = [];
  for (const { work, part, path, present } of targets) {
    const result = await readBack(
      work,
      part,
      present ? path : partialOf(path),
      path,
      "reading back",
      reading,
    );
    how = result.how;
    if (result.bad === undefined) continue;
    faults.push(damaged(path, result.bad));
    if (!present) await removePartial(path);
  }
  const [first, ...also] = faults;
  if (first === undefined) return how as ReadBack;
  const { code, message, details, hint } = first;
  throw new ZferryError(code, message, { details, hint, also });
}

/** Compares a file with the hashes of what was verified, from the medium itself, as far as that can be had. */
async function readBack(
  work: Work,
  part: Part,
  from: string,
  path: string,
  what: string,
  { memory, signal, progress }: Reading,
): Promise<{ how: ReadBack; bad: Damage | undefined }> {
  const file = await openOnMedium(from);
  const bad: Damage = { ranges: 0, bytes: 0, first: Infinity, end: 0, reasons: new Set() };
  try {
    for (const [index, expected] of work.hashesOf(part).entries()) {
      throwIfInterrupted(signal);
      const offset = index * PIECE_BYTES;
      const length = Math.min(PIECE_BYTES, part.size - offset);
      const found = await readMedium(file, memory, offset, length, bad);
      if (found === undefined || sha256(found) !== expected) {
        compare(found, await readPiece(work, part, offset, expected), offset, bad);
      }
      progress.update(`${what} ${path}`, offset + length, part.size);
    }
  } finally {
    await file.close();
  }
  return { how: file.how, bad: bad.ranges === 0 ? undefined : bad };
}

/** Which bytes of a file are not what was written. */
interface Damage {
  /** Runs of blocks of 4,096 bytes. */
  ranges: number;
  /** In them, in whole blocks. */
  bytes: number;
  /** The first byte that is wrong. */
  first: number;
  /** After the last one. */
  end: number;
  /** Why some could not be read. */
  readonly reasons: Set<string>;
}

/** What is there, or undefined where it cannot be read. */
async function readMedium(
  file: MediumFile,
  memory: Uint8Array,
  offset: number,
  length: number,
  bad: Damage,
): Promise<Uint8Array | undefined> {
  try {
    return memory.subarray(0, Math.min(length, await file.read(memory, offset)));
  } catch (error) {
    const code = systemCode(error);
    if (code === undefined) throw error;
    bad.reasons.add(code);
    return undefined;
  }
}

/** Adds what differs in a piece; what is not there, or not to be read, differs. */
function compare(found: Uint8Array | undefined, expected: Uint8Array, offset: number, bad: Damage): void {
  for (let at = 0; at < expected.length; at += BLOCK_BYTES) {
    const is = found?.subarray(at, at + BLOCK_BYTES) ?? new Uint8Array();
    const must = expected.subarray(at, at + BLOCK_BYTES);
    if (Buffer.compare(is, must) === 0) continue;
    const differs = (index: number): boolean => is[index] !== must[index];
    const indices = [...must.keys()];
    const start = offset + at;
    if (bad.end <= start - BLOCK_BYTES || bad.ranges === 0) bad.ranges += 1;
    bad.bytes += must.length;
    bad.first = Math.min(bad.first, start + indices.findIndex(differs));
    bad.end = start + indices.findLastIndex(differs) + 1;
  }
}

function damaged(path: string, { ranges, bytes, first, end, reasons }: Damage): ZferryError {
  const unread = reasons.size === 0 ? "" : ` or cannot be read (${[...reasons].join(", ")})`;
  return new ZferryError(
    "copy-damaged",
    `${path}: read back, bytes ${first} to ${end} are not what was written${unread}: ${formatBytes(bytes)} in ${ranges} ${ranges === 1 ? "range" : "ranges"}`,
    {
      details: { file: path, offset: first, end, ranges, bytes },
      hint: "the medium fails, or has less room than it says: do not use it; copy to another",
    },
  );
}

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
