import { ZferryError, type ErrorCode } from "../errors.js";
import {
  describeEnd,
  run,
  startReading,
  startWriting,
  type ProcessInput,
  type ProcessOutput,
  type ProcessResult,
} from "./process.js";

/** A snapshot of a dataset. Guids identify; names differ between pools. */
export interface Snapshot {
  readonly dataset: string;
  /** Without the dataset and `@`. */
  readonly name: string;
  /** Decimal. */
  readonly guid: string;
}

export const fullName = ({ dataset, name }: Pick<Snapshot, "dataset" | "name">): string =>
  `${dataset}@${name}`;

/** What zfs prints for errors that say something of their own; the rest is `zfs-failed` with zfs's own words. */
const KNOWN_FAILURES: readonly {
  readonly pattern: RegExp;
  readonly code: ErrorCode;
  readonly hint?: string;
}[] = [
  {
    pattern: /permission denied|must be superuser|operation not permitted/i,
    code: "not-permitted",
    hint: "run it as root",
  },
  {
    pattern: /out of space|no space left|quota exceeded/i,
    code: "no-space",
    hint: "free space in the pool, or raise the quota",
  },
  {
    pattern: /\/dev\/zfs|modules are not loaded|modules cannot be auto-loaded/i,
    code: "not-configured",
    hint: "load the zfs module: modprobe zfs",
  },
  {
    pattern: /I\/O is currently suspended/i,
    code: "dataset-unsuitable",
    hint: "see zpool status; when its disks are back: zpool clear",
  },
  { pattern: /no such pool/i, code: "not-configured", hint: "import it: zpool import" },
  { pattern: /has been modified/i, code: "base-modified" },
  { pattern: /does not match incremental source/i, code: "base-missing" },
  {
    pattern: /dataset is busy|pool or dataset is busy/i,
    code: "site-busy",
    hint: "see who uses the dataset, then try again",
  },
  {
    pattern: /encryption key.*(unloaded|not loaded)|key.*must be loaded/i,
    code: "dataset-unsuitable",
    hint: "load the key first: zfs load-key",
  },
];

/** The error for a zfs command that failed. */
export function zfsFailure(what: string, result: ProcessResult): ZferryError {
  const ended = describeEnd(result);
  const known = KNOWN_FAILURES.find(({ pattern }) => pattern.test(result.stderr));
  // zfs says this for every EINVAL of a resumable receive; it is hardly ever the cause.
  const words = result.stderr
    .replace(/kernel modules must be upgraded to receive this stream\.?/, "the stream was refused")
    .replace(/\s*\n\s*/g, "; ");
  return new ZferryError(known?.code ?? "zfs-failed", `${what}: ${words || ended}`, {
    details: { stderr: result.stderr, ended },
    ...(known?.hint === undefined ? {} : { hint: known.hint }),
  });
}

async function zfs(args: readonly string[]): Promise<string> {
  const result = await run("zfs", args);
  if (result.status !== 0) throw zfsFailure(`zfs ${args.join(" ")}`, result);
  return result.stdout.toString("utf8");
}

const rows = (output: string): string[][] =>
  output
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => line.split("\t"));

const LIST_SNAPSHOTS = ["list", "-H", "-p", "-t", "snapshot", "-o"];
const OLDEST_FIRST = ["-s", "createtxg"];

/** Of a snapshot's full name. */
function splitName(full: string): Pick<Snapshot, "dataset" | "name"> {
  const at = full.indexOf("@");
  return { dataset: full.slice(0, at), name: full.slice(at + 1) };
}

/**
 * A dataset's snapshots, oldest first.
 * @throws ZferryError `zfs-failed` when there is no such dataset
 */
export async function listSnapshots(dataset: string): Promise<Snapshot[]> {
  const args = [...LIST_SNAPSHOTS, "name,guid", ...OLDEST_FIRST, "-d", "1", dataset];
  return rows(await zfs(args)).map(([full = "", guid = ""]) => ({ ...splitName(full), guid }));
}

