import { mkdirSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { ZferryError } from "../errors.js";
import {
  encodeCanonical,
  findAttribute,
  findContent,
  isSameKey,
  MAX_RESOLUTIONS,
  MAX_RESOLUTIONS_BYTES,
  NO_RESOLUTIONS,
  parseCanonical,
  resolutionsSchema,
  sha256,
  type AttributeResolution,
  type ContentResolution,
  type RecordedResolutions,
} from "../root/resolutions.js";
import { MAX_MERGED_BYTES, type Resolutions } from "../root/settle.js";
import { guarded, syncPath, writeFileDurably } from "../system/files.js";

// formats/state.md, resolutions/

const INDEX = "index.json";

/** What people decided of conflicts on this site. */
export interface ResolutionStore {
  readonly lookup: Resolutions;
  /** Adds decisions; to be called with the site's lock. `contents` are the files that they name. */
  record(added: {
    readonly contents: readonly ContentResolution[];
    readonly attributes: readonly AttributeResolution[];
    readonly files: readonly Uint8Array[];
    /** Keys of what is forgotten. */
    readonly reopened: readonly object[];
  }): void;
}

/**
 * Opens what is recorded in a state folder; nothing is made.
 * @throws ZferryError `journal-malformed`, `io-failed`
 */
export function openResolutions(statePath: string): ResolutionStore {
  const folder = join(statePath, "resolutions");
  const recorded = readIndex(folder);
  return {
    lookup: {
      contents(conflict) {
        const result = findContent(recorded, conflict)?.result;
        if (result === undefined || "side" in result) return result;
        const content = readBounded(join(folder, result.content), MAX_MERGED_BYTES);
        // Who records may have removed it, with an index that has newer ones.
        if (content === undefined) return undefined;
        const found = sha256(content);
        if (found !== result.content)
          throw malformed(folder, `${result.content} has SHA-256 ${found}, not that of its name`);
        return { mode: result.mode, content };
      },
      attributes: (conflict) => findAttribute(recorded, conflict)?.side,
    },
    record({ contents, attributes, files, reopened }) {
      const isKept = (key: object): boolean => !reopened.some((each) => isSameKey(each, key));
      const next: RecordedResolutions = {
        version: 1,
        contents: [
          ...recorded.contents.filter(({ path, base, ours, theirs }) => isKept({ path, base, ours, theirs })),
          ...contents,
        ].slice(-MAX_RESOLUTIONS),
        attributes: [
          ...recorded.attributes.filter(({ path, conflict }) => isKept({ path, conflict })),
          ...attributes,
        ].slice(-MAX_RESOLUTIONS),
      };
      guarded(folder, () => mkdirSync(folder, { recursive: true, mode: 0o700 }));
      syncPath(statePath);
      for (const file of files) writeFileDurably(join(folder, sha256(file)), file, 0o600);
      writeFileDurably(join(folder, INDEX), encodeCanonical(next), 0o600);
      const kept = new Set([
        INDEX,
        ...next.contents.map(({ result }) => ("content" in result ? result.content : "")),
      ]);
      for (const name of readdirSync(folder))
        if (!kept.has(name)) rmSync(join(folder, name), { force: true });
    },
  };
}

function readIndex(folder: string): RecordedResolutions {
  const bytes = readBounded(join(folder, INDEX), MAX_RESOLUTIONS_BYTES);
  if (bytes === undefined) return NO_RESOLUTIONS;
  try {
    return parseCanonical(resolutionsSchema, bytes);
  } catch (error) {
    throw malformed(folder, `${INDEX}: ${error instanceof Error ? error.message : String(error)}`);
  }
}

function readBounded(path: string, limit: number): Buffer | undefined {
  return guarded(path, () => {
    const stat = statSync(path, { throwIfNoEntry: false });
    if (stat === undefined) return undefined;
    if (!stat.isFile() || stat.size > limit)
      throw malformed(path, `is ${stat.isFile() ? `${stat.size} bytes, the limit is ${limit}` : "no file"}`);
    return readFileSync(path);
  });
}

const malformed = (path: string, fault: string): ZferryError =>
  new ZferryError("journal-malformed", `${path}: ${fault}`, {
    details: { file: path },
    hint: `its disk may be failing; without the folder resolutions, what was resolved is asked again`,
  });
