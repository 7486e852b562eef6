import { rawPath, type RawPath } from "../raw-path.js";

// formats/configuration.md, Patterns

/** A pattern on paths, as gitignore has them; `text` is how it was written. */
export interface PathPattern {
  readonly text: string;
  readonly components: readonly Component[];
}

/** Any number of components, any one, exactly these bytes, or bytes with wildcards. */
type Component =
  typeof DEEP | typeof ANY | { readonly literal: string } | { readonly glob: readonly Token[] };
const DEEP = "**";
const ANY = "*";

/** Any number of bytes, any one, or exactly this one. */
type Token = { readonly wild: "*" | "?" } | { readonly byte: string };

const MAX_PATTERN_BYTES = 4095;

/** Why a text is no pattern, as words to follow it; undefined when it is one. */
export function patternFault(text: string): string | undefined {
  const bytes = Buffer.from(text);
  if (text === "") return "is empty";
  if (bytes.length > MAX_PATTERN_BYTES) return `is longer than ${MAX_PATTERN_BYTES} bytes`;
  if (text.includes("\0")) return "has a NUL byte";
  if (text.startsWith("!")) return "starts with !, and there are no exceptions here";
  if (/^(?:[^\\]|\\.)*\[/s.test(text)) return "has [, and there are no classes here: \\[ means the letter";
  if (/^(?:[^\\]|\\.)*\\$/s.test(text)) return "ends with \\, which stands before a letter";
  const components = text.replace(/^\//, "").replace(/\/$/, "").split("/");
  if (components.includes("")) return "has an empty component";
  const dots = components.find((component) => component === "." || component === "..");
  return dots === undefined ? undefined : `has the component "${dots}"`;
}

/**
 * Reads a pattern.
 * @throws RangeError for what `patternFault` finds fault with
 */
export function parsePattern(text: string): PathPattern {
  const fault = patternFault(text);
  if (fault !== undefined) throw new RangeError(`pattern ${JSON.stringify(text)} ${fault}`);
  const bytes = rawPath(Buffer.from(text));
  const names = bytes.replace(/^\//, "").replace(/\/$/, "").split("/");
  const components = names.map((name): Component => (name === "**" ? DEEP : parseComponent(name)));
  // Without a slash before its end, it is a name in any folder.
  if (!bytes.slice(0, -1).includes("/")) components.unshift(DEEP);
  // A folder's name followed by a slash, or by all that is in it, does not mean a file of that name.
  if (bytes.endsWith("/") || components.at(-1) === DEEP) components.push(ANY);
  // What lies in a folder that matches, matches.
  components.push(DEEP);
  return { text, components };
}

function parseComponent(name: string): Component {
  const glob = [...name.matchAll(/\\([^])|([^])/g)].map(([, escaped, plain = ""]): Token =>
    escaped === undefined && (plain === "*" || plain === "?") ? { wild: plain } : { byte: escaped ?? plain },
  );
  const literal = glob.every((token) => "byte" in token);
  return literal ? { literal: glob.map(({ byte }) => byte).join("") } : { glob };
}

/**
 * The first of some patterns that means a path, or a folder that it lies in. With each it takes no longer than the
 * product of both lengths.
 */
export function findPattern<Pattern extends PathPattern>(
  patterns: readonly Pattern[],
  path: RawPath,
): Pattern | undefined {
  const names = path.split("/");
  return patterns.find(({ components }) => matches(components, names, isDeep, isName));
}

const isDeep = (component: Component): boolean => component === DEEP;

function isName(component: Component, name: string): boolean {
  if (typeof component === "string") return true;
  if ("literal" in component) return component.literal === name;
  return matches(component.glob, name, isStar, isByte);
}

const isStar = (token: Token): boolean => "wild" in token && token.wild === "*";
const isByte = (token: Token, byte: string): boolean => "wild" in token || token.byte === byte;

/**
 * Whether items are as a pattern has them, in which some parts stand for any number of items. Only the last such part
 * is ever given another try: if the rest fits anywhere, it fits behind the first place where all before it does.
 */
function matches<Part, Item>(
  pattern: readonly Part[],
  items: ArrayLike<Item>,
  isAnyNumber: (part: Part) => boolean,
  fits: (part: Part, item: Item) => boolean,
): boolean {
  let at = 0;
  let star: { at: number; taken: number } | undefined;
  for (let item = 0; item < items.length;) {
    const part = pattern[at];
    if (part !== undefined && isAnyNumber(part)) {
      at += 1;
      star = { at, taken: item };
    } else if (part !== undefined && fits(part, items[item] as Item)) {
      at += 1;
      item += 1;
    } else if (star !== undefined) {
      star.taken += 1;
      ({ at } = star);
      item = star.taken;
    } else {
      return false;
    }
  }
  return pattern.slice(at).every(isAnyNumber);
}