/** What is left of a snapshot for `zfs send` to start from. Its guid and `createtxg` are the snapshot's. */
export interface Bookmark {
  readonly dataset: string;
  /** Without the dataset and `#`. */
  readonly name: string;
  readonly guid: string;
  readonly createtxg: number;
}

/**
 * A dataset's bookmarks, those of the oldest snapshots first.
 * @throws ZferryError `zfs-failed` when there is no such dataset
 */
export async function listBookmarks(dataset: string): Promise<Bookmark[]> {
  const args = [
    "list",
    "-H",
    "-p",
    "-t",
    "bookmark",
    "-o",
    "name,guid,createtxg",
    ...OLDEST_FIRST,
    "-d",
    "1",
  ];
  return rows(await zfs([...args, dataset])).map(([full = "", guid = "", createtxg = ""]) => {
    const at = full.indexOf("#");
    return { dataset: full.slice(0, at), name: full.slice(at + 1), guid, createtxg: Number(createtxg) };
  });
}

/** The snapshots with a guid on file systems and volumes right below a dataset; none where there is no such dataset. */
export async function findSnapshots(parent: string, guid: string): Promise<Snapshot[]> {
  if (!(await datasetExists(parent))) return [];
  return rows(await zfs([...LIST_SNAPSHOTS, "name,guid", "-d", "2", parent]))
    .filter(([, found]) => found === guid)
    .map(([full = ""]) => ({ ...splitName(full), guid }));
}

/** The name of the file system or volume of a pool that has a guid, which it keeps when it is renamed; undefined for none, and without the pool. */
export async function findDataset(pool: string, guid: string): Promise<string | undefined> {
  if (!(await datasetExists(pool))) return undefined;
  const args = ["list", "-H", "-p", "-o", "name,guid", "-t", "filesystem,volume", "-r", pool];
  return rows(await zfs(args)).find(([, found]) => found === guid)?.[0];
}

/** The snapshots of a pool that have a guid and are held with a tag: copies in one pool have the same guid. None without the pool. */
export async function findHeld(pool: string, guid: string, tag: string): Promise<Snapshot[]> {
  if (!(await datasetExists(pool))) return [];
  const held = rows(await zfs([...LIST_SNAPSHOTS, "name,guid,userrefs", "-r", pool])).flatMap(
    ([name = "", found, holds]) => (found === guid && holds !== "0" && holds !== "-" ? [name] : []),
  );
  if (held.length === 0) return [];
  return rows(await zfs(["holds", "-H", ...held])).flatMap(([full = "", found]) =>
    found === tag ? [{ ...splitName(full), guid }] : [],
  );
}

/**
 * A snapshot of a dataset, or of those that it was made from. What was made of it may have been promoted since, and has it now.
 * @returns undefined where there is no such dataset, or no such snapshot any more
 */
export async function findInHistory(dataset: string, guid: string): Promise<Snapshot | undefined> {
  for (let at = dataset; at !== "" && (await datasetExists(at));) {
    const found = (await listSnapshots(at)).find((each) => each.guid === guid);
    if (found !== undefined) return found;
    const { origin } = await getProperties(at, ["origin"]);
    at = origin.slice(0, Math.max(0, origin.indexOf("@")));
  }
  return undefined;
}

/**
 * A snapshot that a dataset was made on, and that another one has, as after `zfs promote` of its clone. Later snapshots of that one are
 * none that the dataset ever had.
 * @returns it, and how many promotions of the dataset bring it back; undefined where there is none
 * @throws ZferryError `zfs-failed` when there is no such dataset
 */
export async function findPromoted(
  dataset: string,
  guid: string,
): Promise<{ readonly snapshot: Snapshot; readonly promotions: number } | undefined> {
  let { origin } = await getProperties(dataset, ["origin"]);
  for (let promotions = 1; origin.includes("@"); promotions += 1) {
    const { dataset: owner, name } = splitName(origin);
    const snapshots = await listSnapshots(owner);
    const last = snapshots.findIndex((each) => each.name === name);
    const snapshot = snapshots.slice(0, last + 1).find((each) => each.guid === guid);
    if (snapshot !== undefined) return { snapshot, promotions };
    ({ origin } = await getProperties(owner, ["origin"]));
  }
  return undefined;
}

