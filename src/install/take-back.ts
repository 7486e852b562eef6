import { ZferryError } from "../errors.js";
import { formatBytes } from "../report.js";
import {
  datasetExists,
  destroy,
  dropProperties,
  findDataset,
  findPromoted,
  fullName,
  getProperties,
  listBookmarks,
  listSnapshots,
  poolOf,
  rollback,
  setProperty,
  type Snapshot,
} from "../system/zfs.js";
import { giveBackSnapshots, isOwn } from "./environment-install.js";
import { patiently, type ReceiveOptions } from "./receive.js";
import type { InstalledStream, Loss } from "./state.js";

// A dataset goes back to what it was before a stream. formats/state.md, Rolling back

export interface WayBack {
  readonly stream: InstalledStream;
  /** The snapshot that was the newest before the stream was received; null where the stream made the dataset. */
  readonly to: Snapshot | null;
  /** Whether the dataset is there already, and nothing was written since. */
  readonly done: boolean;
  /** Whether it was begun, and the target is gone. */
  readonly begun: boolean;
  readonly loss: Loss;
  /** What zfs does not go back over: clones and holds, in words. */
  readonly blocked: readonly string[];
}

/**
 * Finds the way, and changes nothing.
 * @throws ZferryError `base-missing` when there is no base to go back to, or no dataset
 */
export async function findWayBack(stream: InstalledStream): Promise<WayBack> {
  const { dataset, target } = stream;
  // What it made beside its base goes as a whole.
  const base = stream.origin === undefined ? stream.base : null;
  await requireDataset(stream);
  const snapshots = await listSnapshots(dataset);
  const [from, reached] = [base, target].map((wanted) =>
    snapshots.findIndex(({ guid }) => guid === wanted?.guid),
  ) as [number, number];
  if ((base !== null && (from === -1 || reached === 0)) || (base === null && reached === -1))
    throw await withoutSnapshot(dataset, base, target);
  // Where it was begun and the target is gone, the dataset may still have all that the target had.
  const begunTo = reached === -1 ? await findBegun(dataset, snapshots) : -1;
  const begun = begunTo !== -1;
  const back = reached === -1 ? Math.max(from, begunTo) : reached - 1;
  const since = snapshots[reached === -1 ? back : reached] as Snapshot;
  const property = `written@${since.name}`;
  const properties = await getProperties(dataset, [property, "readonly"]);
  const written = Number(properties[property]);
  const done = reached === -1 && written === 0;
  // Snapshots of what is there already are like it.
  const leaving = done ? [] : snapshots.slice(back + 1);
  const later = reached === -1 ? leaving : leaving.slice(1);
  const blocked: string[] = [];
  for (const snapshot of leaving) {
    const name = fullName(snapshot);
    const { clones, userrefs } = await getProperties(name, ["clones", "userrefs"]);
    // What a receive into the dataset itself has taken so far is such a clone, too, and is discarded.
    const others = clones.split(",").filter((each) => !["", "-", `${dataset}/%recv`].includes(each));
    if (others.length > 0) blocked.push(`clones of ${name}: ${others.join(",")}`);
    if (!["0", "-"].includes(userrefs)) blocked.push(`holds on ${name}: zfs holds shows them`);
  }
  // What others took between base and target stays, and is like the base.
  const to = base === null ? null : (snapshots[back] as Snapshot);
  const bookmarks = done ? [] : await bookmarksAfter(dataset, to);
  return {
    stream,
    to,
    done,
    begun,
    loss: {
      dataset,
      snapshots: later.map(({ name, guid }) => ({ snapshot: name, guid })),
      ...(bookmarks.length === 0 ? {} : { bookmarks }),
      // Nobody else can have written it then.
      written: begun && properties["readonly"] === "on" ? 0 : written,
    },
    blocked,
  };
}

/** @throws ZferryError `base-missing` where there is no such dataset any more */
export async function requireDataset({
  dataset,
  base,
  target,
  origin,
  baseDataset,
}: InstalledStream): Promise<void> {
  if (await datasetExists(dataset)) return;
  const { guid } = base ?? target;
  const isKnown = origin === undefined && baseDataset !== undefined;
  const renamed = isKnown ? await findDataset(poolOf(dataset), baseDataset) : undefined;
  throw new ZferryError(
    "base-missing",
    `there is no dataset ${dataset} any more, which had the snapshot with guid ${guid}`,
    {
      details: { dataset, expected: guid },
      hint:
        renamed === undefined
          ? "bring it back to its name with zfs rename, or, if it was destroyed, by zfs receive from a copy with that snapshot"
          : `it has another name since: zfs rename ${renamed} ${dataset}`,
    },
  );
}

