import { readFileSync } from "node:fs";
import type { SiteConfig } from "../config.js";
import type { RawPath } from "../raw-path.js";
import { guarded } from "../system/files.js";
import type { InitSystem } from "../system/init-system.js";
import { mountPath, ownMounts } from "../system/mounts.js";
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
    ...(tree.path === "/" ? commandLineAdvice(kinds, container, readCommandLine()) : []),
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
  const { type, source = "" } = ownMounts().get(mountPath(tree.path)) ?? {};
  const above = type === "zfs" ? parentOf(source) : "";
  return above === "" ? undefined : above;
}

const readCommandLine = (): string => guarded("/proc/cmdline", () => readFileSync("/proc/cmdline", "utf8"));

/** What has a kernel that panics reboot, and what has an initramfs of dracut do so which cannot mount `/`, instead of giving a shell. */
const WANTED_WORDS: readonly { readonly word: string; readonly accepted: RegExp; readonly of?: Initramfs }[] =
  [
    { word: "panic=30", accepted: /^panic=-?[1-9][0-9]*$/ },
    { word: "rd.shell=0", accepted: /^rd\.shell=(?:0|no|off)$/, of: "dracut" },
    { word: "rd.emergency=reboot", accepted: /^rd\.emergency=reboot$/, of: "dracut" },
  ];

/**
 * What a kernel's command line lacks of that by which a system that does not come up reboots, in lines for people.
 * @param kinds what makes the site's initramfs
 */
export function commandLineAdvice(
  kinds: readonly Initramfs[],
  container: string,
  commandLine: string,
): string[] {
  const words = commandLine.trim().split(/\s+/);
  const missing = WANTED_WORDS.filter(
    ({ accepted, of }) =>
      (of === undefined || kinds.includes(of)) && !words.some((each) => accepted.test(each)),
  ).map(({ word }) => word);
  if (missing.length === 0) return [];
  const added = missing.join(" ");
  return [
    `the kernel's command line has no ${added}: what stands still, a kernel that panics or an initramfs that cannot mount /, goes back only when somebody resets the machine`,
    `  for ZFSBootMenu: zfs set org.zfsbootmenu:commandline="$(zfs get -H -s local,received,inherited -o value org.zfsbootmenu:commandline ${container}) ${added}" ${container}`,
    "  for GRUB: in GRUB_CMDLINE_LINUX of /etc/default/grub, then update-grub; for systemd-boot: in options of its entries",
  ];
}
