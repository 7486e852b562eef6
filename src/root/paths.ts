import * as v from "valibot";
import { rawBytes, rawPath, type RawPath } from "../raw-path.js";
import { table } from "../schema.js";

// formats/root.md, Paths

/** Base64 of any length: a pattern that counts in fours would take too much memory for a long text. */
export const base64Text = v.pipe(
  v.string(),
  v.check((text) => text.length % 4 === 0 && /^[A-Za-z0-9+/]*={0,2}$/.test(text)),
  v.metadata({
    format: "base64",
    contentEncoding: "base64",
    pattern: "^$|^(?:[0-9a-zA-Z+/]{4})*(?:(?:[0-9a-zA-Z+/]{2}==)|(?:[0-9a-zA-Z+/]{3}=))?$",
  }),
);

/** A path in JSON: its text, or its bytes where they are not UTF-8. */
export const pathNameSchema = v.union([
  v.pipe(v.string(), v.minLength(1), v.maxCodePoints(4095)),
  table({ base64: v.pipe(base64Text, v.minLength(1), v.maxLength(5460)) }),
]);
export type PathName = v.InferOutput<typeof pathNameSchema>;

const MAX_PATH_BYTES = 4095;
const MAX_COMPONENT_BYTES = 255;

/** What no release may touch: a site's own keys, settings and memory, and what the stream carries. */
const PROTECTED = ["etc/zferry", "var/lib/zferry", "usr"];

/** Whether a path is one of those, or below one. */
export const isProtected = (path: RawPath): boolean =>
  PROTECTED.some((folder) => path === folder || path.startsWith(`${folder}/`));

export function pathName(path: RawPath): PathName {
  const bytes = rawBytes(path);
  const text = bytes.toString("utf8");
  return bytes.equals(Buffer.from(text)) ? text : { base64: bytes.toString("base64") };
}

export const pathOf = (name: PathName): RawPath =>
  rawPath(typeof name === "string" ? Buffer.from(name) : Buffer.from(name.base64, "base64"));

/** Whether a name has the one spelling that `pathName` gives it. */
export function isPathName(name: PathName): boolean {
  const again = pathName(pathOf(name));
  return typeof name === "string" || typeof again === "string"
    ? name === again
    : name.base64 === again.base64;
}

/** Why a release must not have this path as a file, as words to follow the path; undefined when it may. */
export function fileRefusal(path: RawPath): string | undefined {
  const inside = PROTECTED.find((folder) => path === folder || path.startsWith(`${folder}/`));
  if (inside !== undefined) return inside === "usr" ? "belongs to the stream" : `is under /${inside}`;
  const above = PROTECTED.find((folder) => folder.startsWith(`${path}/`));
  if (above !== undefined) return `would replace the folder of /${above}`;
  return nameRefusal(path);
}

/** Why a release must not have this path as a directory. */
export function directoryRefusal(path: RawPath): string | undefined {
  const inside = PROTECTED.find((folder) => path === folder || path.startsWith(`${folder}/`));
  return inside === undefined ? nameRefusal(path) : `is ${path === inside ? "" : "under "}/${inside}`;
}

function nameRefusal(path: RawPath): string | undefined {
  if (path.length > MAX_PATH_BYTES) return `is longer than ${MAX_PATH_BYTES} bytes`;
  if (path.includes("\0")) return "has a NUL byte";
  for (const component of path.split("/")) {
    if (component === "") return "has an empty component";
    if (component === "." || component === "..") return `has the component "${component}"`;
    if (component.length > MAX_COMPONENT_BYTES)
      return `has a component longer than ${MAX_COMPONENT_BYTES} bytes`;
    if (isGitFolder(component)) return "has a component that is .git, or that some file system takes for it";
  }
  return undefined;
}

/** As git's verify_path with core.protectNTFS and core.protectHFS: trailing dots, streams, `git~1`, ignored letters. */
function isGitFolder(component: string): boolean {
  if (component.split("\\").some((part) => /^(\.git|git~1)[. ]*(:.*)?$/is.test(part))) return true;
  const text = Buffer.from(component, "latin1").toString("utf8");
  return /^\.git$/i.test(text.replace(/[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]/g, ""));
}
