import type { Manifest, ManifestStream } from "../bundle/manifest.js";
import type { VerifiedBundle } from "../bundle/reader.js";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { formatBytes } from "../report.js";
import { processesRunningFrom } from "../system/in-use.js";
import {
  datasetExists,
  fullName,
  getProperties,
  listSnapshots,
  poolFeatures,
  poolHealth,
  type Snapshot,
} from "../system/zfs.js";

/** What is to be done for one stream. */
export interface StreamPlan {
  readonly stream: ManifestStream;
  /** The site's. */
  readonly dataset: string;
  /** The snapshot that the stream starts from, by its name on this site; undefined for a full stream. */
  readonly base: Snapshot | undefined;
  /** Whether the target snapshot is there already. */
  readonly received: boolean;
  /** Whether an interrupted receive left something to be discarded. */
  readonly partial: boolean;
}

/**
 * Holds every stream of a bundle against the site's datasets. Nothing is changed.
 * @param ours whether zferry itself has an install of this bundle under way
 * @throws ZferryError `base-missing`, `base-modified`, `dataset-in-use`, `dataset-unsuitable`, `site-busy`, `no-space`
 */
export async function planStreams(
  bundle: VerifiedBundle,
  site: SiteConfig,
  ours: boolean,
): Promise<StreamPlan[]> {
  const plans: StreamPlan[] = [];
  for (const stream of bundle.manifest.streams) {
    const dataset = site.streams[stream.role];
    if (dataset === undefined) {
      throw new ZferryError(
        "not-configured",
        `the bundle has a stream ${stream.role}, this site has no dataset for it`,
        {
          details: { role: stream.role },
          hint: `name one under [streams] of the site's configuration`,
        },
      );
    }
    const plan = await planStream(stream, dataset);
    if (!plan.received) {
      await checkDataset(plan, bundle.manifest, ours);
    }
    plans.push(plan);
  }
  return plans;
}

async function planStream(stream: ManifestStream, dataset: string): Promise<StreamPlan> {
  const exists = await datasetExists(dataset);
  if (!exists) {
    if (stream.base === undefined)
      return { stream, dataset, base: undefined, received: false, partial: false };
    throw new ZferryError(
      "base-missing",
      `there is no dataset ${dataset}, and stream ${stream.role} needs a snapshot with guid ${stream.base.guid} of it`,
      { details: { dataset, expected: stream.base.guid }, hint: "a new site starts with a full bundle" },
    );
  }
  const snapshots = await listSnapshots(dataset);
  const { receive_resume_token: token } = await getProperties(dataset, ["receive_resume_token"]);
  const partial = token !== "-";
  const newest = snapshots.at(-1);
  const known = { stream, dataset, partial };
  const target = snapshots.find(({ guid }) => guid === stream.target.guid);
  if (target !== undefined) {
    await requireUnmodified(dataset, target, stream);
    const base = snapshots.find(({ guid }) => guid === stream.base?.guid);
    return { ...known, base, received: true };
  }
  if (stream.base === undefined) {
    if (partial && snapshots.length === 0) return { ...known, base: undefined, received: false };
    throw new ZferryError("base-modified", `dataset ${dataset} exists, and a full stream makes a new one`, {
      details: { dataset },
      hint: "a site that has a release needs a bundle with that release as its base",
    });
  }
  const base = snapshots.find(({ guid }) => guid === stream.base?.guid);
  if (base === undefined) {
    const found =
      newest === undefined ? "no snapshot" : `${fullName(newest)} (guid ${newest.guid}) as its newest`;
    throw new ZferryError(
      "base-missing",
      `stream ${stream.role} starts from ${stream.base.snapshot ?? "a snapshot"} (guid ${stream.base.guid}), dataset ${dataset} has ${found}`,
      {
        details: { dataset, expected: stream.base.guid, found: newest?.guid ?? "none" },
        hint: "install the bundles in between first",
      },
    );
  }
  return { ...known, base, received: false };
}

