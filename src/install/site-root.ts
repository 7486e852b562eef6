import { realpathSync } from "node:fs";
import { relative } from "node:path";
import { requireRoot, type SiteConfig } from "../config.js";
import { reworded, ZferryError } from "../errors.js";
import type { RawPath } from "../raw-path.js";
import { openRepository, splitNul, type Git } from "../system/git.js";
import { datasetOf, ownMounts } from "../system/mounts.js";
import { withOwnMounts, type OwnMount } from "../system/private-mounts.js";
import { mountsToSee, placeOfRoot } from "./shared-mounts.js";
import { datasetExists, getProperties } from "../system/zfs.js";
import type { NewEnvironment } from "./state.js";

/** The `/` that an install changes, and its repository. */
export interface SiteRoot {
  readonly git: Git;
  readonly rootDir: string;
}

/** @throws ZferryError `not-configured` where the site has no repository of `/` */
export async function siteRoot({ root }: SiteConfig): Promise<SiteRoot> {
  if (root === undefined) {
    throw new ZferryError(
      "not-configured",
      "the bundle changes /, and the site's configuration has no [root]",
      {
        hint: 'add [root] with path = "/"',
      },
    );
  }
  return { git: await openRepository(root.path), rootDir: root.path };
}

/**
 * The dataset that is mounted on the site's `/`.
 * @throws ZferryError `not-configured` where it is another file system
 */
export function rootDataset(site: SiteConfig): string {
  const dataset = datasetOfRoot(site);
  if (dataset !== undefined) return dataset;
  const { path } = requireRoot(site);
  const { type, source } = ownMounts().get(placeOfRoot(site)) ?? {};
  const found = source === undefined ? "no file system is mounted there" : `it is ${source} (${type})`;
  throw new ZferryError("not-configured", `${path} is no ZFS dataset, and cannot be cloned: ${found}`, {
    details: { path },
    hint: 'mode = "in-place" under [install] changes it itself',
  });
}

/** The same; undefined where it is another file system. */
export const datasetOfRoot = (site: SiteConfig): string | undefined =>
  datasetOf(ownMounts().get(placeOfRoot(site)));

/**
 * Runs `use` on the `/` that an install changes: the site's, or that of the boot environment which is made. Of other file
 * systems it sees those that all environments share, and that have tracked files: read-only, but for those that the install may change.
 * @throws ZferryError `environment-missing`, `not-configured`, `io-failed`
 */
export const withRoot = async <T>(
  environment: Pick<NewEnvironment, "dataset" | "shared"> | null,
  site: SiteConfig,
  use: (root: SiteRoot) => Promise<T>,
): Promise<T> =>
  environment === null
    ? use(await siteRoot(site))
    : withMountedRoot(
        await rootMount(environment),
        { site, shown: `${environment.dataset}:`, writable: environment.shared },
        use,
      );

/**
 * The same for a plan, which changes nothing: as long as there is no clone, with what will be cloned.
 * @throws ZferryError `install-pending` where that is not what an install was begun in
 */
export async function withRootToPlan<T>(
  environment: NewEnvironment | null,
  site: SiteConfig,
  use: (root: SiteRoot) => Promise<T>,
): Promise<T> {
  if (environment === null || (await datasetExists(environment.dataset)))
    return withRoot(environment, site, use);
  const found = rootDataset(site);
  if (found === environment.origin)
    return withMountedRoot(
      { args: ["--bind", requireRoot(site).path], path: "/" },
      { site, shown: requireRoot(site).path.replace(/\/+$/, ""), writable: environment.shared },
      use,
    );
  throw new ZferryError(
    "install-pending",
    `the install that is under way was begun in ${environment.origin}, and / is ${found} now`,
    {
      details: { expected: environment.origin, found },
      hint: "boot that again, or give it up: bundle abort",
    },
  );
}

interface MountedRoot {
  readonly site: SiteConfig;
  /** What stands for the folder in messages: nobody else sees where it is mounted. */
  readonly shown: string;
  /** Mount points in `/` where something may be changed. */
  readonly writable?: readonly string[] | undefined;
  /** Tells the folder from another one that is mounted meanwhile. */
  readonly name?: string;
}

export const withMountedRoot = <T>(
  mount: OwnMount,
  { site, shown, writable = [], name }: MountedRoot,
  use: (root: SiteRoot) => Promise<T>,
): Promise<T> =>
  withOwnMounts(
    [mount],
    async (rootDir, add) => {
      try {
        const git = await openRepository(rootDir);
        requireClonedToo(rootDir, git);
        for (const each of mountsToSee(site, writable, await trackedPaths(git))) await add(each);
        return await use({ git, rootDir });
      } catch (error) {
        if (!(error instanceof ZferryError)) throw error;
        throw reworded(error, (text) => inWords(text, rootDir, shown));
      }
    },
    name,
  );

/** @param folder is in a text as a path, alone or with what is below it */
export const inWords = (text: string, folder: string, shown: string): string =>
  text.replaceAll(`${folder}/`, `${shown}/`).replaceAll(folder, shown === "" ? "/" : shown);

function requireClonedToo(rootDir: string, git: Git): void {
  for (const path of [git.gitDir, git.objects]) {
    if (!relative(realpathSync(rootDir), path).startsWith("..")) continue;
    throw new ZferryError("not-configured", `the repository of / is ${path}, which is not cloned with it`, {
      details: { path },
      hint: "keep it in /.git",
    });
  }
}

/**
 * How the root of a boot environment is mounted.
 * @throws ZferryError `environment-missing`
 */
export async function rootMount({ dataset }: Pick<NewEnvironment, "dataset">): Promise<OwnMount> {
  if (!(await datasetExists(dataset))) {
    throw new ZferryError("environment-missing", `the boot environment ${dataset} is not there any more`, {
      details: { dataset },
      hint: "it was destroyed while the install was under way: bundle abort, and install again",
    });
  }
  const { mountpoint } = await getProperties(dataset, ["mountpoint"]);
  const options = mountpoint === "legacy" ? [] : ["-o", "zfsutil"];
  return { args: ["-t", "zfs", ...options, dataset], path: "/" };
}

/** The paths that a repository tracks. */
export const trackedPaths = async (git: Git): Promise<RawPath[]> =>
  splitNul(await git.run(["ls-files", "-z", "--full-name"]));
