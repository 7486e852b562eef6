import { ZferryError } from "../errors.js";
import { formatBytes } from "../report.js";
import {
  datasetExists,
  destroy,
  fullName,
  getProperties,
  listSnapshots,
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
  readonly loss: Loss;
  /** What zfs does not go back over: clones and holds, in words. */
  readonly blocked: readonly string[];
}

/**
 * Finds the way, and changes nothing.
 * @throws ZferryError `base-missing` when there is no base to go back to; `zfs-failed` without the dataset
 */
export async function findWayBack(stream: InstalledStream): Promise<WayBack> {
  const { dataset, target } = stream;
  // What it made beside its base goes as a whole.
  const base = stream.origin === undefined ? stream.base : null;
  const snapshots = await listSnapshots(dataset);
  const [from, reached] = [base, target].map((wanted) =>
    snapshots.findIndex(({ guid }) => guid === wanted?.guid),
  ) as [number, number];
  if ((base !== null && (from === -1 || reached === 0)) || (base === null && reached === -1)) {
    throw new ZferryError(
      "base-missing",
      `${dataset} has no snapshot with guid ${base?.guid ?? target.guid} to go back ${base === null ? "from" : "to"}`,
      { details: { dataset, expected: base?.guid ?? target.guid } },
    );
  }
  const leaving = snapshots.slice(reached === -1 ? from + 1 : reached);
  const later = reached === -1 ? leaving : leaving.slice(1);
  const since = snapshots[reached === -1 ? from : reached] as Snapshot;
  const property = `written@${since.name}`;
  const written = Number((await getProperties(dataset, [property]))[property]);
  const blocked: string[] = [];
  for (const snapshot of leaving) {
    const name = fullName(snapshot);
    const { clones, userrefs } = await getProperties(name, ["clones", "userrefs"]);
    // What a receive into the dataset itself has taken so far is such a clone, too, and is discarded.
    const others = clones.split(",").filter((each) => !["", "-", `${dataset}/%recv`].includes(each));
    if (others.length > 0) blocked.push(`clones of ${name}: ${others.join(",")}`);
    if (!["0", "-"].includes(userrefs)) blocked.push(`holds on ${name}: zfs holds shows them`);
  }
  return {
    stream,
    // What others took between base and target stays, and is like the base.
    to: base === null ? null : (snapshots[reached === -1 ? from : reached - 1] as Snapshot),
    done: leaving.length === 0 && written === 0,
    loss: { dataset, snapshots: later.map(({ name, guid }) => ({ snapshot: name, guid })), written },
    blocked,
  };
}

/** What is lost, in words; empty for nothing. */
export const describeLoss = ({ dataset, snapshots, written }: Loss): string[] => [
  ...snapshots.map(({ snapshot }) => fullName({ dataset, name: snapshot })),
  ...(written === 0 ? [] : [`${formatBytes(written)} written since`]),
];

/**
 * Goes the way, whatever is lost: it is for the caller to look first.
 * @param identity of the bundle that the stream's install has
 */
export async function takeBack(
  { stream, to, done }: WayBack,
  identity: string,
  options: Pick<ReceiveOptions, "signal" | "step">,
): Promise<void> {
  if (done) return;
  if (to !== null) return rollback(to);
  const { dataset, target, origin } = stream;
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
