import { existsSync, realpathSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { showPath } from "../raw-path.js";
import { pathOf } from "../root/paths.js";
import type { RootPlan } from "../root/plan.js";
import type { Git } from "../system/git.js";
import { datasetAt } from "../system/zfs.js";

// What a site remembers and believes must not be turned back or replaced by what it installs. formats/state.md

/** The path without links; of what does not exist yet, below the folder that does. */
function resolved(path: string): string {
  return existsSync(path) ? realpathSync(path) : join(resolved(dirname(path)), relative(dirname(path), path));
}

const isWithin = (folder: string, path: string): boolean => path === folder || path.startsWith(`${folder}/`);

/**
 * @throws ZferryError `dataset-unsuitable` when the state folder lies on a dataset that a stream is received into
 */
export async function requireStateOffStreams({ state, streams }: SiteConfig): Promise<void> {
  const path = resolved(state);
  let there = path;
  while (!existsSync(there)) there = dirname(there);
  const dataset = await datasetAt(there);
  if (dataset === undefined || !Object.values(streams).some((stream) => isWithin(stream, dataset))) return;
  throw new ZferryError(
    "dataset-unsuitable",
    `the state folder ${path} lies on ${dataset}, which a stream replaces`,
    {
      details: { path, dataset },
      hint: "name another folder as state in the site's configuration",
    },
  );
}

/** @throws ZferryError `not-configured` when the repository of `/` tracks the state folder */
export async function requireStateUntracked({ state }: SiteConfig, rootDir: string, git: Git): Promise<void> {
  const path = relative(resolved(rootDir), resolved(state));
  if (path === "" || path.startsWith("..")) return;
  const tracked = await git.run(["ls-files", "-z", "--", `:(top,literal)${path}`]);
  if (tracked.length === 0) return;
  throw new ZferryError(
    "not-configured",
    `the repository of ${rootDir} tracks files of the state folder ${state}, which a rollback would turn back`,
    { details: { path: state }, hint: `git -C ${rootDir} rm -r --cached ${path}, and add it to .gitignore` },
  );
}

/** @throws ZferryError `not-permitted` when a release changes the site's own state, keys or what leads to them */
export function requireOwnUntouched(
  { state, trust }: SiteConfig,
  rootDir: string,
  { changes }: RootPlan,
): void {
  const root = resolved(rootDir);
  const own = [resolved(state), resolved(trust.keys)].map((path) => relative(root, path));
  for (const { path } of changes) {
    const shown = showPath(pathOf(path));
    const touched = own.find((folder) => isWithin(folder, shown) || isWithin(shown, folder));
    if (touched !== undefined) {
      throw new ZferryError(
        "not-permitted",
        `the release changes ${shown}, where this site keeps what is its own`,
        {
          details: { path: shown, own: touched },
        },
      );
    }
  }
}
