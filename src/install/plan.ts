import type { Manifest, ManifestStream } from "../bundle/manifest.js";
import type { VerifiedBundle } from "../bundle/reader.js";
import type { SiteConfig } from "../config.js";
import { ZferryError, type Obstacles } from "../errors.js";
import { formatBytes, listFirst } from "../report.js";
import { parseResumeToken, type ResumeToken } from "../stream/resume-token.js";
import { usesOf, type Uses } from "../system/in-use.js";
import {
  datasetExists,
  fullName,
  getProperties,
  listDiff,
  listSnapshots,
  outerFirst,
  parentOf,
  poolFeatures,
  poolHealth,
  poolOf,
  resumeToken,
  type PropertyValues,
  type Snapshot,
} from "../system/zfs.js";
import { streamOfToken } from "./resume.js";
import type { SiteState } from "./state.js";

/**
 * Asked first, and alone: whatever else is asked of a pool whose disks are gone waits until they are back.
 * @throws ZferryError `dataset-unsuitable`, `not-configured` when it is not imported
 */
export async function requireAnswer(dataset: string): Promise<void> {
  const pool = poolOf(dataset);
  const health = await poolHealth(pool);
  if (health === "ONLINE" || health === "DEGRADED") return;
  throw new ZferryError("dataset-unsuitable", `pool ${pool} is ${health}: its disks do not answer`, {
    details: { pool, health },
    hint: `see zpool status ${pool}; when its disks are back: zpool clear ${pool}`,
  });
}

/** In bytes. */
export interface StreamSpace {
  /** That the rest of the stream takes at most. */
  readonly needed: number;
  /** Where it takes them: what it is received into, or made in. */
  readonly dataset: string;
  /** That this may still take, within quotas. */
  readonly available: number;
}

/** What is to be done for one stream. */
export interface StreamPlan {
  readonly stream: ManifestStream;
  /** The site's. */
  readonly dataset: string;
  /** The snapshot that the stream starts from, by its name on this site; undefined for a full stream. */
  readonly base: Snapshot | undefined;
  /** Whether the target snapshot is there already. */
  readonly received: boolean;
  /** Bytes of the stream that an interrupted receive of this install has taken. */
  readonly taken: number;
  /** Null once it is received. */
  readonly space: StreamSpace | null;
  /** What does not stand against it, and is good to know. */
  readonly warnings: readonly string[];
  /** That a dataset gets which is made beside that of its base. */
  readonly properties?: PropertyValues;
}

/** Takes it upon itself to receive into a dataset that is in use, or throws. */
export type Live = (dataset: string, uses: Uses) => Promise<void>;

/**
 * Holds every stream of a bundle against the site's datasets. Nothing is changed.
 * @param ours whether zferry itself has an install of this bundle under way
 * @param live told who uses a dataset; undefined: one in use is an obstacle
 * @param obstacles takes what stands against it: `base-missing`, `base-modified`, `dataset-in-use`, `dataset-unsuitable`,
 * `site-busy`, `no-space`, `not-configured`
 * @returns the streams that could be held against a dataset; those that lie below others come after them
 */
export async function planStreams(
  bundle: VerifiedBundle,
  site: SiteConfig,
  ours: boolean,
  live: Live | undefined,
  obstacles: Obstacles,
): Promise<StreamPlan[]> {
  const found: Found[] = [];
  for (const stream of bundle.manifest.streams) {
    const each = await obstacles.unless(() => planStream(stream, datasetOf(stream, site), ours));
    if (each !== undefined) found.push(each);
  }
  const plans: StreamPlan[] = [];
  for (const each of outerFirst(found)) {
    const made = plans.map(({ dataset }) => dataset);
    const checked = each.received
      ? { space: null, warnings: [] }
      : await checkDataset(each, bundle.manifest, live, obstacles, made);
    plans.push({ ...each, ...checked });
  }
  await obstacles.unless(() => requireSpaceForAll(plans));
  return plans;
}

export function datasetOf({ role }: ManifestStream, site: SiteConfig): string {
  const dataset = site.streams[role];
  if (dataset !== undefined) return dataset;
  throw new ZferryError(
    "not-configured",
    `the bundle has a stream ${role}, this site has no dataset for it`,
    {
      details: { role },
      hint: `name one under [streams] of the site's configuration`,
    },
  );
}

export type Found = Omit<StreamPlan, "space" | "warnings"> & {
  /** Snapshots after the base, oldest first. */
  readonly later: readonly Snapshot[];
};

