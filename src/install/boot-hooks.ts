import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { guarded } from "../system/files.js";
import { resolveWithin } from "../system/tree.js";
import { poolOf } from "../system/zfs.js";
import { MARKER, shellWord, type PlacedFile } from "./boot-units.js";
import { findKernels, type Loader } from "./environment-rules.js";

// What counts boots of an environment on trial before its root is mounted: formats/environments.md, On trial. formats/boot.md shows
// the texts.

/** What makes a site's initramfs. */
export const INITRAMFS = ["initramfs-tools", "dracut"] as const;
export type Initramfs = (typeof INITRAMFS)[number];

/** Where each has its files, the one that counts first. */
export const HOOK_PLACES: Record<Initramfs, readonly Pick<PlacedFile, "path" | "mode">[]> = {
  "initramfs-tools": [{ path: "/etc/initramfs-tools/scripts/local-premount/zferry", mode: 0o755 }],
  dracut: [
    { path: "/etc/dracut.conf.d/zferry-hook.sh", mode: 0o755 },
    { path: "/etc/dracut.conf.d/zferry.conf", mode: 0o644 },
  ],
};

/** What makes the next initramfs have the hook. */
export const MAKE_INITRAMFS: Record<Initramfs, string> = {
  "initramfs-tools": "update-initramfs -u -k all",
  dracut: "dracut --regenerate-all --force",
};

/** There once the hook has run in this boot; what it counted is in it. */
export const HOOK_MARK = "/run/zferry-trial";

export interface HookOptions {
  /** The dataset right above the environments. */
  readonly container: string;
  readonly loader: Loader;
}

/** The files that have an initramfs count boots. */
export function hookFiles(kind: Initramfs, options: HookOptions): PlacedFile[] {
  const texts =
    kind === "initramfs-tools"
      ? [
          `#!/bin/sh\n${MARKER}\n[ "\${1-}" != prereqs ] || { echo resume; exit 0; }\n${hookText(kind, options)}`,
        ]
      : [`#!/bin/sh\n${MARKER}\n${hookText(kind, options)}`, dracutConfiguration()];
  return HOOK_PLACES[kind].map((place, index) => ({ ...place, text: texts[index] ?? "" }));
}

/** dracut's own hooks lie in /usr: this has it take ours from /etc. Its configuration is a text for bash. */
const dracutConfiguration = (): string => `${MARKER}
for folder in /lib /usr/lib; do
	include_src+=(${HOOK_PLACES.dracut[0]?.path ?? ""})
	include_target+=($folder/dracut/hooks/pre-mount/80-zferry.sh)
done
install_optional_items+=" date sync "
`;

