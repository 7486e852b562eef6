import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { lstatSync, readdirSync, readFileSync, readlinkSync, type Stats } from "node:fs";

/** Something below a folder; its path is latin1 and relative. */
export interface OnDisk {
  readonly path: string;
  readonly place: Buffer;
  readonly stat: Stats;
}

/** The place of a path that is latin1. */
export const placeOf = (root: string, path: string): Buffer =>
  Buffer.concat([Buffer.from(`${root}/`), Buffer.from(path, "latin1")]);

/** All below a folder, each folder before what it has, without what is in those of the paths that are left out. */
export function listDisk(root: string, leftOut: readonly string[] = []): OnDisk[] {
  const found: OnDisk[] = [];
  const visit = (folder: string): void => {
    const names = readdirSync(placeOf(root, folder), { encoding: "buffer" });
    for (const name of names.map((bytes) => bytes.toString("latin1")).sort()) {
      const path = folder === "" ? name : `${folder}/${name}`;
      if (leftOut.includes(path)) continue;
      const place = placeOf(root, path);
      const stat = lstatSync(place);
      found.push({ path, place, stat });
      if (stat.isDirectory()) visit(path);
    }
  };
  visit("");
  return found;
}

export const targetOf = (place: Buffer): string =>
  readlinkSync(place, { encoding: "buffer" }).toString("latin1");

/** A line for each: path, type, owner and permissions, and content by its hash. */
export const describeDisk = (found: readonly OnDisk[]): string =>
  found
    .map(({ path, place, stat }) => {
      const { uid, gid, mode } = stat;
      const content = stat.isSymbolicLink()
        ? targetOf(place)
        : stat.isFile()
          ? createHash("sha1").update(readFileSync(place)).digest("hex")
          : stat.rdev;
      return `${JSON.stringify(path)} ${uid}:${gid} ${mode.toString(8)} ${content}\n`;
    })
    .join("");

/** The paths that are one file, for each that has several. */
export function linksAmong(found: readonly OnDisk[]): string[][] {
  const groups = new Map<number, string[]>();
  for (const { path, stat } of found) {
    if (stat.isFile() && stat.nlink > 1) groups.set(stat.ino, [...(groups.get(stat.ino) ?? []), path]);
  }
  return [...groups.values()]
    .filter(({ length }) => length > 1)
    .map((paths) => paths.sort())
    .sort(([a = ""], [b = ""]) => (a < b ? -1 : 1));
}

/** As getfattr shows paths. */
const unescapeOctal = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(parseInt(digits, 8)));

/** Values in hex by name, by path, of what has any below a folder, without git's. */
export function readXattrs(root: string): Map<string, Record<string, string>> {
  const args = ["-R", "-h", "-d", "-m", "-", "-e", "hex", "."];
  const { error, stdout } = spawnSync("getfattr", args, {
    cwd: root,
    encoding: "latin1",
    maxBuffer: 1 << 28,
  });
  if (error !== undefined) throw error;
  const found = new Map<string, Record<string, string>>();
  for (const block of stdout.split("\n\n").filter(Boolean)) {
    const [header = "", ...lines] = block.split("\n");
    const path = unescapeOctal(header.replace("# file: ", ""));
    if (path.startsWith(".git/")) continue;
    const values = lines.map((line) => line.split("=")).map(([name = "", value = ""]) => [name, value]);
    found.set(path, Object.fromEntries(values) as Record<string, string>);
  }
  return found;
}
