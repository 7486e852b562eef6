import type { SiteConfig } from "../config.js";
import type { PlanOptions } from "../root/merge.js";
import { parsePattern } from "../root/path-pattern.js";
import { openResolutions } from "./resolutions.js";
import type { Journal } from "./state.js";

/**
 * What the site decides of a plan of `/`, for an install as for a rollback.
 * @param options.journal of what goes on: what is planned again is then the same plan, if nothing else changed
 */
export const rootOptions = (
  { root, state }: SiteConfig,
  {
    journal,
    now,
    commitDrift,
  }: {
    readonly journal: Pick<Journal, "startedAt" | "root"> | undefined;
    readonly now: () => Date;
    readonly commitDrift: boolean | undefined;
  },
): Pick<PlanOptions, "policies" | "date" | "commitDrift"> & Required<Pick<PlanOptions, "resolutions">> => ({
  policies: (root?.merge ?? []).map(({ path, ...policy }) => ({ ...parsePattern(path), ...policy })),
  resolutions: openResolutions(state).lookup,
  date: journal?.startedAt ?? Math.floor(now().getTime() / 1000),
  commitDrift: commitDrift || root?.drift === "commit" || journal?.root?.drift !== undefined,
});
