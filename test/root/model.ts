import { execFileSync } from "node:child_process";
import {
  chmodSync,
  lchownSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import type { BuildHost, Site } from "./hosts.js";
import { newFolder, sh } from "./hosts.js";
import { listDisk, placeOf, readXattrs, targetOf, type OnDisk } from "./on-disk.js";

/** What git does not keep of a file or folder; extended attributes as hexadecimal digits. */
export interface Kept {
  readonly uid: number;
  readonly gid: number;
  readonly permissions: number;
  readonly xattrs: Readonly<Record<string, string>>;
}

export type Entry = Kept &
  (
    | {
        readonly kind: "file";
        readonly content: string;
        /** The same for all names of one file. */ readonly file?: number;
      }
    | { readonly kind: "link"; readonly content: string }
    | { readonly kind: "directory" }
  );

/** Files, links and folders by path; a folder that is not named is root's, with 0755. Paths and contents are latin1. */
export type Model = ReadonlyMap<string, Entry>;

export const ROOTS: Kept = { uid: 0, gid: 0, permissions: 0o644, xattrs: {} };

export const fileOf = (content: string, kept: Partial<Kept> = {}): Entry => ({
  ...ROOTS,
  ...kept,
  kind: "file",
  content,
});

export const linkTo = (content: string, kept: Partial<Kept> = {}): Entry => ({
  ...ROOTS,
  permissions: 0o777,
  ...kept,
  kind: "link",
  content,
});

export const FOLDER: Entry = { ...ROOTS, permissions: 0o755, kind: "directory" };

export const foldersOf = (path: string): string[] =>
  path.split("/").flatMap((_, index, names) => (index === 0 ? [] : [names.slice(0, index).join("/")]));

/** The model with the folders that its files lie in. */
export function complete(model: Model): Map<string, Entry> {
  const folders = new Set([...model].flatMap(([path]) => foldersOf(path)));
  const whole = new Map([...folders].map((path): [string, Entry] => [path, FOLDER]));
  for (const [path, entry] of model) whole.set(path, { ...entry, xattrs: withMode(entry) });
  // A folder without a file is nothing to git.
  const used = new Set(
    [...model].flatMap(([path, { kind }]) => (kind === "directory" ? [] : foldersOf(path))),
  );
  for (const [path, { kind }] of whole) if (kind === "directory" && !used.has(path)) whole.delete(path);
  return new Map([...whole].sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** Makes the files of a work tree those of the model, as an edit of its root: `{ ".": writeModel(model) }`. */
export const writeModel =
  (model: Model) =>
  (root: string): void => {
    for (const name of readdirSync(root))
      if (name !== ".git") rmSync(join(root, name), { recursive: true, force: true });
    const whole = complete(model);
    for (const [path, entry] of whole) {
      const place = placeOf(root, path);
      const [first = path] = namesOf(whole, path);
      if (entry.kind === "directory") mkdirSync(place);
      else if (first !== path) linkSync(placeOf(root, first), place);
      else if (entry.kind === "link") symlinkSync(Buffer.from(entry.content, "latin1"), place);
      else writeFileSync(place, entry.content, "latin1");
      lchownSync(place, entry.uid, entry.gid);
    }
    const dump = [...whole].flatMap(([path, { xattrs }]) => {
      const values = Object.entries(xattrs).map(([name, value]) => `${name}=0x${value}\n`);
      return values.length === 0 ? [] : [`# file: ${escapeOctal(path)}\n${values.join("")}\n`];
    });
    if (dump.length > 0) execFileSync("setfattr", ["--restore=-"], { cwd: root, input: dump.join("") });
    for (const [path, { kind, permissions }] of whole)
      if (kind !== "link") chmodSync(placeOf(root, path), permissions);
  };

/** As getfattr shows paths. */
const escapeOctal = (path: string): string =>
  path.replace(/[^ -[\]-~]/g, (char) => `\\${char.charCodeAt(0).toString(8).padStart(3, "0")}`);

const CARRIED = /^(user\.|security\.capability$|system\.posix_acl_)/;

/** What is on disk, without git's. */
export function readModel(root: string): Map<string, Entry> {
  const xattrs = readXattrs(root);
  const carried = (path: string): [string, string][] =>
    Object.entries(xattrs.get(path) ?? {}).flatMap(([name, value]) =>
      CARRIED.test(name) ? [[name, value.slice("0x".length)]] : [],
    );
  const entry = ({ path, place, stat }: OnDisk): Entry => {
    const { uid, gid, mode } = stat;
    const kept: Kept = { uid, gid, permissions: mode & 0o7777, xattrs: Object.fromEntries(carried(path)) };
    if (stat.isDirectory()) return { ...kept, kind: "directory" };
    if (stat.isSymbolicLink()) return { ...kept, kind: "link", content: targetOf(place) };
    return { ...kept, kind: "file", content: readFileSync(place, "latin1") };
  };
  const found = listDisk(root, [".git"]).map((item): [string, Entry] => [item.path, entry(item)]);
  return new Map(found.sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** What git's own merge makes of the site and release r2. */
export interface GitMerge {
  /** Null for a conflict. */
  readonly tree: string | null;
  /** Without what is in conflict. */
  readonly files: ReadonlyMap<string, { readonly mode: string; readonly content: string }>;
  /** Paths that git could not merge. */
  readonly conflicts: ReadonlySet<string>;
}

/** Merges in a plain repository, with the release r1 as base, whatever the site's history is. */
export function mergeWithGit(host: BuildHost, site: Site): GitMerge {
  const plain = newFolder();
  const merge = "git -c merge.renames=true -c merge.directoryRenames=false -c merge.renameLimit=7000 merge";
  const told = sh(
    plain,
    `git init -q -b main
     git fetch -q ${host.root} 'refs/tags/*:refs/tags/*'
     git fetch -q ${site.root} HEAD
     git checkout -q --detach "$(git commit-tree -p r1 -m site FETCH_HEAD^{tree})"
     if ${merge} -q -s ort -m merged r2 >&2; then git rev-parse HEAD^{tree}; fi`,
  ).trim();
  const files = new Map<string, { mode: string; content: string }>();
  const conflicts = new Set<string>();
  const listed = Buffer.from(sh(plain, "git ls-files --stage -z | base64 -w0"), "base64").toString("latin1");
  const merged: { path: string; mode: string; id: string }[] = [];
  for (const entry of listed.split("\0").slice(0, -1)) {
    const [, mode = "", id = "", stage = "", path = ""] =
      /^(\d{6}) ([0-9a-f]{40}) (\d)\t(.*)$/s.exec(entry) ?? [];
    // Of two kinds of thing at one path git renames one.
    if (stage !== "0") conflicts.add(path.replace(/~(HEAD|r2)(_\d+)?$/, ""));
    else merged.push({ path, mode, id });
  }
  const blobs = execFileSync("git", ["cat-file", "--batch"], {
    cwd: plain,
    input: merged.map(({ id }) => `${id}\n`).join(""),
    maxBuffer: 1 << 28,
  });
  let at = 0;
  for (const { path, mode } of merged) {
    const end = blobs.indexOf("\n", at);
    const size = Number(blobs.toString("latin1", at, end).split(" ")[2]);
    files.set(path, { mode, content: blobs.toString("latin1", end + 1, end + 1 + size) });
    at = end + size + 2;
  }
  return { tree: told === "" ? null : told, files, conflicts };
}

/** A side of a merge: its files, and where they went that have another name than in the base. */
export interface Side {
  readonly model: Model;
  readonly moves: ReadonlyMap<string, string>;
}

export interface Expected {
  /** Everything on disk afterwards. */
  readonly model: Map<string, Entry>;
  /** The fields that both sides changed, by path. */
  readonly conflicts: Map<string, string[]>;
}

/** Merges what git does not keep, by the rules of formats/root.md, into the files that git's merge gives. */
export function expectKept(base: Model, site: Side, release: Side, files: GitMerge["files"]): Expected {
  const [before, ours, theirs] = [complete(base), complete(site.model), complete(release.model)];
  const conflicts = new Map<string, string[]>();
  const model = new Map<string, Entry>();
  const origins = new Map([...site.moves, ...release.moves].map(([from, to]) => [to, from]));

  const choose = <T>(path: string, field: string, was: T, here: T, there: T): T => {
    if (was === there || here === there) return here;
    if (was === here) return there;
    conflicts.set(path, [...(conflicts.get(path) ?? []), field]);
    return here;
  };
  const merge = (
    path: string,
    was: Entry | undefined,
    here: Entry,
    there: Entry,
    kind: Entry["kind"],
  ): Kept => {
    const names = new Set([was, here, there].flatMap((entry) => Object.keys(entry?.xattrs ?? {})));
    const xattrs = [...names].flatMap((name): [string, string][] => {
      const value = choose(path, name, was?.xattrs[name], here.xattrs[name], there.xattrs[name]);
      return value === undefined ? [] : [[name, value]];
    });
    const merged: Kept = {
      uid: choose(path, "owner", was?.uid, here.uid, there.uid) ?? 0,
      gid: choose(path, "group", was?.gid, here.gid, there.gid) ?? 0,
      permissions: choose(path, "permissions", was?.permissions, here.permissions, there.permissions) ?? 0,
      xattrs: Object.fromEntries(xattrs),
    };
    if (kind !== "link" && !conflicts.has(path) && isMixture(kind, merged, here, there))
      conflicts.set(path, accessDifference(here, there));
    return merged;
  };

  for (const [path, { mode, content }] of files) {
    const origin = origins.get(path) ?? path;
    const was = before.get(origin);
    const here = ours.get(site.moves.get(origin) ?? origin);
    const there = theirs.get(release.moves.get(origin) ?? origin);
    const [wasFile, hereFile, thereFile] = [was, here, there].map((entry) =>
      entry?.kind === "directory" ? undefined : entry,
    );
    const kind = mode === "120000" ? "link" : "file";
    let kept: Kept;
    if (thereFile === undefined) kept = hereFile ?? ROOTS;
    else if (hereFile === undefined) kept = thereFile;
    // What the release has of a file does not fit the site's link, and the reverse.
    else if (thereFile.kind !== kind) kept = hereFile;
    else kept = merge(path, wasFile, hereFile, thereFile, kind);
    if (kind === "link") kept = { ...kept, xattrs: {} };
    else kept = { ...kept, xattrs: withMode(kept) };
    const { uid, gid, permissions, xattrs } = kept;
    model.set(path, { uid, gid, permissions, xattrs, kind, content });
  }
  // One that the merge empties stays where the target has it.
  const emptied = [...theirs.keys()].filter((path) => ours.has(path));
  for (const path of new Set([...[...files.keys()].flatMap(foldersOf), ...emptied])) {
    if (files.has(path)) continue;
    const [was, here, there] = [before, ours, theirs].map((side) => {
      const entry = side.get(path);
      return entry?.kind === "directory" ? entry : undefined;
    });
    if (here === undefined && there === undefined) continue;
    let kept: Kept = here ?? there ?? FOLDER;
    if (here !== undefined && there !== undefined) kept = merge(path, was, here, there, "directory");
    const { uid, gid, permissions, xattrs } = kept;
    model.set(path, { uid, gid, permissions, xattrs, kind: "directory" });
  }
  return { model: new Map([...model].sort(([a], [b]) => (a < b ? -1 : 1))), conflicts };
}

/** All paths that are one file with a path, and itself; none where there is no file. */
export function namesOf(model: Model, path: string): string[] {
  const entry = model.get(path);
  if (entry?.kind !== "file") return [];
  const isName = ([at, other]: readonly [string, Entry]): boolean =>
    at === path || (other.kind === "file" && other.file !== undefined && other.file === entry.file);
  return [...model].flatMap((named) => (isName(named) ? [named[0]] : []));
}

const groupBy = <Item>(items: Iterable<Item>, keyOf: (item: Item) => string): Item[][] => {
  const groups = new Map<string, Item[]>();
  for (const item of items) groups.set(keyOf(item), [...(groups.get(keyOf(item)) ?? []), item]);
  return [...groups.values()];
};

/** Which paths are one file afterwards, each group and the groups sorted, by the rules of formats/root.md, Hard links. */
export function expectLinks(base: Model, site: Side, release: Side, merged: Model): string[][] {
  const [before, ours, theirs] = [complete(base), complete(site.model), complete(release.model)];
  const text = (value: unknown): string => JSON.stringify(value) ?? "";
  const state = (model: Model, path: string): string => {
    const entry = model.get(path);
    if (entry === undefined || entry.kind === "directory") return "";
    const { uid, gid, permissions, xattrs, kind, content } = entry;
    return text([uid, gid, permissions, Object.entries(xattrs).sort(), kind, content]);
  };
  const changed = new Set(
    [...new Set([...before.keys(), ...theirs.keys()])].filter(
      (path) =>
        state(before, path) !== state(theirs, path) ||
        text(namesOf(before, path)) !== text(namesOf(theirs, path)),
    ),
  );
  const stays = (path: string): boolean => changed.has(path) && state(theirs, path) !== "";
  const isFile = (path: string): boolean => merged.get(path)?.kind === "file";
  const concerned = [...changed].filter((path) => stays(path) && isFile(path));
  const origins = new Map([...release.moves].map(([from, to]) => [to, from]));

  /** The other names count, as far as the release has them. */
  const others = (side: Model, path: string): string =>
    text(namesOf(side, path).filter((at) => at !== path && stays(at)));
  const wanted = groupBy(concerned, (path) => {
    const isOfRelease = others(before, path) !== others(theirs, path);
    const names = isOfRelease ? namesOf(theirs, path) : namesOf(ours, origins.get(path) ?? path);
    return text([names.length > 1 ? [isOfRelease, names] : path, state(merged, path)]);
  });
  const groups = wanted.flatMap((names): [string, string][] => {
    const isAsWanted = (path: string): boolean =>
      state(ours, path) === state(merged, path) &&
      text(namesOf(ours, path).filter((at) => concerned.includes(at))) === text(names.toSorted());
    return names.map((path) => [path, isAsWanted(path) ? text(namesOf(ours, path)) : text([names])]);
  });
  const groupOf = new Map(groups);
  return groupBy(
    [...merged.keys()].filter(isFile).sort(),
    (path) => groupOf.get(path) ?? text(namesOf(ours, path)),
  ).filter(({ length }) => length > 1);
}

const ACL = "system.posix_acl_access";
const DEFAULT_ACL = "system.posix_acl_default";
const CAPABILITY = "security.capability";

/** One letter for each right, and a word for whom or what a program runs as. */
function rightsOf(kind: Entry["kind"], kept: Kept, who: string): Set<string> {
  const { uid, gid, permissions, xattrs } = kept;
  const triple = (shift: number): string[] =>
    [..."xwr"].filter((_, bit) => ((permissions >> shift) & (1 << bit)) !== 0);
  const listed = (xattrs[ACL]?.slice(8).match(/.{16}/g) ?? []).flatMap((entry) => {
    const bytes = Buffer.from(entry, "hex");
    const letters = [..."xwr"].filter((_, bit) => (bytes.readUInt16LE(2) & (1 << bit)) !== 0);
    const masked = letters.filter((letter) => triple(3).includes(letter));
    const [tag, id] = [bytes.readUInt16LE(0), bytes.readUInt32LE(4)];
    if (tag === 4) return [{ means: `g${gid}`, masked }];
    return tag === 2 || tag === 8 ? [{ means: `${tag === 2 ? "u" : "g"}${id}`, masked }] : [];
  });
  const entries = listed.length > 0 ? listed : [{ means: `g${gid}`, masked: triple(3) }];
  const found = entries.filter(({ means }) => means === who);
  let rights = new Set(found.length > 0 ? found.flatMap(({ masked }) => masked) : triple(0));
  if (who === `u${uid}`) rights = new Set(triple(6));
  if (who === "u0") rights = new Set(["r", "w", ...(permissions & 0o111 ? ["x"] : [])]);
  if (kind === "file" && rights.has("x")) {
    if (permissions & 0o4000) rights.add(`as user ${uid}`);
    if (permissions & 0o2000) rights.add(`as group ${gid}`);
    if (CAPABILITY in xattrs) rights.add(`with ${xattrs[CAPABILITY]}`);
  }
  if (who === `u${uid}`) for (const letter of "rwx") rights.add(letter);
  return rights;
}

/** Whether a merge of two sides gives somebody what neither does. */
function isMixture(kind: Entry["kind"], merged: Kept, ...sides: Kept[]): boolean {
  const everybody = [merged, ...sides].flatMap(({ uid, gid, xattrs }) => [
    ...[`u${uid}`, `g${gid}`],
    ...(xattrs[ACL]?.slice(8).match(/.{16}/g) ?? []).flatMap((entry) => {
      const id = Buffer.from(entry, "hex").readUInt32LE(4);
      return [`u${id}`, `g${id}`];
    }),
  ]);
  const passedOn = ({ gid, permissions, xattrs }: Kept): string =>
    JSON.stringify([permissions & 0o2000 ? gid : null, xattrs[DEFAULT_ACL] ?? null]);
  const isNewFolder =
    kind === "directory" &&
    passedOn(merged) !== "[null,null]" &&
    !sides.map(passedOn).includes(passedOn(merged));
  return (
    isNewFolder ||
    ["u0", "anybody", ...everybody].some((who) => {
      const wanted = [...rightsOf(kind, merged, who)];
      return !sides.some((side) => wanted.every((right) => rightsOf(kind, side, who).has(right)));
    })
  );
}

const accessDifference = (a: Kept, b: Kept): string[] => [
  ...(a.uid === b.uid ? [] : ["owner"]),
  ...(a.gid === b.gid ? [] : ["group"]),
  ...(a.permissions === b.permissions ? [] : ["permissions"]),
  ...[ACL, DEFAULT_ACL, CAPABILITY].filter((name) => a.xattrs[name] !== b.xattrs[name]),
];

/** An access list as the kernel keeps it: of owner, mask and others it has what the permissions are. */
function withMode({ permissions, xattrs }: Kept): Record<string, string> {
  const acl = xattrs[ACL];
  if (acl === undefined) return xattrs;
  const bits = { "0100": permissions >> 6, "1000": permissions >> 3, "2000": permissions };
  const entries = (acl.slice(8).match(/.{16}/g) ?? []).map((entry) => {
    const tag = entry.slice(0, 4);
    const own = tag in bits ? bits[tag as keyof typeof bits] : undefined;
    return own === undefined ? entry : `${tag}0${own & 7}00${entry.slice(8)}`;
  });
  return { ...xattrs, [ACL]: acl.slice(0, 8) + entries.join("") };
}

/** The hexadecimal digits of an access list in which one more user may read (or `bits`), on a file with these permissions. */
export function aclOf(user: number, permissions = 0o644, mask = (permissions >> 3) & 7, bits = 4): string {
  const entry = (tag: number, bits: number, id = 0xffffffff): Buffer => {
    const bytes = Buffer.alloc(8);
    bytes.writeUInt16LE(tag, 0);
    bytes.writeUInt16LE(bits, 2);
    bytes.writeUInt32LE(id, 4);
    return bytes;
  };
  const entries = [
    entry(1, (permissions >> 6) & 7),
    entry(2, bits, user),
    entry(4, 4),
    entry(0x10, mask),
    entry(0x20, permissions & 7),
  ];
  return Buffer.concat([Buffer.of(2, 0, 0, 0), ...entries]).toString("hex");
}