/** Why there is no way, and what brings it back. */
async function withoutSnapshot(
  dataset: string,
  base: InstalledStream["base"],
  target: InstalledStream["target"],
): Promise<ZferryError> {
  const { guid } = base ?? target;
  const message = `${dataset} has no snapshot with guid ${guid} to go back ${base === null ? "from" : "to"}`;
  const promoted = await findPromoted(dataset, guid);
  if (promoted === undefined) {
    return new ZferryError("base-missing", `${message}: it was destroyed`, {
      details: { dataset, expected: guid },
    });
  }
  const { snapshot, promotions } = promoted;
  const command = `zfs promote ${dataset}`;
  return new ZferryError(
    "base-missing",
    `${message}: it is ${fullName(snapshot)} since ${snapshot.dataset} was promoted`,
    {
      details: { dataset, expected: guid, found: fullName(snapshot) },
      hint: `to have it back: ${Array.from({ length: promotions }, () => command).join("; ")}`,
    },
  );
}

/** The bookmarks that go with what is newer than a snapshot, or, without one, with the dataset: `zfs rollback -r` destroys them, too. */
async function bookmarksAfter(dataset: string, to: Snapshot | null): Promise<NonNullable<Loss["bookmarks"]>> {
  const found = await listBookmarks(dataset);
  if (found.length === 0) return [];
  const from = to === null ? -1 : Number((await getProperties(fullName(to), ["createtxg"])).createtxg);
  return found
    .filter(({ createtxg }) => createtxg > from)
    .map(({ name, guid }) => ({ bookmark: name, guid }));
}

/** The `guid` of the snapshot that a dataset is being brought back to: `zfs rollback -r` destroys what is newer first, and may be ended then. */
const RETURNING = "zferry:returning";

/** Where it was begun, and nothing has gone yet. */
export const forgetWayBack = ({ dataset }: InstalledStream): Promise<void> =>
  dropProperties(dataset, [RETURNING]);

/** Which snapshot of a dataset it is being brought back to; -1 where nobody began. */
async function findBegun(dataset: string, snapshots: readonly Snapshot[]): Promise<number> {
  const to = (await getProperties(dataset, [RETURNING]))[RETURNING];
  return snapshots.findIndex(({ guid }) => guid === to);
}

/** Whether a dataset that a stream changed is being brought back by `takeBack`, which did not come to its end. */
export const isReturning = async ({ dataset, base, origin }: InstalledStream): Promise<boolean> =>
  base !== null &&
  origin === undefined &&
  (await datasetExists(dataset)) &&
  (await findBegun(dataset, await listSnapshots(dataset))) !== -1;

/** Whether another dataset was promoted since, and has the target: the dataset is on it as before. */
export const isPromotedAway = async ({ dataset, base, target, origin }: InstalledStream): Promise<boolean> =>
  base !== null &&
  origin === undefined &&
  (await datasetExists(dataset)) &&
  (await findPromoted(dataset, target.guid)) !== undefined;

/** What is lost, in words; empty for nothing. */
export const describeLoss = ({ dataset, snapshots, bookmarks = [], written }: Loss): string[] => [
  ...snapshots.map(({ snapshot }) => fullName({ dataset, name: snapshot })),
  ...bookmarks.map(({ bookmark }) => `${dataset}#${bookmark}`),
  ...(written === 0 ? [] : [`${formatBytes(written)} written since`]),
];

/**
 * Goes the way, whatever is lost: it is for the caller to look first.
 * @param identity of the bundle that the stream's install has
 */
export async function takeBack(
  { stream, to, done, begun }: WayBack,
  identity: string,
  options: Pick<ReceiveOptions, "signal" | "step">,
): Promise<void> {
  const { dataset, target, origin } = stream;
  if (to !== null) {
    if (!done) {
      await setProperty(dataset, RETURNING, to.guid);
      await rollback(to);
    }
    if (!done || begun) await forgetWayBack(stream);
    return;
  }
  if (origin === undefined) await setProperty(dataset, IDENTITY, identity);
  else await giveBackSnapshots(dataset, origin);
  const received = (await listSnapshots(dataset)).find(({ guid }) => guid === target.guid);
  if (received !== undefined) await patiently(options, () => destroy(fullName(received)));
  await patiently(options, () => destroy(dataset));
}

/** What tells whose a dataset is, also when the snapshot is gone that it was received with. */
const IDENTITY = "zferry:identity";

/**
 * The snapshots of a dataset that a stream made; undefined where it made none, and where what is there is somebody else's.
 * @param identity as of `takeBack`
 */
export async function snapshotsOfMade(
  { dataset, base, origin }: InstalledStream,
  identity: string,
): Promise<Snapshot[] | undefined> {
  if (base !== null && origin === undefined) return undefined;
  if (!(await datasetExists(dataset)) || !(await isOwn(dataset, identity))) return undefined;
  return listSnapshots(dataset);
}

/** Destroys what is left of a dataset that a stream made, where `takeBack` was ended between the snapshot and the dataset. */
export async function removeLeft(
  stream: InstalledStream,
  identity: string,
  options: Pick<ReceiveOptions, "signal" | "step">,
): Promise<void> {
  const snapshots = await snapshotsOfMade(stream, identity);
  if (snapshots?.length !== 0) return;
  options.step(`destroying ${stream.dataset}`);
  await patiently(options, () => destroy(stream.dataset));
}
