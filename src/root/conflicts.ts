import { ZferryError } from "../errors.js";
import { showPath, type RawPath } from "../raw-path.js";
import { listFirst } from "../report.js";

/** @param conflicts why, by path */
export function mergeConflict(conflicts: ReadonlyMap<RawPath, string>): ZferryError {
  const sorted = [...conflicts].sort(([a], [b]) => (a < b ? -1 : 1));
  const reasons = sorted.map(([path, reason]) => `${showPath(path)} (${reason})`);
  return new ZferryError("merge-conflict", `the site and the release both changed ${listFirst(reasons)}`, {
    details: { paths: sorted.map(([path]) => showPath(path)), reasons },
    hint:
      "nothing was changed; bundle resolve FILE puts these places into a folder to be settled there, or commit a version " +
      "that agrees with the release, and try again",
  });
}

/** `MODE ID STAGE\tPATH` of each conflicting entry, an empty field, then messages: count, paths, kind, text. */
export function parseConflicts(fields: readonly RawPath[]): Map<RawPath, string> {
  const conflicts = new Map<RawPath, string>();
  const end = fields.indexOf("" as RawPath);
  for (const entry of fields.slice(0, end)) {
    conflicts.set(entry.slice(entry.indexOf("\t") + 1) as RawPath, "conflict");
  }
  for (let index = end + 1; index < fields.length;) {
    const count = Number(fields[index]);
    const kind = /^CONFLICT \((.*)\)$/.exec(fields[index + count + 1] ?? "")?.[1];
    for (const path of fields.slice(index + 1, index + 1 + count)) {
      if (kind !== undefined && conflicts.has(path)) conflicts.set(path, kind);
    }
    index += count + 3;
  }
  return conflicts;
}
