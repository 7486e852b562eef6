import { ancestors, showPath, type RawPath } from "../raw-path.js";
import { listTree, splitNul, type Git, type TreeFile } from "../system/git.js";
import { writeTree, type Change } from "./content.js";
import { isProtected } from "./paths.js";

/** Trees to be merged, by their ids. */
export interface Trees {
  readonly base: string;
  /** The site's. */
  readonly ours: string;
  /** The release's. */
  readonly theirs: string;
}

/** A change of the release, where the site has it. */
export interface PlacedChange extends Change {
  /** The place on the site before the merge; `path` is the one after it. */
  readonly from: RawPath;
}

export interface Followed {
  /** The same contents with one path for each file, so that they can be merged path by path. */
  readonly trees: Trees;
  /** Sorted by `path`. */
  readonly changes: readonly PlacedChange[];
  /** What both did that cannot be followed, by path. */
  readonly conflicts: ReadonlyMap<RawPath, string>;
}

/** As of git's own merge, and written out: no setting and no later default of git changes what is a rename. */
const RENAME_OPTIONS = ["-M50%", "-l7000", "--no-rename-empty", "--diff-filter=R"];

/** The files that one tree has under another name than the other: new paths by their old ones. */
async function findRenames(scratch: Git, from: string, to: string): Promise<Map<RawPath, RawPath>> {
  const args = ["diff-tree", "-r", "-z", "--no-commit-id", "--name-status", "--no-ext-diff"];
  const fields = splitNul(await scratch.run([...args, ...RENAME_OPTIONS, from, to]));
  const renames = new Map<RawPath, RawPath>();
  for (let index = 0; index + 2 < fields.length; index += 3) {
    const [before, after] = [fields[index + 1] as RawPath, fields[index + 2] as RawPath];
    // What is the site's own does not become a release's by being like one of its files.
    if (!isProtected(before) && !isProtected(after)) renames.set(before, after);
  }
  return renames;
}

/** One side has the file under another name, and the other one has a link there, or the reverse. */
const RENAME_TYPE = "rename/type change";
const isLink = (file: TreeFile | undefined): boolean => file?.mode === "120000";

/** A tree whose files are moved in memory. */
class MovableTree {
  readonly files: Map<RawPath, TreeFile>;
  readonly #id: string;
  readonly #folders: Set<RawPath>;
  readonly #moves: [RawPath, TreeFile | null][] = [];

  constructor(id: string, files: Map<RawPath, TreeFile>) {
    this.#id = id;
    this.files = files;
    this.#folders = new Set([...files.keys()].flatMap(ancestors));
  }

  /** Whether a file can move: neither file nor folder is where it is to be, and no other file is in its way. */
  hasRoom(from: RawPath, to: RawPath): boolean {
    const isTaken = this.files.has(to) || this.#folders.has(to);
    return !isTaken && ancestors(to).every((folder) => folder === from || !this.files.has(folder));
  }

  move(from: RawPath, to: RawPath): void {
    const file = this.files.get(from);
    if (file === undefined) return;
    this.files.delete(from);
    this.files.set(to, file);
    for (const folder of ancestors(to)) this.#folders.add(folder);
    this.#moves.push([from, null], [to, file]);
  }

  async write(scratch: Git): Promise<string> {
    return this.#moves.length === 0 ? this.#id : writeTree(scratch, this.#moves, this.#id);
  }
}

/**
 * Follows renames on either side, as git's merge does but for those of whole folders: a file that one side moved is moved
 * in the other trees, too. So one detection decides for contents and for what git does not keep. Where a moved file has no
 * room, it is not followed: what both sides then did to the two paths is a conflict of its own.
 * @param ofSite whether the base is whole, so that what the site renamed can be told
 */
export async function followRenames(
  scratch: Git,
  trees: Trees,
  changes: readonly Change[],
  ofSite: boolean,
): Promise<Followed> {
  const changed = new Map(changes.map((change) => [change.path, change]));
  const placed = new Map(changes.map((change) => [change.path, { ...change, from: change.path }]));
  const conflicts = new Map<RawPath, string>();
  const finish = (followed: Trees): Followed => ({
    trees: followed,
    changes: [...placed.values()].sort((a, b) => (a.path < b.path ? -1 : 1)),
    conflicts,
  });
  const released = await findRenames(scratch, trees.base, trees.theirs);
  const local = new Map(
    ofSite
      ? [...(await findRenames(scratch, trees.base, trees.ours))].filter(([from]) => changed.has(from))
      : [],
  );
  if (released.size === 0 && local.size === 0) return finish(trees);

  const open = async (id: string): Promise<MovableTree> => new MovableTree(id, await listTree(scratch, id));
  const [base, ours, theirs] = [await open(trees.base), await open(trees.ours), await open(trees.theirs)];
  for (const [from, to] of released) {
    const here = local.get(from);
    const before = changed.get(from)?.before ?? null;
    const after = changed.get(to)?.after ?? null;
    if (here !== undefined && here !== to) {
      const reason = `rename/rename, here to ${showPath(here)}, in the release to ${showPath(to)}`;
      conflicts.set(from, reason);
    } else if (here === to) {
      if (!base.hasRoom(from, to)) continue;
      base.move(from, to);
      placed.set(to, { path: to, from: to, before, after });
    } else if (base.hasRoom(from, to) && ours.hasRoom(from, to)) {
      base.move(from, to);
      const site = ours.files.get(from);
      if (site === undefined) conflicts.set(to, "rename/delete");
      else if (isLink(site) !== isLink(theirs.files.get(to))) conflicts.set(to, RENAME_TYPE);
      else placed.set(to, { path: to, from, before, after });
      ours.move(from, to);
    } else if (!ours.files.has(to) && isLink(ours.files.get(from)) === isLink(theirs.files.get(to))) {
      // Its contents are not merged there; but a file that the site closed to others does not become open.
      placed.set(to, { path: to, from, before, after });
    }
  }
  for (const [from, to] of local) {
    const change = changed.get(from);
    if (released.has(from) || change === undefined) continue;
    if (!base.hasRoom(from, to) || !theirs.hasRoom(from, to)) continue;
    const release = theirs.files.get(from);
    if (release === undefined) conflicts.set(to, "rename/delete");
    else if (isLink(release) !== isLink(ours.files.get(to))) conflicts.set(to, RENAME_TYPE);
    base.move(from, to);
    placed.delete(from);
    placed.set(to, { ...change, path: to, from: to });
    theirs.move(from, to);
  }
  return finish({
    base: await base.write(scratch),
    ours: await ours.write(scratch),
    theirs: await theirs.write(scratch),
  });
}