/** Properties as `zfs get -p` prints them; one that a dataset does not have is "-". */
export async function getProperties<Name extends string>(
  dataset: string,
  names: readonly Name[],
): Promise<Record<Name, string>> {
  const output = await zfs(["get", "-H", "-p", "-o", "property,value", names.join(","), dataset]);
  const values = Object.fromEntries(rows(output).map(([name = "", value = ""]) => [name, value]));
  return values as Record<Name, string>;
}

/** Whether a dataset, if there is one, is what was recorded by its guid: it may have been renamed since. */
export const hasGuid = async (dataset: string | null | undefined, guid: string): Promise<boolean> =>
  typeof dataset === "string" && (await getProperties(dataset, ["guid"])).guid === guid;

/** A property's value as `zfs get -p` prints it, "-" for none, and whether the dataset has it itself. */
export interface Property {
  readonly value: string;
  /** Set on the dataset: neither inherited nor received nor a default. */
  readonly local: boolean;
}

/** A dataset with properties of it. */
export interface Described<Name extends string> {
  readonly dataset: string;
  readonly properties: Readonly<Record<Name, Property>>;
}

/** Properties of a file system and of all below it, in the order of their names. */
export async function listProperties<Name extends string>(
  dataset: string,
  names: readonly Name[],
): Promise<Described<Name>[]> {
  const args = ["get", "-H", "-p", "-r", "-t", "filesystem", "-o", PROPERTY_FIELDS];
  return parseProperties(await zfs([...args, names.join(","), dataset]));
}

// The value last: one that a user gave may have tabs in it.
const PROPERTY_FIELDS = "name,property,source,value";

/** What `zfs get` prints for these fields. */
export function parseProperties<Name extends string>(output: string): Described<Name>[] {
  const found = new Map<string, Record<string, Property>>();
  for (const [dataset = "", name = "", source, ...value] of rows(output)) {
    // The rest of a value with a line end.
    if (source === undefined || value.length === 0) continue;
    const properties = found.get(dataset) ?? {};
    properties[name] = { value: value.join("\t"), local: source === "local" };
    found.set(dataset, properties);
  }
  return [...found].map(([dataset, properties]) => ({
    dataset,
    properties: properties as Record<Name, Property>,
  }));
}

/** The properties that a dataset has itself: set there, or received. */
export async function ownProperties(dataset: string): Promise<PropertyValues> {
  const args = ["get", "-H", "-p", "-s", "local,received", "-o", PROPERTY_FIELDS, "all"];
  const [own] = parseProperties<string>(await zfs([...args, dataset]));
  return Object.fromEntries(Object.entries(own?.properties ?? {}).map(([name, { value }]) => [name, value]));
}

/** Sets a property of a dataset, or a user property of a snapshot. */
export const setProperty = async (dataset: string, name: string, value: string): Promise<void> =>
  void (await zfs(["set", `${name}=${value}`, dataset]));

/** Sets properties of a dataset, all of them or none. */
export const setProperties = async (dataset: string, values: PropertyValues): Promise<void> =>
  void (await zfs(["set", ...Object.entries(values).map(([name, value]) => `${name}=${value}`), dataset]));

/** Takes away properties that a dataset has itself; one that it has not is no error. */
export async function dropProperties(dataset: string, names: readonly string[]): Promise<void> {
  for (const name of names) await zfs(["inherit", name, dataset]);
}

/** The snapshots of a dataset, and of all below it, that have a property themselves. Full names. */
export async function findSnapshotsWith(dataset: string, property: string): Promise<string[]> {
  const args = ["get", "-H", "-s", "local", "-r", "-t", "snapshot", "-o", "name", property];
  return rows(await zfs([...args, dataset])).map(([name = ""]) => name);
}