/** initramfs-tools runs it before it imports the pool, dracut before or after. dracut runs it in its own shell: nothing may leave that. */
function hookText(kind: Initramfs, { container, loader }: HookOptions): string {
  return String.raw`# It is replaced when that runs again. Counts the boot of a boot environment on trial, and goes back to the one before when
# its boots are spent. Whatever fails here, the boot goes on.
(
container=${shellWord(container)}
pool=${shellWord(poolOf(container))}
loader=${loader}
reboots=${kind === "dracut" ? "yes" : ""}
mark=${HOOK_MARK}
tab=$(printf '\t')

say() {
	echo "zferry: $*" >&2
	echo "zferry: $*" 2>/dev/null >/dev/kmsg
}

limited() {
	if command -v timeout >/dev/null 2>&1; then timeout 60 "$@"; else "$@"; fi
}

# What is to be /: the environment that the command line names, or what the pool has as bootfs.
find_named() {
	named= asks=yes
	set -f
	for word in $(cat /proc/cmdline); do
		case $word in
			root=* | real_root=* | bootfs=* | zfs-bootfs=*) value=${"${word#*=}"} ;;
			*) continue ;;
		esac
		value=${"${value#zfs:}"}
		value=${"${value#ZFS=}"}
		case $value in
			"" | zfs | AUTO) ;;
			"$container"/*) named=$value asks= ;;
			*) asks= ;;
		esac
	done
	set +f
}

import_pool() {
	imported=
	modprobe zfs 2>/dev/null
	! is_imported || return 0
	udevadm settle --timeout=10 2>/dev/null
	[ ! -r /etc/default/zfs ] || . /etc/default/zfs
	[ -z "$ZPOOL_IMPORT_PATH" ] || export ZPOOL_IMPORT_PATH
	wait_for_disks
	force=
	for word in $(cat /proc/cmdline); do
		case $word in zfs_force=1 | zfs_force=on | zfs_force=yes | zfs.force=1 | zfs.force=on | zfs.force=yes | zfsforce=1 | zfsforce=on | zfsforce=yes) force=-f ;; esac
	done
	# Nothing may open a volume, which would keep the pool from being exported.
	inhibit=/sys/module/zfs/parameters/zvol_inhibit_dev
	inhibited=$(cat $inhibit 2>/dev/null)
	echo 1 2>/dev/null >$inhibit
	tries=0
	until zpool import -N -o cachefile=none $force $ZPOOL_IMPORT_OPTS "$pool" 2>/dev/null || is_imported; do
		tries=$((tries + 1))
		if [ $tries -ge 10 ]; then
			restore_volumes
			return 1
		fi
		sleep 1
	done
	imported=yes
}

# As long as the site has disks waited for, a pool is not imported that is not whole.
wait_for_disks() {
	waits=0
	for seconds in "$ROOTDELAY" "$ZFS_INITRD_PRE_MOUNTROOT_SLEEP" "$ZFS_INITRD_POST_MODPROBE_SLEEP"; do
		case $seconds in [1-9] | [1-9][0-9] | [1-9][0-9][0-9]) waits=$((waits + seconds)) ;; esac
	done
	while [ $waits -gt 0 ] && [ -z "$(find_whole)" ]; do
		waits=$((waits - 1))
		sleep 1
	done
}

find_whole() {
	found=
	zpool import $ZPOOL_IMPORT_OPTS 2>/dev/null | while read -r key value; do
		case "$key $value" in
			"pool: $pool") found=yes ;;
			"pool: "*) found= ;;
			"state: ONLINE") [ -z "$found" ] || echo yes ;;
		esac
	done
}

is_imported() { zpool list -H -o name "$pool" >/dev/null 2>&1; }

restore_volumes() { [ -z "$inhibited" ] || echo "$inhibited" 2>/dev/null >$inhibit; }

leave_pool() {
	if [ -z "$imported" ]; then
		limited zpool sync "$pool" 2>/dev/null
		return 0
	fi
	tries=0
	while is_imported && ! zpool export "$pool" 2>/dev/null; do
		tries=$((tries + 1))
		if [ $tries -ge 10 ]; then
			say "cannot export $pool again"
			break
		fi
		sleep 1
	done
	restore_volumes
}

own() { limited zfs get -H -p -s local -o value "$1" "$dataset" 2>/dev/null; }

is_count() {
	case $1 in
		[0-9] | [1-9][0-9]) ;;
		*) return 1 ;;
	esac
}

find_before() {
	limited zfs get -H -p -t filesystem -d 1 -o name,value guid "$container" 2>/dev/null |
		while IFS=$tab read -r name value; do
			[ "$value" != "$1" ] || [ "$name" = "$container" ] || echo "$name"
		done
}

go_back() {
	guid=$(own zferry:previous)
	before=
	[ -z "$guid" ] || before=$(find_before "$guid")
	if [ -z "$before" ] || [ "$before" = "$dataset" ]; then
		say "the boots of $dataset are spent, and the environment before it is not there: it is booted again"
		return
	fi
	limited zfs set "zferry:failed=$(date +%s 2>/dev/null || echo 0) boot $boots of $trial was not confirmed" "$dataset" 2>/dev/null
	if [ $loader != bootfs ]; then
		say "the boots of $dataset are spent: choose $before in the boot menu, loader $loader is not switched from here"
		return
	fi
	limited zpool set "bootfs=$before" "$pool" 2>/dev/null
	if [ "$(limited zpool get -H -o value bootfs "$pool" 2>/dev/null)" != "$before" ]; then
		say "the boots of $dataset are spent, and $before cannot be made bootfs of $pool: it is booted again"
		return
	fi
	limited zfs inherit zferry:trial "$dataset" 2>/dev/null
	if [ -n "$named$reboots" ]; then again=yes; fi
	say "the boots of $dataset are spent: going back to $before"
}

judge() {
	trial=$(own zferry:trial)
	[ -n "$trial" ] && [ -z "$(own zferry:confirmed)" ] || return 0
	if ! is_count "$trial" || [ "$trial" -eq 0 ]; then
		say "$dataset has zferry:trial=$trial, which is no number of boots: they are not counted"
		return
	fi
	boots=$(own zferry:boots)
	is_count "$boots" || boots=0
	if [ "$boots" -ge "$trial" ]; then
		go_back
		return
	fi
	boots=$((boots + 1))
	if limited zfs set "zferry:boots=$boots" "$dataset" 2>/dev/null; then
		echo "$dataset" >$mark
		say "$dataset is on trial: boot $boots of $trial"
	else
		say "$dataset is on trial, and its boot cannot be counted"
	fi
}

again=
# Debian's runs such scripts twice.
if [ ! -e $mark ]; then
	: >$mark
	find_named
	if [ -n "$named$asks" ]; then
		if import_pool; then
			dataset=$named
			[ -n "$named" ] || dataset=$(limited zpool get -H -o value bootfs "$pool" 2>/dev/null)
			case $dataset in *@*) ;; "$container"/*) judge ;; esac
			leave_pool
		else
			say "cannot import $pool to see whether what boots is on trial"
		fi
	fi
fi
if [ -n "$again" ]; then
	sync
	reboot -f || echo b >/proc/sysrq-trigger
	sleep 60
fi
) </dev/null || :
`;
}

