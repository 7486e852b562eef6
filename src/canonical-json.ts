/**
 * The canonical form of a JSON value, RFC 8785: no white space, keys sorted by UTF-16 code units, numbers and
 * strings as ECMAScript writes them. One value has one form, so two builders write the same bytes, and a reader
 * that asks for this form needs no rules of its own for duplicate keys or spellings of numbers.
 * @throws Error for a string that has no UTF-8
 */
export function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`;
  if (typeof value === "object" && value !== null) {
    const members = Object.entries(value)
      .filter(([, member]) => member !== undefined)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, member]) => `${canonicalJson(key)}:${canonicalJson(member)}`);
    return `{${members.join(",")}}`;
  }
  if (typeof value === "string" && /\p{Cs}/u.test(value))
    throw new Error("a string has half a surrogate pair");
  return JSON.stringify(value);
}

const MAX_NESTING = 32;

/**
 * Parses bytes that must be exactly the canonical form of what they say.
 * @throws Error with a message for people; the caller names the file.
 */
export function parseCanonicalJson(bytes: Uint8Array): unknown {
  const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  const value: unknown = JSON.parse(text);
  if (depth(value) > MAX_NESTING) throw new Error(`nested deeper than ${MAX_NESTING} levels`);
  const canonical = canonicalJson(value);
  if (canonical !== text) {
    let at = 0;
    while (text[at] === canonical[at]) at += 1;
    throw new Error(`not in canonical form (RFC 8785) from character ${at} on`);
  }
  return value;
}

function depth(value: unknown): number {
  let level: unknown[] = [value];
  let levels = 0;
  while (level.length > 0 && levels <= MAX_NESTING) {
    level = level.flatMap((item): unknown[] =>
      typeof item === "object" && item !== null ? Object.values(item) : [],
    );
    levels += 1;
  }
  return levels;
}