/** A snapshot, and what keeps it from being destroyed. */
export interface DependedSnapshot extends Snapshot {
  /** Datasets that were made of it. */
  readonly clones: readonly string[];
  /** The number of its holds. */
  readonly holds: number;
  /** The transaction group that it was made in, which orders what is made in a pool. */
  readonly createtxg: number;
}

/**
 * A dataset's snapshots with what keeps them, oldest first; of a snapshot only itself.
 * @throws ZferryError `zfs-failed` when there is no such dataset or snapshot
 */
export async function listDepended(name: string): Promise<DependedSnapshot[]> {
  const depth = name.includes("@") ? [] : ["-d", "1"];
  const args = [...LIST_SNAPSHOTS, "name,guid,userrefs,createtxg,clones", ...OLDEST_FIRST, ...depth, name];
  return rows(await zfs(args)).map(([full = "", guid = "", holds = "", createtxg = "", clones = ""]) => ({
    ...splitName(full),
    guid,
    holds: Number(holds) || 0,
    createtxg: Number(createtxg),
    clones: clones.split(",").filter((clone) => clone !== "" && clone !== "-"),
  }));
}

/** The file systems and volumes below a dataset. */
export const listBelow = async (dataset: string): Promise<string[]> =>
  rows(await zfs(["list", "-H", "-o", "name", "-t", "filesystem,volume", "-r", dataset]))
    .map(([name = ""]) => name)
    .filter((name) => name !== dataset);

/** Has a clone no longer depend on what it was cloned from: all snapshots up to its origin become its own. */
export const promote = async (dataset: string): Promise<void> => void (await zfs(["promote", dataset]));

export const renameSnapshot = async (
  { dataset, name }: Pick<Snapshot, "dataset" | "name">,
  to: string,
): Promise<void> => void (await zfs(["rename", `${dataset}@${name}`, `${dataset}@${to}`]));

/** In one command, whose arguments have a limit. */
const SNAPSHOTS_AT_ONCE = 200;

/**
 * Destroys snapshots of one dataset.
 * @param names after the `@`
 * @returns bytes that were freed
 */
export async function destroySnapshots(dataset: string, names: readonly string[]): Promise<number> {
  let freed = 0;
  for (let at = 0; at < names.length; at += SNAPSHOTS_AT_ONCE) {
    const some = `${dataset}@${names.slice(at, at + SNAPSHOTS_AT_ONCE).join(",")}`;
    // It tells only when it is asked for more than the deed.
    const told = rows(await zfs(["destroy", "-n", "-v", "-p", some]));
    freed += Number(told.find(([what]) => what === "reclaim")?.[1] ?? 0);
    await zfs(["destroy", some]);
  }
  return freed;
}

/** The tags that hold the snapshots of a dataset and of those right below it. */
export async function listHolds(dataset: string): Promise<(Omit<Snapshot, "guid"> & { tag: string })[]> {
  const held = rows(await zfs([...LIST_SNAPSHOTS, "userrefs,name", "-d", "2", dataset])).flatMap(
    ([holds = "", name = ""]) => (holds === "0" || holds === "-" ? [] : [name]),
  );
  if (held.length === 0) return [];
  return rows(await zfs(["holds", "-H", ...held])).map(([full = "", tag = ""]) => ({
    ...splitName(full),
    tag,
  }));
}

/** The dataset that each imported pool says is to be booted; undefined where it says none. In the order of the pools' names. */
export async function listBootfs(): Promise<
  { readonly pool: string; readonly bootfs: string | undefined }[]
> {
  const result = await run("zpool", ["list", "-H", "-o", "name,bootfs"]);
  if (result.status !== 0) throw zfsFailure("zpool list", result);
  return rows(result.stdout.toString("utf8")).map(([pool = "", bootfs = "-"]) => ({
    pool,
    bootfs: bootfs === "-" ? undefined : bootfs,
  }));
}

