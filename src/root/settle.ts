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
import type { GitMode, RecordedAttributes } from "./metadata.js";
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
  /** In words: each attribute that both changed, with what either side has. */
  readonly differences: readonly string[];
}

/** What a person decided: one side, or a file of these bytes. */
export type Resolution = { readonly side: Side } | { readonly mode: GitMode; readonly content: Uint8Array };

/** Tells what was decided of exactly this conflict; undefined where nothing was. */
export interface Resolutions {
  contents(conflict: Conflict): Resolution | undefined;
  attributes(conflict: AttributeConflict): Side | undefined;
}

/** Conflicts that stand against the install, and can be decided path by path. */
export interface OpenConflicts {
  readonly contents: readonly Conflict[];
  readonly attributes: readonly AttributeConflict[];
}

/** A conflict that does not stand against the install any more, and why. */
export interface SettledConflict {
  readonly path: RawPath;
  readonly what: "contents" | "attributes";
  readonly by: string;
}

/** Decides conflicts, where a person or the site's configuration did. */
export interface Settler {
  /** What the path becomes (null: nothing); undefined leaves the conflict. */
  contents(conflict: Conflict): Promise<TreeFile | null | undefined>;
  attributes(conflict: AttributeConflict): Side | undefined;
  /** Whose version of a path was taken whole. */
  sideOf(path: RawPath): Side | undefined;
  /** Whether a person made the file that a path becomes, with the executable bit that it is to have. */
  isMade(path: RawPath): boolean;
  /** In the order in which they were decided. */
  readonly settled: readonly SettledConflict[];
  readonly open: OpenConflicts;
}

export interface SettlerOptions {
  readonly scratch: Git;
  /** For the files that are merged. */
  readonly scratchDir: string;
  readonly policies: readonly MergePolicy[];
  readonly resolutions: Resolutions | undefined;
}

export function settler({ scratch, scratchDir, policies, resolutions }: SettlerOptions): Settler {
  const settled: SettledConflict[] = [];
  const sides = new Map<RawPath, Side>();
  const made = new Set<RawPath>();
  const openContents: Conflict[] = [];
  const openAttributes = new Map<RawPath, AttributeConflict>();

  const byPerson = async (conflict: Conflict): Promise<TreeFile | null | undefined> => {
    const resolution = resolutions?.contents(conflict);
    if (resolution === undefined) return undefined;
    if ("side" in resolution) {
      sides.set(conflict.path, resolution.side);
      return conflict[resolution.side];
    }
    made.add(conflict.path);
    return { mode: resolution.mode, id: await writeBlob(scratch, resolution.content) };
  };
  const byPolicy = async (conflict: Conflict, { policy, command }: MergePolicy) => {
    if (policy !== "ours" && policy !== "theirs")
      return mergeFiles(scratch, scratchDir, conflict, policy === "union" ? "union" : command);
    sides.set(conflict.path, policy);
    return conflict[policy];
  };
  const policyOf = ({ policy, text }: MergePolicy): string => `policy ${policy} for ${text}`;
  const decideAttributes = (conflict: AttributeConflict): { side: Side; by: string } | undefined => {
    const side = resolutions?.attributes(conflict);
    if (side !== undefined) return { side, by: BY_PERSON };
    const found = findPattern(policies, conflict.path);
    if (found?.policy !== "ours" && found?.policy !== "theirs") return undefined;
    return { side: found.policy, by: policyOf(found) };
  };

  return {
    settled,
    get open() {
      return { contents: openContents, attributes: [...openAttributes.values()] };
    },
    sideOf: (path) => sides.get(path),
    isMade: (path) => made.has(path),
    async contents(conflict) {
      const { path } = conflict;
      const decided = await byPerson(conflict);
      if (decided !== undefined) {
        settled.push({ path, what: "contents", by: BY_PERSON });
        return decided;
      }
      const policy = findPattern(policies, path);
      const outcome = policy && (await byPolicy(conflict, policy));
      if (policy === undefined || outcome === undefined) openContents.push(conflict);
      else settled.push({ path, what: "contents", by: policyOf(policy) });
      return outcome;
    },
    // Asked for each field of a path.
    attributes(conflict) {
      const { path } = conflict;
      const decided = decideAttributes(conflict);
      if (decided === undefined) {
        const known = openAttributes.get(path)?.differences ?? [];
        const differences = [...new Set([...known, ...conflict.differences])];
        openAttributes.set(path, { ...conflict, differences });
      } else if (!settled.some((each) => each.path === path && each.what === "attributes")) {
        settled.push({ path, what: "attributes", by: decided.by });
      }
      return decided?.side;
    },
  };
}

