import type { InitSystem } from "../system/init-system.js";
import {
  argumentsOf,
  MARKER,
  mountsFor,
  PATH,
  requirePrintable,
  shellWord,
  systemdWord,
  type BootCommand,
  type BootUnit,
} from "./boot-units.js";

// formats/boot.md shows these texts and has the reasons for every line.

export const TRIAL_PLACES: Record<InitSystem, Pick<BootUnit, "path" | "mode" | "links">> = {
  systemd: {
    path: "/etc/systemd/system/zferry-trial.service",
    mode: 0o644,
    links: [
      {
        path: "/etc/systemd/system/sysinit.target.wants/zferry-trial.service",
        target: "../zferry-trial.service",
      },
    ],
  },
  openrc: {
    path: "/etc/init.d/zferry-trial",
    mode: 0o755,
    // Debian never starts the runlevel boot.
    links: ["boot", "default"].map((level) => ({
      path: `/etc/runlevels/${level}/zferry-trial`,
      target: "/etc/init.d/zferry-trial",
    })),
  },
};

/**
 * What has an init system confirm a boot environment on trial, or go back.
 * @throws ZferryError `usage` for a path that has no place in a line of text
 */
export function trialUnit(init: InitSystem, command: BootCommand): BootUnit {
  requirePrintable(command);
  const text = init === "systemd" ? systemdUnit(command) : openrcScript(command);
  return { ...TRIAL_PLACES[init], text };
}

const wordsOf = (command: BootCommand): string[] => argumentsOf(command, "confirm", "--or-go-back");

function systemdUnit(command: BootCommand): string {
  const { program, leadsTo, config } = command;
  const mounts = mountsFor(command, [...program, ...leadsTo, ...(config === undefined ? [] : [config])]);
  return `${MARKER}
# It is replaced when that runs again; a drop-in (systemctl edit) stays.
[Unit]
Description=Confirm a boot environment on trial, or go back
DefaultDependencies=no
After=systemd-remount-fs.service
Conflicts=shutdown.target
Before=shutdown.target
RequiresMountsFor=${mounts}

[Service]
Type=exec
Environment=PATH=${PATH}
ExecStart=:${wordsOf(command).map(systemdWord).join(" ")}
Restart=on-abnormal
RestartSec=10
StandardOutput=journal
StandardError=journal+console
TimeoutStopSec=30
KillMode=mixed

[Install]
WantedBy=sysinit.target
`;
}

function openrcScript(command: BootCommand): string {
  return `#!/sbin/openrc-run
${MARKER}
# It is replaced when that runs again.

description="Confirms a boot environment on trial, or goes back"

depend() {
	after localmount zfs-mount
	keyword -timeout
}

start() {
	ebegin "Looking after a boot environment on trial"
	PATH=${PATH} \\
		start-stop-daemon --start --background --make-pidfile --pidfile /run/zferry-trial.pid \\
		--exec /bin/sh -- -c 'exec "$@" >/run/zferry-trial.log 2>&1' sh \\
		${wordsOf(command).map(shellWord).join(" ")}
	eend $?
}

stop() {
	start-stop-daemon --stop --pidfile /run/zferry-trial.pid --retry 30 || return 0
}
`;
}
