import { canonicalJson } from "../canonical-json.js";
import { showPath, type RawPath } from "../raw-path.js";
import { listFirst } from "../report.js";
import type { Tree } from "../system/tree.js";
import { linkedFile, type FileState, type Live } from "./live.js";
import { isSymlink } from "./metadata.js";
import { groupedAlike, linkOf } from "./names.js";
import { groundsIn } from "./obstacles.js";
import { pathName } from "./paths.js";
import type { RootPlan } from "./plan.js";
import type { PlacedChange } from "./renames.js";

/** A file or link as a plan has it on one side. */
export type PlannedState = NonNullable<RootPlan["changes"][number]["after"]>;

/** What changes at a path of a site. */
export interface FileChange {
  readonly path: RawPath;
  readonly before: PlannedState | null;
  readonly after: PlannedState | null;
}

interface LinkOptions {
  /** All of the release, where the site has them. */
  readonly changes: readonly PlacedChange[];
  /** What lies at their paths now. */
  readonly lives: ReadonlyMap<RawPath, Live>;
  /** What changes without regard to links. */
  readonly planned: readonly FileChange[];
  /** What else the release changes and the site has so already. */
  readonly present: ReadonlyMap<RawPath, FileState>;
  readonly warn: ((what: string) => void) | undefined;
}

/**
 * Decides which files become one, and which do not stay one. All names of such a file are changes of the plan, so that each is
 * written anew: what is on disk is never written through another name. formats/root.md, Hard links
 * @returns what is planned, and what changes in its links alone, with the links of both sides; sorted by path
 */
export function planLinks(tree: Tree, options: LinkOptions): FileChange[] {
  const { changes, lives, planned, present, warn } = options;
  const fileAt = (path: RawPath): string | undefined => linkedFile(lives.get(path));
  const states = new Map<RawPath, FileState>(present);
  for (const { path, after } of planned) if (after !== null) states.set(path, after);
  for (const [path, { mode }] of states) if (isSymlink(mode)) states.delete(path);

  const wanted = wantedGroups(changes, states, fileAt);
  const links = splitGroups(tree, wanted.groups, states, warn);
  warnOfParted(states.keys(), fileAt, wanted.isOfRelease, warn);

  const isAsWanted = groupedAlike(
    [...states.keys()],
    [...states.keys()].map(fileAt),
    [...states.keys()].map((path) => links.get(path)),
  );
  const losing = new Set(planned.flatMap(({ path, after }) => (after === null ? [fileAt(path)] : [])));
  const written = new Set(planned.flatMap(({ path, after }) => (after === null ? [] : [path])));
  const all: FileChange[] = [...planned];
  for (const [path, state] of present) {
    if (isSymlink(state.mode)) continue;
    const file = fileAt(path);
    if (!isAsWanted(path)) written.add(path);
    // What loses only names is not written, unless that is taken back.
    if (!isAsWanted(path) || (file !== undefined && losing.has(file)))
      all.push({ path, before: state, after: state });
  }
  all.sort((a, b) => (a.path < b.path ? -1 : 1));

  const befores = groupBy(all, ({ path, before }) => (before === null ? undefined : fileAt(path)));
  warnOfOthers(befores, written, lives, warn);
  const linksBefore = firstPaths([...befores.values()].map((group) => group.map(({ path }) => path)));
  return all.map(({ path, before, after }) => ({
    path,
    before: before && withLink(before, linksBefore.get(path)),
    after: after && withLink(after, links.get(path)),
  }));
}

const withLink = (state: FileState, first: RawPath | undefined): PlannedState =>
  first === undefined ? state : { ...state, link: pathName(first) };

/** Of groups of two or more sorted paths: the first, for each. */
const firstPaths = (groups: Iterable<readonly RawPath[]>): Map<RawPath, RawPath> =>
  new Map(
    [...groups].flatMap((paths) =>
      paths.length < 2 ? [] : paths.map((path): [RawPath, RawPath] => [path, paths[0] as RawPath]),
    ),
  );

