import * as fs from "node:fs";
import { dirname, join } from "node:path";
import { ZferryError } from "../errors.js";
import { ancestors, showPath, type RawPath } from "../raw-path.js";
import { fileRefusal, pathOf } from "../root/paths.js";
import {
  attributeKey,
  conflictListSchema,
  contentKey,
  encodeCanonical,
  isSameKey,
  MAX_RESOLUTIONS,
  MAX_RESOLUTIONS_BYTES,
  parseCanonical,
  sha256,
  type AttributeResolution,
  type ContentResolution,
} from "../root/resolutions.js";
import {
  MAX_MERGED_BYTES,
  mergedMode,
  showMarkers,
  type OpenConflicts,
  type Resolutions,
  type Side,
} from "../root/settle.js";
import type { Conflict } from "../root/trees.js";
import { guarded } from "../system/files.js";
import type { Git } from "../system/git.js";
import {
  closeTree,
  inPlace,
  inspect,
  kindAt,
  openTree,
  readFileIn,
  removeTree,
  type Found,
  type Tree,
} from "../system/tree.js";
import { openMergeTool, type MergeTool } from "./merge-tool.js";
import { openMemory, type Memory } from "./rerere.js";
import { openResolutions } from "./resolutions.js";

// Conflicts in a folder of their own, for a person. formats/root.md, Settling conflicts

export interface ResolveOptions {
  /** The site's state folder, whose lock is taken. */
  readonly state: string;
  /** Where the conflicts are put. */
  readonly folder: string;
  readonly scratchDir: string;
  /** What the conflicts are with, for a person: `release R2`. */
  readonly with: string;
  /** Of that, a name that follows `release`, for the markers in texts. */
  readonly theirs: string;
  /** Paths whose conflicts are settled with one side, or, however they were settled before, are to be settled again. */
  readonly chosen: Readonly<Record<Side | "again", readonly RawPath[]>>;
  /** Opened once, on the texts that are left. */
  readonly tool: MergeTool | undefined;
  /** Plans `/`; refused for conflicts, it tells them first. */
  readonly plan: (how: {
    readonly resolutions: Resolutions;
    readonly conflicts: (open: OpenConflicts, git: Git) => Promise<void>;
  }) => Promise<unknown>;
}

/** A conflict that is left, and in a few words how it is settled. */
export interface LeftConflict {
  readonly path: string;
  readonly reason: string;
  readonly how: string;
}

export interface Resolved {
  /** How many conflicts a person has settled. */
  readonly settled: number;
  readonly left: readonly LeftConflict[];
}

const LIST = ".zferry.json";
const README = "README";

/**
 * Takes what a person settled in the folder and by choosing sides, records it, and puts what is left into the folder.
 * The site's `/` is only read.
 * @throws ZferryError `usage` for a path without a conflict, `output-exists` for a folder that is another's, `interrupted` while
 * the tool was open; whatever the plan is refused for besides conflicts
 */
export async function resolveConflicts(options: ResolveOptions): Promise<Resolved> {
  const { ours, theirs, again } = options.chosen;
  const chosen = new Set([...ours, ...theirs, ...again]);
  const unused = new Set(chosen);
  const settledNow = new Set<string>();
  let { tool } = options;
  for (;;) {
    const store = openResolutions(options.state);
    const hits = new Set<string>();
    let recorded = false;
    let left: LeftConflict[] = [];
    try {
      await options.plan({
        resolutions: counting(
          store.lookup,
          hits,
          (kind, path) => chosen.has(path) && !settledNow.has(`${kind} ${path}`),
        ),
        conflicts: async (open, git) => {
          const record = async (): Promise<void> => {
            const taken = await take(open, git, options, unused);
            recorded = taken.contents.length + taken.attributes.length > 0;
            for (const kind of ["contents", "attributes"] as const)
              for (const { path } of taken[kind]) settledNow.add(`${kind} ${pathOf(path)}`);
            if (recorded || taken.reopened.length > 0) store.record(taken);
          };
          await record();
          if (recorded) return;
          const filled = await fill(open, git, options);
          left = filled.left;
          if (tool === undefined || filled.texts.length === 0) return;
          requireUsed(unused);
          await openMergeTool(tool, git, options, filled.texts);
          tool = undefined;
          await record();
        },
      });
      requireUsed(unused);
      await clear(options.folder);
    } catch (error) {
      if (!(error instanceof ZferryError) || error.code !== "merge-conflict") throw error;
      // With those settled, others may come to light: attributes are compared once the contents agree.
      if (recorded) continue;
      requireUsed(unused);
      left.push(...elsewhere(error, left));
    }
    return { settled: hits.size, left };
  }
}

