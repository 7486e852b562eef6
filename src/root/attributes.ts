import { ZferryError } from "../errors.js";
import type { RawPath } from "../raw-path.js";
import { blobId, type Git, type TreeFile } from "../system/git.js";
import { readFileIn, type FileAttributes, type Tree } from "../system/tree.js";
import { differingAccess, grantsMore, withAccessOf } from "./access.js";
import { parseAccounts, type Accounts } from "./accounts.js";
import { mergeConflict } from "./conflicts.js";
import { gitFile, type FileState } from "./live.js";
import { isExecutable, isSymlink, type Account, type GitMode, type RecordedAttributes } from "./metadata.js";
import type { Settler } from "./settle.js";
import { showXattr } from "./xattrs.js";

/** Merges what git does not keep, field by field, and collects what stands against it. */
export interface AttributeMerger {
  /** A new file's or directory's attributes, with the site's numbers. */
  resolve(recorded: RecordedAttributes): FileAttributes;
  merge(
    path: RawPath,
    live: FileAttributes,
    before: RecordedAttributes | null,
    after: RecordedAttributes,
  ): FileAttributes;
  /** The attributes of a file with permissions that agree with its mode in git. */
  agree(
    path: RawPath,
    mode: GitMode,
    attributes: FileAttributes,
    live: FileState | null,
    before: RecordedAttributes | null,
    after: RecordedAttributes,
  ): FileAttributes;
  /**
   * Merged attributes that let nobody do more than either side does; else they are a conflict.
   * @param mode in git; null for a directory
   */
  contain(
    path: RawPath,
    mode: GitMode | null,
    merged: FileAttributes,
    live: FileAttributes,
    before: RecordedAttributes | null,
    after: RecordedAttributes,
  ): FileAttributes;
  /** Warns of accounts that have another number on the site than at the build host. */
  compareNumbers(recorded: Iterable<RecordedAttributes>, warn: (what: string) => void): void;
  /**
   * @param contents conflicts of contents, which are told with those of attributes
   * @throws ZferryError `merge-conflict`, `not-configured` for what was collected
   */
  finish(contents: ReadonlyMap<RawPath, string>): void;
}

