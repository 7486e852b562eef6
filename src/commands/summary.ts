import type { Command } from "commander";
import { VerifiedBundle, type Bundle, type Trust } from "../bundle/reader.js";
import type { Manifest, ManifestStream } from "../bundle/manifest.js";
import type { InstallMode } from "../config.js";
import { ZferryError } from "../errors.js";
import type { SiteTrust } from "../install/trust.js";
import type { Environment } from "../report.js";
import { openBundleFile, type OpenedFile } from "../system/bundle-file.js";
import { readPublicKey } from "../system/key-files.js";
import { usualThreads } from "../system/threads.js";
import type { KeyChange } from "../trust/keys.js";
import { parsePublicKey } from "../trust/minisign.js";

/** For commander: an option that can be given several times. */
export const repeatable = (value: string, previous: readonly string[] = []): readonly string[] => [
  ...previous,
  value,
];

/** "R1 (guid 12…)", "guid 12…" or "nothing" */
export const describeBase = ({ base }: ManifestStream): string => {
  if (base === undefined) return "nothing";
  return base.snapshot === undefined ? `guid ${base.guid}` : `${base.snapshot} (guid ${base.guid})`;
};

/** "usr from R1 to R2", "usr in full: R1"; the base's guid where its name is not known */
export const describeStreams = ({ streams }: Manifest): string =>
  streams
    .map(({ role, base, target }) => {
      if (base === undefined) return `${role} in full: ${target.snapshot}`;
      return `${role} from ${base.snapshot ?? `guid ${base.guid}`} to ${target.snapshot}`;
    })
    .join(", ");

/** Whether sites refuse the bundle, by this machine's clock. */
export const isExpired = ({ expires }: Manifest, now: Date): boolean =>
  expires !== undefined && expires * 1000 < now.getTime();

/** The manifest without what says nothing. */
export const shownManifest = (manifest: Manifest): object => ({ ...manifest, padding: undefined });

/** What `verify --json` and `inspect --json` have in common. formats/manifest.md has the fields of `manifest`. */
export const summaryOf = (bundle: Bundle): object => ({
  file: bundle.name,
  bytes: bundle.size,
  identity: bundle.identity,
  signers:
    bundle instanceof VerifiedBundle ? bundle.signers : bundle.signatures.map(({ keyId }) => ({ keyId })),
  manifest: shownManifest(bundle.manifest),
});

const MODE_FROM: Record<InstallMode["from"], string> = {
  configuration: "",
  "under-way": ", as it was begun",
  live: ", with --live",
  default: ", by default",
};

/** "boot-environment, by default" */
export const describeMode = ({ mode, from }: InstallMode): string => `${mode}${MODE_FROM[from]}`;

/** As `--json` prints it. */
export const modeAsJson = ({ mode, from }: InstallMode): object => ({ name: mode, from });

/** "change 3 adds 0E07B77755AB6E15, revokes D950C3178AD0130D" */
export function describeKeyChange({ counter, add, revoke }: KeyChange): string {
  const ids = (lines: readonly string[]): string =>
    lines.map((line) => parsePublicKey(line, line).keyId).join(", ");
  const parts = [
    ...(add.length === 0 ? [] : [`adds ${ids(add)}`]),
    ...(revoke.length === 0 ? [] : [`revokes ${ids(revoke)}`]),
  ];
  return `change ${counter} ${parts.join(", ")}`;
}

/**
 * An option's number.
 * @throws ZferryError `usage`
 */
export function wholeNumber(
  value: string | undefined,
  option: string,
  least: number,
  most: number,
): number | undefined {
  if (value === undefined) return undefined;
  const number = /^[0-9]{1,16}$/.test(value) ? Number(value) : NaN;
  if (number >= least && number <= most) return number;
  throw new ZferryError("usage", `${option}: ${value} is not a whole number from ${least} to ${most}`);
}

/**
 * An option's number of bytes, such as 500k, 4095M or 2G.
 * @throws ZferryError `usage`
 */
export function byteCount(value: string | undefined, option: string, least: number): number | undefined {
  if (value === undefined) return undefined;
  const [, digits = "", unit = ""] = /^([0-9]{1,15})([kKMG]?)$/.exec(value) ?? [];
  const bytes = Number(digits) * 1024 ** " kMG".indexOf(unit.replace("K", "k") || " ");
  if (digits !== "" && bytes >= least && bytes <= Number.MAX_SAFE_INTEGER) return bytes;
  throw new ZferryError(
    "usage",
    `${option}: ${value} is not a number of bytes such as 500k or 2M, from ${least} on`,
  );
}

/** Adds the option that {@link threadsOf} reads. */
export const addThreadsOption = (command: Command): Command =>
  command.option("-T, --threads <number>", "1 to 256 (default: one for each processor, up to 16)");

/** How many threads take part in what is heavy. */
export const threadsOf = ({ threads }: { readonly threads?: string }): number =>
  wholeNumber(threads, "--threads", 1, 256) ?? usualThreads();

/** Adds the option that {@link openGiven} reads. */
export const addSearchOption = (command: Command): Command =>
  command.option(
    "--search <folder>",
    "where else the volumes of a bundle may be, in it or in a folder in it; can be repeated",
    repeatable,
  );

/** Opens the bundle that a command is given. Volumes that are missing are asked for, at a terminal. */
export const openGiven = (
  path: string,
  { search = [] }: { readonly search?: readonly string[] },
  env: Environment,
  threads = 0,
): Promise<OpenedFile> =>
  openBundleFile(path, threads, {
    folders: search,
    ask: (question) => env.askToGoOn(question),
    warn: (what) => env.note(`warning: ${what}`),
  });

/** Of keys that are named, or a site's with what the site knows of them. */
export type GivenTrust = Trust & Partial<Pick<SiteTrust, "product" | "folder" | "set">>;

/**
 * The keys that are named, one of which is enough; or else the site's, with its product.
 * @throws ZferryError `usage` when both are given: the site's threshold would be passed over
 */
export async function readTrust(options: {
  readonly key?: readonly string[];
  readonly config?: string;
}): Promise<GivenTrust> {
  if (options.key !== undefined) {
    if (options.config !== undefined) {
      throw new ZferryError("usage", "--key and --config: believe the keys that are named, or the site's");
    }
    return { keys: await Promise.all(options.key.map(readPublicKey)), threshold: 1 };
  }
  // Loaded only when they are needed.
  const { readSiteConfig } = await import("../system/settings.js");
  const { readSiteTrust } = await import("../install/trust.js");
  return readSiteTrust(await readSiteConfig(options.config, { hint: ", or a public key with --key" }));
}
