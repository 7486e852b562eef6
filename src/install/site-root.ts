import { realpathSync } from "node:fs";
import { relative } from "node:path";
import { requireRoot, type SiteConfig } from "../config.js";
import { reworded, ZferryError } from "../errors.js";
import { showPath, type RawPath } from "../raw-path.js";
import { openRepository, splitNul, type Git } from "../system/git.js";
import { ownMounts } from "../system/mounts.js";
import { withOwnMounts, type OwnMount } from "../system/private-mounts.js";
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

/** The dataset that is mounted on the site's `/`; undefined where it is another file system. */
export function mountedRoot(site: SiteConfig): string | undefined {
  const { type, source, root } = ownMounts().get(placeOf(site)) ?? {};
  return type === "zfs" && root === "/" && source?.includes("@") === false ? source : undefined;
}

/**
 * The dataset that is mounted on the site's `/`.
 * @throws ZferryError `not-configured` where it is another file system
 */
export function rootDataset(site: SiteConfig): string {
  const { path } = requireRoot(site);
  const dataset = mountedRoot(site);
  if (dataset !== undefined) return dataset;
  const { type, source } = ownMounts().get(placeOf(site)) ?? {};
  const found = source === undefined ? "no file system is mounted there" : `it is ${source} (${type})`;
  throw new ZferryError("not-configured", `${path} is no ZFS dataset, and cannot be cloned: ${found}`, {
    details: { path },
    hint: 'mode = "in-place" under [install] changes it itself',
  });
}

/**
 * Runs `use` on the `/` that an install changes: the site's, or that of the boot environment which is made. Of that nothing is seen
 * that lies on another file system.
 * @throws ZferryError `environment-missing`, `not-configured`, `io-failed`
 */
export const withRoot = async <T>(
  environment: Pick<NewEnvironment, "dataset"> | null,
  site: SiteConfig,
  use: (root: SiteRoot) => Promise<T>,
): Promise<T> =>
  environment === null
    ? use(await siteRoot(site))
    : withMountedRoot(await rootMount(environment), `${environment.dataset}:`, use);

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
      requireRoot(site).path.replace(/\/+$/, ""),
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

/**
 * @param shown what stands for the folder in messages: nobody else sees where it is mounted
 * @param name tells it from another one that is mounted meanwhile
 */
export const withMountedRoot = <T>(
  mount: OwnMount,
  shown: string,
  use: (root: SiteRoot) => Promise<T>,
  name?: string,
): Promise<T> =>
  withOwnMounts(
    [mount],
    async (rootDir) => {
      try {
        const git = await openRepository(rootDir);
        requireClonedToo(rootDir, git);
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

/**
 * Refuses what a clone of the dataset of `/` would not have: paths of it on other file systems.
 * @throws ZferryError `dataset-unsuitable`
 */
export function requireOneFileSystem(site: SiteConfig, paths: readonly RawPath[]): void {
  const root = placeOf(site);
  const mounted = [...ownMounts().keys()].flatMap((point) => {
    const path = relative(root, point);
    return path === "" || path.startsWith("..") ? [] : [path];
  });
  const found = paths.filter((path) =>
    mounted.some((point) => path === point || path.startsWith(`${point}/`)),
  );
  if (found.length === 0) return;
  const shown = [...new Set(found)].map(showPath);
  throw new ZferryError(
    "dataset-unsuitable",
    `the repository of / has files that do not lie on the dataset of /, and are not cloned with it: ${shown.slice(0, 20).join(", ")}`,
    {
      details: { paths: shown },
      hint: `let it not track them, or use mode = "in-place" under [install]`,
    },
  );
}

/** The site's `/` as the kernel names mount points: without links, bytes as characters. */
const placeOf = (site: SiteConfig): string =>
  realpathSync(requireRoot(site).path, { encoding: "buffer" }).toString("latin1");
