declare const raw: unique symbol;

/**
 * A path or name as the kernel and git have it: bytes, one to a character (latin1), relative, with `/` between its
 * components. So it is compared and sorted bytewise with `<`, and is the key of a Map.
 */
export type RawPath = string & { readonly [raw]: true };

export const rawPath = (bytes: Uint8Array): RawPath => Buffer.from(bytes).toString("latin1") as RawPath;

export const rawBytes = (path: RawPath): Buffer => Buffer.from(path, "latin1");

/** A path as messages show it: as it is, or quoted as git does when it could be misread or move the cursor. */
export function showPath(path: RawPath): string {
  const text = rawBytes(path).toString("utf8");
  if (rawPath(Buffer.from(text)) === path && !/[\x00-\x1f\x7f-\x9f\\"\u2028-\u202e\u2066-\u2069]/.test(text))
    return text;
  const quoted = path.replace(/[^ -!#-[\]-~]/g, (char) =>
    char === '"' || char === "\\" ? `\\${char}` : `\\${char.charCodeAt(0).toString(8).padStart(3, "0")}`,
  );
  return `"${quoted}"`;
}

/** The folders that a path lies in, topmost first, without the root itself: `a/b/c` gives `a`, `a/b`. */
export function ancestors(path: RawPath): RawPath[] {
  const found: RawPath[] = [];
  for (let at = path.indexOf("/"); at !== -1; at = path.indexOf("/", at + 1)) {
    found.push(path.slice(0, at) as RawPath);
  }
  return found;
}
