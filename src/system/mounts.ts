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
}

export const readText = (path: string): Promise<string> => readFile(path, "utf8").catch(() => "");

/** The mounts as a process sees them, in the order in which they can be made; none of a process that is gone. */
export async function readMounts(pid: number | string): Promise<Mount[]> {
  const lines = (await readText(join("/proc", String(pid), "mountinfo"))).split("\n");
  return lines.filter(Boolean).map((line) => {
    const [before = "", after = ""] = line.split(" - ");
    const [id = "", parent = "", device = "", root = "", point = ""] = before.split(" ").map(unescapeOctal);
    const [type = "", source = "", options = ""] = after.split(" ").map(unescapeOctal);
    return { id, parent, device, root, point, type, source, options: options.split(",") };
  });
}

/** As the kernel and exportfs write blanks in names. */
export const unescapeOctal = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_match, digits: string) => String.fromCharCode(parseInt(digits, 8)));

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
