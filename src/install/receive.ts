import { setTimeout as sleep } from "node:timers/promises";
import type { VerifiedBundle } from "../bundle/reader.js";
import { ZferryError } from "../errors.js";
import { untilInterrupted, type ProgressReport } from "../report.js";
import { resumeStream } from "../stream/resume.js";
import type { ResumeToken } from "../stream/resume-token.js";
import type { ProcessResult } from "../system/process.js";
import {
  abortReceive,
  datasetExists,
  fullName,
  getProperties,
  listSnapshots,
  receive,
  resumeToken,
  zfsFailure,
} from "../system/zfs.js";
import { pointOf, requireAnswer, type StreamPlan } from "./plan.js";
import { chunksFrom } from "./resume.js";
import type { InstalledStream } from "./state.js";

export interface ReceiveOptions {
  readonly progress: ProgressReport;
  readonly signal: AbortSignal;
  /** Told what is done next, in a few words for people. */
  readonly step: (what: string) => void;
}

/** How often a stream is gone on with from where it is by then. */
const RESUMED_ROUNDS = 3;

/**
 * Brings a stream into its dataset. What an interrupted receive of it left is gone on with, from where it was; it is begun
 * again only if ZFS does not take the rest.
 * @throws ZferryError; what was received stays, for the next call
 */
export async function receiveStream(
  bundle: VerifiedBundle,
  plan: StreamPlan,
  options: ReceiveOptions,
): Promise<void> {
  const { stream, dataset } = plan;
  for (let round = 1; ; round += 1) {
    const left = await tokenOf(dataset);
    const point = pointOf(stream, left);
    // Of another stream, or not to be read.
    if (left !== undefined && point === undefined) await discardPartial(dataset, options);
    try {
      await patiently(options, () => receiveFrom(bundle, plan, point, options));
      break;
    } catch (error) {
      if (!(error instanceof ZferryError) || error.code !== "zfs-failed" || point === undefined) throw error;
      if ((await tokenOf(dataset)) === left) {
        options.step(`zfs does not go on with ${stream.role} from where it was, so it begins again`);
        await discardPartial(dataset, options);
        await receiveFrom(bundle, plan, undefined, options);
        break;
      }
      // A receive that was killed while its pool did not answer ends when that does again, and has brought more by then.
      if (round === RESUMED_ROUNDS) throw error;
      options.step(`${stream.role} is further than it was: it goes on from there`);
    }
  }
  if (!(await isReceived(describeStream(plan)))) {
    throw new ZferryError(
      "zfs-failed",
      `zfs receive ended well, but ${dataset} has no snapshot with guid ${stream.target.guid}`,
      { details: { dataset, expected: stream.target.guid } },
    );
  }
}

/** Rounds of a second. */
const BUSY_ROUNDS = 30;

/** Tries again while a dataset is busy: what was killed before, and had it, may need a moment to end. */
export async function patiently(
  { signal, step }: Pick<ReceiveOptions, "signal" | "step">,
  work: () => Promise<void>,
): Promise<void> {
  for (let round = 1; ; round += 1) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof ZferryError) || error.code !== "site-busy" || round === BUSY_ROUNDS) throw error;
      if (round === 2) step(`${error.message}; trying again for ${BUSY_ROUNDS} seconds`);
      await untilInterrupted(sleep(1000), signal);
    }
  }
}

/** Discards what an interrupted receive left; nothing where there is nothing. A dataset that it made goes with it. */
export async function discardPartial(
  dataset: string,
  options: Pick<ReceiveOptions, "signal" | "step">,
): Promise<void> {
  await patiently(options, async () => {
    if ((await tokenOf(dataset)) !== undefined) await abortReceive(dataset);
  });
}

/** The token of an interrupted receive, or undefined, also where there is no dataset. */
export const tokenOf = async (dataset: string): Promise<string | undefined> =>
  (await datasetExists(dataset)) ? resumeToken(dataset) : undefined;

