import { join, normalize } from "node:path";
import { ZferryError } from "../errors.js";
import { printable } from "../report.js";
import type { InitSystem } from "../system/init-system.js";
import { MOUNTED_FROM } from "./state.js";

// formats/boot.md shows these texts and has the reasons for every line.

/** What zferry is started with at boot; all paths are absolute, in the system that boots. */
export interface BootCommand {
  /** Node and the program. */
  readonly program: readonly string[];
  /** The files that these are, where links lead to them. */
  readonly leadsTo: readonly string[];
  /** The site's configuration where it is not the usual one. */
  readonly config: string | undefined;
  /** The site's state folder. */
  readonly state: string;
  /** The work tree of the root half. */
  readonly root: string | undefined;
}

/** A file of a system, and the links that have it start at boot, if it needs any. Paths are absolute. */
export interface PlacedFile {
  readonly path: string;
  readonly text: string;
  readonly mode: number;
  readonly links?: readonly { readonly path: string; readonly target: string }[];
}

/** A file that an init system reads. */
export type BootUnit = Required<PlacedFile>;

/** Where they are, whatever is in them. */
export const PLACES: Record<InitSystem, Pick<BootUnit, "path" | "mode" | "links">> = {
  systemd: {
    path: "/etc/systemd/system/zferry-resume.service",
    mode: 0o644,
    links: [
      {
        path: "/etc/systemd/system/multi-user.target.wants/zferry-resume.service",
        target: "../zferry-resume.service",
      },
    ],
  },
  openrc: {
    path: "/etc/init.d/zferry-resume",
    mode: 0o755,
    links: [{ path: "/etc/runlevels/default/zferry-resume", target: "/etc/init.d/zferry-resume" }],
  },
};

export const MARKER = "# Written by bundle setup of zferry.";

/** Whether zferry wrote a file, this version or another. */
export const isOurs = (text: string): boolean => text.split("\n").includes(MARKER);

/** An init system's own PATH may lack any of these. It has no folder that others than root can write to. */
export const PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/**
 * What has an init system finish an interrupted install at boot.
 * @throws ZferryError `usage` for a path that has no place in a line of text
 */
export function bootUnit(init: InitSystem, command: BootCommand): BootUnit {
  requirePrintable(command);
  const text = init === "systemd" ? systemdUnit(command) : openrcScript(command);
  return { ...PLACES[init], text };
}

/** @throws ZferryError `usage` for a path that has no place in a line of text */
export function requirePrintable(command: BootCommand): void {
  for (const path of [...command.program, ...command.leadsTo, command.config, command.state, command.root]) {
    if (path === undefined || printable(path) === path) continue;
    throw new ZferryError("usage", `${JSON.stringify(path)}: has a control character`, {
      hint: "what starts at boot is named in a line of text: use another path",
    });
  }
}

/** A command of zferry, with its options, as it is started at boot. */
export const argumentsOf = ({ program, config }: BootCommand, ...command: readonly string[]): string[] => [
  ...program,
  ...command,
  ...(config === undefined ? [] : ["--config", config]),
];

/** Each says that there is something to be done, or to be told. */
const reasonsOf = ({ state }: BootCommand): string[] =>
  ["journal.json", MOUNTED_FROM].map((name) => join(state, name));

/** systemd.unit(5), Specifiers. */
const withoutSpecifiers = (text: string): string => text.replaceAll("%", "%%");

/** A word as systemd reads it back, where it splits a value into words. systemd.syntax(7), Quoting */
export const systemdWord = (word: string): string => {
  const text = withoutSpecifiers(word);
  return /^[\w/.%:@+,=-]+$/.test(text) ? text : `"${text.replace(/[\\"]/g, "\\$&")}"`;
};

/** What systemd mounts before it starts a unit that has these paths. @throws ZferryError `usage` */
export function mountsFor({ program: [executable = ""] }: BootCommand, paths: readonly string[]): string {
  if (/[\\"']/.test(executable)) {
    throw new ZferryError("usage", `systemd starts no program with such a name: ${executable}`, {
      hint: "quotes and backslashes must not be in the path of node: install it elsewhere",
    });
  }
  return [...new Set(paths)].map((path) => systemdWord(normalize(path))).join(" ");
}

function systemdUnit(command: BootCommand): string {
  const { program, leadsTo, config, state, root } = command;
  const paths = [state, ...program, ...leadsTo, ...[root, config].filter((path) => path !== undefined)];
  const mounts = mountsFor(command, paths);
  return `${MARKER}
# It is replaced when that runs again; a drop-in (systemctl edit) stays.
[Unit]
Description=Finish an interrupted install of zferry
DefaultDependencies=no
Requires=local-fs.target
After=local-fs.target zfs-import.target zfs-mount.service
Before=sysinit.target systemd-tmpfiles-setup.service ldconfig.service apparmor.service
Conflicts=shutdown.target
Before=shutdown.target
RequiresMountsFor=${mounts}
${reasonsOf(command)
  .map((path) => `ConditionPathExists=|${withoutSpecifiers(path)}`)
  .join("\n")}

[Service]
Type=oneshot
RemainAfterExit=yes
Environment=PATH=${PATH}
ExecStart=:${argumentsOf(command, "install", "--at-boot").map(systemdWord).join(" ")}
ExecStartPost=-systemctl daemon-reload
StandardOutput=journal+console
StandardError=journal+console
TimeoutStartSec=infinity
TimeoutStopSec=10min
KillMode=mixed

[Install]
WantedBy=multi-user.target
`;
}

export const shellWord = (word: string): string =>
  /^[\w/.%:@+,=-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;

function openrcScript(command: BootCommand): string {
  return `#!/sbin/openrc-run
${MARKER}
# It is replaced when that runs again.

description="Finishes an interrupted install of zferry"

depend() {
	before *
	keyword -timeout
}

start() {
	${reasonsOf(command)
    .map((path) => `[ -e ${shellWord(path)} ]`)
    .join(" || ")} || return 0
	ebegin "Finishing an interrupted install of zferry"
	PATH=${PATH} \\
		${argumentsOf(command, "install", "--at-boot").map(shellWord).join(" ")} </dev/null
	eend $? "it is not finished: bundle status tells what is under way"
}
`;
}
