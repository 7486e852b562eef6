import { commitRoot, importObjects, prepareRoot, revertRoot } from "../../src/root/apply.js";
import type { RootPlan } from "../../src/root/plan.js";
import { openRepository } from "../../src/system/git.js";

/** All steps of an installer, to be run again after a crash in any of them. */
export async function applyRoot(
  plan: RootPlan,
  { rootDir, scratchDir }: { rootDir: string; scratchDir: string },
) {
  const git = await openRepository(rootDir);
  await importObjects(plan, { git, scratchDir });
  await prepareRoot(plan, { git, rootDir });
  await commitRoot(plan, { git, rootDir, scratchDir });
}

/** Takes back what `applyRoot` did, as far as that came; to be run again after a crash, too. */
export async function takeBackRoot(
  plan: RootPlan,
  { rootDir, scratchDir }: { rootDir: string; scratchDir: string },
) {
  await revertRoot(plan, { git: await openRepository(rootDir), rootDir, scratchDir });
}
