import { posix } from "node:path";
import { escapeOctal, unescapeOctal } from "../system/mounts.js";

// formats/environments.md: how loaders find boot environments and what is in them.

/** What makes an environment the one that boots next. */
export type Loader = "bootfs" | "zectl" | "command";

/** The properties of a root dataset that loaders look at, as `zfs get -p` prints them. */
export interface LoaderProperties {
  readonly dataset: string;
  readonly mountpoint: string;
  readonly canmount: string;
  /** `org.zfsbootmenu:active`, which may be inherited; "-" for none. */
  readonly active: string;
}

/** What keeps an environment from coming up. */
export interface EnvironmentFault {
  readonly message: string;
  readonly hint?: string;
}

/** Whether a dataset may be the root of a system. */
export const isEnvironment = ({ mountpoint }: Pick<LoaderProperties, "mountpoint">): boolean =>
  mountpoint === "/" || mountpoint === "legacy";

/** In this order: with canmount=on, or mounted, the last would mount it over the running system. */
const rootHint = (dataset: string): string =>
  `where it is mounted, umount it first; then zfs set canmount=noauto ${dataset} && zfs set mountpoint=/ ${dataset}`;

/**
 * What is wrong with the properties of an environment for a loader, and with those of the others beside it.
 * @param others the datasets of the container that are not the environment's
 */
export function judgeProperties(
  loader: Loader,
  own: LoaderProperties,
  others: readonly LoaderProperties[],
): EnvironmentFault[] {
  const { dataset, mountpoint, canmount, active } = own;
  const faults: EnvironmentFault[] = [];
  if (!isEnvironment(own)) {
    faults.push({
      message: `${dataset} has mountpoint=${mountpoint}, which no loader takes for a root`,
      hint: rootHint(dataset),
    });
  }
  if (loader === "bootfs" && mountpoint === "legacy" && active !== "on") {
    faults.push({
      message: `${dataset} has mountpoint=legacy: bootfs leads neither initramfs-tools nor dracut's systemd to it, and ZFSBootMenu only with org.zfsbootmenu:active=on`,
      hint: rootHint(dataset),
    });
  }
  if (loader === "bootfs" && mountpoint === "/" && active === "off") {
    faults.push({
      message: `${dataset} has org.zfsbootmenu:active=off: ZFSBootMenu hides it`,
      hint: `zfs set org.zfsbootmenu:active=on ${dataset}`,
    });
  }
  // zectl sets it on what it activates.
  if (mountpoint === "/" && canmount !== "noauto" && loader !== "zectl") {
    faults.push({
      message: `${dataset} has canmount=${canmount}, not noauto`,
      hint: `zfs set canmount=noauto ${dataset}`,
    });
  }
  for (const other of others) {
    const isInPlace = other.mountpoint === "/" || isEarly(other.mountpoint);
    if (!isInPlace || other.canmount !== "on") continue;
    faults.push({
      message: `${other.dataset} has mountpoint=${other.mountpoint} and canmount=on: every boot would mount it there`,
      hint: `zfs set canmount=noauto ${other.dataset}`,
    });
  }
  return faults;
}

/** A line of fstab(5). */
export interface FstabEntry {
  readonly source: string;
  readonly path: string;
  readonly type: string;
  readonly options: readonly string[];
}

/** The entries of a text of /etc/fstab, in order; lines that are none are left out, as mount does. */
export const parseFstab = (text: string): FstabEntry[] =>
  text.split("\n").flatMap((line) => {
    const [source = "", path = "", type = "", options = "defaults"] = line
      .trim()
      .split(/[ \t]+/)
      .map(unescapeOctal);
    if (source === "" || source.startsWith("#") || type === "") return [];
    return [{ source, path, type, options: options.split(",") }];
  });

/** Whether an entry is that of `/` itself: what boots has mounted it before it reads any. */
export const isOfRoot = ({ type, path }: FstabEntry): boolean => type === "zfs" && mountPoint(path) === "/";

/** A dataset with `mountpoint=legacy`, and where an environment has it; that of `/` with either. */
export interface FstabDataset {
  readonly dataset: string;
  readonly path: string;
}

/** Without a slash at its end. */
export const mountPoint = (path: string): string => posix.join("/", path).replace(/(.)\/$/, "$1");

/**
 * A text of /etc/fstab, byte by byte (latin1), whose entries of type zfs name these datasets where they name others; one that is
 * missing comes last, but for that of `/`, whose options stay, too. All else of it stays as it is.
 */
