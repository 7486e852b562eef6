import { ZferryError } from "../errors.js";
import { ancestors, type RawPath } from "../raw-path.js";
import { listTree, splitNul, type Git, type TreeFile } from "../system/git.js";
import { mergeConflict, parseConflicts } from "./conflicts.js";
import { writeTree } from "./content.js";
import type { Trees } from "./renames.js";

/** What three trees have at one path; null for nothing. */
export interface Sides {
  readonly base: TreeFile | null;
  readonly ours: TreeFile | null;
  readonly theirs: TreeFile | null;
}

/** What both sides did to a path, and git does not bring together. */
export interface Conflict extends Sides {
  readonly path: RawPath;
  /** As git names it, like `contents` or `modify/delete`. */
  readonly reason: string;
}

export interface MergedTree {
  /** Its id; at the path of a conflict it has what the site has. */
  readonly tree: string;
  /** Those that are left: why, by path. */
  readonly conflicts: ReadonlyMap<RawPath, string>;
}

/** Writes a commit of a tree and gives its id. */
export type Commit = (tree: string, parents: readonly string[], message: string) => Promise<string>;

const isSame = (a: TreeFile | null, b: TreeFile | null): boolean => a?.mode === b?.mode && a?.id === b?.id;

/**
 * Merges trees path by path. What only one side changed is that side's; what both changed git's merge decides, and it is
 * given nothing else: before 2.50 it looks for renames whatever `merge.renames` says.
 * @param known conflicts that were found before
 * @param settle told each conflict at one path: what the path becomes (null: nothing), or undefined, which leaves it
 * @throws ZferryError `merge-conflict` where there is no such tree: what is a file is a folder as well
 */
export async function mergeTrees(
  scratch: Git,
  trees: Trees,
  known: ReadonlyMap<RawPath, string>,
  settle: (conflict: Conflict) => Promise<TreeFile | null | undefined>,
  commit: Commit,
): Promise<MergedTree> {
  const base = await listTree(scratch, trees.base);
  const ours = await listTree(scratch, trees.ours);
  const theirs = await listTree(scratch, trees.theirs);
  const conflicts = new Map(known);
  const contested = new Map<RawPath, Sides>();
  const merged = new Map(ours);
  const put = (path: RawPath, file: TreeFile | null): void => {
    if (file === null) merged.delete(path);
    else merged.set(path, file);
  };
  const sidesOf = (path: RawPath): Sides => ({
    base: base.get(path) ?? null,
    ours: ours.get(path) ?? null,
    theirs: theirs.get(path) ?? null,
  });
  for (const path of new Set([...base.keys(), ...theirs.keys()])) {
    const sides = sidesOf(path);
    if (isSame(sides.base, sides.theirs) || isSame(sides.ours, sides.theirs)) continue;
    if (isSame(sides.base, sides.ours)) put(path, sides.theirs);
    else if (sides.ours === null || sides.theirs === null) conflicts.set(path, "modify/delete");
    else contested.set(path, sides);
  }
  for (const [path, outcome] of await mergeContents(scratch, contested, commit)) {
    if (typeof outcome === "string") conflicts.set(path, outcome);
    else put(path, outcome);
  }
  for (const [path, reason] of [...conflicts].sort(byPath)) {
    const sides = sidesOf(path);
    // Renamed to two places, it is in neither tree where it was.
    if (sides.ours === null && sides.theirs === null) continue;
    const outcome = await settle({ path, reason, ...sides });
    if (outcome === undefined) continue;
    put(path, outcome);
    conflicts.delete(path);
  }
  const folders = new Set([...merged.keys()].flatMap(ancestors));
  const both = [...folders].filter((folder) => merged.has(folder));
  for (const folder of both) conflicts.set(folder, "file/directory");
  if (both.length > 0) throw mergeConflict(conflicts);
  const changed = new Set([...ours.keys(), ...merged.keys()]);
  const entries = [...changed]
    .map((path): [RawPath, TreeFile | null] => [path, merged.get(path) ?? null])
    .filter(([path, file]) => !isSame(file, ours.get(path) ?? null));
  return { tree: await writeTree(scratch, entries, trees.ours), conflicts };
}

const byPath = ([a]: readonly [RawPath, string], [b]: readonly [RawPath, string]): number => (a < b ? -1 : 1);

/**
 * Lets git merge the files of both sides, with synthetic commits: before 2.40 its merge-tree takes no base.
 * @returns for each path the merged file, or the kind of its conflict
 */
async function mergeContents(
  scratch: Git,
  contested: ReadonlyMap<RawPath, Sides>,
  commit: Commit,
): Promise<Map<RawPath, TreeFile | string>> {
  if (contested.size === 0) return new Map();
  const write = (side: keyof Sides): Promise<string> =>
    writeTree(
      scratch,
      [...contested].map(([path, sides]) => [path, sides[side]]),
    );
  const root = await commit(await write("base"), [], "base");
  const result = await scratch.ask([
    "merge-tree",
    "--write-tree",
    "-z",
    await commit(await write("ours"), [root], "site"),
    await commit(await write("theirs"), [root], "release"),
  ]);
  if (result.status !== 0 && result.status !== 1) {
    throw new ZferryError("git-failed", `git merge-tree failed: ${result.stderr.split("\n").at(-1) ?? ""}`, {
      details: { stderr: result.stderr },
    });
  }
  const fields = splitNul(result.stdout);
  const conflicts = result.status === 0 ? new Map<RawPath, string>() : parseConflicts(fields.slice(1));
  const files = await listTree(scratch, fields[0] ?? "");
  return new Map(
    // Of a file and a link git keeps one under another name: such a path has no outcome of its own.
    [...contested.keys()].map((path) => [path, conflicts.get(path) ?? files.get(path) ?? "distinct types"]),
  );
}
