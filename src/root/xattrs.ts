import { createHash } from "node:crypto";
import type { FileAttributes } from "../system/tree.js";

// Extended attributes whose values the kernel reads: what it would refuse, or keep in another form, cannot be installed.

export const ACCESS_LIST = "system.posix_acl_access";
export const DEFAULT_LIST = "system.posix_acl_default";
export const CAPABILITY = "security.capability";

/** An access list: the version in 4 bytes, then entries of tag, permissions and id in 8, all little-endian. */
const LIST_VERSION = 2;
const HEADER_BYTES = 4;
const ENTRY_BYTES = 8;
const NO_ID = 0xffffffff;
const TAG = { owner: 0x01, user: 0x02, owningGroup: 0x04, group: 0x08, mask: 0x10, others: 0x20 } as const;

/** The entries in their order; a list that names nobody has no mask. */
const LIST = /^O(U*)G(g*)(M?)T$/;
const LETTERS: Readonly<Record<number, string>> = {
  [TAG.owner]: "O",
  [TAG.user]: "U",
  [TAG.owningGroup]: "G",
  [TAG.group]: "g",
  [TAG.mask]: "M",
  [TAG.others]: "T",
};

/** Where the permissions of each entry are, by its tag. */
function entriesOf(list: Buffer): { tag: number; at: number }[] {
  const count = Math.floor((list.length - HEADER_BYTES) / ENTRY_BYTES);
  return Array.from({ length: Math.max(0, count) }, (_, index) => {
    const start = HEADER_BYTES + index * ENTRY_BYTES;
    return { tag: list.readUInt16LE(start), at: start + 2 };
  });
}

/** What an entry has, or would have, by the permission bits of its file; undefined for those of named users and groups. */
function bitsOf(tag: number, permissions: number): number | undefined {
  if (tag === TAG.owner) return (permissions >> 6) & 7;
  if (tag === TAG.mask) return (permissions >> 3) & 7;
  return tag === TAG.others ? permissions & 7 : undefined;
}

/** Attributes as the kernel keeps them: the entries of owner, mask and others are the permission bits. */
export function withAgreeingList(attributes: FileAttributes): FileAttributes {
  const value = attributes.xattrs[ACCESS_LIST];
  if (value === undefined) return attributes;
  const list = Buffer.from(value, "base64");
  for (const { tag, at } of entriesOf(list)) {
    const bits = bitsOf(tag, attributes.permissions);
    if (bits !== undefined) list.writeUInt16LE(bits, at);
  }
  return { ...attributes, xattrs: { ...attributes.xattrs, [ACCESS_LIST]: list.toString("base64") } };
}

/** What a file gives to its group, and to users and groups by their numbers, with the mask applied: `rwx` in octal. */
export interface AccessList {
  readonly owningGroup: number;
  readonly users: ReadonlyMap<number, number>;
  readonly groups: ReadonlyMap<number, number>;
}

export function readAccessList({ permissions, xattrs }: FileAttributes): AccessList {
  const mask = (permissions >> 3) & 7;
  const list = Buffer.from(xattrs[ACCESS_LIST] ?? "", "base64");
  const entries = entriesOf(list);
  const users = new Map<number, number>();
  const groups = new Map<number, number>();
  // Without a list, the bits of the mask are those of the group.
  let owningGroup = 7;
  for (const { tag, at } of entries) {
    const bits = list.readUInt16LE(at) & mask;
    const id = list.readUInt32LE(at + 2);
    if (tag === TAG.owningGroup) owningGroup = bits;
    if (tag === TAG.user && !users.has(id)) users.set(id, bits);
    if (tag === TAG.group) groups.set(id, (groups.get(id) ?? 0) | bits);
  }
  return { owningGroup: owningGroup & mask, users, groups };
}

const MAX_SHOWN_BYTES = 40;

/**
 * A value for a person: an access list as `getfacl --omit-header` writes it, in one line; a short text as it is.
 * @param value in base64
 */
export function showXattr(name: string, value: string | undefined): string {
  if (value === undefined) return "none";
  const bytes = Buffer.from(value, "base64");
  if (name === ACCESS_LIST || name === DEFAULT_LIST) return entriesOf(bytes).map(showEntry(bytes)).join(",");
  const text = bytes.toString("utf8");
  if (bytes.length <= MAX_SHOWN_BYTES && PRINTABLE.test(text)) return JSON.stringify(text);
  if (bytes.length <= MAX_SHOWN_BYTES) return `0x${bytes.toString("hex")}`;
  return `${bytes.length} bytes with SHA-256 ${createHash("sha256").update(bytes).digest("hex").slice(0, 16)}…`;
}

const PRINTABLE = /^[\x20-\x7e]*$/;
const TAG_NAMES: Readonly<Record<number, string>> = {
  [TAG.owner]: "user",
  [TAG.user]: "user",
  [TAG.owningGroup]: "group",
  [TAG.group]: "group",
  [TAG.mask]: "mask",
  [TAG.others]: "other",
};

const showEntry =
  (list: Buffer) =>
  ({ tag, at }: { tag: number; at: number }): string => {
    const id = tag === TAG.user || tag === TAG.group ? String(list.readUInt32LE(at + 2)) : "";
    const bits = list.readUInt16LE(at);
    const letters = ["r", "w", "x"].map((letter, index) => ((bits & (4 >> index)) === 0 ? "-" : letter));
    return `${TAG_NAMES[tag] ?? tag}:${id}:${letters.join("")}`;
  };

/** Why the kernel would not keep an extended attribute as it is, as words to follow a path; undefined when it would. */
export function xattrRefusal(name: string, value: Buffer, permissions: number): string | undefined {
  if (name === CAPABILITY) return isCapability(value) ? undefined : `has ${name} that is malformed`;
  if (name !== ACCESS_LIST && name !== DEFAULT_LIST) return undefined;
  if (!isList(value)) return `has ${name} that is malformed`;
  if (name === DEFAULT_LIST) return undefined;
  const entries = entriesOf(value);
  if (!entries.some(({ tag }) => tag === TAG.mask))
    return `has ${name} that says no more than its permissions`;
  const agrees = entries.every(({ tag, at }) => {
    const bits = bitsOf(tag, permissions);
    return bits === undefined || bits === value.readUInt16LE(at);
  });
  return agrees ? undefined : `has ${name} that does not agree with its permissions`;
}

function isList(value: Buffer): boolean {
  const isWhole = value.length > HEADER_BYTES && (value.length - HEADER_BYTES) % ENTRY_BYTES === 0;
  if (!isWhole || value.readUInt32LE(0) !== LIST_VERSION) return false;
  const entries = entriesOf(value);
  const shape = LIST.exec(entries.map(({ tag }) => LETTERS[tag] ?? "?").join(""));
  if (shape === null || (shape[3] === "" && (shape[1] !== "" || shape[2] !== ""))) return false;
  return entries.every(({ tag, at }) => {
    const isNamed = tag === TAG.user || tag === TAG.group;
    return value.readUInt16LE(at) <= 7 && (value.readUInt32LE(at + 2) === NO_ID) !== isNamed;
  });
}

/** Version 2, or version 3 with the user of a namespace: the kernel gives one of the first user out as version 2. */
function isCapability(value: Buffer): boolean {
  if (value.length < 4) return false;
  const version = value.readUInt32LE(0) >>> 24;
  return (
    (version === 2 && value.length === 20) ||
    (version === 3 && value.length === 24 && value.readUInt32LE(20) !== 0)
  );
}
