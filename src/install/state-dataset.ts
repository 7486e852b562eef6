import { createHash } from "node:crypto";
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
} from "node:fs";
import { dirname, join } from "node:path";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { rawBytes, rawPath, showPath, type RawPath } from "../raw-path.js";
import { listFirst } from "../report.js";
import { guarded, syncPath, writeFileDurably } from "../system/files.js";
import { ownMounts } from "../system/mounts.js";
import { run } from "../system/process.js";
import {
  createFileSystem,
  datasetAt,
  datasetExists,
  dropProperties,
  getProperties,
  mountDataset,
  parentOf,
  poolOf,
  setProperties,
} from "../system/zfs.js";
import { existing, resolved } from "./apart.js";
import { requireNothingPending } from "./pending.js";
import { lockState, MOUNTED_FROM, requireStateMounted } from "./state.js";
import { readUnderWay } from "./under-way.js";

// The state of a site with boot environments, on a dataset that all of them mount: formats/boot.md, The state

/** How the state folder of a site comes outside its environments. */
export interface StateMove {
  readonly path: string;
  readonly dataset: string;
  /** Where what the folder had before is left. */
  readonly aside: string;
}

const ASIDE = ".before-";

/** A pattern of paths of what is left aside by any such move. */
export const asidePattern = ({ state }: Pick<SiteConfig, "state">): string =>
  `${state.replace(/[\\*?[\]!]/g, "\\$&")}${ASIDE}*/`;

/** Of a dataset that is being made: `copying`, or `copied` once it has all that the folder had. */
const MARK = "zferry:state";
/** Where it is mounted meanwhile. */
const WORKPLACE = "/run/zferry-state";

/**
 * What is to be done so that the state lies outside every environment; undefined where that is so, or where the site has none.
 * @throws ZferryError `output-exists` where the dataset is something else's, `not-configured` where it is not mounted,
 * `dataset-unsuitable` where what is encrypted would not be any more
 */
export async function planStateMove(site: SiteConfig): Promise<StateMove | undefined> {
  if (site.install.mode !== "boot-environment" || site.root?.path !== "/") return undefined;
  const { type, source: origin = "" } = ownMounts().get("/") ?? {};
  if (type !== "zfs") return undefined;
  const path = resolved(site.state);
  const dataset = `${poolOf(origin)}/zferry`;
  const found = await datasetAt(existing(path));
  const isInside = found !== undefined && (found === origin || found.startsWith(`${origin}/`));
  const mark = (await datasetExists(dataset)) ? (await getProperties(dataset, [MARK]))[MARK] : undefined;
  const isOurs = mark === "copying" || mark === "copied";
  if (!isOurs) requireStateMounted(path);
  if (!isInside && !isOurs) return undefined;
  const move = { path, dataset, aside: asideOf(path, dataset) };
  if (isInside && mark === undefined) {
    const names = ["encryption", "encryptionroot"] as const;
    const above = await getProperties(parentOf(dataset), names);
    requireAsEncrypted(move, origin, { ...(await getProperties(found, names)), dataset: found }, above);
  }
  if (mark === undefined || isOurs) return move;
  throw new ZferryError("output-exists", `there is a dataset ${dataset} already, which is not the state's`, {
    details: { dataset, path },
    hint: `if it is meant for the state: zfs set mountpoint=${path} canmount=on ${dataset}; or let state in site.toml be a folder on another dataset`,
  });
}

const asideOf = (path: string, dataset: string): string => `${path}${ASIDE}${dataset.replaceAll("/", "-")}`;

/** As `zfs get` prints them. */
interface Encryption {
  readonly encryption: string;
  readonly encryptionroot: string;
}

/**
 * The state has whole texts of conflicts, of /etc too.
 * @param origin the dataset of `/`
 * @param now of what has the state
 * @param above of what the state's own dataset would be made in, and inherit
 * @throws ZferryError `dataset-unsuitable` where it is encrypted, and would not be any more
 */
export function requireAsEncrypted(
  { path, dataset }: Pick<StateMove, "path" | "dataset">,
  origin: string,
  now: Encryption & { readonly dataset: string },
  above: Pick<Encryption, "encryption">,
): void {
  if (["off", "-"].includes(now.encryption) || !["off", "-"].includes(above.encryption)) return;
  const root = now.encryptionroot;
  throw new ZferryError(
    "dataset-unsuitable",
    `the state folder ${path} lies on ${now.dataset}, which is encrypted, and ${dataset} would not be`,
    {
      details: { path, dataset, encryptionroot: root },
      hint: origin.startsWith(`${root}/`)
        ? `make one that has its key from ${root}, as / has: ${makeWithin(root, path)}`
        : `make it by hand, with a key that is loaded at boot before file systems are mounted: ${makeWithKey(dataset)}`,
    },
  );
}

// As `moveState` does it: formats/boot.md, The state
const makeWithin = (root: string, path: string): string => {
  const dataset = `${root}/zferry`;
  return [
    `zfs create -o mountpoint=${path}.new ${dataset}`,
    `chmod 700 ${path}.new`,
    `cp -a ${path}/. ${path}.new`,
    `mv ${path} ${asideOf(path, dataset)}`,
    `mkdir -m 700 ${path}`,
    `echo ${dataset} >${path}/${MOUNTED_FROM}`,
    `zfs set mountpoint=${path} ${dataset}`,
    "bundle setup",
  ].join(" && ");
};