async function planStream(stream: ManifestStream, dataset: string, ours: boolean): Promise<Found> {
  const known = { stream, dataset, received: false, taken: 0, later: [] };
  if (!(await datasetExists(dataset))) {
    if (stream.base === undefined) return { ...known, base: undefined };
    throw new ZferryError(
      "base-missing",
      `there is no dataset ${dataset}, and stream ${stream.role} needs a snapshot with guid ${stream.base.guid} of it`,
      { details: { dataset, expected: stream.base.guid }, hint: "a new site starts with a full bundle" },
    );
  }
  const snapshots = await listSnapshots(dataset);
  const target = snapshots.find(({ guid }) => guid === stream.target.guid);
  const base = snapshots.find(({ guid }) => guid === stream.base?.guid);
  if (target !== undefined) {
    await requireUnmodified(dataset, target, stream);
    return { ...known, base, received: true };
  }
  const token = await resumeToken(dataset);
  if (token !== undefined && !ours) {
    throw new ZferryError("site-busy", `dataset ${dataset} has a partial receive that is not zferry's`, {
      details: { dataset },
      hint: `let it end, or discard it: zfs receive -A ${dataset}`,
    });
  }
  const taken = Number(pointOf(stream, token)?.bytes ?? 0);
  if (stream.base === undefined) {
    if (token !== undefined && snapshots.length === 0) return { ...known, base: undefined, taken };
    throw new ZferryError("base-modified", `dataset ${dataset} exists, and a full stream makes a new one`, {
      details: { dataset },
      hint: "a site that has a release needs a bundle with that release as its base",
    });
  }
  if (base === undefined) throw baseMissing(stream, dataset, snapshots);
  return { ...known, base, taken, later: snapshots.slice(snapshots.indexOf(base) + 1) };
}

/** @param snapshots those of the dataset */
export function baseMissing(
  { role, base }: ManifestStream,
  dataset: string,
  snapshots: readonly Snapshot[],
): ZferryError {
  const newest = snapshots.at(-1);
  const found =
    newest === undefined ? "no snapshot" : `${fullName(newest)} (guid ${newest.guid}) as its newest`;
  return new ZferryError(
    "base-missing",
    `stream ${role} starts from ${base?.snapshot ?? "a snapshot"} (guid ${base?.guid ?? ""}), dataset ${dataset} has ${found}`,
    {
      details: { dataset, expected: base?.guid ?? "", found: newest?.guid ?? "none" },
      hint: "install the bundles in between first",
    },
  );
}

export interface TimeEstimate {
  readonly seconds: number;
  readonly bytesPerSecond: number;
  /** Nothing that was installed here tells the rate. */
  readonly assumed: boolean;
}

const ASSUMED_BYTES_PER_SECOND = 50 << 20;
/** One that was interrupted took longer than its work, so the quickest of a few counts. */
const INSTALLATIONS_LOOKED_AT = 3;
/** What is smaller tells what the rest of an install takes. */
const TELLING_BYTES = 16 << 20;

/** How long an install may take, from the rate of those before it. */
export function estimateTime(streams: readonly StreamPlan[], state: SiteState | undefined): TimeEstimate {
  const rates = (state?.installations ?? []).slice(-INSTALLATIONS_LOOKED_AT).map((installation) => {
    const bytes = installation.streams.reduce((sum, { rawBytes = 0 }) => sum + rawBytes, 0);
    const seconds = Math.max(1, installation.finishedAt - installation.startedAt);
    return bytes < TELLING_BYTES ? 0 : bytes / seconds;
  });
  const known = Math.round(Math.max(0, ...rates));
  const bytesPerSecond = known === 0 ? ASSUMED_BYTES_PER_SECOND : known;
  const bytes = streams.reduce((sum, { space }) => sum + (space?.needed ?? 0), 0);
  return { seconds: Math.ceil(bytes / bytesPerSecond), bytesPerSecond, assumed: known === 0 };
}

/**
 * What must hold of a dataset that is about to receive, or that one is about to be made beside.
 * @param made datasets that are made before
 */
