import { open, readdir, readlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { deviceOf, readMounts, readText, unescapeOctal, visibleMounts, type Mount } from "./mounts.js";

/** A running process that executes, has mapped or otherwise uses a file of a dataset. */
export interface Runner {
  readonly pid: number;
  /** The name that the kernel shows. */
  readonly name: string;
  /** The file of the dataset. */
  readonly path: string;
}

const LOAD_BYTES = 1 << 20;

/** Who takes the files of a dataset for unchanging. */
export interface Uses {
  readonly runners: readonly Runner[];
  /** For people: what other machines or devices read from it. */
  readonly others: readonly string[];
  /** A file that this process runs from, or the place where it would find the next program; undefined if neither is there. */
  readonly own: string | undefined;
}

/**
 * Who uses a dataset, wherever any process sees it mounted: a receive into it would take the files from under them. These
 * are processes whose program or mapped files lie on it, those of other mount namespaces (containers) also for any open
 * file or folder, exports by NFS, loop devices, and overlays above it (systemd-sysext makes them), whose files are the
 * dataset's and are seen under another device. A program that we start can only come from a place that we see.
 */
export async function usesOf(dataset: string): Promise<Uses> {
  const pids = await processes();
  const { devices, points, overlays } = await mountsOf(dataset, pids);
  if (devices.size === 0) return { runners: [], others: [], own: undefined };
  const systems = await namespaceOf("1");
  const runners: Runner[] = [];
  for (const pid of pids) {
    const path =
      (await usedFile(pid, ["exe"], devices)) ??
      (await mappedFile(pid, devices)) ??
      ((await namespaceOf(pid)) === systems ? undefined : await openFile(pid, devices));
    if (path === undefined) continue;
    runners.push({ pid: Number(pid), name: (await readText(join("/proc", pid, "comm"))).trim(), path });
  }
  const [place] = await visibleMounts("self", [dataset]);
  return {
    runners,
    others: [...(await exportsOf(devices, points)), ...(await loopsOf(devices)), ...overlays],
    own: runners.find(({ pid }) => pid === process.pid)?.path ?? place?.point,
  };
}

const processes = async (): Promise<string[]> =>
  (await readdir("/proc")).filter((name) => /^[0-9]+$/.test(name));

const namespaceOf = (pid: string): Promise<string> => readlink(join("/proc", pid, "ns/mnt")).catch(() => "");

/**
 * Devices, as in `Mount`, under which any mount namespace has the dataset, the places where it is seen, and the overlays that
 * have a folder of it among theirs, in words.
 */
async function mountsOf(
  dataset: string,
  pids: readonly string[],
): Promise<{ devices: Set<string>; points: Set<string>; overlays: Set<string> }> {
  const devices = new Set<string>();
  const points = new Set<string>();
  const overlays = new Set<string>();
  const namespaces = new Set<string>();
  for (const pid of pids) {
    const namespace = await namespaceOf(pid);
    if (namespace === "" || namespaces.has(namespace)) continue;
    namespaces.add(namespace);
    const mounts = await readMounts(pid);
    const own = mounts.filter(({ type, source }) => type === "zfs" && source === dataset);
    for (const { device, point } of own) {
      devices.add(device);
      points.add(point);
    }
    for (const mount of mounts) {
      const holders = layersOf(mount).map((layer) => holderOf(layer, mounts));
      const below = own.find((each) => holders.includes(each));
      if (below !== undefined) overlays.add(`an overlay on ${mount.point} of ${below.point}`);
    }
  }
  return { devices, points, overlays };
}

/** The folders that an overlay lays over each other. */
const layersOf = ({ type, options }: Mount): string[] =>
  type !== "overlay"
    ? []
    : options.flatMap((option) => {
        const [, folders] = /^(?:lowerdir|upperdir)\+?=(.*)$/.exec(option) ?? [];
        return folders?.split(":") ?? [];
      });

/** The mount that a layer lies on: the overlay itself may cover it. */
const holderOf = (layer: string, mounts: readonly Mount[]): Mount | undefined =>
  mounts
    .filter(({ type, point }) => type !== "overlay" && isWithin(point, layer))
    .sort((a, b) => a.point.length - b.point.length)
    .at(-1);

const isWithin = (folder: string, path: string): boolean =>
  path === folder || path.startsWith(folder.replace(/\/?$/, "/"));

/** The first of a process's links in /proc that leads to one of the devices: where it leads. */
async function usedFile(
  pid: string,
  links: readonly string[],
  devices: ReadonlySet<string>,
): Promise<string | undefined> {
  for (const link of links.map((name) => join("/proc", pid, name))) {
    const device = await deviceOf(link);
    if (device !== undefined && devices.has(device)) return readlink(link).catch(() => link);
  }
  return undefined;
}

async function openFile(pid: string, devices: ReadonlySet<string>): Promise<string | undefined> {
  const descriptors = await readdir(join("/proc", pid, "fd")).catch(() => []);
  return usedFile(pid, ["root", "cwd", ...descriptors.map((name) => join("fd", name))], devices);
}

async function mappedFile(pid: string, devices: ReadonlySet<string>): Promise<string | undefined> {
  return (await mapsOf(pid, devices))[0]?.path;
}

/** What a process has mapped from the devices: addresses, and the file. */
async function mapsOf(
  pid: string,
  devices: ReadonlySet<string>,
): Promise<{ from: number; to: number; path: string }[]> {
  return (await readText(join("/proc", pid, "maps"))).split("\n").flatMap((line) => {
    // address perms offset dev inode path; addresses and dev in hexadecimal
    const [, from = "", to = "", major = "", minor = "", path = ""] =
      /^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ ([0-9a-f]+):([0-9a-f]+) \d+\s+(.*)$/.exec(line) ?? [];
    if (!devices.has(`${parseInt(major, 16)}:${parseInt(minor, 16)}`)) return [];
    return [{ from: parseInt(from, 16), to: parseInt(to, 16), path }];
  });
}

/**
 * Has all that processes have mapped of a dataset read into memory. What is there stays when the files are gone, as long as
 * memory is not short: so most of what runs, the first process above all, lives on until the reboot.
 */
export async function loadMapped(dataset: string): Promise<void> {
  const pids = await processes();
  const { devices } = await mountsOf(dataset, pids);
  const buffer = Buffer.allocUnsafe(LOAD_BYTES);
  for (const pid of pids) {
    const maps = await mapsOf(pid, devices);
    // It may have ended, or the kernel may forbid it.
    const memory =
      maps.length === 0 ? undefined : await open(join("/proc", pid, "mem")).catch(() => undefined);
    for (const { from, to } of memory === undefined ? [] : maps) {
      for (let at = from; at < to; at += LOAD_BYTES) {
        await memory?.read(buffer, 0, Math.min(LOAD_BYTES, to - at), at).catch(() => undefined);
      }
    }
    await memory?.close();
  }
}

/** What the NFS server of the kernel knows, and what exportfs would tell it when it is asked. */
async function exportsOf(devices: ReadonlySet<string>, points: ReadonlySet<string>): Promise<string[]> {
  const found = new Set<string>();
  for (const table of ["/proc/fs/nfsd/exports", "/var/lib/nfs/etab"]) {
    for (const line of (await readText(table)).split("\n")) {
      const [, escaped = "", options = ""] = /^(\/\S*)\s+(.*)$/.exec(line) ?? [];
      if (escaped === "") continue;
      const path = unescapeOctal(escaped);
      const device = await deviceOf(path);
      const crossed =
        /\bcrossmnt\b/.test(options) &&
        [...points].some((point) => point.startsWith(path.replace(/\/?$/, "/")));
      if (crossed || (device !== undefined && devices.has(device))) found.add(`export of ${path} by NFS`);
    }
  }
  return [...found];
}

async function loopsOf(devices: ReadonlySet<string>): Promise<string[]> {
  const found: string[] = [];
  for (const name of await readdir("/sys/block").catch(() => [])) {
    const file = (await readText(join("/sys/block", name, "loop/backing_file"))).trimEnd();
    const device = file === "" ? undefined : await deviceOf(file);
    if (device !== undefined && devices.has(device)) found.push(`/dev/${name}, which is ${file}`);
  }
  return found;
}

/**
 * Who may hold a lock file of git's: processes that have it open, and gits that work in or below the folder's work tree, since git
 * closes such a file before it gives it up.
 * @param gitDir the repository
 * @returns for people: names and numbers of processes
 */
export async function holdersOf(lock: string, gitDir: string): Promise<string[]> {
  const workTree = dirname(gitDir);
  const holders: string[] = [];
  for (const pid of await processes()) {
    if (pid === String(process.pid)) continue;
    const name = (await readText(join("/proc", pid, "comm"))).trim();
    const descriptors = await readdir(join("/proc", pid, "fd")).catch(() => []);
    const links = ["cwd", ...descriptors.map((each) => join("fd", each))];
    for (const link of links) {
      const place = await readlink(join("/proc", pid, link)).catch(() => "");
      if (place !== lock && !(/^git(-|$)/.test(name) && isWithin(workTree, place))) continue;
      holders.push(`${name} (${pid})`);
      break;
    }
  }
  return holders;
}
