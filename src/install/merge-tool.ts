import { rmSync } from "node:fs";
import { join } from "node:path";
import { ZferryError } from "../errors.js";
import type { Conflict } from "../root/trees.js";
import { createBorrower, findMergeTool, runMergeTool, withWorkTree, type Git } from "../system/git.js";

/** A person's own tool for conflicts. */
export interface MergeTool {
  /** As git knows it; undefined for the one that is configured. */
  readonly name: string | undefined;
  /** Aborted by Ctrl-C, which ends the tool by itself. */
  readonly signal: AbortSignal;
  /** Told how the tool ended, if not well. */
  readonly warn: (what: string) => void;
}

/** @throws ZferryError `not-configured` when git would have to guess */
export async function requireMergeTool({ name }: Pick<MergeTool, "name">): Promise<void> {
  if (name !== undefined || (await findMergeTool()) !== undefined) return;
  throw new ZferryError("not-configured", "git has no merge tool configured", {
    hint: "git config --global merge.tool NAME, or --tool=NAME; git mergetool --tool-help has the names",
  });
}

/**
 * Lets a person settle conflicts of texts, whose files with markers lie in a folder, with git mergetool. It sees a repository that
 * has these files alone, with nothing of the site's settings, attributes and hooks.
 * @param git a repository with the contents of the conflicts
 * @throws ZferryError `interrupted`; what was settled until then stays in the folder
 */
export async function openMergeTool(
  { name, signal, warn }: MergeTool,
  git: Git,
  { scratchDir, folder }: { readonly scratchDir: string; readonly folder: string },
  conflicts: readonly Conflict[],
): Promise<void> {
  const listed = conflicts.filter(({ path }) => !UNLISTED.test(path));
  if (listed.length === 0) return;
  const borrower = createBorrower(join(scratchDir, "mergetool.git"), git);
  try {
    const stages = listed.flatMap(({ path, base, ours, theirs }) =>
      [base, ours, theirs].flatMap((side, index) =>
        side === null ? [] : [`${side.mode} ${side.id} ${index + 1}\t${path}\0`],
      ),
    );
    await withWorkTree(borrower, folder).run(["update-index", "-z", "--index-info"], {
      input: Buffer.from(stages.join(""), "latin1"),
    });
    const ended = await runMergeTool(borrower, folder, name);
    if (signal.aborted) {
      throw new ZferryError("interrupted", "interrupted while conflicts were being settled", {
        hint: `what was settled is in ${folder}, and the same command goes on`,
      });
    }
    if (ended.status !== 0) warn(`git mergetool ended with ${ended.signal ?? `status ${ended.status}`}`);
  } finally {
    rmSync(borrower.gitDir, { recursive: true, force: true });
  }
}

/** git mergetool reads names from lines, in which git quotes these. */
const UNLISTED = /[\0-\x1f"\\\x7f]/;