export async function checkDataset(
  { stream, dataset, base, taken, later }: Found,
  manifest: Manifest,
  live: Live | undefined,
  obstacles: Obstacles,
  made: readonly string[] = [],
): Promise<Pick<StreamPlan, "space" | "warnings">> {
  const pool = poolOf(dataset);
  await obstacles.unless(() => requireFeatures(pool, manifest));
  const health = await poolHealth(pool);
  const warnings =
    health === "ONLINE"
      ? []
      : [`pool ${pool} is ${health}: one more disk that fails may take all; see zpool status ${pool}`];
  const missing = Math.max(0, stream.rawBytes - taken);
  const exists = base !== undefined || taken > 0;
  let place = base?.dataset ?? (exists ? dataset : parentOf(dataset));
  // Made there, it is as what that is made in.
  while (!exists && made.includes(place) && !(await datasetExists(place))) place = parentOf(place);
  if (!exists && !(await datasetExists(place))) {
    obstacles.add(
      new ZferryError("dataset-unsuitable", `there is no dataset ${place} to make ${dataset} in`, {
        hint: `zfs create -p ${place}`,
      }),
    );
    return { space: null, warnings };
  }
  // What is made beside its base may take other quotas than that has.
  const room = base === undefined || place === dataset ? place : await existingAbove(dataset);
  const space = { needed: missing, dataset: room, available: await availableTo(room) };
  await obstacles.unless(async () => requireSpace(stream, space));
  await obstacles.unless(() => requireKey(place, stream));
  const { readonly, "com.sun:auto-snapshot": automatic } = await getProperties(place, [
    "readonly",
    "com.sun:auto-snapshot",
  ]);
  if (readonly !== "on") {
    warnings.push(
      `${dataset} ${place === dataset ? "is" : "will be"} writable: what anybody writes to it stands against the next release; zfs set readonly=on ${place}`,
    );
  }
  if (base === undefined) return { space, warnings };

  await obstacles.unless(() => requireNoPanic(place, stream));
  await obstacles.unless(() => requireUnmodified(place, base, stream));
  if (place !== dataset) return { space, warnings };
  await obstacles.unless(() => requireUnused(dataset, live));
  if (later.length > 0) {
    const names = later.map(fullName).join(", ");
    if (stream.features.includes("raw")) {
      obstacles.add(
        new ZferryError(
          "base-modified",
          `${dataset} has snapshots after ${fullName(base)}, which an encrypted stream cannot be received over: ${names}`,
          {
            details: { dataset, snapshots: later.map(fullName) },
            hint: later.map((each) => `zfs destroy ${fullName(each)}`).join("; "),
          },
        ),
      );
    }
    warnings.push(
      `${dataset} has later snapshots: ${names}; one that is taken while it receives makes it stop`,
    );
  }
  if (automatic === "true") {
    warnings.push(
      `${dataset} has com.sun:auto-snapshot=true; a snapshot taken while it receives makes it stop`,
    );
  }
  return { space, warnings };
}

/** Where an interrupted receive of a stream goes on; undefined without one, and for one of another stream. */
export function pointOf(stream: ManifestStream, token: string | undefined): ResumeToken | undefined {
  if (token === undefined) return undefined;
  try {
    const point = parseResumeToken(token);
    streamOfToken([stream], point);
    return point;
  } catch (error) {
    if (error instanceof ZferryError) return undefined;
    throw error;
  }
}

async function requireNoPanic(dataset: string, stream: ManifestStream): Promise<void> {
  if (!stream.features.includes("large_microzap")) return;
  // Received in place it made the kernel module panic and the pool hang: openzfs#18143, seen on 2.3.2.
  throw new ZferryError(
    "dataset-unsuitable",
    `stream ${stream.role} has the feature large_microzap, which ZFS must not receive into ${dataset} in place`,
    {
      details: { dataset, role: stream.role },
      hint: "the kernel can panic (openzfs#18143); start this site anew with a full bundle",
    },
  );
}

async function requireKey(dataset: string, { features }: ManifestStream): Promise<void> {
  const { keystatus, encryptionroot } = await getProperties(dataset, ["keystatus", "encryptionroot"]);
  // What was encrypted by the sender is received as it is.
  if (keystatus !== "unavailable" || features.includes("raw")) return;
  throw new ZferryError("dataset-unsuitable", `the encryption key of ${dataset} is not loaded`, {
    details: { dataset },
    hint: `zfs load-key ${encryptionroot}`,
  });
}

const SHOWN_PATHS = 20;

/** A release is exact only while nothing was written after its snapshot. */
async function requireUnmodified(
  dataset: string,
  since: Snapshot,
  { target }: ManifestStream,
): Promise<void> {
  const property = `written@${since.name}`;
  const written = (await getProperties(dataset, [property]))[property] ?? "";
  if (written === "0") return;
  const changed = await listDiff(since);
  throw new ZferryError(
    "base-modified",
    `dataset ${dataset} was modified after ${fullName(since)} (guid ${since.guid}): ${formatBytes(Number(written))} ` +
      `written${changed.length === 0 ? "" : ` (${listFirst(changed)})`}, and the bundle leads to guid ${target.guid}`,
    {
      details: {
        dataset,
        snapshot: since.guid,
        target: target.guid,
        written,
        changed: changed.slice(0, SHOWN_PATHS),
      },
      hint: `see what changed: zfs diff ${fullName(since)} ${dataset}; going back loses it: zfs rollback -r ${fullName(since)}`,
    },
  );
}

