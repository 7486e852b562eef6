import { basename } from "node:path";
import { parseVolumeName, VOLUME_LIMITS, volumeName } from "../bundle/volumes.js";
import { ZferryError } from "../errors.js";
import { formatBytes } from "../report.js";

/** A file that a copy consists of. */
export interface Part {
  readonly name: string;
  /** From 1; undefined where the bundle is one file. */
  readonly number: number | undefined;
  /** Its first byte in the bundle. */
  readonly start: number;
  readonly size: number;
}

/** Volumes from the first to the last, both included. */
export interface VolumeRange {
  readonly first: number;
  readonly last: number;
}

const MIB = 1 << 20;

/** What FAT32 takes, in whole MiB: a file of it has at most 4 GiB less a byte. */
export const FAT_VOLUME_BYTES = 4095 * MIB;

/** The bundle's name that a path says, whether it is that of a file or of a first volume. */
export function bundleName(path: string, inVolumes: boolean): string {
  const name = basename(path);
  return inVolumes ? (parseVolumeName(name)?.bundle ?? name) : name;
}

/**
 * The files of a copy: formats/volumes.md, Names and sizes.
 * @param volumeBytes undefined for one file
 * @throws ZferryError `usage` when there would be too many
 */
export function partsOf(name: string, size: number, volumeBytes: number | undefined): readonly Part[] {
  if (volumeBytes === undefined || size <= volumeBytes) return [{ name, number: undefined, start: 0, size }];
  const count = Math.ceil(size / volumeBytes);
  if (count > VOLUME_LIMITS.volumes) {
    throw new ZferryError(
      "usage",
      `${name} has ${size} bytes, which are ${count} volumes of ${volumeBytes}; the limit is ${VOLUME_LIMITS.volumes}`,
      { hint: `give a larger --volume-size, ${Math.ceil(size / VOLUME_LIMITS.volumes)} at least` },
    );
  }
  return Array.from({ length: count }, (_, index) => {
    const start = index * volumeBytes;
    const number = index + 1;
    return { name: volumeName(name, number), number, start, size: Math.min(volumeBytes, size - start) };
  });
}

/**
 * The parts that are wanted of all.
 * @throws ZferryError `usage`
 */
export function wantedParts(parts: readonly Part[], range: VolumeRange | undefined): readonly Part[] {
  if (range === undefined) return parts;
  const count = parts[0]?.number === undefined ? 0 : parts.length;
  if (range.last > count) {
    throw new ZferryError(
      "usage",
      count === 0
        ? `--volumes: ${parts[0]?.name} is one file there, not volumes`
        : `--volumes: ${range.first}-${range.last} is not within 1-${count}`,
      count === 0 ? { hint: "give --volume-size, smaller than the bundle" } : {},
    );
  }
  return parts.slice(range.first - 1, range.last);
}

/** What is to be written to a medium, and what it has room for. */
export interface Room {
  readonly folder: string;
  readonly free: number;
  /** Bytes that the files take there, besides what is there of them. */
  needs(part: Part): number;
}

/**
 * @param wanted of each bundle
 * @param volumeBytes which the parts were made with
 * @throws ZferryError `no-space`, with a way to do it in several steps
 */
export function requireRoom(
  wanted: readonly (readonly Part[])[],
  room: Room,
  volumeBytes: number | undefined,
): void {
  const needed = wanted.flat().reduce((sum, part) => sum + room.needs(part), 0);
  if (needed <= room.free) return;
  const [only = []] = wanted;
  const what = wanted.length === 1 ? describe(only) : "all of them need";
  throw new ZferryError(
    "no-space",
    `${room.folder} has room for ${formatBytes(room.free)}, and ${what} ${formatBytes(needed)} more`,
    {
      details: { path: room.folder, needed, free: room.free },
      hint:
        wanted.length === 1 ? proposal(only, room, volumeBytes) : "free space there, or copy one at a time",
    },
  );
}

const describe = (parts: readonly Part[]): string =>
  parts.length === 1 ? `${parts[0]?.name} needs` : `${parts[0]?.name} to ${parts.at(-1)?.name} need`;

const rangeOf = (parts: readonly Part[]): string => {
  const [first, last] = [parts[0]?.number, parts.at(-1)?.number];
  return first === last ? String(first) : `${first}-${last}`;
};

function proposal(parts: readonly Part[], room: Room, volumeBytes: number | undefined): string {
  const most = Math.floor(room.free / MIB) * MIB - MIB;
  if (parts[0]?.number === undefined || volumeBytes === undefined) {
    if (most < VOLUME_LIMITS.volumeBytes) return "free space there, or take another medium";
    return `in volumes it fits on several media: --volume-size ${most} --volumes 1 here, and the others there`;
  }
  let left = room.free;
  const fitting = parts.findIndex((part) => (left -= room.needs(part)) < 0);
  if (fitting < 1) {
    return most < VOLUME_LIMITS.volumeBytes
      ? "free space there, or take another medium"
      : `no volume fits there: give a smaller --volume-size, ${most} at most`;
  }
  const [here, rest] = [parts.slice(0, fitting), parts.slice(fitting)];
  const size = `--volume-size ${volumeBytes}`;
  return (
    `volumes ${rangeOf(here)} fit here: ${size} --volumes ${rangeOf(here)}; ` +
    `then the same with another medium for the rest: ${size} --volumes ${rangeOf(rest)}`
  );
}
