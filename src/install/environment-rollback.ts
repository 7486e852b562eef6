import { basename } from "node:path";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { showPath } from "../raw-path.js";
import { pathOf } from "../root/paths.js";
import { hasGuid, listProperties, parentOf } from "../system/zfs.js";
import { withContainer } from "./environment-install.js";
import { makeNext, readStanding, requireBootable } from "./environments.js";
import { requireNothingPending, withState } from "./pending.js";
import { requireProduct } from "./policy.js";
import { openState, undoable, type Installation, type SiteState } from "./state.js";
import { releaseBases } from "./steps.js";
import { readUnderWay } from "./under-way.js";

// formats/environments.md, Going back

type MadeInstallation = Installation & { readonly environment: NonNullable<Installation["environment"]> };

export interface EnvironmentRollback {
  /** What is rolled back. */
  readonly installation: MadeInstallation;
  /** The dataset of the environment that boots next then. */
  readonly to: string;
  /** Whether the environment that is left is the running one: what was written to its `/` stays there. */
  readonly isRunning: boolean;
}

/** What stays as the release has it, whatever boots: lines for people. */
export function describeShared({ shared = [] }: Pick<MadeInstallation["environment"], "shared">): string[] {
  if (shared.length === 0) return [];
  const more = shared.length > SHOWN_PATHS ? [`  and ${shared.length - SHOWN_PATHS} more`] : [];
  return [
    `not turned back, since all environments share them: ${shared.length}`,
    ...shared.slice(0, SHOWN_PATHS).map((path) => `  ${showPath(pathOf(path))}`),
    ...more,
  ];
}

const SHOWN_PATHS = 200;

/**
 * What can be rolled back, where that is a boot environment; undefined where it is an install in place, or nothing.
 * @throws ZferryError `journal-malformed`
 */
export async function environmentToLeave({ state }: SiteConfig): Promise<MadeInstallation | undefined> {
  return madeOf(await openState(state).readState());
}

function madeOf(state: SiteState | undefined): MadeInstallation | undefined {
  const last = undoable(state);
  return last?.environment === undefined ? undefined : { ...last, environment: last.environment };
}

/**
 * Everything that going back does before it changes anything.
 * @throws ZferryError `install-pending`, `rollback-impossible`; `environment-incomplete` where what is gone back to would not come up
 */
export async function planEnvironmentRollback(site: SiteConfig): Promise<EnvironmentRollback> {
  await requireNothingPending(await readUnderWay(site), "and nothing is rolled back before that is done");
  return makePlan(site, await openState(site.state).readState());
}

/**
 * Has the environment boot next that the newest one was made from, or that ran before it, and records that. What was made stays.
 * @param agree asked before an environment is left that runs
 * @param warn told what does not stand against it
 * @throws ZferryError as `planEnvironmentRollback`; `loss-not-agreed`, and those of `makeNext`
 */
export const rollBackEnvironment = (
  site: SiteConfig,
  now: () => Date,
  agree: (plan: EnvironmentRollback) => Promise<boolean>,
  warn: (what: string) => void,
): Promise<EnvironmentRollback> =>
  withState(site, warn, async (folder) => {
    await requireNothingPending(await folder.readJournal(), "and nothing is rolled back before that is done");
    const state = await folder.readState();
    const plan = await makePlan(site, state);
    const { installation, to, isRunning } = plan;
    if (state === undefined) throw new RangeError("nothing to be rolled back is recorded");
    if (isRunning && !(await agree(plan))) throw notAgreed(plan);
    const began = seconds(now);
    // The repeated command does each of these again, until it is recorded.
    await makeNext(withContainer(site, installation.environment), basename(to), { force: false });
    await releaseBases(installation.streams, [], warn);
    const rolledBack = { startedAt: began, finishedAt: seconds(now) };
    const installations = [...state.installations.slice(0, -1), { ...installation, rolledBack }];
    await folder.writeState({ ...state, installations });
    return plan;
  });

const seconds = (now: () => Date): number => Math.floor(now().getTime() / 1000);

const notAgreed = ({ installation: { environment }, to }: EnvironmentRollback): ZferryError =>
  new ZferryError(
    "loss-not-agreed",
    `${environment.dataset} is running: what was written to its / since it was made is not in ${to}`,
    {
      details: { dataset: environment.dataset, to },
      hint: "it stays there, and can be copied; to go back: bundle rollback --discard",
    },
  );

async function makePlan(site: SiteConfig, state: SiteState | undefined): Promise<EnvironmentRollback> {
  if (state !== undefined) requireProduct(state, site.product);
  const installation = madeOf(state);
  if (installation === undefined) {
    throw new ZferryError("rollback-impossible", "no boot environment is installed that could be left");
  }
  const { dataset, guid } = installation.environment;
  const place = withContainer(site, { dataset });
  const to = await findBefore(installation);
  const { next, running } = await readStanding(place);
  if (next !== to) await requireBootable(place, basename(to));
  return { installation, to, isRunning: await hasGuid(running, guid) };
}

/** By guids: either may have been renamed. */
async function findBefore({ environment, release }: MadeInstallation): Promise<string> {
  const { dataset, guid, previous } = environment;
  const listed = await listProperties(parentOf(dataset), ["guid", "zferry:previous"]);
  const own = listed.find(({ properties }) => properties.guid.value === guid);
  const before = own?.properties["zferry:previous"];
  const found =
    (before?.local === true && listed.find(({ properties }) => properties.guid.value === before.value)) ||
    listed.find((each) => each.dataset === previous);
  if (found) return found.dataset;
  throw new ZferryError(
    "rollback-impossible",
    `release ${release.name} (${release.sequence}) cannot be rolled back: ${previous}, which ${dataset} was made from, is not there any more`,
    {
      details: { dataset, previous },
      hint: "bundle environments lists what is there, and bundle activate has one boot next",
    },
  );
}