/** Has a pool say that this dataset is the one to be booted; null: none is. */
export async function setBootfs(pool: string, dataset: string | null): Promise<void> {
  const args = ["set", `bootfs=${dataset ?? ""}`, pool];
  const result = await run("zpool", args);
  if (result.status !== 0) throw zfsFailure(`zpool ${args.join(" ")}`, result);
}

/** The dataset right above; empty for a pool's own. */
export const parentOf = (dataset: string): string => dataset.slice(0, Math.max(0, dataset.lastIndexOf("/")));

/** Datasets before those that lie below them; others stay in their order. */
export const outerFirst = <Of extends { readonly dataset: string }>(all: readonly Of[]): Of[] =>
  all.toSorted((one, other) => depthOf(one.dataset) - depthOf(other.dataset));

/** How many names its name has. */
export const depthOf = (dataset: string): number => dataset.split("/").length;

export const poolOf = (dataset: string): string => dataset.split("/", 1)[0] ?? dataset;

/** Pool features that are enabled or active, without `feature@`. */
export async function poolFeatures(pool: string): Promise<Set<string>> {
  const result = await run("zpool", ["get", "-H", "-p", "-o", "property,value", "all", pool]);
  if (result.status !== 0) throw zfsFailure(`zpool get ${pool}`, result);
  const features = rows(result.stdout.toString("utf8"))
    .filter(([name = "", value = ""]) => name.startsWith("feature@") && value !== "disabled")
    .map(([name = ""]) => name.slice("feature@".length));
  return new Set(features);
}

export async function poolHealth(pool: string): Promise<string> {
  const result = await run("zpool", ["list", "-H", "-o", "health", pool]);
  if (result.status !== 0) throw zfsFailure(`zpool list ${pool}`, result);
  return result.stdout.toString("utf8").trim();
}

/** Bytes of destroyed datasets that a pool has yet to free. */
export async function poolFreeing(pool: string): Promise<number> {
  const result = await run("zpool", ["list", "-H", "-p", "-o", "freeing", pool]);
  if (result.status !== 0) throw zfsFailure(`zpool list ${pool}`, result);
  return Number(result.stdout.toString("utf8")) || 0;
}

/** All of them in one transaction group, or none. */
export const takeSnapshots = async (
  snapshots: readonly Pick<Snapshot, "dataset" | "name">[],
): Promise<void> => void (await zfs(["snapshot", ...snapshots.map(fullName)]));

/** Keeps snapshots from being destroyed. One that has the hold already is no error. */
export async function holdSnapshots(
  tag: string,
  snapshots: readonly Pick<Snapshot, "dataset" | "name">[],
): Promise<void> {
  for (const snapshot of snapshots) {
    const result = await run("zfs", ["hold", tag, fullName(snapshot)]);
    if (result.status !== 0 && !/tag already exists/.test(result.stderr)) {
      throw zfsFailure(`zfs hold ${tag} ${fullName(snapshot)}`, result);
    }
  }
}

/** Takes a hold away. One that is not there, or a snapshot that is gone, is no error. */
export async function releaseSnapshot(
  tag: string,
  snapshot: Pick<Snapshot, "dataset" | "name">,
): Promise<void> {
  const result = await run("zfs", ["release", tag, fullName(snapshot)]);
  if (result.status !== 0 && !/no such tag|does not exist/.test(result.stderr)) {
    throw zfsFailure(`zfs release ${tag} ${fullName(snapshot)}`, result);
  }
}

/** The form of a stream; it must not change from one increment to the next. */
export interface SendFlags {
  readonly largeBlocks: boolean;
  readonly embedded: boolean;
  readonly compressed: boolean;
  readonly raw: boolean;
}

const sendArguments = (target: Snapshot, base: Snapshot | undefined, flags: SendFlags): string[] => [
  ...(flags.largeBlocks ? ["-L"] : []),
  ...(flags.embedded ? ["-e"] : []),
  ...(flags.compressed ? ["-c"] : []),
  ...(flags.raw ? ["-w"] : []),
  ...(base === undefined ? [] : ["-i", `@${base.name}`]),
  fullName(target),
];

