import { mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Conflict } from "../root/trees.js";
import { guarded } from "../system/files.js";
import { createBorrower, withWorkTree, type Git } from "../system/git.js";

/** What git rerere remembers of conflicts that were settled, for those of later releases that are like them. */
export interface Memory {
  /** The file as it would be settled like an earlier one; undefined where none is like it. */
  recall(conflict: Conflict, marked: Uint8Array): Promise<Buffer | undefined>;
  remember(conflict: Conflict, marked: Uint8Array, settled: Uint8Array): Promise<void>;
}

/**
 * @param git a repository with the contents of the conflicts
 * @param cache the folder of what is remembered, git's rr-cache
 */
export function openMemory(git: Git, scratchDir: string, cache: string): Memory {
  const tree = join(scratchDir, "rerere");
  const file = join(tree, "file");

  /** Runs git rerere on one conflict; what it refuses is not remembered, and no error. */
  const use = async <Result>(
    { base, ours, theirs }: Conflict,
    marked: Uint8Array,
    then: (rerere: (...args: string[]) => Promise<unknown>) => Promise<Result>,
  ): Promise<Result> => {
    const borrower = createBorrower(join(scratchDir, "rerere.git"), git);
    const here = withWorkTree(borrower, tree);
    try {
      guarded(cache, () => {
        mkdirSync(cache, { recursive: true, mode: 0o700 });
        rmSync(tree, { recursive: true, force: true });
        mkdirSync(tree, { mode: 0o700 });
        symlinkSync(cache, join(borrower.gitDir, "rr-cache"));
        writeFileSync(file, marked, { mode: 0o600 });
      });
      const stages = [base, ours, theirs].flatMap((side, index) =>
        side === null ? [] : [`${side.mode} ${side.id} ${index + 1}\tfile\0`],
      );
      await here.run(["update-index", "-z", "--index-info"], { input: stages.join("") });
      return await then((...args) => here.ask([...SETTINGS, "rerere", ...args]));
    } finally {
      rmSync(tree, { recursive: true, force: true });
      rmSync(borrower.gitDir, { recursive: true, force: true });
    }
  };

  return {
    recall: (conflict, marked) =>
      use(conflict, marked, async (rerere) => {
        await rerere();
        const found = readFileSync(file);
        return found.equals(marked) ? undefined : found;
      }),
    remember: (conflict, marked, settled) =>
      use(conflict, marked, async (rerere) => {
        // Else what was remembered before would stay.
        await rerere("forget", "--", "file");
        writeFileSync(file, marked);
        await rerere();
        writeFileSync(file, settled);
        await rerere();
        await rerere("gc");
      }),
  };
}

const SETTINGS = [
  ...["-c", "core.bare=false", "-c", "rerere.enabled=true", "-c", "rerere.autoUpdate=false"],
  // In days: a site may see few releases in a year.
  ...["-c", "gc.rerereResolved=1000", "-c", "gc.rerereUnresolved=15"],
];
