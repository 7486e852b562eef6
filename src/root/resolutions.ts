import { createHash } from "node:crypto";
import * as v from "valibot";
import { canonicalJson, parseCanonicalJson } from "../canonical-json.js";
import { checkValue, list, table } from "../schema.js";
import type { TreeFile } from "../system/git.js";
import { gitIdSchema, gitModeSchema } from "./metadata.js";
import { pathName, pathNameSchema, pathOf } from "./paths.js";
import type { AttributeConflict } from "./settle.js";
import type { Conflict } from "./trees.js";

// formats/state.md, resolutions/

export const MAX_RESOLUTIONS = 1000;
const MAX_MARKS = 40 * MAX_RESOLUTIONS;
export const MAX_RESOLUTIONS_BYTES = 16 << 20;

const sha256Schema = v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/));
const sideSchema = v.picklist(["ours", "theirs"]);
const fileSchema = v.nullable(table({ mode: v.pipe(v.string(), v.regex(/^[0-7]{6}$/)), blob: gitIdSchema }));

const contentSchema = table({
  path: pathNameSchema,
  base: fileSchema,
  ours: fileSchema,
  theirs: fileSchema,
  /** One side, or a file: the SHA-256 of its content names it in the folder. */
  result: v.union([table({ side: sideSchema }), table({ mode: gitModeSchema, content: sha256Schema })]),
});

/** Lies in a folder of conflicts: those that it was filled with. */
export const conflictListSchema = table({
  version: v.literal(1),
  conflicts: v.array(table({ path: pathNameSchema, base: fileSchema, ours: fileSchema, theirs: fileSchema })),
});

const attributeSchema = table({
  path: pathNameSchema,
  /** SHA-256 of the canonical JSON of what the three sides have. */
  conflict: sha256Schema,
  side: sideSchema,
});

export const resolutionsSchema = table({
  version: v.literal(1),
  contents: list(contentSchema, MAX_RESOLUTIONS),
  attributes: list(attributeSchema, MAX_RESOLUTIONS),
});

/** What a person decided of conflicts, newest last. */
export type RecordedResolutions = v.InferOutput<typeof resolutionsSchema>;
export type ContentResolution = RecordedResolutions["contents"][number];
export type AttributeResolution = RecordedResolutions["attributes"][number];

export const NO_RESOLUTIONS: RecordedResolutions = { version: 1, contents: [], attributes: [] };

export const sha256 = (bytes: string | Uint8Array): string =>
  createHash("sha256").update(bytes).digest("hex");

export const encodeCanonical = (value: object): Buffer => Buffer.from(canonicalJson(value));

/**
 * Reads canonical JSON of one of these schemas.
 * @throws Error with a message for people; the caller names the file
 */
export function parseCanonical<Schema extends v.GenericSchema>(
  schema: Schema,
  bytes: Uint8Array,
): v.InferOutput<Schema> {
  const parsed = checkValue(schema, parseCanonicalJson(bytes, MAX_MARKS));
  if (parsed.fault !== undefined) throw new Error(parsed.fault);
  return parsed.value;
}

/** A conflict as it is recorded: exactly these contents at this path. */
export function contentKey({ path, base, ours, theirs }: Conflict): Omit<ContentResolution, "result"> {
  const file = (each: TreeFile | null) => each && { mode: each.mode, blob: each.id };
  return { path: pathName(path), base: file(base), ours: file(ours), theirs: file(theirs) };
}

export const attributeKey = ({
  path,
  base,
  ours,
  theirs,
}: AttributeConflict): Omit<AttributeResolution, "side"> => ({
  path: pathName(path),
  conflict: sha256(canonicalJson({ base, ours, theirs })),
});

/** Whether two keys are of one conflict. */
export const isSameKey = (a: object, b: object): boolean => canonicalJson(a) === canonicalJson(b);

export function findContent(
  recorded: RecordedResolutions,
  conflict: Conflict,
): ContentResolution | undefined {
  const key = contentKey(conflict);
  return recorded.contents.findLast(({ result, ...rest }) => result && isSameKey(rest, key));
}

export function findAttribute(
  recorded: RecordedResolutions,
  conflict: AttributeConflict,
): AttributeResolution | undefined {
  const key = attributeKey(conflict);
  return recorded.attributes.findLast(
    (each) => each.conflict === key.conflict && pathOf(each.path) === conflict.path,
  );
}
