import { existsSync, realpathSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import type { RawPath } from "../raw-path.js";
import { kindAt, type Tree } from "./tree.js";

export const INIT_SYSTEMS = ["systemd", "openrc"] as const;
export type InitSystem = (typeof INIT_SYSTEMS)[number];

/** What each keeps there while it is the one that booted the machine. */
const RUNNING: Record<InitSystem, string> = {
  systemd: "/run/systemd/system",
  openrc: "/run/openrc/softlevel",
};

/** Where the program may lie, by paths without a link: `/lib` or `/sbin` is one where everything is in `/usr`. */
const PROGRAMS: Record<InitSystem, readonly string[]> = {
  systemd: ["usr/lib/systemd/systemd", "lib/systemd/systemd"],
  openrc: ["sbin/openrc-run", "usr/sbin/openrc-run", "usr/bin/openrc-run"],
};

/** The one that booted this machine; undefined in a container, say. */
export const runningInitSystem = (): InitSystem | undefined =>
  INIT_SYSTEMS.find((init) => existsSync(RUNNING[init]));

/** Those whose program is in a system's tree; a system may have both. */
export const installedInitSystems = (tree: Tree): InitSystem[] =>
  INIT_SYSTEMS.filter((init) =>
    PROGRAMS[init].some((path) => ["file", "symlink"].includes(kindAt(tree, path as RawPath))),
  );

/**
 * The command that starts this very zferry: node and the program, as absolute paths. It needs no PATH, and what `bundle` means
 * elsewhere does not matter to it. A link that stands for the file itself is followed; one on the way to its folder is
 * kept, since that is what an update switches which was unpacked beside.
 */
export const ownCommand = (): string[] => {
  const program = process.argv[1] ?? "";
  return [asStarted(process.argv0, process.execPath), asStarted(program, realpathSync(program))];
};

/** `file` by way of the folder that it was started from, if it is there. */
function asStarted(name: string, file: string): string {
  const path = join(dirname(resolve(name)), basename(file));
  return existsSync(path) && realpathSync(path) === file ? path : file;
}