export async function attributeMerger(
  tree: Tree,
  scratch: Git,
  merged: ReadonlyMap<RawPath, TreeFile>,
  settling: Pick<Settler, "attributes" | "sideOf" | "isMade">,
  isRollback: boolean,
): Promise<AttributeMerger> {
  const users = await readAccounts(tree, scratch, merged, "etc/passwd" as RawPath);
  const groups = await readAccounts(tree, scratch, merged, "etc/group" as RawPath);
  const conflicts = new Map<RawPath, Set<string>>();
  const missing = new Set<string>();

  /** @param difference in words */
  const conflict = (path: RawPath, difference: string): void => {
    conflicts.set(path, (conflicts.get(path) ?? new Set()).add(difference));
  };
  const words: Words = {
    ...(isRollback ? ROLLBACK_WORDS : INSTALL_WORDS),
    names: { owner: users.current.nameOf, group: groups.current.nameOf },
  };
  const number = ({ name, id }: Account, kind: "user" | "group"): number => {
    if (name === null) return id;
    const found = (kind === "user" ? users : groups).merged.idOf.get(name);
    if (found === undefined) missing.add(`${kind} ${name}`);
    return found ?? id;
  };
  const resolve = ({ owner, group, permissions, xattrs }: RecordedAttributes): FileAttributes => ({
    uid: number(owner, "user"),
    gid: number(group, "group"),
    permissions: parseInt(permissions, 8),
    xattrs,
  });

  /** What the release has, to be compared: who is not on the site is nobody there. */
  const released = (after: RecordedAttributes): FileAttributes => {
    const idOf = ({ name, id }: Account, { merged }: { readonly merged: Accounts }): number =>
      name === null ? id : (merged.idOf.get(name) ?? NOBODY);
    return {
      uid: idOf(after.owner, users),
      gid: idOf(after.group, groups),
      permissions: parseInt(after.permissions, 8),
      xattrs: after.xattrs,
    };
  };

  const merge: AttributeMerger["merge"] = (path, live, before, after) => {
    /** `after` is asked for only where it counts: a name that the site lacks does not matter elsewhere. */
    const field = <T>(name: string, changed: boolean, site: T, was: T | undefined, becomes: () => T): T => {
      if (!changed || site === becomes()) return site;
      if (before !== null && site === was) return becomes();
      const sides = { base: before, ours: live, theirs: after };
      const difference = describeDifference(name, sides, words);
      const side = settling.attributes({ path, ...sides, differences: [difference] });
      if (side === undefined) conflict(path, difference);
      return side === "theirs" ? becomes() : site;
    };
    const owned = (
      kind: "user" | "group",
      site: number,
      was: Account | undefined,
      becomes: Account,
    ): number => {
      const { current } = kind === "user" ? users : groups;
      const wasId = was && (was.name === null ? was.id : current.idOf.get(was.name));
      const name = kind === "user" ? "owner" : "group";
      return field(name, !sameAccount(was, becomes), site, wasId, () => number(becomes, kind));
    };
    const names = new Set([...Object.keys(before?.xattrs ?? {}), ...Object.keys(after.xattrs)]);
    const xattrs: Record<string, string> = { ...live.xattrs };
    for (const name of names) {
      const [was, becomes] = [before?.xattrs[name], after.xattrs[name]];
      const value = field(name, before === null || was !== becomes, live.xattrs[name], was, () => becomes);
      if (value === undefined) delete xattrs[name];
      else xattrs[name] = value;
    }
    const permissions = parseInt(after.permissions, 8);
    const permissionsBefore = before === null ? undefined : parseInt(before.permissions, 8);
    return {
      uid: owned("user", live.uid, before?.owner, after.owner),
      gid: owned("group", live.gid, before?.group, after.group),
      permissions: field(
        "permissions",
        permissions !== permissionsBefore,
        live.permissions,
        permissionsBefore,
        () => permissions,
      ),
      xattrs,
    };
  };

  const agree: AttributeMerger["agree"] = (path, mode, found, live, before, after) => {
    const isRight = (permissions: number): boolean => isExecutable(permissions) === (mode === "100755");
    if (isSymlink(mode) || isRight(found.permissions)) return found;
    // With the contents of one side, git has the mode of that side.
    const side = settling.sideOf(path);
    const permissions =
      side === "theirs"
        ? parseInt(after.permissions, 8)
        : side === "ours"
          ? live?.attributes.permissions
          : undefined;
    if (permissions !== undefined && isRight(permissions)) return { ...found, permissions };
    if (settling.isMade(path)) return { ...found, permissions: withMode(found.permissions, mode) };
    const sides = { base: before, ours: live?.attributes ?? null, theirs: after };
    const difference = describeDifference("permissions", sides, words);
    const chosen =
      live && settling.attributes({ path, ...sides, ours: live.attributes, differences: [difference] });
    if (live === null || chosen === undefined || chosen === null) {
      conflict(path, difference);
      return found;
    }
    const whose = chosen === "ours" ? live.attributes.permissions : parseInt(after.permissions, 8);
    return { ...found, permissions: withMode(whose, mode) };
  };

  const contain: AttributeMerger["contain"] = (path, mode, merged, live, before, after) => {
    if (mode !== null && isSymlink(mode)) return merged;
    // It is settled first; then this is looked at anew.
    if (conflicts.has(path)) return merged;
    const theirs = released(after);
    /** The executable bit that a person gave it is each side's, too. */
    const asMade = <T extends { readonly permissions: number }>(attributes: T): T =>
      mode !== null && settling.isMade(path)
        ? { ...attributes, permissions: withMode(attributes.permissions, mode) }
        : attributes;
    const sides = [asMade(live), asMade(theirs)] as const;
    if (!grantsMore(mode === null ? "directory" : "file", merged, sides)) return merged;
    const all = { base: before, ours: live, theirs: after };
    const differences = differingAccess(live, theirs).map((field) => describeDifference(field, all, words));
    const side = settling.attributes({ path, ...all, differences });
    if (side === undefined) {
      for (const difference of differences) conflict(path, difference);
      return merged;
    }
    const chosen = withAccessOf(merged, side === "theirs" ? resolve(after) : live);
    if (mode === null || isExecutable(chosen.permissions) === (mode === "100755")) return chosen;
    return { ...chosen, permissions: chosen.permissions ^ OWNER_EXECUTES };
  };

  const compareNumbers: AttributeMerger["compareNumbers"] = (recorded, warn) => {
    const told = new Map<string, string>();
    const compare = (kind: "user" | "group", { name, id }: Account): void => {
      const { idOf, nameOf } = (kind === "user" ? users : groups).merged;
      const here = name === null ? undefined : idOf.get(name);
      if (name === null || here === undefined || here === id) return;
      const other = nameOf.get(id);
      const whose = other === undefined ? `no ${kind}` : `${kind} ${other}`;
      told.set(
        `${kind} ${name}`,
        `${kind} ${name} is ${here} on this site and ${id} at the build host: what is of ${name} in /usr, which has only ` +
          `numbers, belongs to ${whose} on this site`,
      );
    };
    for (const { owner, group } of recorded) {
      compare("user", owner);
      compare("group", group);
    }
    const sorted = [...told].sort(([a], [b]) => (a < b ? -1 : 1));
    for (const [, text] of sorted.slice(0, SHOWN_ACCOUNTS)) warn(text);
    const more = sorted.length - SHOWN_ACCOUNTS;
    if (more > 0) warn(`${more} more users and groups have other numbers here than at the build host`);
  };

  const finish: AttributeMerger["finish"] = (contents) => {
    const ofAttributes = [...conflicts].map(
      ([path, differences]) => [path, [...differences].join("; ")] as const,
    );
    const all = new Map([...ofAttributes, ...contents]);
    if (all.size > 0) throw mergeConflict(all);
    if (missing.size === 0) return;
    const names = [...missing].sort();
    throw new ZferryError("not-configured", `the site does not have ${names.join(", ")}`, {
      details: { missing: names },
      hint: "the release has files of theirs: add them to the site's /etc/passwd and /etc/group, and commit",
    });
  };
  return { resolve, merge, agree, contain, compareNumbers, finish };
}

