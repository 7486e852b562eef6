import { join } from "node:path";
import type { SiteConfig } from "../config.js";
import { ToldElsewhere, ZferryError } from "../errors.js";
import { listFirst, type Environment } from "../report.js";
import { loadMapped, type Uses } from "../system/in-use.js";
import { visibleMounts } from "../system/mounts.js";
import { isPrivate, openPrivateMounts, restartPrivately } from "../system/private-mounts.js";
import { followProcess, openOutputs } from "../system/relay.js";
import { fullName, getProperties, listSnapshots } from "../system/zfs.js";
import { requireStateOffStreams } from "./apart.js";
import { lockState, type InstalledStream } from "./state.js";
import { readUnderWay } from "./under-way.js";

// A receive takes the files from under what runs from the dataset. formats/state.md, In place under a running system

const LOG_NAME = "install.log";
const MOST_NAMES = 12;

/**
 * Runs this command once more in a session of its own, where snapshots are in the place of the site's datasets, and
 * follows it to its end.
 * @param goingBack streams that the command takes back: their targets are not there to the end
 * @returns false where there is nothing to move away from: the command is to do its work itself
 * @throws ToldElsewhere, ZferryError `site-busy`, `interrupted`
 */
export async function runMoved(
  site: SiteConfig,
  env: Environment,
  goingBack: readonly InstalledStream[] = [],
): Promise<boolean> {
  const snapshots = env.moved ? undefined : await presentSnapshots(site, goingBack);
  if (snapshots === undefined || snapshots.size === 0) return false;
  await requireStateOffStreams(site);
  // The log of an install that is running must not be lost.
  await (await lockState(site.state)).release();
  const log = join(site.state, LOG_NAME);
  const outputs = openOutputs(log);
  try {
    const mounts = await openPrivateMounts();
    let child;
    try {
      await mounts.cover(snapshots);
      child = mounts.restart(outputs.output, outputs.errors);
    } finally {
      mounts.close();
    }
    if (!env.quiet) env.note(`running from ${[...snapshots.values()].join(", ")}; the log is ${log}`);
    const ended = await followProcess(child, outputs, { errors: env.relay, output: env.write });
    if (ended === undefined) {
      throw new ZferryError("interrupted", "hung up; the command itself goes on", {
        hint: `its log is ${log}`,
      });
    }
    if ("signal" in ended) {
      throw new ZferryError("interrupted", `the command was ended by ${ended.signal}`, {
        hint: "the same command goes on",
        details: { signal: ended.signal, log },
      });
    }
    if (ended.status !== 0) throw new ToldElsewhere(ended.status);
    return true;
  } finally {
    outputs.close();
  }
}

/**
 * Where boot environments are made: runs this command once more where nobody else sees what it mounts, and waits for its end.
 * @returns false where nothing is mounted, or nobody sees it already: the command is to do its work itself
 * @throws ToldElsewhere, ZferryError `interrupted`, `not-permitted`, `usage` with `--live`
 */
export async function runPrivately(
  { install: { mode, from } }: SiteConfig,
  { live }: { readonly live?: boolean } = {},
): Promise<boolean> {
  if (mode === "in-place") return false;
  if (live) {
    const why = from === "under-way" ? "what is under way makes a boot environment" : `with mode = "${mode}"`;
    throw new ZferryError("usage", `--live is of no use: ${why}, and nothing that runs is changed`);
  }
  if (isPrivate()) return false;
  const ended = await restartPrivately();
  if ("signal" in ended) {
    throw new ZferryError("interrupted", `the command was ended by ${ended.signal}`, {
      hint: "the same command goes on",
      details: { signal: ended.signal },
    });
  }
  if (ended.status !== 0) throw new ToldElsewhere(ended.status);
  return true;
}

/**
 * For each dataset that we see, the full name of the snapshot that takes its place: the base of what is under way, or of what is to
 * be rolled back, or else the newest. A dataset that was modified since is left out: an install refuses it.
 */
async function presentSnapshots(
  site: SiteConfig,
  goingBack: readonly InstalledStream[],
): Promise<Map<string, string>> {
  const journal = await readUnderWay(site);
  const streams = journal === undefined || journal.operation === "merge" ? goingBack : journal.streams;
  const present = new Map<string, string>();
  for (const dataset of Object.values(site.streams)) {
    if ((await visibleMounts("self", [dataset])).length === 0) continue;
    const snapshots = await listSnapshots(dataset);
    const under = streams.find((stream) => stream.dataset === dataset)?.base?.guid;
    const base = snapshots.find(({ guid }) => guid === under);
    const newest = snapshots.at(-1);
    if (base !== undefined) present.set(dataset, fullName(base));
    else if (newest !== undefined && (await getProperties(dataset, ["written"])).written === "0") {
      present.set(dataset, fullName(newest));
    }
  }
  return present;
}

/**
 * The last thing before a receive into a dataset that is in use.
 * @throws ZferryError `dataset-in-use` when it would take our own files, or those of a program that we start
 */
export async function faceDanger(dataset: string, { own }: Uses): Promise<void> {
  if (own === undefined) return loadMapped(dataset);
  throw new ZferryError("dataset-in-use", `zferry itself would lose its files: ${own} lies on ${dataset}`, {
    details: { dataset, path: own },
    hint: "install from another system, such as a rescue system",
  });
}

/** What is to be told before a dataset is received into that is in use: lines for people. */
export function dangerOf(dataset: string, { runners, others }: Uses): string[] {
  const lines: string[] = [];
  if (runners.length > 0) {
    const names = runners.map(({ name, pid }) => `${name} (${pid})`);
    lines.push(
      `danger: what runs from ${dataset} loses its files and will likely die: ${listFirst(names, ", ", MOST_NAMES)}`,
    );
  }
  if (others.length > 0) lines.push(`danger: ${dataset} is read elsewhere: ${others.join(", ")}`);
  if (lines.length > 0) lines.push("  stop what can be stopped, and reboot when the install is done");
  return lines;
}