/** Starts `zfs send` of one snapshot, from `base` or in full. */
export const send = (target: Snapshot, base: Snapshot | undefined, flags: SendFlags): ProcessOutput =>
  startReading("zfs", ["send", ...sendArguments(target, base, flags)]);

/** How many bytes `send` will give, as zfs estimates it; undefined where it does not. */
export async function estimateSend(
  target: Snapshot,
  base: Snapshot | undefined,
  flags: SendFlags,
): Promise<number | undefined> {
  const { status, stdout } = await run("zfs", ["send", "-nP", ...sendArguments(target, base, flags)]);
  const [, size] = /^size\t([0-9]{1,15})$/m.exec(stdout.toString("latin1")) ?? [];
  return status === 0 && size !== undefined ? Number(size) : undefined;
}

/** Values by the names of properties. */
export type PropertyValues = Readonly<Record<string, string>>;

const asOptions = (properties: PropertyValues): string[] =>
  Object.entries(properties).flatMap(([name, value]) => ["-o", `${name}=${value}`]);

/**
 * Starts a resumable `zfs receive` that mounts nothing.
 * @param properties that the dataset gets; with `origin`, a snapshot, it is a new one
 */
export const receive = (
  target: Pick<Snapshot, "dataset" | "name">,
  properties: PropertyValues = {},
): ProcessInput => startWriting("zfs", ["receive", "-s", "-u", ...asOptions(properties), fullName(target)]);

/** Makes a file system of a snapshot. */
export const clone = async (
  from: Pick<Snapshot, "dataset" | "name">,
  dataset: string,
  properties: PropertyValues,
): Promise<void> => void (await zfs(["clone", ...asOptions(properties), fullName(from), dataset]));

/** Makes a file system, and mounts nothing. */
export const createFileSystem = async (dataset: string, properties: PropertyValues): Promise<void> =>
  void (await zfs(["create", ...asOptions(properties), dataset]));

/** Mounts a file system where its properties say. */
export const mountDataset = async (dataset: string): Promise<void> => void (await zfs(["mount", dataset]));

/** The token of an interrupted receive, or undefined. */
export async function resumeToken(dataset: string): Promise<string | undefined> {
  const { receive_resume_token: token } = await getProperties(dataset, ["receive_resume_token"]);
  return token === "-" ? undefined : token;
}

/** Goes back to a snapshot. Later ones are destroyed with what was written since: it is for the caller to look first. */
export const rollback = async (to: Pick<Snapshot, "dataset" | "name">): Promise<void> =>
  void (await zfs(["rollback", "-r", fullName(to)]));

/** Destroys one snapshot, or a dataset that has neither snapshots nor children. */
export const destroy = async (name: string): Promise<void> => void (await zfs(["destroy", name]));

/**
 * The paths that differ between a snapshot and its dataset now, as `zfs diff` prints them: M, +, - or R and the path. None
 * where it cannot tell, as of a volume.
 */
export async function listDiff(since: Pick<Snapshot, "dataset" | "name">): Promise<string[]> {
  const { status, stdout } = await run("zfs", ["diff", "-H", fullName(since), since.dataset]);
  return status === 0 ? rows(stdout.toString("utf8")).map((fields) => fields.join(" ")) : [];
}

/** Discards what an interrupted receive left. */
export const abortReceive = async (dataset: string): Promise<void> =>
  void (await zfs(["receive", "-A", dataset]));

/** The dataset that a path lies on; undefined where that is another file system, or none. */
export async function datasetAt(path: string): Promise<string | undefined> {
  const { status, stdout } = await run("zfs", ["list", "-H", "-o", "name", path]);
  return status === 0 ? stdout.toString("utf8").trim() : undefined;
}

/** Whether there is such a file system or volume. */
export async function datasetExists(dataset: string): Promise<boolean> {
  const result = await run("zfs", ["list", "-H", "-o", "name", dataset]);
  if (result.status === 0) return true;
  if (/does not exist/.test(result.stderr)) return false;
  throw zfsFailure(`zfs list ${dataset}`, result);
}
