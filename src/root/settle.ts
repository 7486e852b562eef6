import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { ZferryError } from "../errors.js";
import { showPath, type RawPath } from "../raw-path.js";
import { guarded } from "../system/files.js";
import { blobSizes, trimmed, type Git, type TreeFile } from "../system/git.js";
import { run } from "../system/process.js";
import type { FileAttributes } from "../system/tree.js";
import type { RecordedAttributes } from "./metadata.js";
import { findPattern, type PathPattern } from "./path-pattern.js";
import type { Conflict } from "./trees.js";

/** The site's, or the release's. */
export type Side = "ours" | "theirs";

/** What a site's configuration says of conflicts at the paths of a pattern. formats/configuration.md, Conflicts */
export interface MergePolicy extends PathPattern {
  readonly policy: Side | "union" | "command";
  /** A program by its absolute path, with its first arguments; empty for the other policies. */
  readonly command: readonly string[];
}

/** Both sides changed an attribute of a file or folder. */
export interface AttributeConflict {
  readonly path: RawPath;
  readonly base: RecordedAttributes | null;
  readonly ours: FileAttributes;
  readonly theirs: RecordedAttributes;
}

/** A conflict that does not stand against the install any more, and why. */
export interface SettledConflict {
  readonly path: RawPath;
  readonly what: "contents" | "attributes";
  readonly by: string;
}

/** Decides conflicts, where the site's configuration does. */
export interface Settler {
  /** What the path becomes (null: nothing); undefined leaves the conflict. */
  contents(conflict: Conflict): Promise<TreeFile | null | undefined>;
  attributes(conflict: AttributeConflict): Side | undefined;
  /** Whose version of a path was taken whole. */
  sideOf(path: RawPath): Side | undefined;
  /** In the order in which they were decided. */
  readonly settled: readonly SettledConflict[];
}

export interface SettlerOptions {
  readonly scratch: Git;
  /** For the files that are merged. */
  readonly scratchDir: string;
  readonly policies: readonly MergePolicy[];
}

export function settler({ scratch, scratchDir, policies }: SettlerOptions): Settler {
  const settled: SettledConflict[] = [];
  const sides = new Map<RawPath, Side>();
  return {
    settled,
    sideOf: (path) => sides.get(path),
    async contents(conflict) {
      const { path } = conflict;
      const found = findPattern(policies, path);
      if (found === undefined) return undefined;
      const { policy, command } = found;
      const outcome =
        policy === "ours" || policy === "theirs"
          ? conflict[policy]
          : await mergeFiles(scratch, scratchDir, conflict, policy === "union" ? "union" : command);
      if (outcome === undefined) return undefined;
      if (policy === "ours" || policy === "theirs") sides.set(path, policy);
      settled.push({ path, what: "contents", by: `policy ${policy} for ${found.text}` });
      return outcome;
    },
    attributes({ path }) {
      const found = findPattern(policies, path);
      if (found?.policy !== "ours" && found?.policy !== "theirs") return undefined;
      // Once for all fields.
      if (!settled.some((entry) => entry.path === path && entry.what === "attributes")) {
        settled.push({ path, what: "attributes", by: `policy ${found.policy} for ${found.text}` });
      }
      return found.policy;
    },
  };
}

const MAX_MERGED_BYTES = 64 << 20;
const COMMAND_SECONDS = 60;
const MAX_COMMAND_OUTPUT_BYTES = 1 << 20;

/**
 * Merges the three files of a conflict, by git's union or by a program; undefined where that does not settle it.
 * @throws ZferryError `not-configured` when the program cannot be run, does not end or fails; `io-failed`
 */
async function mergeFiles(
  scratch: Git,
  scratchDir: string,
  conflict: Conflict,
  how: "union" | readonly string[],
): Promise<TreeFile | undefined> {
  const { base, ours, theirs } = conflict;
  if (ours === null || theirs === null) return undefined;
  const files = [base, ours, theirs].filter((file) => file !== null);
  if (!files.every(({ mode }) => mode === "100644" || mode === "100755")) return undefined;
  const sizes = await blobSizes(scratch, new Set(files.map(({ id }) => id)));
  if ([...sizes.values()].some((size) => size > MAX_MERGED_BYTES)) return undefined;
  const folder = join(scratchDir, "merge");
  try {
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(join(folder, "empty"), { recursive: true, mode: 0o700 });
    const place = (name: string): string => join(folder, name);
    for (const [name, file] of Object.entries({ base, ours, theirs })) {
      const content = file === null ? Buffer.of() : await scratch.run(["cat-file", "blob", file.id]);
      writeFileSync(place(name), content, { mode: 0o600 });
    }
    const isMerged = await (how === "union"
      ? unite(scratch, place)
      : runCommand(how, conflict.path, ["base", "ours", "theirs"].map(place), place("empty")));
    if (!isMerged) return undefined;
    const input = readResult(place("ours"));
    const id = trimmed(await scratch.run(["hash-object", "-w", "--stdin"], { input }));
    return { mode: mergedMode(conflict), id };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The mode that one side changed, and else the site's. */
export const mergedMode = ({ base, ours, theirs }: Conflict): string =>
  (base !== null && ours?.mode === base.mode ? theirs?.mode : ours?.mode) ?? "100644";

async function unite(scratch: Git, place: (name: string) => string): Promise<boolean> {
  const result = await scratch.ask([
    "merge-file",
    "--union",
    "--quiet",
    ...["ours", "base", "theirs"].map(place),
  ]);
  // What is no text it refuses.
  return result.status === 0;
}

async function runCommand(
  [program = "", ...args]: readonly string[],
  path: RawPath,
  files: readonly string[],
  cwd: string,
): Promise<boolean> {
  const failure = (what: string): ZferryError =>
    new ZferryError("not-configured", `merge command ${program}, for ${showPath(path)}, ${what}`, {
      details: { program, path: showPath(path) },
      hint: "see command under [[root.merge]] of the site's configuration",
    });
  if (!existsSync(program)) throw failure("is not there");
  // It ends whatever the command started, too.
  const limited = ["--kill-after=5", String(COMMAND_SECONDS), program, ...args, ...files];
  const { status, signal, stderr } = await run("timeout", limited, {
    cwd,
    maxOutputBytes: MAX_COMMAND_OUTPUT_BYTES,
  });
  if (status === 0) return true;
  if (status === 124 || status === 137) throw failure(`did not end within ${COMMAND_SECONDS} seconds`);
  if (status !== null && status < 125) return false;
  const said = stderr.split("\n").at(-1) ?? "";
  throw failure(
    `failed with ${status === null ? signal : `status ${status}`}${said === "" ? "" : `: ${said}`}`,
  );
}

/** What a program left may be anything. */
function readResult(path: string): Buffer {
  return guarded(path, () => {
    const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    try {
      const stat = fstatSync(fd);
      if (!stat.isFile() || stat.size > MAX_MERGED_BYTES) {
        throw new ZferryError(
          "io-failed",
          `the merge command left ${stat.isFile() ? `${stat.size} bytes, the limit is ${MAX_MERGED_BYTES}` : "no file"}`,
        );
      }
      return readFileSync(fd);
    } finally {
      closeSync(fd);
    }
  });
}
