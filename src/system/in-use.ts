import { readdir, readFile, readlink, stat } from "node:fs/promises";
import { join } from "node:path";

/** A running process that executes or has mapped a file of a dataset. */
export interface Runner {
  readonly pid: number;
  /** The name that the kernel shows. */
  readonly name: string;
  /** The file of the dataset. */
  readonly path: string;
}

const readText = (path: string): Promise<string> => readFile(path, "utf8").catch(() => "");

/**
 * Processes of the running system whose program or mapped files lie on a dataset, wherever any process sees it
 * mounted. A receive into the dataset would take the files from under them.
 */
export async function processesRunningFrom(dataset: string): Promise<Runner[]> {
  const pids = (await readdir("/proc")).filter((name) => /^[0-9]+$/.test(name));
  const devices = await mountedDevices(dataset, pids);
  if (devices.size === 0) return [];
  const runners: Runner[] = [];
  for (const pid of pids) {
    const path = (await runningProgram(pid, devices)) ?? (await mappedFile(pid, devices));
    if (path === undefined) continue;
    runners.push({ pid: Number(pid), name: (await readText(join("/proc", pid, "comm"))).trim(), path });
  }
  return runners;
}

/** Device numbers, "major:minor" in decimal, under which any mount namespace has the dataset. */
async function mountedDevices(dataset: string, pids: readonly string[]): Promise<Set<string>> {
  const devices = new Set<string>();
  const namespaces = new Set<string>();
  for (const pid of pids) {
    const namespace = await readlink(join("/proc", pid, "ns/mnt")).catch(() => "");
    if (namespace === "" || namespaces.has(namespace)) continue;
    namespaces.add(namespace);
    for (const line of (await readText(join("/proc", pid, "mountinfo"))).split("\n")) {
      const [before = "", after = ""] = line.split(" - ");
      const [type, source = ""] = after.split(" ");
      if (type === "zfs" && unescapeOctal(source) === dataset) devices.add(before.split(" ")[2] ?? "");
    }
  }
  return devices;
}

const unescapeOctal = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_match, digits: string) => String.fromCharCode(parseInt(digits, 8)));

async function runningProgram(pid: string, devices: ReadonlySet<string>): Promise<string | undefined> {
  const program = join("/proc", pid, "exe");
  const file = await stat(program).catch(() => undefined);
  if (file === undefined || !devices.has(decimalDevice(file.dev))) return undefined;
  return readlink(program).catch(() => program);
}

/** st_dev as glibc packs it. */
function decimalDevice(device: number): string {
  const bits = BigInt(device);
  const major = ((bits >> 8n) & 0xfffn) | ((bits >> 32n) & ~0xfffn);
  const minor = (bits & 0xffn) | ((bits >> 12n) & ~0xffn);
  return `${major}:${minor & 0xffffffffn}`;
}

async function mappedFile(pid: string, devices: ReadonlySet<string>): Promise<string | undefined> {
  for (const line of (await readText(join("/proc", pid, "maps"))).split("\n")) {
    // address perms offset dev inode path; dev in hexadecimal
    const [, major, minor, path] = /^\S+ \S+ \S+ ([0-9a-f]+):([0-9a-f]+) \d+\s+(.*)$/.exec(line) ?? [];
    if (major === undefined || minor === undefined) continue;
    if (devices.has(`${parseInt(major, 16)}:${parseInt(minor, 16)}`)) return path ?? "";
  }
  return undefined;
}