function requireUsed(unused: ReadonlySet<RawPath>): void {
  if (unused.size === 0) return;
  const shown = [...unused].map(showPath).join(", ");
  throw new ZferryError("usage", `${shown}: there is no conflict that could be settled so`, {
    hint: "without --ours and --theirs the command lists what is left",
  });
}

/** @param isAgain of which conflicts what was settled before does not count */
const counting = (
  lookup: Resolutions,
  hits: Set<string>,
  isAgain: (kind: keyof Resolutions, path: RawPath) => boolean,
): Resolutions => ({
  contents(conflict) {
    const found = isAgain("contents", conflict.path) ? undefined : lookup.contents(conflict);
    if (found !== undefined) hits.add(`contents ${conflict.path}`);
    return found;
  },
  attributes(conflict) {
    const found = isAgain("attributes", conflict.path) ? undefined : lookup.attributes(conflict);
    if (found !== undefined) hits.add(`attributes ${conflict.path}`);
    return found;
  },
});

/** Conflicts that no file and no side settles. */
function elsewhere(error: ZferryError, left: readonly LeftConflict[]): LeftConflict[] {
  const known = new Set(left.map(({ path }) => path));
  const { paths = [], reasons = [] } = error.details as Record<string, readonly string[]>;
  return paths.flatMap((path, index) =>
    known.has(path)
      ? []
      : [
          {
            path,
            reason: (reasons[index] ?? "").slice(path.length + 2, -1),
            how: "commit what agrees with the release",
          },
        ],
  );
}

interface Taken {
  readonly contents: ContentResolution[];
  readonly attributes: AttributeResolution[];
  readonly files: Buffer[];
  /** Keys of conflicts that are open again. */
  readonly reopened: object[];
}

async function take(
  open: OpenConflicts,
  git: Git,
  options: ResolveOptions,
  unused: Set<RawPath>,
): Promise<Taken> {
  const { chosen, folder } = options;
  const taken: Taken = { contents: [], attributes: [], files: [], reopened: [] };
  const isReopened = (path: RawPath, key: object): boolean => {
    if (!chosen.again.includes(path)) return false;
    if (unused.delete(path)) taken.reopened.push(key);
    return true;
  };
  const sideOf = (path: RawPath): Side | undefined => {
    const side = (["ours", "theirs"] as const).find((each) => chosen[each].includes(path));
    if (side !== undefined) unused.delete(path);
    return side;
  };
  for (const conflict of open.attributes) {
    const key = attributeKey(conflict);
    if (isReopened(conflict.path, key)) continue;
    const side = sideOf(conflict.path);
    if (side !== undefined) taken.attributes.push({ ...key, side });
  }
  const listed = readList(folder);
  const tree = listed === undefined ? undefined : openTree(folder);
  try {
    for (const conflict of open.contents) {
      const key = contentKey(conflict);
      if (isReopened(conflict.path, key)) continue;
      const side = sideOf(conflict.path);
      if (side !== undefined) taken.contents.push({ ...key, result: { side } });
      else if (tree !== undefined && isShown(conflict) && listed?.some((each) => isSameKey(each, key))) {
        const result = await readResult(tree, conflict);
        if (result === undefined) continue;
        if ("side" in result) taken.contents.push({ ...key, result });
        else {
          taken.contents.push({ ...key, result: { mode: result.mode, content: sha256(result.content) } });
          taken.files.push(result.content);
          const marked = await markersOf(conflict, git, options);
          if (marked !== undefined) await memoryOf(git, options).remember(conflict, marked, result.content);
        }
      }
    }
  } finally {
    if (tree !== undefined) closeTree(tree);
  }
  return taken;
}