/** What is told of an environment on trial where nothing counts its boots before it is mounted. */
export const HOOK_WARNINGS = {
  there: [],
  absent: [
    "no hook counts its boots in the initramfs: if its kernel or init fails, the one before must be chosen in the boot menu; bundle setup has more",
  ],
  stale: [
    "its initramfs was made before the hook that counts its boots was set up: if its kernel or init fails, the one before must be chosen in the boot menu; bundle setup has more",
  ],
  loader: (loader: Loader): string =>
    `an initramfs cannot switch what loader ${loader} boots: if its kernel or init fails, the one before must be chosen in the boot menu`,
} as const;

/** `stale`: a system has the hook, and an initramfs in its /boot that was made before. */
export type HookState = "there" | "stale" | "absent";

/** Whether a system's initramfs has the hook, as far as its files tell; `folder` has the system. */
export function findHook(folder: string): HookState {
  const written = INITRAMFS.flatMap((kind) =>
    HOOK_PLACES[kind].slice(0, 1).flatMap(({ path }) => changedAt(folder, path)),
  );
  if (written.length === 0) return "absent";
  const boot = resolveWithin(folder, "/boot");
  const names = boot === undefined ? [] : guarded(boot, () => readdirSync(boot));
  const made = findKernels(names).found.flatMap(({ initramfs }) =>
    changedAt(folder, join("/boot", initramfs)),
  );
  return made.some((time) => time < Math.min(...written)) ? "stale" : "there";
}

/** When a file's contents were changed, in milliseconds; none where there is no such file. */
function changedAt(folder: string, path: string): number[] {
  const file = resolveWithin(folder, path);
  return file === undefined ? [] : [statSync(file).mtimeMs];
}
