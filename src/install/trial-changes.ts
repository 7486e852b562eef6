import { lstatSync } from "node:fs";
import { basename, join } from "node:path";
import { rawBytes, showPath, type RawPath } from "../raw-path.js";
import { indexTree, readSite } from "../root/site.js";
import { createBorrower, openRepository, splitNul, withWorkTree } from "../system/git.js";
import { readOnlyMount, withOwnMounts } from "../system/private-mounts.js";
import { withScratch } from "../system/scratch.js";
import { fullName, getProperties, listDepended, ownProperties, parentOf } from "../system/zfs.js";

// What was changed in the environment before after it was cloned, which the one that was made of it lacks.

export interface ChangesBefore {
  /** The name of the environment that was cloned. */
  readonly environment: string;
  /** Paths of its `/`, without a slash at their beginning, sorted. */
  readonly paths: readonly string[];
}

/** What an environment was cloned from. */
export interface EnvironmentBefore {
  readonly dataset: string;
  readonly name: string;
  readonly guid: string;
  /** The snapshot, in full. */
  readonly origin: string;
  readonly mountpoint: string;
}

/**
 * The snapshot that it was cloned from is in its `origin`; or, where something promoted it since, as zectl does when it activates it,
 * one of its own that is older than it is, and the one before is a clone of that.
 * @returns undefined for one that was not cloned from another of its container, or of which that is not there any more
 */
export async function environmentBefore(dataset: string): Promise<EnvironmentBefore | undefined> {
  const { origin, createtxg } = await getProperties(dataset, ["origin", "createtxg"]);
  const { "zferry:release": release, "zferry:previous": previous } = await ownProperties(dataset);
  const isBeside = (other: string): boolean => parentOf(other) === parentOf(dataset);
  // What an install did not name so is of another one, which was removed, or promoted.
  const isNamed = (name: string): boolean => release === undefined || name === `zferry-${release}`;
  const older = (await listDepended(dataset)).filter((each) => each.createtxg < Number(createtxg));
  const turned = older.flatMap((each) =>
    each.clones.filter(isBeside).map((old) => ({ old, snapshot: each })),
  );
  for (const { old, snapshot } of turned) {
    const found = await describe(old, fullName(snapshot));
    if (isNamed(snapshot.name) && found.guid === previous) return found;
  }
  const [old = "", name] = origin.split("@");
  if (name === undefined || !isBeside(old) || !isNamed(name)) return undefined;
  const found = await describe(old, origin);
  const isFirst = turned.length === 0 && [undefined, found.guid].includes(previous);
  return release !== undefined || isFirst ? found : undefined;
}

async function describe(dataset: string, origin: string): Promise<EnvironmentBefore> {
  const { guid, mountpoint } = await getProperties(dataset, ["guid", "mountpoint"]);
  return { dataset, name: basename(dataset), guid, origin, mountpoint };
}

/** How it is mounted as it was then, and as it is now. */
export const mountsOf = ({ dataset, origin, mountpoint }: EnvironmentBefore) => ({
  then: { args: ["-t", "zfs", origin], path: "/" },
  now: { args: readOnlyMount(dataset, mountpoint), path: "/" },
});

/**
 * Compares the environment that one was cloned from with the snapshot of that time: what its repository tracks, and what is neither
 * tracked nor ignored. To be called where nobody else sees what is mounted.
 * @returns undefined for one that was not cloned from another of its container
 * @throws ZferryError `io-failed`, `git-failed`, `not-configured`
 */
export async function changesBefore(dataset: string): Promise<ChangesBefore | undefined> {
  const before = await environmentBefore(dataset);
  if (before === undefined) return undefined;
  const mounts = mountsOf(before);
  const then = await withOwnMounts([mounts.then], (folder) => readFiles(folder));
  const now = await withOwnMounts([mounts.now], (folder) => readFiles(folder, then.tree));
  const paths = new Set([...now.committed, ...differing(then.states, now.states)]);
  return { environment: before.name, paths: [...paths].map(showPath).sort() };
}

interface Files {
  readonly tree: string;
  /** What differs between two commits. */
  readonly committed: readonly RawPath[];
  /** Of files that are not as in HEAD, or not tracked: what tells that they are others. */
  readonly states: ReadonlyMap<RawPath, string>;
}

/** @param before the tree of an earlier commit */
const readFiles = (folder: string, before?: string): Promise<Files> =>
  withScratch(async (scratchDir) => {
    const git = await openRepository(folder);
    const { tree } = await readSite(git);
    const scratch = withWorkTree(createBorrower(join(scratchDir, "root.git"), git), folder);
    const env = await indexTree(scratch, tree);
    const modified = splitNul(await scratch.run(["diff-index", "--name-only", "-z", tree], { env }));
    const ignored = [
      "--exclude-per-directory=.gitignore",
      `--exclude-from=${join(git.gitDir, "info/exclude")}`,
    ];
    const others = splitNul(await scratch.run(["ls-files", "--others", "-z", ...ignored], { env }));
    const committed =
      before === undefined
        ? []
        : splitNul(await scratch.run(["diff-tree", "-r", "--name-only", "-z", before, tree]));
    return {
      tree,
      committed,
      states: new Map([...modified, ...others].map((path) => [path, stateOf(folder, path)])),
    };
  });

function stateOf(folder: string, path: RawPath): string {
  const place = Buffer.concat([Buffer.from(`${folder}/`), rawBytes(path)]);
  const stat = lstatSync(place, { throwIfNoEntry: false });
  return stat === undefined ? "" : `${stat.mode} ${stat.size} ${stat.mtimeMs}`;
}

const differing = (then: Files["states"], now: Files["states"]): RawPath[] =>
  [...new Set([...then.keys(), ...now.keys()])].filter((path) => then.get(path) !== now.get(path));
