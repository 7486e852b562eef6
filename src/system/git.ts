import { createHash, type Hash } from "node:crypto";
import { existsSync, mkdirSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { ZferryError } from "../errors.js";
import { rawPath, type RawPath } from "../raw-path.js";
import { guarded } from "./files.js";
import { run, runAtTerminal, startReading, type ProcessResult } from "./process.js";
import type { ScratchFile } from "./scratch.js";

export interface GitOptions {
  /** Given to standard input, which is otherwise empty. */
  readonly input?: Uint8Array | string | ScratchFile;
  readonly env?: Readonly<Record<string, string>>;
  /** The most that standard output may hold, in bytes; more is an error. Default 256 MiB, of a stream nothing. */
  readonly maxOutputBytes?: number;
}

/**
 * A repository, and git run on it in isolation: without the settings of the system and of the user, without hooks,
 * file system monitor, replacement objects, grafts, commit graph, pager and prompts, and without the GIT_* variables of whoever calls.
 * The repository's own settings remain, and with them filters and what programs compare by: what reads or writes the work tree, and
 * what compares or merges, belongs into a borrowing repository (`createBorrower`), which has none.
 */
export interface Git {
  /** Absolute; of a linked work tree, its own. */
  readonly gitDir: string;
  /** Absolute path of the object folder. */
  readonly objects: string;
  /**
   * Runs a git command to its end and gives its output.
   * @throws ZferryError `git-failed` with the command and the end of its errors; `no-space`
   */
  run(args: readonly string[], options?: GitOptions): Promise<Buffer>;
  /**
   * The same for a command whose exit status is an answer.
   * @throws ZferryError `no-space`
   */
  ask(args: readonly string[], options?: GitOptions): Promise<ProcessResult>;
  /** Output in pieces, for what may be large. */
  stream(
    args: readonly string[],
    options?: { readonly input?: string; readonly maxOutputBytes?: number },
  ): AsyncIterable<Uint8Array>;
}

const MAX_OUTPUT_BYTES = 256 << 20;
const MAX_GROUP_BYTES = 32 << 20;

/** `git merge-tree --write-tree`. */
const OLDEST_GIT = [2, 38] as const;

const SETTINGS = {
  "core.attributesFile": "/dev/null",
  // Which parents and which tree a commit has, its object says.
  "core.commitGraph": "false",
  "core.excludesFile": "/dev/null",
  "core.fsmonitor": "false",
  // Added to git's default; the names in folders are for the caller to write to disk.
  "core.fsync": "reference,pack,pack-metadata",
  "core.hooksPath": "/dev/null",
  "core.protectHFS": "true",
  "core.protectNTFS": "true",
  "core.quotePath": "true",
  "core.splitIndex": "false",
  "core.untrackedCache": "false",
  "commit.gpgSign": "false",
  "gc.auto": "0",
  "log.showSignature": "false",
  "maintenance.auto": "false",
  "pack.packSizeLimit": "0",
  "tag.gpgSign": "false",
  // The repository was named by its path, on purpose: whose it is does not matter.
  "safe.directory": "*",
};

const IDENTITY = { name: "zferry", email: "zferry@localhost" };

function isolatedEnvironment(): Record<string, string | undefined> {
  const inherited = Object.keys(process.env).filter((name) => name.startsWith("GIT_"));
  return {
    ...Object.fromEntries(inherited.map((name) => [name, undefined])),
    GIT_CONFIG_NOSYSTEM: "1",
    GIT_CONFIG_GLOBAL: "/dev/null",
    GIT_ATTR_NOSYSTEM: "1",
    GIT_NO_REPLACE_OBJECTS: "1",
    GIT_GRAFT_FILE: "/dev/null",
    GIT_NO_LAZY_FETCH: "1",
    // Not every git knows that, and others fetch what a partial clone lacks.
    GIT_ALLOW_PROTOCOL: "none",
    GIT_OPTIONAL_LOCKS: "0",
    GIT_TERMINAL_PROMPT: "0",
    GIT_PAGER: "cat",
    GIT_EDITOR: "false",
    // At boot there is none, and git refuses a repository whose settings name a path by ~.
    HOME: process.env["HOME"] ?? "/",
    GIT_AUTHOR_NAME: IDENTITY.name,
    GIT_AUTHOR_EMAIL: IDENTITY.email,
    GIT_COMMITTER_NAME: IDENTITY.name,
    GIT_COMMITTER_EMAIL: IDENTITY.email,
  };
}

/** What a person's own git would have: their settings and the system's, and nothing else of who calls. */
function userEnvironment(): Record<string, string | undefined> {
  const inherited = Object.keys(process.env).filter(
    (name) => name.startsWith("GIT_") && !name.startsWith("GIT_CONFIG"),
  );
  return {
    ...Object.fromEntries(inherited.map((name) => [name, undefined])),
    GIT_LITERAL_PATHSPECS: "1",
  };
}

/**
 * The tool that `git mergetool` opens by the settings of the user and of the system; no repository is asked.
 * @throws ZferryError `not-configured` without git
 */
export async function findMergeTool(): Promise<string | undefined> {
  for (const whose of ["--global", "--system"]) {
    const asked = ["config", whose, "--includes", "--get", "merge.tool"];
    const { status, stdout } = await run("git", asked, { env: userEnvironment() });
    if (status === 0) return trimmed(stdout);
  }
  return undefined;
}

/**
 * Runs `git mergetool` at the terminal for all that is unmerged in the index of a borrowing repository, with the user's own settings.
 * @param workTree has the files, and is changed
 * @param tool instead of the one that is configured
 */
export const runMergeTool = (
  borrower: Git,
  workTree: string,
  tool: string | undefined,
): Promise<Pick<ProcessResult, "status" | "signal">> => {
  // A backup is made next to the file, where another conflict may have its own.
  const settings = { ...SETTINGS, "core.bare": "false", "mergetool.keepBackup": "false" };
  const args = [
    `--git-dir=${borrower.gitDir}`,
    `--work-tree=${workTree}`,
    ...Object.entries(settings).flatMap(([name, value]) => ["-c", `${name}=${value}`]),
    "mergetool",
    ...(tool === undefined ? [] : [`--tool=${tool}`]),
  ];
  return runAtTerminal("git", args, { cwd: workTree, env: userEnvironment() });
};

/** `fsync`: what of the written objects, references and indexes must be on disk when git ends (core.fsync). */
function bind(options: { gitDir?: string; workTree?: string; fsync?: "all" | "none"; cwd: string }) {
  const { gitDir, workTree, cwd } = options;
  const settings = { ...SETTINGS, "core.fsync": options.fsync ?? "all", "core.fsyncMethod": "fsync" };
  const before = [
    ...(gitDir === undefined ? [] : [`--git-dir=${gitDir}`]),
    ...(workTree === undefined ? [] : [`--work-tree=${workTree}`]),
    ...Object.entries(settings).flatMap(([name, value]) => ["-c", `${name}=${value}`]),
  ];
  const ask = async (args: readonly string[], { input, env, maxOutputBytes }: GitOptions = {}) => {
    const result = await run("git", [...before, ...args], {
      env: { ...isolatedEnvironment(), ...env },
      cwd,
      maxOutputBytes: maxOutputBytes ?? MAX_OUTPUT_BYTES,
      ...(input === undefined ? {} : { input }),
    });
    // That is never the answer.
    if (result.status !== 0 && FULL.test(result.stderr)) throw gitFailure(args, result);
    return result;
  };
  return {
    ask,
    run: async (args: readonly string[], options?: GitOptions): Promise<Buffer> => {
      const result = await ask(args, options);
      if (result.status !== 0) throw gitFailure(args, result);
      return result.stdout;
    },
    stream: async function* (
      args: readonly string[],
      options: { readonly input?: string; readonly maxOutputBytes?: number } = {},
    ): AsyncGenerator<Uint8Array> {
      const environment = { env: isolatedEnvironment(), cwd };
      const started = startReading("git", [...before, ...args], { ...environment, ...options });
      let ended = false;
      try {
        yield* started.stdout;
        ended = true;
      } finally {
        if (!ended) started.kill();
        const result = await started.finish();
        if (ended && result.status !== 0) throw gitFailure(args, result);
      }
    },
  };
}

/** Of an index that it cannot write git does not say why; here that is a disk that is full. */
const FULL = /No space left on device|Disk quota exceeded|Out of diskspace|unable to write (new )?index/i;

/** What git says of an object that is not there or not whole; its last line may name none. */
const DAMAGED =
  /invalid object \d{6} [0-9a-f]{40} for|object \S+ .*is (corrupt|empty)|unable to (unpack|read) |[Cc]ould not (read|parse) |cannot read existing object|bad object /;

/** The same of the index. */
const INDEX_DAMAGED =
  /index file (corrupt|smaller than expected|open failed)|bad (index file|signature 0x)|index uses /;

export const DAMAGED_HINT =
  "git fsck in its work tree names what is missing or damaged; git fetch --refetch brings what a partial clone left out, " +
  "git hash-object -w FILE what a file still has; else bring the repository back from a copy";

/** How an index that is gone comes back; files and commits stay as they are. */
export const INDEX_ANEW = "in its work tree, git reset makes it anew from the last commit";

/** A git command that failed, as an error. */
function gitFailure(args: readonly string[], result: ProcessResult): ZferryError {
  const lines = result.stderr.split("\n");
  const full = lines.find((line) => FULL.test(line));
  const damaged = lines.find((line) => DAMAGED.test(line));
  const index = lines.find((line) => INDEX_DAMAGED.test(line));
  const said =
    full ??
    damaged ??
    index ??
    (lines.at(-1) || `exit status ${result.status ?? result.signal ?? "unknown"}`);
  let hint: string | undefined;
  if (full !== undefined) hint = "free space on the disks of / and of the state folder";
  else if (damaged !== undefined) hint = `the repository is damaged: ${DAMAGED_HINT}`;
  else if (index !== undefined) hint = `git's index is damaged: move it away, and then ${INDEX_ANEW}`;
  return new ZferryError(
    full === undefined ? "git-failed" : "no-space",
    `git ${args[0] ?? ""} failed: ${said}`,
    { details: { command: ["git", ...args].join(" "), stderr: lines.slice(-5) }, hint },
  );
}

/**
 * Opens the repository whose work tree is `path`, exactly there and in no folder above.
 * @param options.gitDir where the repository is, if not in the work tree
 * @throws ZferryError `not-configured` when there is none, git is too old or the repository has no SHA-1 objects
 */
export async function openRepository(path: string, options: { gitDir?: string } = {}): Promise<Git> {
  const workTree = resolve(path);
  const here = bind({
    cwd: workTree,
    ...(options.gitDir === undefined ? {} : { gitDir: resolve(options.gitDir), workTree }),
  });
  await requireNewEnough(here);
  const asked = [
    "rev-parse",
    "--path-format=absolute",
    "--git-dir",
    "--git-path",
    "objects",
    "--show-object-format",
  ];
  // Resolved, because git compares it with the resolved current folder.
  const found = await here.ask(asked, { env: { GIT_CEILING_DIRECTORIES: dirname(realpathSync(workTree)) } });
  if (found.status !== 0) {
    throw cannotOpen(workTree, options.gitDir ?? join(workTree, ".git"), found.stderr);
  }
  const [gitDir = "", objects = "", format = ""] = found.stdout.toString("utf8").split("\n");
  if (format !== "sha1") {
    throw new ZferryError("not-configured", `${gitDir} has ${format} objects, zferry's format has sha1`);
  }
  return { gitDir, objects, ...bind({ gitDir, workTree, cwd: workTree }) };
}

/** The search paths by which a git was found that is new enough. */
const newEnough = new Set<string | undefined>();

async function requireNewEnough(git: Pick<Git, "run">): Promise<void> {
  const { PATH } = process.env;
  if (newEnough.has(PATH)) return;
  const [, major = "0", minor = "0"] =
    /(\d+)\.(\d+)/.exec((await git.run(["version"])).toString("utf8")) ?? [];
  if (Number(major) < OLDEST_GIT[0] || (Number(major) === OLDEST_GIT[0] && Number(minor) < OLDEST_GIT[1])) {
    throw new ZferryError(
      "not-configured",
      `git is ${major}.${minor}, ${OLDEST_GIT.join(".")} is the oldest that will do`,
    );
  }
  newEnough.add(PATH);
}

function cannotOpen(workTree: string, gitDir: string, stderr: string): ZferryError {
  const details = { path: workTree, stderr };
  const said = stderr.split("\n").find((line) => line.startsWith("fatal: ")) ?? stderr;
  if (!existsSync(gitDir)) {
    return new ZferryError("not-configured", `${workTree} is not the work tree of a git repository`, {
      details,
      hint: "if there was one, bring it back; at a site that never had one, bundle setup --repository makes it",
    });
  }
  return new ZferryError(
    "not-configured",
    `git cannot use the repository of ${workTree}: ${said.replace("fatal: ", "")}`,
    { details, hint: `mend ${gitDir}, or bring it back from a copy; git -C ${workTree} status must work` },
  );
}

/** No attribute of any tree, and no driver that one names, takes part: contents are bytes, merged as text or not at all. */
const ATTRIBUTES =
  "* -text -ident -filter -working-tree-encoding !eol !diff !merge !whitespace !conflict-marker-size\n";

/**
 * Makes an empty repository for a work tree, in a new folder that only its owner may read. What is added to it is bytes: no attribute
 * counts until `info/attributes` is removed. Nothing in it is durable until it is packed with `durable`.
 * @param options.exclude the text of `info/exclude`
 * @throws ZferryError `git-failed`, `no-space`
 */
export async function initRepository(
  gitDir: string,
  { workTree, exclude }: { readonly workTree: string; readonly exclude: Uint8Array },
): Promise<Git & { readonly durable: Pick<Git, "run"> }> {
  mkdirSync(gitDir, { mode: 0o700 });
  const options = ["--bare", "--quiet", "--template=", "--initial-branch=main", "--object-format=sha1"];
  const durable = bind({ gitDir, cwd: workTree });
  await durable.run(["init", ...options]);
  await durable.run(["config", "core.bare", "false"]);
  mkdirSync(join(gitDir, "info"), { recursive: true });
  writeFileSync(join(gitDir, "info/exclude"), exclude);
  writeFileSync(join(gitDir, "info/attributes"), ATTRIBUTES);
  const objects = join(gitDir, "objects");
  return { gitDir, objects, durable, ...bind({ gitDir, workTree, cwd: workTree, fsync: "none" }) };
}

// Renames are found by src/root/renames.ts. Before 2.50 git merges with renames all the same: see src/root/trees.ts.
const BORROWER_CONFIG = `[core]
	repositoryFormatVersion = 0
	fileMode = true
	symlinks = true
	bare = true
[diff]
	renames = false
[merge]
	renames = false
	directoryRenames = false
	renormalize = false
`;

/**
 * Makes a bare repository that sees all objects of another one, and has settings of its own: none that were not
 * chosen here. Nothing in it is durable. What an earlier run left at `path` is removed.
 * @param lender without one, it sees no objects but its own
 */
export function createBorrower(path: string, lender?: Git): Git {
  const gitDir = resolve(path);
  const objects = join(gitDir, "objects");
  guarded(gitDir, () => {
    rmSync(gitDir, { recursive: true, force: true });
    for (const folder of ["objects/info", "objects/pack", "refs/heads", "info"]) {
      mkdirSync(join(gitDir, folder), { recursive: true, mode: 0o700 });
    }
    writeFileSync(join(gitDir, "HEAD"), "ref: refs/heads/main\n");
    writeFileSync(join(gitDir, "config"), BORROWER_CONFIG);
    writeFileSync(join(gitDir, "info/attributes"), ATTRIBUTES);
    if (lender !== undefined)
      writeFileSync(join(objects, "info/alternates"), `${quoteAlternate(lender.objects)}\n`);
  });
  return openBorrower(gitDir);
}

/** One that was made before. */
export function openBorrower(path: string): Git {
  const gitDir = resolve(path);
  return { gitDir, objects: join(gitDir, "objects"), ...bind({ gitDir, cwd: gitDir, fsync: "none" }) };
}

/** The variable that names an index of a borrowing repository, which is empty. */
export function newIndex({ gitDir }: Git, name: string): { readonly GIT_INDEX_FILE: string } {
  const path = join(gitDir, `index.${name}`);
  guarded(path, () => rmSync(path, { force: true }));
  return { GIT_INDEX_FILE: path };
}

/** A borrowing repository for commands that compare an index with the files of a folder. */
export const withWorkTree = (borrower: Git, workTree: string): Git => ({
  ...borrower,
  // Within the work tree: from a folder below it, git would leave out what is not there.
  ...bind({ gitDir: borrower.gitDir, workTree, cwd: workTree, fsync: "none" }),
});

/** A path in the list of alternates, which splits at colons and newlines. */
export const quoteAlternate = (path: string): string =>
  /["\\:\n]/.test(path) ? `"${path.replace(/["\\]/g, "\\$&").replaceAll("\n", "\\n")}"` : path;

/** A file of a tree, as git has it. */
export interface TreeFile {
  /** Six octal digits. */
  readonly mode: string;
  readonly id: string;
}

/** All files of a tree, with links and submodules, by path. */
export async function listTree(git: Git, tree: string): Promise<Map<RawPath, TreeFile>> {
  const files = new Map<RawPath, TreeFile>();
  for (const line of splitNul(await git.run(["ls-tree", "-r", "-z", "--full-tree", tree]))) {
    const [, mode = "", id = "", path = ""] = /^(\d{6}) \w+ ([0-9a-f]{40})\t(.*)$/s.exec(line) ?? [];
    files.set(path as RawPath, { mode, id });
  }
  return files;
}

/** An output of one line. */
export const trimmed = (output: Buffer): string => output.toString("utf8").trim();

/** The NUL-terminated fields of an output, as bytes. */
export const splitNul = (output: Uint8Array): RawPath[] =>
  rawPath(output).split("\0").slice(0, -1) as RawPath[];

/** The same of paths, as input for a command that reads them so. */
export const joinNul = (paths: Iterable<RawPath>): Buffer =>
  Buffer.from([...paths].map((path) => `${path}\0`).join(""), "latin1");

/** Input for `git update-index -z --index-info`; null removes a path. */
export const indexInfo = (entries: Iterable<readonly [RawPath, TreeFile | null]>): Buffer =>
  Buffer.from(
    // Removals come first, so that a file can take the place of a folder.
    [...entries]
      .sort(([, a], [, b]) => Number(a !== null) - Number(b !== null))
      .map(([path, file]) => `${file?.mode ?? "0"} ${file?.id ?? "0".repeat(40)}\t${path}\0`)
      .join(""),
    "latin1",
  );

/**
 * The size of each object in bytes.
 * @throws ZferryError `git-failed` naming an object that is missing or no blob
 */
export async function blobSizes(git: Git, ids: Iterable<string>): Promise<Map<string, number>> {
  const sizes = new Map<string, number>();
  const output = await git.run(["cat-file", "--batch-check"], {
    input: [...ids].map((id) => `${id}\n`).join(""),
  });
  for (const line of output.toString("latin1").split("\n").slice(0, -1)) {
    const [id = "", type, size] = line.split(" ");
    if (type !== "blob") {
      throw new ZferryError("git-failed", `git object ${id} is ${type ?? "unknown"}, not a blob`, {
        details: { id },
        hint: `the repository is damaged: ${DAMAGED_HINT}`,
      });
    }
    sizes.set(id, Number(size));
  }
  return sizes;
}

/**
 * The ids of what names lead to, like `HEAD^{tree}`; null for what leads to nothing that can be read.
 * @param names without newlines and spaces
 */
export async function findObjects<const Names extends readonly string[]>(
  git: Git,
  names: Names,
): Promise<{ readonly [Index in keyof Names]: string | null }> {
  const output = await git.ask(["cat-file", "--batch-check"], {
    input: names.map((name) => `${name}\n`).join(""),
  });
  const lines = output.stdout.toString("latin1").split("\n");
  const ids = names.map((_, index) => /^([0-9a-f]{40}) \w+ \d+$/.exec(lines[index] ?? "")?.[1] ?? null);
  return ids as { readonly [Index in keyof Names]: string | null };
}

/** Those of the objects that a repository does not have, or cannot read. */
export async function missingObjects(git: Git, ids: Iterable<string>): Promise<string[]> {
  const output = await git.run(["cat-file", "--batch-check"], {
    input: [...ids].map((id) => `${id}\n`).join(""),
  });
  const lines = output.toString("latin1").split("\n").slice(0, -1);
  return lines.filter((line) => line.endsWith(" missing")).map((line) => line.slice(0, -" missing".length));
}

/**
 * Reads blobs in the order asked, in pieces, a group of small ones with one process; the pieces of each must be read
 * before the next is asked for. Each has what its id says: git itself does not look whether a stored object is the one of its name.
 * @param known the size of each, as `blobSizes` tells it, where that was asked before
 */
export async function* readBlobs(
  git: Git,
  ids: readonly string[],
  known?: ReadonlyMap<string, number>,
): AsyncGenerator<{
  readonly id: string;
  readonly pieces: AsyncIterable<Uint8Array> | Iterable<Uint8Array>;
}> {
  const sizes = known ?? (await blobSizes(git, new Set(ids)));
  let group: string[] = [];
  let bytes = 0;
  for (const [index, id] of ids.entries()) {
    const size = sizes.get(id) ?? 0;
    if (size > MAX_GROUP_BYTES) {
      yield* readGroup(git, group, bytes);
      yield { id, pieces: hashed(id, size, git.stream(["cat-file", "blob", id])) };
      [group, bytes] = [[], 0];
      continue;
    }
    group.push(id);
    bytes += size;
    if (bytes >= MAX_GROUP_BYTES || index === ids.length - 1) {
      yield* readGroup(git, group, bytes);
      [group, bytes] = [[], 0];
    }
  }
  yield* readGroup(git, group, bytes);
}

async function* readGroup(git: Git, ids: readonly string[], bytes: number) {
  if (ids.length === 0) return;
  const output = await git.run(["cat-file", "--batch"], {
    input: ids.map((id) => `${id}\n`).join(""),
    maxOutputBytes: bytes + 100 * ids.length,
  });
  let at = 0;
  for (const id of ids) {
    const header = output.indexOf("\n", at);
    const size = Number(output.toString("latin1", at, header).split(" ")[2]);
    const content = output.subarray(header + 1, header + 1 + size);
    requireId(id, startOfBlob(size).update(content));
    yield { id, pieces: [content] };
    at = header + 1 + size + 1;
  }
}

/** The id of a content, as git has it. */
export const blobId = (content: Uint8Array): string =>
  startOfBlob(content.length).update(content).digest("hex");

/** The hash of a blob of so many bytes, before its content. */
export const startOfBlob = (size: number): Hash => createHash("sha1").update(`blob ${size}\0`);

/** The pieces of a blob; fails at its end if they are not those of its id. */
async function* hashed(
  id: string,
  size: number,
  pieces: AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array> {
  const hash = startOfBlob(size);
  for await (const piece of pieces) {
    hash.update(piece);
    yield piece;
  }
  requireId(id, hash);
}

function requireId(id: string, hash: Hash): void {
  const found = hash.digest("hex");
  if (found === id) return;
  throw new ZferryError("git-failed", `the repository has as git object ${id} what is ${found}`, {
    details: { id, found },
    hint: `the repository is damaged: ${DAMAGED_HINT}`,
  });
}
