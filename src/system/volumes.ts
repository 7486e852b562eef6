import { readdir, stat } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import type { ByteSource } from "../bundle/members.js";
import { parseVolumeName, VOLUME_LIMITS, volumeName } from "../bundle/volumes.js";
import { ZferryError } from "../errors.js";
import { formatBytes, printable } from "../report.js";
import {
  openToRead,
  partsOf,
  sourceOf,
  type FileToRead,
  type OpenFile,
  type VolumesToRead,
} from "./read-at.js";

/** Where volumes are looked for, besides the folder of the first. */
export interface VolumeSearch {
  /** Folders: volumes may be in each, and in the folders directly in it. */
  readonly folders?: readonly string[];
  /** Asks for a medium and waits; false where nobody can be asked. */
  readonly ask?: (question: string) => Promise<boolean>;
  readonly warn?: (what: string) => void;
}

/** A set of volumes, of which the first is open. How many there are is only known when the bundle's size is. */
export interface VolumeSet extends Pick<ByteSource, "read"> {
  /** Bytes of all volumes; until they are all open more than a bundle can have. */
  readonly size: number;
  /**
   * Finds and opens the volumes of a bundle of `size` bytes.
   * @throws ZferryError `volume-missing`, `bundle-truncated`, `content-mismatch`
   */
  complete(size: number): Promise<VolumesToRead>;
  close(): Promise<void>;
}

interface Found {
  readonly path: string;
  readonly size: number;
}

/** Of the folders in a folder that is searched. */
const MOST_FOLDERS = 1_000;

/** formats/volumes.md, Reading. */
export function volumeSet(first: OpenFile, { folders = [], ask, warn }: VolumeSearch): VolumeSet {
  const { bundle } = parseVolumeName(first.name) as { bundle: string };
  const volumeBytes = first.size;
  const opened = new Map<number, OpenFile>([[1, first]]);
  let complete: ByteSource | undefined;

  /** Every file of this volume's name, that beside the first volume before the others. */
  const candidates = async (number: number): Promise<Found[]> => {
    const name = volumeName(basename(bundle), number);
    const found = new Map<string, Found>();
    for (const folder of [dirname(bundle), ...(await withSubfolders(folders))]) {
      const path = folder === dirname(bundle) ? volumeName(bundle, number) : join(folder, name);
      const file = await stat(path).catch(() => undefined);
      if (file === undefined) continue;
      const key = `${file.dev} ${file.ino}`;
      if (!found.has(key)) found.set(key, { path, size: file.size });
    }
    return [...found.values()];
  };

  const use = async (number: number, { path }: Found): Promise<OpenFile> => {
    const volume = await openToRead(path);
    await opened.get(number)?.handle.close();
    opened.set(number, volume);
    return volume;
  };

  /** Of volumes that are not there, in order; asks for them where somebody can be asked, and throws where not. */
  const askFor = async (numbers: readonly number[], total?: number): Promise<void> => {
    const names = numbers.map((number) => volumeName(basename(bundle), number));
    const [next = ""] = names;
    if (
      await ask?.(`${missingOf(names, total)}: insert the medium with ${printable(next)}, then press Enter`)
    )
      return;
    const places = [dirname(bundle), ...folders].map((folder) => resolve(folder));
    throw new ZferryError("volume-missing", `${first.name}: ${missingOf(names, total)}`, {
      details: { file: first.name, missing: names, searched: [...new Set(places)] },
      hint: "put all volumes into one folder, or name the other folders: --search FOLDER",
    });
  };

  /** A volume while nobody knows yet how many there are: for a head that is longer than a volume. */
  const early = async (number: number): Promise<OpenFile> => {
    for (;;) {
      const known = opened.get(number);
      if (known !== undefined) return known;
      const found = await candidates(number);
      const likely =
        found.find(({ size }) => size === volumeBytes) ?? found.find(({ size }) => size < volumeBytes);
      if (likely !== undefined) return use(number, likely);
      refuseShortFirst(first, found);
      await askFor([number]);
    }
  };

  return {
    get size() {
      return complete?.size ?? Number.MAX_SAFE_INTEGER;
    },
    async read(offset, length) {
      if (complete !== undefined) return complete.read(offset, length);
      const pieces: Uint8Array[] = [];
      for (const { index, at, bytes } of partsOf(volumeBytes, offset, length)) {
        const volume = await early(index + 1);
        if (at + bytes > volume.size) {
          throw new ZferryError(
            "bundle-truncated",
            `${volume.name}: ends at byte ${volume.size}, the bundle goes on`,
            {
              details: { file: volume.name, size: volume.size, needed: at + bytes },
              hint: "copy this volume again",
            },
          );
        }
        pieces.push(await sourceOf([volume], (length) => Buffer.allocUnsafe(length)).read(at, bytes));
      }
      return Buffer.concat(pieces);
    },
    async complete(size) {
      const count = Math.max(1, Math.ceil(size / volumeBytes));
      if (count > VOLUME_LIMITS.volumes) {
        throw new ZferryError(
          "bundle-truncated",
          `${first.name}: has ${volumeBytes} of the bundle's ${size} bytes, which would need ${count} volumes of this size; the limit is ${VOLUME_LIMITS.volumes}`,
          {
            details: { file: first.name, size: volumeBytes, needed: size },
            hint: "the first volume is cut short, or of another bundle: copy it again",
          },
        );
      }
      const numbers = Array.from({ length: count - 1 }, (_, index) => index + 2);
      const bytesOf = (number: number): number =>
        number < count ? volumeBytes : size - (count - 1) * volumeBytes;
      for (;;) {
        const found = new Map<number, readonly Found[]>();
        for (const number of numbers) found.set(number, await candidates(number));
        refuseShortFirst(first, [...found.values()].flat());
        for (const [number, files] of found) tellConflict(files, bytesOf(number), warn);
        const wrong = numbers.flatMap((number) => {
          const files = found.get(number) ?? [];
          const fits = files.some((file) => file.size === bytesOf(number));
          const [file] = files;
          return fits || file === undefined ? [] : [wrongSize(file, bytesOf(number), first, size)];
        });
        const [fault, ...also] = wrong;
        if (fault !== undefined) {
          const { code, message, details, hint } = fault;
          throw new ZferryError(code, message, { details, hint, also });
        }
        const missing = numbers.filter((number) => found.get(number)?.length === 0);
        if (missing.length > 0) {
          await askFor(missing, count);
          continue;
        }
        for (const number of numbers) {
          if (opened.get(number)?.size === bytesOf(number)) continue;
          const fitting = found.get(number)?.find((file) => file.size === bytesOf(number)) as Found;
          const volume = await use(number, fitting);
          if (volume.size !== bytesOf(number))
            throw wrongSize({ ...volume, path: volume.name }, bytesOf(number), first, size);
        }
        const volumes = [1, ...numbers].map((number) => {
          const { fd, name, size } = opened.get(number) as OpenFile;
          return { fd, name, size };
        }) as [FileToRead, ...FileToRead[]];
        complete = sourceOf(volumes, (length) => Buffer.allocUnsafe(length));
        return volumes;
      }
    },
    async close() {
      for (const { handle } of opened.values()) await handle.close();
    },
  };
}

