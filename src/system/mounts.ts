import { readFileSync, realpathSync } from "node:fs";
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";

/** A line of /proc/PID/mountinfo: proc_pid_mountinfo(5). */
export interface Mount {
  readonly id: string;
  /** The `id` of the mount that it lies on. */
  readonly parent: string;
  /** "major:minor", in decimal. */
  readonly device: string;
  /** The folder of the file system that is seen there. */
  readonly root: string;
  /** Where it is seen. */
  readonly point: string;
  readonly type: string;
  /** With ZFS a dataset, or a snapshot by its full name. */
  readonly source: string;
  /** The file system's own options, as in "ro,lowerdir=/usr". */
  readonly options: readonly string[];
  /** Whether nothing can be written there: the mount or its file system is read-only. */
  readonly readOnly: boolean;
}

export const readText = (path: string): Promise<string> => readFile(path, "utf8").catch(() => "");

/** The mounts as a process sees them, in the order in which they can be made; none of a process that is gone. */
export async function readMounts(pid: number | string): Promise<Mount[]> {
  return parseMounts(await readText(join("/proc", String(pid), "mountinfo")));
}

/** The mounts that this process sees, with paths as bytes (latin1), by where they are; without those that others hide. */
export const ownMounts = (): Map<string, Mount> =>
  visibleByPoint(parseMounts(readFileSync("/proc/self/mountinfo", "latin1")));

/** Where one of these datasets is mounted, for this process; undefined for nowhere. */
export const findMountOf = (datasets: readonly string[]): Mount | undefined =>
  [...ownMounts().values()].find(({ type, source }) => type === "zfs" && datasets.includes(source));

/** The dataset that is mounted as a whole; undefined for a snapshot, a folder of one, and another file system. */
export const datasetOf = (mount: Mount | undefined): string | undefined =>
  mount?.type === "zfs" && mount.root === "/" && !mount.source.includes("@") ? mount.source : undefined;

/** A folder as `ownMounts` has where something is: without links, bytes as characters. */
export const mountPath = (path: string): string =>
  realpathSync(path, { encoding: "buffer" }).toString("latin1");

/** A text of /proc/PID/mountinfo. */
export const parseMounts = (text: string): Mount[] =>
  text
    .split("\n")
    .filter(Boolean)
    .map((line) => {
      const [before = "", after = ""] = line.split(" - ");
      const fields = before.split(" ").map(unescapeOctal);
      const [id = "", parent = "", device = "", root = "", point = "", options = ""] = fields;
      const [type = "", source = "", ofFileSystem = ""] = after.split(" ").map(unescapeOctal);
      const superOptions = ofFileSystem.split(",");
      const readOnly = [options.split(","), superOptions].some((list) => list.includes("ro"));
      return { id, parent, device, root, point, type, source, options: superOptions, readOnly };
    });

/** By where they are; a mount hides what was mounted before at the same place or below it. */
export function visibleByPoint(mounts: readonly Mount[]): Map<string, Mount> {
  const visible = new Map<string, Mount>();
  for (const mount of mounts) {
    const below = mount.point === "/" ? "/" : `${mount.point}/`;
    for (const point of visible.keys()) {
      if (point === mount.point || point.startsWith(below)) visible.delete(point);
    }
    visible.set(mount.point, mount);
  }
  return visible;
}

/** As the kernel and exportfs write blanks in names. */
export const unescapeOctal = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_match, digits: string) => String.fromCharCode(parseInt(digits, 8)));

/** The same the other way, for a field of fstab(5). */
export const escapeOctal = (text: string): string =>
  text.replace(/[\s\\#]/g, (character) => `\\${character.charCodeAt(0).toString(8).padStart(3, "0")}`);

/** The device that a path leads to, as in `Mount`; undefined where it leads nowhere. */
export async function deviceOf(path: string): Promise<string | undefined> {
  const file = await stat(path).catch(() => undefined);
  if (file === undefined) return undefined;
  // st_dev as glibc packs it.
  const bits = BigInt(file.dev);
  const major = ((bits >> 8n) & 0xfffn) | ((bits >> 32n) & ~0xfffn);
  const minor = (bits & 0xffn) | ((bits >> 12n) & ~0xffn);
  return `${major}:${minor & 0xffffffffn}`;
}

/** Where a process sees a dataset, and no other mount lies over it. */
export async function visibleMounts(pid: number | string, datasets: readonly string[]): Promise<Mount[]> {
  const visible: Mount[] = [];
  for (const mount of await readMounts(pid)) {
    if (mount.type !== "zfs" || !datasets.includes(mount.source)) continue;
    if ((await deviceOf(join("/proc", String(pid), "root", mount.point))) === mount.device)
      visible.push(mount);
  }
  return visible;
}