/** What must hold of a dataset that is about to receive. */
async function checkDataset(
  { stream, dataset, base, partial }: StreamPlan,
  manifest: Manifest,
  ours: boolean,
): Promise<void> {
  const pool = dataset.split("/", 1)[0] as string;
  await checkPool(pool, manifest);
  if (base === undefined) {
    const parent = dataset.slice(0, dataset.lastIndexOf("/"));
    if (!(await datasetExists(parent))) {
      throw new ZferryError("dataset-unsuitable", `there is no dataset ${parent} to make ${dataset} in`, {
        hint: `zfs create -p ${parent}`,
      });
    }
    if (!partial) return requireSpace(parent, stream);
  }
  if (partial && !ours) {
    throw new ZferryError("site-busy", `dataset ${dataset} has a partial receive that is not zferry's`, {
      details: { dataset },
      hint: `let it end, or discard it: zfs receive -A ${dataset}`,
    });
  }
  if (base === undefined) return;

  if (stream.features.includes("large_microzap")) {
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
  await requireUnmodified(dataset, base, stream);
  const properties = await getProperties(dataset, ["sharenfs", "sharesmb", "keystatus"]);
  if (properties.keystatus === "unavailable") {
    throw new ZferryError("dataset-unsuitable", `the encryption key of ${dataset} is not loaded`, {
      hint: `zfs load-key ${dataset}`,
    });
  }
  await requireUnused(dataset, properties);
  await requireSpace(dataset, stream);
}

/** A release is exact only while nothing was written after its snapshot. */
async function requireUnmodified(
  dataset: string,
  since: Snapshot,
  { target }: ManifestStream,
): Promise<void> {
  const property = `written@${since.name}`;
  const written = (await getProperties(dataset, [property]))[property] ?? "";
  if (written === "0") return;
  throw new ZferryError(
    "base-modified",
    `dataset ${dataset} was modified after ${fullName(since)} (guid ${since.guid}): ${formatBytes(Number(written))} ` +
      `written, and the bundle leads to guid ${target.guid}`,
    {
      details: { dataset, snapshot: since.guid, target: target.guid, written },
      hint: `see what changed: zfs diff ${fullName(since)} ${dataset}; going back loses it: zfs rollback -r ${fullName(since)}`,
    },
  );
}

async function checkPool(pool: string, { requires }: Manifest): Promise<void> {
  const health = await poolHealth(pool);
  if (health !== "ONLINE" && health !== "DEGRADED") {
    throw new ZferryError("dataset-unsuitable", `pool ${pool} is ${health}`, {
      hint: `see zpool status ${pool}`,
    });
  }
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

async function requireUnused(dataset: string, shares: { sharenfs: string; sharesmb: string }): Promise<void> {
  for (const share of ["sharenfs", "sharesmb"] as const) {
    if (shares[share] === "off" || shares[share] === "-") continue;
    throw new ZferryError("dataset-in-use", `dataset ${dataset} is exported: ${share}=${shares[share]}`, {
      details: { dataset },
      hint: "programs of other machines may run from it",
    });
  }
  const runners = await processesRunningFrom(dataset);
  const [first] = runners;
  if (first === undefined) return;
  const others = runners.length === 1 ? "" : ` and ${runners.length - 1} more`;
  throw new ZferryError(
    "dataset-in-use",
    `processes of the running system run from ${dataset}: ${first.name} (${first.pid}, ${first.path})${others}`,
    {
      details: {
        dataset,
        processes: runners.slice(0, 20).map(({ pid, name, path }) => `${pid} ${name} ${path}`),
      },
      hint: "receiving would take their files from under them; install from another system, such as a rescue system",
    },
  );
}

async function requireSpace(dataset: string, stream: ManifestStream): Promise<void> {
  const { available } = await getProperties(dataset, ["available"]);
  if (Number(available) >= stream.rawBytes) return;
  throw new ZferryError(
    "no-space",
    `stream ${stream.role} may take ${formatBytes(stream.rawBytes)}, ${dataset} has ${formatBytes(Number(available))} left`,
    { details: { dataset, needed: stream.rawBytes, available: Number(available) } },
  );
}
