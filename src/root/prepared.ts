import { existsSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { RawPath } from "../raw-path.js";
import { guarded, syncPath } from "../system/files.js";
import type { Git } from "../system/git.js";

// formats/state.md, Outside the folder

const recordOf = (git: Git): string => join(git.gitDir, "zferry-prepared");

/**
 * The folders that were prepared in any run and did not take their places yet: by name, with what they are known by. It is kept
 * in the repository, which is root's alone, and not beside them, where others may write.
 * @throws ZferryError `io-failed`
 */
export function preparedFolders(git: Git): Map<RawPath, string> {
  const record = recordOf(git);
  const text = guarded(record, () => (existsSync(record) ? readFileSync(record, "latin1") : ""));
  const lines = [...text.matchAll(/^(\.zferry-[0-9a-f]{16}) ([0-9]+:[0-9]+)$/gm)];
  return new Map(lines.map(([, name, identity]) => [name as RawPath, identity as string]));
}

/**
 * Replaces that record, durably.
 * @throws ZferryError `io-failed`, `no-space`
 */
export function recordPrepared(git: Git, folders: ReadonlyMap<RawPath, string>): void {
  const record = recordOf(git);
  const next = `${record}.new`;
  guarded(record, () => {
    // A fixed name, so that a run that was killed leaves nothing that no other knows.
    rmSync(next, { force: true });
    if (folders.size === 0) return rmSync(record, { force: true });
    const lines = [...folders].map(([name, identity]) => `${name} ${identity}\n`);
    writeFileSync(next, lines.join(""), { mode: 0o600, flag: "wx", flush: true });
    renameSync(next, record);
  });
  syncPath(git.gitDir);
}