/** "R2.bundle.002 and R2.bundle.004 of 5 volumes are missing" */
function missingOf(names: readonly string[], total: number | undefined): string {
  const listed =
    names.length === 1 ? (names[0] ?? "") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
  const of = total === undefined ? "" : ` of ${total} volumes`;
  return `${printable(listed)}${of} ${names.length === 1 ? "is" : "are"} missing`;
}

async function withSubfolders(folders: readonly string[]): Promise<string[]> {
  const lists = folders.map(async (folder) => {
    const entries = await readdir(folder, { withFileTypes: true }).catch(() => []);
    const inside = entries.filter((entry) => entry.isDirectory()).slice(0, MOST_FOLDERS);
    return [folder, ...inside.map(({ name }) => join(folder, name)).sort()];
  });
  return (await Promise.all(lists)).flat();
}

/** All volumes but the last have one size, so one that is larger than the first says that this one was cut. */
function refuseShortFirst(first: OpenFile, others: readonly Found[]): void {
  const larger = others.find(({ size }) => size > first.size);
  if (larger === undefined) return;
  throw new ZferryError(
    "bundle-truncated",
    `${first.name}: has ${first.size} bytes, and ${larger.path} has ${larger.size}: no volume is larger than the first`,
    {
      details: { file: first.name, size: first.size, needed: larger.size, other: larger.path },
      hint: "one of the two is cut short, or of another bundle or copy: copy both again",
    },
  );
}

function wrongSize({ path, size }: Found, expected: number, first: OpenFile, total: number): ZferryError {
  return new ZferryError(
    size < expected ? "bundle-truncated" : "content-mismatch",
    `${path}: has ${size} bytes, not ${expected}: ${first.name} has ${first.size}, the bundle ${total}`,
    {
      details: { file: path, size: size, needed: expected },
      hint: "it, or the first volume, is cut short or of another bundle or copy: copy it again",
    },
  );
}

function tellConflict(files: readonly Found[], expected: number, warn: VolumeSearch["warn"]): void {
  const [used] = files.filter(({ size }) => size === expected);
  const other = files.find(({ size }) => size !== expected);
  if (used === undefined || other === undefined) return;
  warn?.(
    `${used.path} is used, which has ${formatBytes(expected)} as it must; ${other.path} has ${formatBytes(other.size)}`,
  );
}
