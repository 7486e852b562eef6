import { statSync } from "node:fs";
import { join } from "node:path";
import { ZferryError } from "../errors.js";
import { showPath, type RawPath } from "../raw-path.js";
import {
  createBorrower,
  DAMAGED_HINT,
  indexInfo,
  newIndex,
  splitNul,
  trimmed,
  type Git,
  type TreeFile,
} from "../system/git.js";
import type { ScratchFile } from "../system/scratch.js";
import { isSameInGit, MAX_PATCH_BYTES, packedIds } from "./diff.js";
import type { RecordedFile, RootMetadata } from "./metadata.js";

export interface Change {
  readonly path: RawPath;
  readonly before: RecordedFile | null;
  readonly after: RecordedFile | null;
}

export const patchMalformed = (
  message: string,
  details: Record<string, string | readonly string[]> = {},
): ZferryError => new ZferryError("patch-malformed", message, { details });

const INDEX_PACK = ["index-pack", "--strict", "--stdin"];

/**
 * Imports `objects.pack`, which must hold exactly the blobs that the metadata calls for.
 * @param scratchDir for one more repository, where git refuses the pack
 * @throws ZferryError `patch-malformed`; `git-failed` where the site's own objects are at fault, with which git compares those that it has
 */
export async function importBlobs(
  scratch: Git,
  scratchDir: string,
  pack: ScratchFile,
  metadata: RootMetadata,
): Promise<void> {
  const imported = await scratch.ask(INDEX_PACK, { input: pack });
  const name = /^pack\t([0-9a-f]{40})$/m.exec(imported.stdout.toString("latin1"))?.[1];
  if (imported.status !== 0 || name === undefined) {
    const said = imported.stderr.split("\n").at(-1) ?? "";
    const alone = createBorrower(join(scratchDir, "objects.git"));
    if ((await alone.ask(INDEX_PACK, { input: pack })).status === 0) {
      throw new ZferryError(
        "git-failed",
        `the site's repository is damaged: git index-pack failed: ${said}`,
        {
          details: { stderr: imported.stderr.split("\n").slice(-5) },
          hint: DAMAGED_HINT,
        },
      );
    }
    throw patchMalformed(`git refuses the root half's objects.pack: ${said}`);
  }
  const stored = join(scratch.objects, "pack", `pack-${name}`);
  const { size } = statSync(`${stored}.pack`);
  if (size !== pack.bytes) {
    throw patchMalformed(`objects.pack has ${pack.bytes} bytes, what git reads of it ends at ${size}`);
  }
  const listed = await scratch.run(["verify-pack", "--verbose", `${stored}.idx`]);
  const objects = [...listed.toString("latin1").matchAll(/^([0-9a-f]{40}) (\w+)/gm)];
  const other = objects.find(([, , type]) => type !== "blob");
  if (other) throw patchMalformed(`objects.pack has ${other[1] ?? ""}, a ${other[2] ?? ""}`);
  const found = new Set(objects.map(([, id]) => id));
  const wanted = packedIds(metadata);
  const missing = wanted.find((id) => !found.has(id));
  if (missing !== undefined) throw patchMalformed(`objects.pack lacks ${missing}, which root metadata names`);
  if (objects.length !== wanted.length) {
    throw patchMalformed(`objects.pack has ${objects.length} objects, root metadata names ${wanted.length}`);
  }
}

/** The index entries on one side of all changes that git can see; null where there is no file. */
export const changedInGit = (
  changes: readonly Change[],
  side: "before" | "after",
): [RawPath, TreeFile | null][] =>
  changes
    .filter(({ before, after }) => !isSameInGit(before, after))
    .map(({ path, [side]: file }) => [path, file && { mode: file.mode, id: file.blob }]);

const present = (entries: readonly [RawPath, TreeFile | null][]) =>
  entries.filter((entry): entry is [RawPath, TreeFile] => entry[1] !== null);

/** Applies the patch to what it starts from, and to nothing else; it must lead to what the metadata says, exactly. */
export async function applyPatch(
  scratch: Git,
  patch: ScratchFile,
  changes: readonly Change[],
): Promise<void> {
  if (patch.bytes > MAX_PATCH_BYTES) {
    throw patchMalformed(`the root half's patch has ${patch.bytes} bytes, the limit is ${MAX_PATCH_BYTES}`);
  }
  const env = newIndex(scratch, "patch");
  await updateIndex(scratch, env, changedInGit(changes, "before"));
  const applied = await scratch.ask(
    ["apply", "--cached", "--allow-empty", "--whitespace=nowarn", "-p1", "-"],
    {
      env,
      input: patch,
    },
  );
  if (applied.status !== 0) {
    throw patchMalformed(
      `git cannot apply the root half's patch: ${applied.stderr.split("\n").at(-1) ?? ""}`,
      {
        stderr: applied.stderr.split("\n").slice(-5),
      },
    );
  }
  const wanted = new Map(present(changedInGit(changes, "after")));
  for (const entry of splitNul(await scratch.run(["ls-files", "--stage", "-z"], { env }))) {
    const [, mode = "", id = "", path = ""] = /^(\d{6}) ([0-9a-f]{40}) 0\t(.*)$/s.exec(entry) ?? [];
    const after = wanted.get(path as RawPath);
    if (after?.mode !== mode || after.id !== id) {
      const says = after === undefined ? "says nothing of it" : `says ${after.mode} ${after.id}`;
      throw patchMalformed(
        `the patch makes ${showPath(path as RawPath)} ${mode} ${id}, root metadata ${says}`,
      );
    }
    wanted.delete(path as RawPath);
  }
  const [missing] = wanted.keys();
  if (missing !== undefined)
    throw patchMalformed(`the patch does not make ${showPath(missing)}, which root metadata has`);
}

async function updateIndex(
  scratch: Git,
  env: Record<string, string>,
  entries: readonly [RawPath, TreeFile | null][],
): Promise<void> {
  const updated = await scratch.ask(["update-index", "-z", "--index-info"], {
    env,
    input: indexInfo(entries),
  });
  if (updated.status !== 0) {
    throw patchMalformed(`git refuses a path of the root half: ${updated.stderr.split("\n").at(-1) ?? ""}`);
  }
}

/** Writes a tree of some files, added to those of another tree or taken from it. */
export async function writeTree(
  scratch: Git,
  entries: readonly [RawPath, TreeFile | null][],
  from?: string,
): Promise<string> {
  const env = newIndex(scratch, "tree");
  if (from !== undefined) await scratch.run(["read-tree", from], { env });
  await updateIndex(scratch, env, from === undefined ? present(entries) : entries);
  return trimmed(await scratch.run(["write-tree"], { env }));
}
