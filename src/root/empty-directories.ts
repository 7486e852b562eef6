import { existsSync, copyFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { ZferryError } from "../errors.js";
import { ancestors, type RawPath } from "../raw-path.js";
import { splitNul, withWorkTree, type Git } from "../system/git.js";
import { folderOf, listFolder, type Tree } from "../system/tree.js";
import { directoryRefusal } from "./paths.js";

// formats/root.md, metadata.json: directories that hold nothing, which git does not keep.

/** A release's file tree, and the paths that its commit has. */
interface Release {
  readonly tree: Tree;
  readonly files: Iterable<RawPath>;
}

/** More directories than this are none of a product's own. */
const MAX_DIRECTORIES = 1_000_000;

/**
 * The directories that are empty but for directories in either of two releases, and not ignored by git, sorted. So there
 * are those that the later one adds, changes or removes.
 * @param lender the build host's repository, for its `info/exclude`
 * @param borrower one that borrows from it, and has an empty index
 * @throws ZferryError `io-failed`, `git-failed`
 */
export async function findEmptyDirectories(
  lender: Git,
  borrower: Git,
  before: Release | undefined,
  after: Release,
): Promise<RawPath[]> {
  const exclude = join(dirname(lender.objects), "info/exclude");
  if (existsSync(exclude)) copyFileSync(exclude, join(borrower.gitDir, "info/exclude"));
  const later = await emptyDirectoriesOf(borrower, after);
  if (before === undefined) return later;
  const known = new Set(later);
  const earlier = (await emptyDirectoriesOf(borrower, before)).filter((path) => !known.has(path));
  // What the later release ignores is not its own any more. Git must be asked of something in it, to see a folder
  // where there may be none.
  const ignored = await ignoredOf(borrower, after.tree, earlier, "/.zferry");
  return [...later, ...earlier.filter((path) => !ignored.has(path))].sort();
}

async function emptyDirectoriesOf(borrower: Git, { tree, files }: Release): Promise<RawPath[]> {
  const tracked = new Set<RawPath | "">();
  for (const file of files) for (const folder of ancestors(file)) tracked.add(folder);
  const untracked: RawPath[] = [];
  /** Folders with something in them that is no folder, or not the product's. */
  const filled = new Set<RawPath | "">();
  let device: number | undefined;
  let seen = 0;
  // A level at a time, so that git is asked a few times, and what it ignores is not entered.
  for (let level: readonly (RawPath | "")[] = [""]; level.length > 0;) {
    const found: RawPath[] = [];
    for (const folder of level) {
      const list = listFolder(tree, folder);
      device ??= list?.device;
      if (list === undefined || list.device !== device) {
        filled.add(folder);
        continue;
      }
      for (const { name, isDirectory } of list.entries) {
        const path = (folder === "" ? name : `${folder}/${name}`) as RawPath;
        if (isDirectory && directoryRefusal(path) === undefined) found.push(path);
        else filled.add(folder);
      }
    }
    seen += found.length;
    if (seen > MAX_DIRECTORIES) {
      throw new ZferryError("git-failed", `${tree.path} has more than ${MAX_DIRECTORIES} directories`, {
        hint: "list in .gitignore what does not belong to the release",
      });
    }
    const asked = found.filter((path) => !tracked.has(path));
    const ignored = await ignoredOf(borrower, tree, asked);
    for (const path of ignored) filled.add(folderOf(path));
    level = found.filter((path) => !ignored.has(path));
    for (const path of asked) if (!ignored.has(path)) untracked.push(path);
  }
  for (const folder of [...filled])
    if (folder !== "") for (const above of ancestors(folder)) filled.add(above);
  return untracked.filter((path) => !filled.has(path)).sort();
}

/** Those of the directories that git ignores by the rules in a tree. */
async function ignoredOf(
  borrower: Git,
  tree: Tree,
  paths: readonly RawPath[],
  suffix = "",
): Promise<Set<RawPath>> {
  if (paths.length === 0) return new Set();
  const args = ["check-ignore", "-z", "--stdin"];
  const git = withWorkTree(borrower, tree.path);
  // With `./` no name is taken for a pattern.
  const input = Buffer.from(paths.map((path) => `./${path}${suffix}\0`).join(""), "latin1");
  const result = await git.ask(args, { input });
  if (result.status !== 0 && result.status !== 1) {
    const said = result.stderr.split("\n").at(-1) ?? "";
    throw new ZferryError("git-failed", `git check-ignore failed: ${said}`, { details: { stderr: said } });
  }
  return new Set(
    splitNul(result.stdout).map((path) => path.slice(2, -suffix.length || undefined) as RawPath),
  );
}
