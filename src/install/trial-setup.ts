import { readFileSync } from "node:fs";
import type { SiteConfig } from "../config.js";
import type { RawPath } from "../raw-path.js";
import { guarded } from "../system/files.js";
import type { InitSystem } from "../system/init-system.js";
import { ownMounts } from "../system/mounts.js";
import { kindAt, type Tree } from "../system/tree.js";
import { parentOf } from "../system/zfs.js";
import { hookFiles, HOOK_PLACES, INITRAMFS, MAKE_INITRAMFS, type Initramfs } from "./boot-hooks.js";
import type { BootCommand, PlacedFile } from "./boot-units.js";
import { TRIAL_PLACES, trialUnit } from "./trial-units.js";

// What bundle setup has of trials: formats/boot.md, On trial

/** What tells that a system makes its initramfs so. */
const TRACES: Record<Initramfs, readonly string[]> = {
  "initramfs-tools": ["etc/initramfs-tools", "usr/share/initramfs-tools"],
  dracut: ["etc/dracut.conf.d", "usr/lib/dracut"],
};

/** Where any of it may lie, the one that starts it first. */
export const trialPlaces = (inits: readonly InitSystem[]): readonly Omit<PlacedFile, "text" | "mode">[] => [
  ...inits.map((init) => TRIAL_PLACES[init]),
  ...INITRAMFS.flatMap((kind) => HOOK_PLACES[kind].toReversed()),
];

export interface TrialSetup {
  readonly files: readonly PlacedFile[];
  /** What is left to be done by hand, in lines. */
  readonly advice: readonly string[];
}

/**
 * What a system with boot environments has at boot that looks after those on trial; nothing of it for a site that is updated in place.
 * @throws ZferryError `usage` as `trialUnit`
 */
export function planTrialSetup(
  tree: Tree,
  init: InitSystem,
  site: SiteConfig,
  command: BootCommand,
): TrialSetup {
  if (site.install.mode !== "boot-environment") return { files: [], advice: [] };
  const unit = trialUnit(init, command);
  const container = containerOf(tree, site);
  if (container === undefined) {
    const why = `${tree.path} is no ZFS dataset: the hook for the initramfs needs container under [boot-environment]`;
    return { files: [unit], advice: [why] };
  }
  const { loader } = site["boot-environment"];
  const kinds = INITRAMFS.filter((kind) => TRACES[kind].some((path) => isThere(tree, path)));
  const found = kinds.flatMap((kind) => hookFiles(kind, { container, loader }));
  const advice = [
    ...(kinds.length === 0 ? [NO_INITRAMFS] : kinds.map(makeAdvice)),
    ...(loader === "bootfs" ? [] : [`the hook counts boots, and cannot switch what loader ${loader} boots`]),
    ...(tree.path === "/" ? panicAdvice(container) : []),
  ];
  return { files: [unit, ...found], advice };
}

const isThere = (tree: Tree, path: string): boolean =>
  !["absent", "blocked"].includes(kindAt(tree, path as RawPath));

const NO_INITRAMFS =
  "neither initramfs-tools nor dracut is there: boots are not counted in the initramfs, and an environment whose kernel or init fails must be left by hand, at the boot menu";

const makeAdvice = (kind: Initramfs): string =>
  `to have the hook in the initramfs of this system: ${MAKE_INITRAMFS[kind]}`;

/** Right above the dataset of the tree, where that is not configured. */
function containerOf(tree: Tree, site: SiteConfig): string | undefined {
  const configured = site["boot-environment"].container;
  if (configured !== undefined) return configured;
  const { type, source = "" } = ownMounts().get(tree.path) ?? {};
  const above = type === "zfs" ? parentOf(source) : "";
  return above === "" ? undefined : above;
}

/** A kernel that panics stays so, unless it is told to reboot. */
function panicAdvice(container: string): string[] {
  const words = guarded("/proc/cmdline", () => readFileSync("/proc/cmdline", "utf8"))
    .trim()
    .split(/\s+/);
  if (words.some((word) => /^panic=-?[1-9][0-9]*$/.test(word))) return [];
  return [
    "the kernel's command line has no panic=30: a kernel that panics stands still, and goes back only when somebody resets the machine",
    `  for ZFSBootMenu: zfs set org.zfsbootmenu:commandline="$(zfs get -H -o value org.zfsbootmenu:commandline ${container}) panic=30" ${container}`,
    "  for GRUB: in GRUB_CMDLINE_LINUX of /etc/default/grub, then update-grub; for systemd-boot: in options of its entries",
  ];
}
