/**
 * The canonical form of a JSON value, RFC 8785: no white space, keys sorted by UTF-16 code units, numbers and
 * strings as ECMAScript writes them. One value has one form, so two builders write the same bytes, and a reader
 * that asks for this form needs no rules of its own for duplicate keys or spellings of numbers.
 * @throws Error for a string that has no UTF-8
 */
export function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`;
  if (typeof value === "object" && value !== null) {
    const members: string[] = [];
    // Without a comparison sort goes by UTF-16 code units.
    for (const key of Object.keys(value).sort()) {
      const member = (value as Record<string, unknown>)[key];
      if (member !== undefined) members.push(`${canonicalJson(key)}:${canonicalJson(member)}`);
    }
    return `{${members.join(",")}}`;
  }
  if (typeof value === "string" && /\p{Cs}/u.test(value))
    throw new Error("a string has half a surrogate pair");
  return JSON.stringify(value);
}

const MAX_NESTING = 32;

/**
 * Parses bytes that must be exactly the canonical form of what they say. Their size bounds the work but not the memory:
 * the 3 bytes of `[],` become an object. So more marks (`[`, `{` and `,` outside strings) than `maxMarks` are refused
 * before anything is parsed.
 * @throws Error with a message for people; the caller names the file.
 */
export function parseCanonicalJson(bytes: Uint8Array, maxMarks: number): unknown {
  requireBounded(bytes, maxMarks);
  const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  const value: unknown = JSON.parse(text);
  const canonical = canonicalJson(value);
  if (canonical !== text) {
    let at = 0;
    while (text[at] === canonical[at]) at += 1;
    throw new Error(`not in canonical form (RFC 8785) from character ${at} on`);
  }
  return value;
}

function requireBounded(bytes: Uint8Array, maxMarks: number): void {
  let marks = 0;
  let depth = 0;
  let quoted = false;
  for (let at = 0; at < bytes.length; at += 1) {
    const byte = bytes[at];
    if (quoted) {
      if (byte === BACKSLASH) at += 1;
      else if (byte === QUOTE) quoted = false;
    } else if (byte === QUOTE) {
      quoted = true;
    } else if (byte === COMMA) {
      marks += 1;
    } else if (byte === OPEN_BRACKET || byte === OPEN_BRACE) {
      marks += 1;
      depth += 1;
      if (depth > MAX_NESTING) throw new Error(`nested deeper than ${MAX_NESTING} levels`);
    } else if (byte === CLOSE_BRACKET || byte === CLOSE_BRACE) {
      depth -= 1;
    }
    if (marks > maxMarks) throw new Error(`more than ${maxMarks} values`);
  }
}

const [QUOTE, BACKSLASH, COMMA, OPEN_BRACKET, CLOSE_BRACKET, OPEN_BRACE, CLOSE_BRACE] =
  Buffer.from('"\\,[]{}');