const beside = (path: RawPath, side: Side): RawPath => `${path}.${side}` as RawPath;

/** What became of a conflict in the folder; undefined while it is none. */
async function readResult(
  tree: Tree,
  conflict: Conflict,
): Promise<{ side: Side } | { mode: "100644" | "100755"; content: Buffer } | undefined> {
  const { path, ours, theirs } = conflict;
  const places = [path, beside(path, "ours"), beside(path, "theirs")];
  const found = await inspect(tree, places, () => false);
  for (const [index, each] of found.entries()) {
    if (each.kind === "blocked") requireOrdinary(tree, each.at, each.by);
    else requireOrdinary(tree, places[index] ?? path, each.kind);
  }
  const [file, left, right] = found;
  if (file?.kind === "file") {
    if (file.size > MAX_MERGED_BYTES) return undefined;
    const content = readFileIn(tree, path) ?? Buffer.of();
    if (MARKERS.test(content.toString("latin1"))) return undefined;
    return { mode: (file.attributes.permissions & 0o100) === 0 ? "100644" : "100755", content };
  }
  const isGone = [file, left, right].every((each) => each?.kind === "absent");
  if (!isGone || (ours !== null && theirs !== null)) return undefined;
  return { side: ours === null ? "ours" : "theirs" };
}

/** Through a link a text would be read or written elsewhere, and a pipe waits for another program. */
function requireOrdinary(tree: Tree, path: RawPath, kind: Found["kind"]): void {
  if (kind === "absent" || kind === "blocked" || kind === "file" || kind === "directory") return;
  const place = join(tree.path, showPath(path));
  const what = kind === "symlink" ? "symbolic link" : kind;
  throw new ZferryError("output-exists", `${place} is a ${what}, where a file or folder belongs`, {
    details: { path: place },
    hint: "put the file itself there, or remove it, and run the same command again",
  });
}

const NAMES = { ours: "this site", base: "before", theirs: "release" };
const MARKERS = new RegExp(`^(<{7} ${NAMES.ours}|[|]{7} ${NAMES.base}|>{7} ${NAMES.theirs})`, "m");

/** Words that follow, where a file has a marker. */
function whereMarked(tree: Tree, path: RawPath): string {
  const content = (readFileIn(tree, path) ?? Buffer.of()).toString("latin1");
  const marker = MARKERS.exec(content);
  if (marker === null) return "";
  const line = content.slice(0, marker.index).split("\n").length;
  return `: line ${line} begins with ${marker[0]}`;
}

function readList(folder: string) {
  const stat = guarded(folder, () => fs.lstatSync(folder, { throwIfNoEntry: false }));
  if (stat === undefined) return undefined;
  const refuse = (why: string): ZferryError =>
    new ZferryError("output-exists", `${folder}: ${why}`, {
      details: { path: folder },
      hint: "name a folder that is not there yet: --to FOLDER",
    });
  if (!stat.isDirectory()) throw refuse("there is something already, and no folder");
  if (stat.uid !== process.geteuid?.() || (stat.mode & 0o022) !== 0)
    throw refuse("the folder is another user's, or others may write there");
  const tree = openTree(folder);
  try {
    const bytes = readFileIn(tree, LIST as RawPath);
    if (bytes === undefined)
      throw refuse("there is such a folder already, which bundle resolve did not make");
    if (bytes.length > MAX_RESOLUTIONS_BYTES) throw refuse(`${LIST} in it has ${bytes.length} bytes`);
    return parseCanonical(conflictListSchema, bytes).conflicts;
  } catch (error) {
    if (error instanceof ZferryError) throw error;
    throw refuse(`${LIST} in it is malformed: ${error instanceof Error ? error.message : String(error)}`);
  } finally {
    closeTree(tree);
  }
}

