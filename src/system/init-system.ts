import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
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
 * The command that starts this very zferry: node and the program, as absolute paths without links. It needs no PATH;
 * and what `bundle` means elsewhere, or what a link is changed to, does not matter to it.
 */
export const ownCommand = (): string[] => [
  process.execPath,
  fileURLToPath(new URL("../cli.js", import.meta.url)),
];