export const describeStream = ({
  stream,
  dataset,
  base,
}: Pick<StreamPlan, "stream" | "dataset" | "base">): InstalledStream => ({
  role: stream.role,
  dataset,
  base: base === undefined ? null : { snapshot: base.name, guid: base.guid },
  target: stream.target,
  rawBytes: stream.rawBytes,
  ...(base === undefined || base.dataset === dataset ? {} : { origin: base.dataset }),
});

/** The same, with what tells the dataset of the base when it is renamed. */
export async function identifyStream(plan: StreamPlan): Promise<InstalledStream> {
  const stream = describeStream(plan);
  if (plan.base === undefined) return stream;
  const { guid } = await getProperties(plan.base.dataset, ["guid"]);
  return { ...stream, baseDataset: guid };
}

export async function isReceived({ dataset, target }: InstalledStream): Promise<boolean> {
  if (!(await datasetExists(dataset))) return false;
  return (await listSnapshots(dataset)).some(({ guid }) => guid === target.guid);
}

/** Gives a stream, or its rest, to `zfs receive`. */
async function receiveFrom(
  bundle: VerifiedBundle,
  plan: StreamPlan,
  point: ResumeToken | undefined,
  { progress, signal, step }: ReceiveOptions,
): Promise<void> {
  const { stream, dataset, properties } = plan;
  const target = { dataset, name: stream.target.snapshot };
  step(
    `receiving ${stream.role} into ${dataset}${point === undefined ? "" : `, from byte ${point.bytes} on`}`,
  );
  const pieces =
    point === undefined
      ? bundle.chunks(stream)
      : resumeStream(bundle.chunks(stream, chunksFrom(stream, point)), point);
  const receiver = receive(target, properties);
  let result: ProcessResult;
  try {
    let done = Number(point?.bytes ?? 0);
    for await (const piece of pieces) {
      const written = whileAnswering(dataset, receiver.write(piece));
      if (!(await untilInterrupted(written, signal))) break;
      done += piece.length;
      progress.update(`receiving ${stream.role}`, done, stream.rawBytes);
    }
    result = await untilInterrupted(whileAnswering(dataset, receiver.finish()), signal);
  } catch (error) {
    await receiver.kill();
    throw error;
  } finally {
    progress.end();
  }
  if (result.status !== 0) throw await explain(plan, zfsFailure(`zfs receive ${fullName(target)}`, result));
}

const ASK_MS = 5_000;

/** Waits for zfs. What it writes to a pool whose disks are gone waits for ever, so the pool is asked if it takes long. */
async function whileAnswering<Result>(dataset: string, work: Promise<Result>): Promise<Result> {
  for (;;) {
    const asking = new AbortController();
    const first = await Promise.race([
      work.then((result) => ({ result })),
      sleep(ASK_MS, undefined, { signal: asking.signal }).catch(() => undefined),
    ]).finally(() => asking.abort());
    if (first !== undefined) return first.result;
    await requireAnswer(dataset);
  }
}

/** Says why ZFS refused, where its own words do not. */
async function explain({ stream, dataset, base }: StreamPlan, failure: ZferryError): Promise<ZferryError> {
  await requireAnswer(dataset);
  if (failure.code !== "zfs-failed" || base?.dataset !== dataset) return failure;
  const snapshots = await listSnapshots(dataset);
  const position = snapshots.findIndex(({ guid }) => guid === base.guid);
  const later = snapshots.slice(position + 1).filter(({ guid }) => guid !== stream.target.guid);
  if (position === -1 || later.length === 0) return failure;
  const names = later.map(fullName);
  return new ZferryError(
    "base-modified",
    `${names.join(", ")} ${names.length === 1 ? "is" : "are"} newer than ${fullName(base)}, which the release is received over`,
    {
      details: { ...failure.details, dataset, snapshots: names },
      hint: `${names.map((name) => `zfs destroy ${name}`).join("; ")}; keep what takes snapshots from doing so, and run the same command again`,
      cause: failure,
    },
  );
}