/**
 * Puts the conflicts that are left into the folder. What a person began stays.
 * @returns `texts`: those with one file that has markers
 */
async function fill(
  open: OpenConflicts,
  git: Git,
  options: ResolveOptions,
): Promise<{ readonly left: LeftConflict[]; readonly texts: readonly Conflict[] }> {
  const { folder } = options;
  const found = readList(folder);
  const listed = found ?? [];
  const left = open.attributes.map(({ path, differences }): LeftConflict => ({
    path: showPath(path),
    reason: differences.join("; "),
    how: CHOOSE,
  }));
  const texts: Conflict[] = [];
  if (found === undefined) {
    guarded(folder, () => {
      fs.mkdirSync(dirname(folder), { recursive: true });
      // Fails where somebody made one in this moment.
      fs.mkdirSync(folder, { mode: 0o700 });
    });
  }
  const tree = openTree(folder);
  try {
    const keys = open.contents.slice(0, MAX_RESOLUTIONS).map(contentKey);
    for (const { path } of listed.filter((old) => !keys.some((key) => isSameKey(old, key)))) {
      const raw = pathOf(path);
      for (const each of [raw, beside(raw, "ours"), beside(raw, "theirs")]) removeTree(tree, each);
    }
    for (const { path, reason } of open.contents.slice(MAX_RESOLUTIONS))
      left.push({ path: showPath(path), reason, how: "comes into the folder when others are settled" });
    // Of what is not shown, no file could be missing: to leave it alone would count as removing it.
    const shown: (typeof keys)[number][] = [];
    for (const [index, conflict] of open.contents.slice(0, MAX_RESOLUTIONS).entries()) {
      const key = keys[index] ?? contentKey(conflict);
      const isListed = listed.some((old) => isSameKey(old, key));
      const how = isShown(conflict) ? await show(tree, conflict, git, options, isListed) : undefined;
      if (how !== undefined) shown.push(key);
      if (how?.isText) texts.push(conflict);
      left.push({ path: showPath(conflict.path), reason: conflict.reason, how: how?.how ?? CHOOSE });
    }
    writeInto(tree, LIST as RawPath, encodeCanonical({ version: 1, conflicts: shown }), 0o600);
    writeInto(tree, README as RawPath, readme(left, options.with), 0o600);
  } finally {
    closeTree(tree);
  }
  return { left, texts };
}

const CHOOSE = "choose a side: --ours PATH or --theirs PATH";

/** Whether the folder can have what both sides of a conflict have: files, and not in the place of its own. */
function isShown({ path, ours, theirs }: Conflict): boolean {
  const [top] = path.split("/");
  return (
    fileRefusal(path) === undefined &&
    top !== README &&
    top !== LIST &&
    [ours, theirs].every((file) => file === null || file.mode === "100644" || file.mode === "100755")
  );
}