/** On `/` itself, whose clones have it, too. */
const KEY = "/etc/zferry/state.key";

const makeWithKey = (dataset: string): string =>
  [
    `(umask 077; head -c 32 /dev/urandom >${KEY})`,
    `zfs create -o encryption=on -o keyformat=raw -o keylocation=file://${KEY} -o mountpoint=legacy -o canmount=noauto -o ${MARK}=copying ${dataset}`,
    "bundle setup",
  ].join(" && ");

/**
 * Makes the dataset, copies the state to it, verifies that, and mounts it in the place of the folder, which is kept aside. After an
 * interruption the same call goes on.
 * @throws ZferryError `site-busy`, `install-pending`, `io-failed`; the state is then where it was, or the next call goes on
 */
export async function moveState(site: SiteConfig, move: StateMove): Promise<void> {
  const { path, dataset, aside } = move;
  const beneath = join(path, MOUNTED_FROM);
  if (!isMounted(move)) guarded(beneath, () => rmSync(beneath, { force: true }));
  await requireNothingPending(await readUnderWay(site), "and the state is not moved before that is done");
  if (!(await datasetExists(dataset))) {
    await createFileSystem(dataset, { mountpoint: "legacy", canmount: "noauto", [MARK]: "copying" });
  }
  if (!isMounted(move) && !existsSync(aside)) {
    const folder = existsSync(path) ? await lockState(path) : undefined;
    try {
      await fill(move);
      await setProperties(dataset, { [MARK]: "copied" });
      if (folder !== undefined) guarded(aside, () => renameSync(path, aside));
      syncPath(dirname(path));
    } finally {
      await folder?.release();
    }
  }
  guarded(path, () => mkdirSync(path, { recursive: true, mode: 0o700 }));
  syncPath(dirname(path));
  if (!isMounted(move)) writeFileDurably(beneath, `${dataset}\n`, 0o600);
  await setProperties(dataset, { mountpoint: path });
  await setProperties(dataset, { canmount: "on" });
  if (!isMounted(move)) await mountDataset(dataset);
  await dropProperties(dataset, [MARK]);
}

const isMounted = ({ path, dataset }: StateMove): boolean => ownMounts().get(path)?.source === dataset;

/** Copies the folder to the dataset, anew after an interruption, and compares the two. */
async function fill({ path, dataset }: StateMove): Promise<void> {
  await unmountWorkplace();
  guarded(WORKPLACE, () => mkdirSync(WORKPLACE, { recursive: true, mode: 0o700 }));
  await execute("mount", ["-t", "zfs", dataset, WORKPLACE]);
  try {
    for (const name of readdirSync(WORKPLACE)) rmSync(join(WORKPLACE, name), { recursive: true });
    if (existsSync(path)) {
      await execute("cp", ["-a", "--", `${path}/.`, WORKPLACE]);
      requireSame(path, WORKPLACE);
    }
    guarded(WORKPLACE, () => chmodSync(WORKPLACE, 0o700));
    await execute("sync", ["-f", WORKPLACE]);
  } finally {
    await unmountWorkplace();
  }
}

async function unmountWorkplace(): Promise<void> {
  while (ownMounts().has(WORKPLACE)) await execute("umount", [WORKPLACE]);
  if (existsSync(WORKPLACE)) guarded(WORKPLACE, () => rmSync(WORKPLACE, { recursive: true }));
}

/** @throws ZferryError `io-failed` */
function requireSame(from: string, to: string): void {
  const [before, after] = [from, to].map((folder) => listTree(rawPath(Buffer.from(folder))));
  const differing = [...new Set([...(before?.keys() ?? []), ...(after?.keys() ?? [])])]
    .filter((path) => before?.get(path) !== after?.get(path))
    .map(showPath);
  if (differing.length === 0) return;
  throw new ZferryError("io-failed", `the copy of ${from} is not the same: ${listFirst(differing)}`, {
    details: { path: from, differing },
    hint: "nothing is changed; run the same command again",
  });
}

/** Of each name below a folder: what it is. */
function listTree(folder: string): Map<RawPath, string> {
  const found = new Map<RawPath, string>();
  const walk = (above: string): void => {
    for (const name of readdirSync(rawBytes(`${folder}${above}` as RawPath), "latin1")) {
      const path = `${above}/${name}` as RawPath;
      const place = rawBytes(`${folder}${path}` as RawPath);
      found.set(path, describe(place));
      if (lstatSync(place).isDirectory()) walk(path);
    }
  };
  guarded(folder, () => walk(""));
  return found;
}

function describe(place: Buffer): string {
  const stat = lstatSync(place);
  const content = stat.isFile()
    ? createHash("sha256").update(readFileSync(place)).digest("hex")
    : stat.isSymbolicLink()
      ? readlinkSync(place, "latin1")
      : "";
  return [stat.mode, stat.uid, stat.gid, content].join(" ");
}

async function execute(program: string, args: readonly string[]): Promise<void> {
  const { status, stderr } = await run(program, args);
  if (status === 0) return;
  throw new ZferryError("io-failed", `${program} ${args.join(" ")}: ${stderr}`, { details: { program } });
}

/** In a sentence. */
export const describeMove = ({ path, dataset, aside }: StateMove): string =>
  `the state comes from ${path} to ${dataset}, which every environment has there; the folder as it is stays as ${aside}`;