function groupBy<Key, Item>(items: Iterable<Item>, keyOf: (item: Item) => Key | undefined): Map<Key, Item[]> {
  const groups = new Map<Key, Item[]>();
  for (const item of items) {
    const key = keyOf(item);
    if (key === undefined) continue;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [item]);
    else group.push(item);
  }
  return groups;
}

interface Group {
  readonly paths: readonly RawPath[];
  readonly isOfRelease: boolean;
}

/**
 * As other attributes are merged: a path whose links the release changed gets the release's, any other keeps the site's. What
 * the release adds or removes is not compared, so that one name less leaves the others as they are.
 */
function wantedGroups(
  changes: readonly PlacedChange[],
  states: ReadonlyMap<RawPath, FileState>,
  fileAt: (path: RawPath) => string | undefined,
): { readonly groups: readonly Group[]; readonly isOfRelease: (path: RawPath) => boolean } {
  const staying = changes.filter(({ after }) => after !== null);
  const isAsBefore = groupedAlike(
    staying.map(({ path }) => path),
    staying.map(({ before }) => linkOf(before)),
    staying.map(({ after }) => linkOf(after)),
  );
  const concerned = staying.filter(({ path }) => states.has(path));
  const ofRelease = groupBy(concerned, ({ path, after }) => (isAsBefore(path) ? undefined : linkOf(after)));
  const ofSite = groupBy(concerned, ({ path, from }) => (isAsBefore(path) ? fileAt(from) : undefined));
  const groups = [...ofRelease.values(), ...ofSite.values()].map((group, index) => ({
    paths: group.map(({ path }) => path),
    isOfRelease: index < ofRelease.size,
  }));
  return { groups, isOfRelease: (path) => !isAsBefore(path) };
}

/** What differs after the merge is not one file, nor what lies on different file systems. */
function splitGroups(
  tree: Tree,
  groups: readonly Group[],
  states: ReadonlyMap<RawPath, FileState>,
  warn: LinkOptions["warn"],
): Map<RawPath, RawPath> {
  const groundOf = groundsIn(tree);
  const links = new Map<RawPath, RawPath>();
  for (const { paths, isOfRelease } of groups) {
    if (paths.length < 2) continue;
    const alike = groupBy(paths, (path) => canonicalJson(states.get(path)));
    const together = [...alike.values()].flatMap((same) => [...groupBy(same, groundOf).values()]);
    for (const [path, first] of firstPaths(together)) links.set(path, first);
    if (together.length === 1) continue;
    const where = isOfRelease ? "in the release" : "on this site";
    const why = alike.size > 1 ? "differ here after the install" : "lie on different file systems here";
    warn?.(
      `${listPaths(paths)} are one file ${where} (hard links), and ${why}: only those that can be stay one file`,
    );
  }
  return links;
}

/** The site made one file of what the release links, or parts, in another way. */
function warnOfParted(
  paths: Iterable<RawPath>,
  fileAt: (path: RawPath) => string | undefined,
  isOfRelease: (path: RawPath) => boolean,
  warn: LinkOptions["warn"],
): void {
  for (const names of groupBy(paths, fileAt).values()) {
    if (new Set(names.map(isOfRelease)).size < 2) continue;
    warn?.(
      `${listPaths(names.toSorted())} are one file on this site (hard links); the release links some of them in another way, ` +
        "and the others become files of their own",
    );
  }
}

/** What takes the place of a file does not change it under its other names. */
function warnOfOthers(
  befores: ReadonlyMap<string, readonly FileChange[]>,
  written: ReadonlySet<RawPath>,
  lives: LinkOptions["lives"],
  warn: LinkOptions["warn"],
): void {
  for (const group of befores.values()) {
    const replaced = group.flatMap(({ path }) => (written.has(path) ? [path] : []));
    const live = replaced[0] && lives.get(replaced[0]);
    const others = live?.kind === "file" ? (live.linked?.names ?? 0) - group.length : 0;
    if (others <= 0) continue;
    const more = others === 1 ? "another name" : `${others} other names`;
    warn?.(
      `${listPaths(replaced)} has ${more} on this site (hard links) that the release does not change: after the install it is ` +
        "a file of its own, and what has the other names stays as it is",
    );
  }
}

const listPaths = (paths: readonly RawPath[]): string => listFirst(paths.map(showPath));
