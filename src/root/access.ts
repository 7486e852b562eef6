import type { FileAttributes } from "../system/tree.js";
import { differingFields } from "./live.js";
import { ACCESS_LIST, CAPABILITY, DEFAULT_LIST, readAccessList, type AccessList } from "./xattrs.js";

/**
 * Somebody that attributes may mean: a user who is in none of the groups, one who is in a single group, anybody else. What
 * several groups together give to one user is not looked at.
 */
type Subject =
  { readonly kind: "user" | "group"; readonly id: number } | { readonly kind: "others"; readonly id: null };

/** What somebody may do: `rwx` in octal, and what a file gives to who executes it. */
interface Rights {
  readonly bits: number;
  readonly powers: readonly string[];
}

interface Listed {
  readonly attributes: FileAttributes;
  readonly list: AccessList;
}

const ROOT = 0;
const SET_USER_ID = 0o4000;
const SET_GROUP_ID = 0o2000;
const ACCESS_XATTRS: readonly string[] = [ACCESS_LIST, CAPABILITY, DEFAULT_LIST];

/**
 * Whether attributes that were merged from sides, field by field, let somebody do what none of the sides does.
 * formats/root.md, Access
 */
export function grantsMore(
  kind: "file" | "directory",
  merged: FileAttributes,
  sides: readonly FileAttributes[],
): boolean {
  if (kind === "directory") {
    const passedOn = passesOn(merged);
    if (passedOn !== "" && sides.every((side) => passesOn(side) !== passedOn)) return true;
  }
  const whole: Listed = { attributes: merged, list: readAccessList(merged) };
  const allowed = sides.map((attributes): Listed => ({ attributes, list: readAccessList(attributes) }));
  return subjectsOf([whole, ...allowed]).some((subject) => {
    const granted = rightsOf(kind, subject, whole);
    return allowed.every((side) => !contains(rightsOf(kind, subject, side), granted));
  });
}

/** Whether a folder lets somebody do what one of the others does not. */
export const opensMore = (folder: FileAttributes, others: readonly FileAttributes[]): boolean =>
  others.some((other) => grantsMore("directory", folder, [other]));

/**
 * Attributes of a folder while what is in it changes: they let nobody do what those before, or those after it, do not. Where
 * neither of the two is so, and not the permissions that both have, it is root's alone.
 */
export function closedBetween(before: FileAttributes, after: FileAttributes): FileAttributes {
  const both = { ...after, permissions: before.permissions & after.permissions };
  const rootsAlone = withAccessOf(after, { uid: ROOT, gid: ROOT, permissions: 0o700, xattrs: {} });
  // The permissions of a folder with an access list are in that, too.
  const candidates = [before, after, ...(ACCESS_LIST in after.xattrs ? [] : [both])];
  return candidates.find((candidate) => !opensMore(candidate, [before, after])) ?? rootsAlone;
}

/** Whether what decides access of a folder lets nobody do what one of two states does not, and all else is of one of them. */
export function isBetween(live: FileAttributes, before: FileAttributes, after: FileAttributes): boolean {
  const unlikeBefore = new Set(differingFields(live, before));
  const strange = differingFields(live, after).filter((field) => unlikeBefore.has(field));
  return strange.every(decidesAccess) && !opensMore(live, [before, after]);
}

const decidesAccess = (field: string): boolean =>
  ["owner", "group", "permissions", ...ACCESS_XATTRS].includes(field);

/** The fields that decide access in which two files or folders differ, as conflicts name them. */
export const differingAccess = (a: FileAttributes, b: FileAttributes): string[] =>
  differingFields(withAccessOf(b, a), b);

/** Attributes with all that decides access from others. */
export function withAccessOf(attributes: FileAttributes, other: FileAttributes): FileAttributes {
  const isOfAccess = ([name]: [string, string]): boolean => ACCESS_XATTRS.includes(name);
  const own = Object.entries(attributes.xattrs).filter((xattr) => !isOfAccess(xattr));
  const xattrs = Object.fromEntries([...own, ...Object.entries(other.xattrs).filter(isOfAccess)]);
  return { ...other, xattrs };
}

/** What new files in a folder get from it; empty for nothing. */
function passesOn({ gid, permissions, xattrs }: FileAttributes): string {
  const group = (permissions & SET_GROUP_ID) === 0 ? [] : [`group ${gid}`];
  return [...group, ...(xattrs[DEFAULT_LIST] === undefined ? [] : [xattrs[DEFAULT_LIST]])].join(" ");
}

function subjectsOf(all: readonly Listed[]): Subject[] {
  const users = all.flatMap(({ attributes, list }) => [attributes.uid, ...list.users.keys()]);
  const groups = all.flatMap(({ attributes, list }) => [attributes.gid, ...list.groups.keys()]);
  return [
    ...[...new Set([ROOT, ...users])].map((id): Subject => ({ kind: "user", id })),
    ...[...new Set(groups)].map((id): Subject => ({ kind: "group", id })),
    { kind: "others", id: null },
  ];
}

function rightsOf(kind: "file" | "directory", subject: Subject, { attributes, list }: Listed): Rights {
  const bits = bitsOf(subject, attributes, list);
  const powers = kind === "file" && (bits & 1) !== 0 ? powersOf(attributes) : [];
  // Who owns a file gives himself what is missing; that takes away what the file gives to who executes it.
  const isOwner = subject.kind === "user" && subject.id === attributes.uid;
  return { bits: isOwner ? 7 : bits, powers };
}

/** As the kernel decides it: the first of these that means somebody counts, but all groups together. */
function bitsOf({ kind, id }: Subject, { uid, gid, permissions }: FileAttributes, list: AccessList): number {
  const others = permissions & 7;
  if (kind === "user") {
    if (id === ROOT) return 6 | Number((permissions & 0o111) !== 0);
    return id === uid ? (permissions >> 6) & 7 : (list.users.get(id) ?? others);
  }
  if (kind === "others") return others;
  const ofGroups = [...(id === gid ? [list.owningGroup] : []), list.groups.get(id) ?? []].flat();
  return ofGroups.length === 0 ? others : ofGroups.reduce((all, each) => all | each, 0);
}

function powersOf({ uid, gid, permissions, xattrs }: FileAttributes): string[] {
  return [
    ...((permissions & SET_USER_ID) === 0 ? [] : [`user ${uid}`]),
    ...((permissions & SET_GROUP_ID) === 0 ? [] : [`group ${gid}`]),
    ...(xattrs[CAPABILITY] === undefined ? [] : [`capabilities ${xattrs[CAPABILITY]}`]),
  ];
}

const contains = (rights: Rights, others: Rights): boolean =>
  (others.bits & ~rights.bits) === 0 && others.powers.every((power) => rights.powers.includes(power));