interface Words {
  /** What follows a value of either. */
  readonly theirs: string;
  readonly base: string;
  /** Of the site's numbers. */
  readonly names: Readonly<Record<"owner" | "group", ReadonlyMap<number, string>>>;
}

const INSTALL_WORDS = { theirs: "in the release", base: "before" };
const ROLLBACK_WORDS = { theirs: "before the install", base: "after it" };

/** One attribute of both sides, and of what they come from, in words. */
function describeDifference(
  field: string,
  {
    base,
    ours,
    theirs,
  }: {
    readonly base: RecordedAttributes | null;
    readonly ours: FileAttributes | null;
    readonly theirs: RecordedAttributes;
  },
  words: Words,
): string {
  const recorded = (side: RecordedAttributes): string => {
    if (field === "owner" || field === "group") return side[field].name ?? String(side[field].id);
    return field === "permissions" ? side.permissions : showXattr(field, side.xattrs[field]);
  };
  const here = ({ uid, gid, permissions, xattrs }: FileAttributes): string => {
    if (field === "permissions") return permissions.toString(8).padStart(4, "0");
    if (field !== "owner" && field !== "group") return showXattr(field, xattrs[field]);
    const id = field === "owner" ? uid : gid;
    return words.names[field].get(id) ?? String(id);
  };
  const sides = [
    ...(ours === null ? [] : [`${here(ours)} here`]),
    `${recorded(theirs)} ${words.theirs}`,
    ...(base === null ? [] : [`${recorded(base)} ${words.base}`]),
  ];
  return `${field}: ${sides.join(", ")}`;
}

/** Permissions with which git has this mode: who may read an executable file may execute it. */
const withMode = (permissions: number, mode: GitMode): number =>
  mode === "100755" ? permissions | 0o100 | ((permissions & 0o444) >> 2) : permissions & ~0o111;

/** No number of a user or group. */
const NOBODY = -1;
const OWNER_EXECUTES = 0o100;
const SHOWN_ACCOUNTS = 20;

const sameAccount = (a: Account | undefined, b: Account): boolean =>
  a !== undefined && a.name === b.name && (a.name !== null || a.id === b.id);

/** The site's accounts as they are, and as this release leaves them: it may bring the users that its files belong to. */
async function readAccounts(
  tree: Tree,
  scratch: Git,
  merged: ReadonlyMap<RawPath, TreeFile>,
  path: RawPath,
): Promise<{ current: Accounts; merged: Accounts }> {
  const content = readFileIn(tree, path) ?? Buffer.of();
  const current = parseAccounts(content);
  const file = gitFile(merged.get(path));
  const stays = file === null || isSymlink(file.mode) || file.blob === blobId(content);
  if (stays) return { current, merged: current };
  return { current, merged: parseAccounts(await scratch.run(["cat-file", "blob", file.blob])) };
}
