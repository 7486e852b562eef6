import { closeSync, constants, fstatSync, openSync, readlinkSync, readSync } from "node:fs";
import * as v from "valibot";
import type { RawPath } from "../raw-path.js";
import {
  BATCH,
  inPlace,
  inspect,
  type FileAttributes,
  type Found,
  type Linked,
  type SpecialKind,
  type Tree,
} from "../system/tree.js";
import { blobId, startOfBlob, type TreeFile } from "../system/git.js";
import { gitModeSchema, isCarriedXattr, isExecutable, type GitMode } from "./metadata.js";

/** What git keeps of a file: its mode and the id of its content. */
export interface GitFile {
  readonly mode: GitMode;
  readonly blob: string;
}

/** A file or link with everything that a release carries of it. */
export interface FileState extends GitFile {
  readonly attributes: FileAttributes;
}

/** What lies at a path on a site: as `Found`, with the content of files and links as git would name it. */
export type Live =
  | Exclude<Found, { size: number }>
  | {
      readonly kind: "file" | "symlink";
      readonly size: number;
      readonly state: FileState;
      readonly linked?: Linked;
    }
  | { readonly kind: "directory" | SpecialKind; readonly attributes: FileAttributes };

/**
 * Reads what lies at each path, in the same order. Contents are bytes: nothing is converted or filtered.
 * @param told how many are read
 * @throws ZferryError `io-failed`
 */
export async function readLive(
  tree: Tree,
  paths: readonly RawPath[],
  told: (done: number) => void = () => undefined,
): Promise<Live[]> {
  const lives: Live[] = [];
  for (let start = 0; start < paths.length; start += BATCH) {
    const batch = paths.slice(start, start + BATCH);
    for (const [index, entry] of (await inspect(tree, batch, isCarriedXattr)).entries()) {
      lives.push(withContent(tree, batch[index] as RawPath, entry));
      told(lives.length);
    }
  }
  return lives;
}

function withContent(tree: Tree, path: RawPath, entry: Found): Live {
  if (entry.kind === "absent" || entry.kind === "blocked") return entry;
  const { kind, size, attributes, linked } = entry;
  if (kind !== "file" && kind !== "symlink") return { kind, attributes };
  const blob = kind === "file" ? hashFile(tree, path) : hashLink(tree, path);
  const state = { mode: gitMode(kind, attributes), blob, attributes };
  return { kind, size, state, ...(linked && { linked }) };
}

const gitMode = (kind: "file" | "symlink", { permissions }: FileAttributes): GitMode =>
  kind === "symlink" ? "120000" : isExecutable(permissions) ? "100755" : "100644";

const HASH_PIECE_BYTES = 1 << 20;

function hashFile(tree: Tree, path: RawPath): string {
  return inPlace(tree, path, (place) => {
    // Without O_NONBLOCK a pipe that took the file's place in the meantime would hold us for ever.
    const fd = openSync(place, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    try {
      return hashOpenFile(fd);
    } finally {
      closeSync(fd);
    }
  });
}

/** The id that git would give to the content of a file, which is read from its beginning. */
export function hashOpenFile(fd: number): string {
  const { size } = fstatSync(fd);
  const hash = startOfBlob(size);
  const piece = Buffer.allocUnsafe(Math.min(HASH_PIECE_BYTES, size + 1));
  for (let length = readSync(fd, piece); length > 0; length = readSync(fd, piece)) {
    hash.update(piece.subarray(0, length));
  }
  return hash.digest("hex");
}

function hashLink(tree: Tree, path: RawPath): string {
  const target = inPlace(tree, path, (place) => readlinkSync(place, { encoding: "buffer" }));
  return blobId(target);
}

/** The file or link that lies at a path; null for anything else. */
export const stateOf = (live: Live | undefined): FileState | null =>
  live?.kind === "file" || live?.kind === "symlink" ? live.state : null;

/** Which file lies at a path, if it has other names. */
export const linkedFile = (live: Live | undefined): string | undefined =>
  live?.kind === "file" ? live.linked?.file : undefined;

/** An entry of a tree, if it is a file or link. */
export function gitFile(file: TreeFile | undefined) {
  const mode = file?.mode;
  return file !== undefined && v.is(gitModeSchema, mode) ? { mode, blob: file.id } : null;
}

export const sameGit = (a: GitFile, b: GitFile): boolean => a.mode === b.mode && a.blob === b.blob;

export const sameState = (a: FileState, b: FileState): boolean =>
  sameGit(a, b) && differingFields(a.attributes, b.attributes).length === 0;

/** The fields in which two sets of attributes differ; an extended attribute counts by its name. */
export function differingFields(a: FileAttributes, b: FileAttributes): string[] {
  const names = new Set([...Object.keys(a.xattrs), ...Object.keys(b.xattrs)]);
  return [
    ...(a.uid === b.uid ? [] : ["owner"]),
    ...(a.gid === b.gid ? [] : ["group"]),
    ...(a.permissions === b.permissions ? [] : ["permissions"]),
    ...[...names].filter((name) => a.xattrs[name] !== b.xattrs[name]).sort(),
  ];
}
