import { parentPort, workerData } from "node:worker_threads";
import { checkMember, decodeMember, packChunk } from "../bundle/members.js";
import { asZferryError } from "../report.js";
import { sourceOf, type VolumesToRead } from "./read-at.js";
import type { Answer, PackJob, ReadJob } from "./threads.js";

// What runs in a thread: one job at a time, as system/threads.ts gives them.

const volumes = workerData as VolumesToRead | undefined;

// Nothing keeps what it read beyond the next read, so all reads of a thread share one piece of memory.
let memory = new Uint8Array(256 << 10);

const source =
  volumes &&
  sourceOf(volumes, (bytes) => {
    if (memory.length < bytes) memory = new Uint8Array(bytes);
    return memory.subarray(0, bytes);
  });

async function run(job: ReadJob | PackJob): Promise<unknown> {
  if (job.kind === "pack") return packChunk(job.raw, job.level, job.into);
  if (source === undefined) throw new RangeError(`a thread without a file has a job ${job.kind}`);
  if (job.kind === "check") return checkMember(source, job.member, job.created);
  await decodeMember(source, job.member, job.rawBytes, job.into);
  return undefined;
}

const answer = (message: Answer): void => parentPort?.postMessage(message);

parentPort?.on("message", (job: ReadJob | PackJob) => {
  run(job).then(
    (result) => answer({ result }),
    (error: unknown) => {
      // An error that goes through a port keeps its message only.
      const { code, message, details, hint } = asZferryError(error);
      answer({ fault: { code, message, details, hint } });
    },
  );
});