async function requireFeatures(pool: string, { requires }: Manifest): Promise<void> {
  const enabled = await poolFeatures(pool);
  const missing = requires.poolFeatures.filter((feature) => !enabled.has(feature));
  if (missing.length > 0) {
    throw new ZferryError(
      "dataset-unsuitable",
      `pool ${pool} does not have the features ${missing.join(", ")} enabled`,
      {
        details: { pool, missing },
        hint: missing.map((feature) => `zpool set feature@${feature}=enabled ${pool}`).join("; "),
      },
    );
  }
}

const INSTALL_ELSEWHERE =
  'install from another system, such as a rescue system; where / is on ZFS, as a boot environment, which changes nothing that runs (mode = "boot-environment" under [install]); or, to be followed by a reboot, with --live';

/**
 * @param live undefined: one in use is refused
 * @throws ZferryError `dataset-in-use` when programs run from a dataset, here or elsewhere
 */
export async function requireUnused(
  dataset: string,
  live: Live | undefined,
  command: "install" | "abort" | "rollback" = "install",
): Promise<void> {
  const shares = await getProperties(dataset, ["sharenfs", "sharesmb"]);
  const shared = (["sharenfs", "sharesmb"] as const)
    .filter((share) => shares[share] !== "off" && shares[share] !== "-")
    .map((share) => `${share}=${shares[share]}`);
  const found = await usesOf(dataset);
  const uses = { ...found, others: [...shared, ...found.others] };
  if (live !== undefined) return live(dataset, uses);
  const { runners, others } = uses;
  if (others.length > 0) {
    throw new ZferryError(
      "dataset-in-use",
      `dataset ${dataset} is exported or shared: ${others.join(", ")}`,
      {
        details: { dataset, uses: others },
        hint: "what runs from it elsewhere would lose its files; end that, or add --live all the same",
      },
    );
  }
  const [first] = runners;
  if (first === undefined) return;
  const more = runners.length === 1 ? "" : ` and ${runners.length - 1} more`;
  throw new ZferryError(
    "dataset-in-use",
    `processes of the running system run from ${dataset}: ${first.name} (${first.pid}, ${first.path})${more}`,
    {
      details: {
        dataset,
        processes: runners.slice(0, 20).map(({ pid, name, path }) => `${pid} ${name} ${path}`),
      },
      hint: `they would lose their files and likely die: ${command === "install" ? INSTALL_ELSEWHERE : `do it from another system, such as a rescue system; or, to be followed by a reboot: bundle ${command} --live`}`,
    },
  );
}

/** Bytes that a dataset may still take, within quotas. */
export const availableTo = async (dataset: string): Promise<number> =>
  Number((await getProperties(dataset, ["available"])).available);

/** The nearest dataset above one that is to be made: that right above may be made with it. */
async function existingAbove(dataset: string): Promise<string> {
  const above = parentOf(dataset);
  return parentOf(above) === "" || (await datasetExists(above)) ? above : existingAbove(above);
}

/**
 * What lies within one dataset shares its quota, and all of a pool its space.
 * @param availableIn bytes that a dataset may still take
 * @throws ZferryError `no-space` where streams that fit alone do not fit together
 */
export async function requireSpaceForAll(
  streams: readonly Pick<StreamPlan, "stream" | "space">[],
  availableIn: (dataset: string) => Promise<number> = availableTo,
): Promise<void> {
  const needs = streams.flatMap(({ stream, space }) =>
    space === null ? [] : [{ role: stream.role, ...space }],
  );
  const places = new Set(needs.flatMap(({ dataset }) => [dataset, ...allAbove(dataset)]));
  for (const { dataset } of outerFirst([...places].map((place) => ({ dataset: place }))).toReversed()) {
    const within = needs.filter((each) => each.dataset === dataset || each.dataset.startsWith(`${dataset}/`));
    if (within.length < 2) continue;
    const needed = within.reduce((sum, each) => sum + each.needed, 0);
    // What has a reservation has more than what it lies in.
    const available = Math.max(await availableIn(dataset), ...within.map((each) => each.available));
    if (available >= needed) continue;
    const roles = within.map(({ role }) => role).toSorted();
    throw new ZferryError(
      "no-space",
      `streams ${roles.join(", ")} may take ${formatBytes(needed)} together, ${dataset} has ${formatBytes(available)} left`,
      { details: { dataset, roles, needed, available }, hint: "free space in the pool, or raise the quota" },
    );
  }
}

const allAbove = (dataset: string): string[] => {
  const above = parentOf(dataset);
  return above === "" ? [] : [above, ...allAbove(above)];
};

function requireSpace({ role }: ManifestStream, { dataset, needed, available }: StreamSpace): void {
  if (available >= needed) return;
  throw new ZferryError(
    "no-space",
    `stream ${role} may take ${formatBytes(needed)}, ${dataset} has ${formatBytes(available)} left`,
    {
      details: { dataset, needed, available },
      hint: "free space in the pool, or raise the quota",
    },
  );
}