export function nameDatasets(text: string, datasets: readonly FstabDataset[]): string {
  const left = new Map(datasets.map((each) => [mountPoint(each.path), each.dataset]));
  const named = new Set<string>();
  const lines = text.split("\n").map((line) => {
    const [entry] = parseFstab(line);
    const dataset = entry?.type === "zfs" ? left.get(mountPoint(entry.path)) : undefined;
    if (entry === undefined || dataset === undefined) return line;
    named.add(mountPoint(entry.path));
    const others = entry.options.filter((option) => option !== "zfsutil").join(",");
    const [
      ,
      blank = "",
      ,
      first = "",
      path = "",
      second = "",
      type = "",
      third = "",
      options = "",
      rest = "",
    ] = /^([ \t]*)([^ \t]+)([ \t]+)([^ \t]+)([ \t]+)([^ \t]+)(?:([ \t]+)([^ \t]+)(.*))?$/s.exec(line) ?? [];
    const isLegacy = entry.options.includes("zfsutil") && !isOfRoot(entry);
    const kept = isLegacy ? escapeOctal(others || "defaults") : options;
    return [blank, escapeOctal(dataset), first, path, second, type, third, kept, rest].join("");
  });
  const added = [...left]
    .filter(([path]) => path !== "/" && !named.has(path))
    .map(([path, dataset]) => `${escapeOctal(dataset)} ${escapeOctal(path)} zfs defaults 0 0\n`);
  const edited = lines.join("\n");
  const isOpen = added.length > 0 && edited !== "" && !edited.endsWith("\n");
  return [edited, isOpen ? "\n" : "", ...added].join("");
}

/** Whether the boot goes on without it. */
export const isOptional = ({ options }: FstabEntry): boolean =>
  options.includes("noauto") || options.includes("nofail");

/** What is wrong with an entry of type zfs; `mountpoint` is that of its dataset, undefined where there is none. */
export function judgeDataset(
  { source, path, options }: FstabEntry,
  mountpoint: string | undefined,
): EnvironmentFault | undefined {
  const entry = `/etc/fstab mounts ${source} on ${path}`;
  if (mountpoint === undefined) {
    return { message: `${entry}: there is no such dataset`, hint: "receive it, or correct /etc/fstab" };
  }
  if (options.includes("zfsutil")) {
    return mountpoint === "legacy"
      ? {
          message: `${entry} with zfsutil, and it has mountpoint=legacy`,
          hint: "take zfsutil away from the options",
        }
      : undefined;
  }
  return mountpoint === "legacy"
    ? undefined
    : {
        message: `${entry}, and it has mountpoint=${mountpoint}, not legacy`,
        hint: `zfs set mountpoint=legacy ${source}`,
      };
}

const TAGS: Record<string, string> = {
  UUID: "by-uuid",
  LABEL: "by-label",
  PARTUUID: "by-partuuid",
  PARTLABEL: "by-partlabel",
  ID: "by-id",
};

/** The file in /dev that an entry needs; undefined where it needs none. */
export function deviceOfEntry({ source }: FstabEntry): string | undefined {
  const [, tag = "", value = ""] = /^([A-Z]+)="?(.*?)"?$/.exec(source) ?? [];
  const folder = TAGS[tag];
  if (folder !== undefined) return posix.join("/dev/disk", folder, encodeName(value));
  return source.startsWith("/dev/") ? source : undefined;
}

/** As udev names its links. */
const encodeName = (value: string): string =>
  value.replace(/[^0-9A-Za-z#+\-.:=@_\u0080-\u{10ffff}]/gu, (character) => {
    const code = character.codePointAt(0) ?? 0;
    return `\\x${code.toString(16).padStart(2, "0")}`;
  });

/** Where the system begins is mounted before it begins, or cannot be. */
export const isEarly = (path: string): boolean => /^\/(?:usr|bin|sbin|lib[^/]*)(?:\/|$)/.test(path);

/** A kernel, and the initramfs that ZFSBootMenu boots it with. */
export interface BootFiles {
  readonly kernel: string;
  readonly initramfs: string;
}

const KERNEL = /^(?:(?:vm)?linu[xz]|kernel)(?:-.*)?$/;
const COMPRESSIONS = ["", ".gz", ".bz2", ".xz", ".lzma", ".lz4", ".lzo", ".zstd"];

/**
 * The kernels among the names of a folder that have an initramfs there.
 * @returns also `alone`: kernels without one
 */
export function findKernels(names: readonly string[]): { found: BootFiles[]; alone: string[] } {
  const there = new Set(names);
  const found: BootFiles[] = [];
  const alone: string[] = [];
  for (const kernel of names.filter((name) => KERNEL.test(name))) {
    const initramfs = initramfsNames(kernel).find((name) => there.has(name));
    if (initramfs === undefined) alone.push(kernel);
    else found.push({ kernel, initramfs });
  }
  return { found, alone };
}

/** In ZFSBootMenu's order. */
function initramfsNames(kernel: string): string[] {
  const version = kernel.replace(/^[^-]*/, "");
  const labels = [kernel, version];
  return [
    `initramfs-${kernel}.img`,
    `initramfs${version}.img`,
    `initrd.img-${kernel}`,
    `initrd.img${version}`,
    `initramfs-${kernel}`,
    `initramfs${version}`,
    ...[".img", ""]
      .flatMap((image) => COMPRESSIONS.map((compression) => image + compression))
      .flatMap((extension) =>
        ["initramfs", "initrd"].flatMap((prefix) =>
          labels.flatMap((label) => [`${prefix}${label}${extension}`, `${prefix}${extension}${label}`]),
        ),
      ),
  ];
}