const BY_PERSON = "bundle resolve";

const writeBlob = async (scratch: Git, input: Uint8Array): Promise<string> =>
  trimmed(await scratch.run(["hash-object", "-w", "--stdin"], { input }));

export const MAX_MERGED_BYTES = 64 << 20;
const COMMAND_SECONDS = 60;
const MAX_COMMAND_OUTPUT_BYTES = 1 << 20;

/**
 * Merges the three files of a conflict, by git's union or by a program; undefined where that does not settle it.
 * @throws ZferryError `not-configured` when the program cannot be run, does not end or fails; `io-failed`
 */
const mergeFiles = (
  scratch: Git,
  scratchDir: string,
  conflict: Conflict,
  how: "union" | readonly string[],
): Promise<TreeFile | undefined> =>
  withFiles(scratch, scratchDir, conflict, async (files, empty) => {
    const isMerged = await (how === "union"
      ? unite(scratch, files)
      : runCommand(how, conflict.path, files, empty));
    if (!isMerged) return undefined;
    return { mode: mergedMode(conflict), id: await writeBlob(scratch, readResult(files.ours)) };
  });

/** A conflict of two texts as a person settles it, with markers; undefined where it is none. */
export const showMarkers = (
  scratch: Git,
  scratchDir: string,
  conflict: Conflict,
  names: Readonly<Record<"ours" | "base" | "theirs", string>>,
): Promise<Buffer | undefined> =>
  withFiles(scratch, scratchDir, conflict, async (files) => {
    const sides = ["ours", "base", "theirs"] as const;
    const labels = sides.flatMap((side) => ["-L", names[side]]);
    const { status, stdout } = await scratch.ask([
      ...["merge-file", "-p", "--diff3", "--quiet", ...labels],
      ...sides.map((side) => files[side]),
    ]);
    // The number of its conflicts; what is no text it refuses with a higher one.
    return status !== null && status < 128 ? stdout : undefined;
  });

/** Paths of temporary files with what the three sides have. */
type SideFiles = Readonly<Record<"base" | "ours" | "theirs", string>>;

/** Puts the regular files of a conflict into a folder for `use`; undefined where they are none, or too large. */
async function withFiles<Result>(
  scratch: Git,
  scratchDir: string,
  { base, ours, theirs }: Conflict,
  use: (files: SideFiles, empty: string) => Promise<Result | undefined>,
): Promise<Result | undefined> {
  if (ours === null || theirs === null) return undefined;
  const present = [base, ours, theirs].filter((file) => file !== null);
  if (!present.every(({ mode }) => mode === "100644" || mode === "100755")) return undefined;
  const sizes = await blobSizes(scratch, new Set(present.map(({ id }) => id)));
  if ([...sizes.values()].some((size) => size > MAX_MERGED_BYTES)) return undefined;
  const folder = join(scratchDir, "merge");
  const files = { base: join(folder, "base"), ours: join(folder, "ours"), theirs: join(folder, "theirs") };
  const empty = join(folder, "empty");
  try {
    rmSync(folder, { recursive: true, force: true });
    guarded(folder, () => mkdirSync(empty, { recursive: true, mode: 0o700 }));
    for (const [side, file] of Object.entries({ base, ours, theirs })) {
      const content = file === null ? Buffer.of() : await scratch.run(["cat-file", "blob", file.id]);
      guarded(folder, () => writeFileSync(files[side as keyof SideFiles], content, { mode: 0o600 }));
    }
    return await use(files, empty);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The mode that one side changed, and else the site's. */
export const mergedMode = ({ base, ours, theirs }: Conflict): string =>
  (base !== null && ours?.mode === base.mode ? theirs?.mode : ours?.mode) ?? "100644";

async function unite(scratch: Git, { ours, base, theirs }: SideFiles): Promise<boolean> {
  const result = await scratch.ask(["merge-file", "--union", "--quiet", ours, base, theirs]);
  // What is no text it refuses.
  return result.status === 0;
}

async function runCommand(
  [program = "", ...args]: readonly string[],
  path: RawPath,
  { base, ours, theirs }: SideFiles,
  cwd: string,
): Promise<boolean> {
  const failure = (what: string): ZferryError =>
    new ZferryError("not-configured", `merge command ${program}, for ${showPath(path)}, ${what}`, {
      details: { program, path: showPath(path) },
      hint: "see command under [[root.merge]] of the site's configuration",
    });
  if (!existsSync(program)) throw failure("is not there");
  // It ends whatever the command started, too.
  const limited = ["--kill-after=5", String(COMMAND_SECONDS), program, ...args, base, ours, theirs];
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