/** Writes what a person needs to settle a conflict, and tells how; undefined where only a side can be chosen. */
async function show(
  tree: Tree,
  conflict: Conflict,
  git: Git,
  options: ResolveOptions,
  isListed: boolean,
): Promise<{ readonly how: string; readonly isText?: true } | undefined> {
  const { path, ours, theirs } = conflict;
  const mode = mergedMode(conflict) === "100755" ? 0o700 : 0o600;
  const places = [path, beside(path, "ours"), beside(path, "theirs")];
  const found = isListed ? await inspect(tree, places, () => false) : [];
  const isThere = found.map(({ kind }) => kind === "file");
  const shown = showPath(path);
  const text = await markersOf(conflict, git, options);
  if (text !== undefined) {
    const edit = { how: `edit ${shown} until it has no markers`, isText: true } as const;
    if (found[0]?.kind === "file")
      return {
        ...edit,
        how: `${edit.how}${found[0].size > MAX_MERGED_BYTES ? "" : whereMarked(tree, path)}`,
      };
    const recalled = await memoryOf(git, options).recall(conflict, text);
    const isWhole = recalled !== undefined && !MARKERS.test(recalled.toString("latin1"));
    // What the tool does not show would count without having been looked at.
    const offered = isWhole && options.tool !== undefined ? undefined : recalled;
    if (!tryWriting(tree, path, offered ?? text, mode)) return undefined;
    if (!isWhole || offered === undefined) return edit;
    return { how: `settled like an earlier conflict: look at ${shown}, which counts as it is the next time` };
  }
  for (const [index, side] of (["ours", "theirs"] as const).entries()) {
    const file = conflict[side];
    if (file === null) continue;
    if (isThere[index + 1] === true) continue;
    const content = await git.run(["cat-file", "blob", file.id]);
    if (!tryWriting(tree, beside(path, side), content, mode)) return undefined;
  }
  if (ours === null || theirs === null) {
    const kept = showPath(beside(path, ours === null ? "theirs" : "ours"));
    return { how: `rename ${kept} to ${shown} to keep it, or remove it` };
  }
  return {
    how: `rename ${showPath(beside(path, "ours"))} or ${showPath(beside(path, "theirs"))} to ${shown}`,
  };
}

const markersOf = (conflict: Conflict, git: Git, { scratchDir, theirs }: ResolveOptions) =>
  showMarkers(git, scratchDir, conflict, { ...NAMES, theirs: `${NAMES.theirs} ${theirs}` });

const memoryOf = (git: Git, { scratchDir, state }: ResolveOptions): Memory =>
  openMemory(git, scratchDir, join(state, "rr-cache"));

/** A name that is too long, or that another conflict's file has, leaves only the choice of a side. */
function tryWriting(tree: Tree, path: RawPath, content: Uint8Array, mode: number): boolean {
  try {
    writeInto(tree, path, content, mode);
    return true;
  } catch (error) {
    const cause = error instanceof ZferryError ? error.details["reason"] : undefined;
    if (cause === "ENAMETOOLONG" || cause === "ENOTDIR" || cause === "EEXIST") return false;
    throw error;
  }
}

/** Puts a file into the folder, in place of one that is there; nothing is followed or opened that is no file or folder. */
function writeInto(tree: Tree, path: RawPath, content: Uint8Array | string, mode: number): void {
  for (const folder of ancestors(path)) {
    const kind = kindAt(tree, folder);
    requireOrdinary(tree, folder, kind);
    if (kind === "absent") inPlace(tree, folder, (place) => fs.mkdirSync(place, { mode: 0o700 }));
  }
  const kind = kindAt(tree, path);
  requireOrdinary(tree, path, kind);
  const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = fs.constants;
  inPlace(tree, path, (place) => {
    if (kind === "file") fs.unlinkSync(place);
    const fd = fs.openSync(place, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode);
    try {
      fs.writeFileSync(fd, content);
    } finally {
      fs.closeSync(fd);
    }
  });
}

const readme = (left: readonly LeftConflict[], other: string): string =>
  [
    `Conflicts of this site's / with ${other}. Nothing here is used before bundle resolve is run again.`,
    "",
    ...left.map(({ path, reason, how }) => `${path} (${reason}): ${how}`),
    "",
  ].join("\n");

/** Removes the folder, once nothing is left in it to be settled. */
async function clear(folder: string): Promise<void> {
  if (readList(folder) !== undefined) await fs.promises.rm(folder, { recursive: true, force: true });
}
