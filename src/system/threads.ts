import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { frameBound } from "../bundle/frame.js";
import { packChunk, type MemberWork, type PackWork, type StoredMember } from "../bundle/members.js";
import { ZferryError, type ErrorCode, type ErrorDetails } from "../errors.js";
import type { VolumesToRead } from "./read-at.js";

export type ReadJob =
  | { readonly kind: "check"; readonly member: StoredMember; readonly created: number }
  | {
      readonly kind: "decode";
      readonly member: StoredMember;
      readonly rawBytes: number;
      readonly into: Uint8Array;
    };

export interface PackJob {
  readonly kind: "pack";
  readonly raw: Uint8Array;
  readonly level: number;
  readonly into: Uint8Array;
}

/** What a thread answers: to a read job nothing, to a pack job what {@link packChunk} gives, or how it failed. */
export type Answer =
  | { readonly result: unknown; readonly fault?: never }
  | {
      readonly fault: {
        readonly code: ErrorCode;
        readonly message: string;
        readonly details: ErrorDetails;
        readonly hint: string | undefined;
      };
    };

/** Threads that take jobs in the order in which they come. */
interface Threads {
  read(job: ReadJob): Promise<void>;
  pack(job: PackJob): Promise<ReturnType<typeof packChunk>>;
  close(): Promise<void>;
}

interface Waiting {
  readonly job: ReadJob | PackJob;
  resolve(result: unknown): void;
  reject(error: unknown): void;
}

const MOST_USUAL_THREADS = 16;

/**
 * How many threads there are if nobody says how many: one for each processor that this process may use. Each takes tens of
 * megabytes, and more than sixteen wait for the one that reads or writes the stream.
 */
export const usualThreads = (): number => Math.min(availableParallelism(), MOST_USUAL_THREADS);

function startThreads(count: number, volumes?: VolumesToRead): Threads {
  const queue: Waiting[] = [];
  const idle: Worker[] = [];
  const busy = new Map<Worker, Waiting>();
  let broken: Error | undefined;

  const fail = (error: Error): void => {
    broken ??= error;
    for (const { reject } of [...busy.values(), ...queue.splice(0)]) reject(broken);
    busy.clear();
  };
  const giveJobs = (): void => {
    while (idle.length > 0 && queue.length > 0) {
      const [worker, waiting] = [idle.pop() as Worker, queue.shift() as Waiting];
      busy.set(worker, waiting);
      worker.postMessage(waiting.job);
    }
  };
  const workers = Array.from({ length: count }, () => {
    const worker = new Worker(new URL("./thread.js", import.meta.url), {
      workerData: volumes,
      // Otherwise node opens this process's own streams for the thread, which makes standard output non-blocking.
      stdout: true,
      stderr: true,
    });
    worker.on("message", (answer: Answer) => {
      const waiting = busy.get(worker);
      busy.delete(worker);
      idle.push(worker);
      giveJobs();
      if (answer.fault === undefined) return waiting?.resolve(answer.result);
      const { code, message, details, hint } = answer.fault;
      waiting?.reject(new ZferryError(code, message, { details, ...(hint === undefined ? {} : { hint }) }));
    });
    worker.on("error", (error) => fail(threadFailure(error)));
    worker.on("exit", () => fail(new Error("a thread has ended")));
    idle.push(worker);
    return worker;
  });

  const run = (job: Waiting["job"]): Promise<unknown> =>
    new Promise((resolve, reject) => {
      if (broken !== undefined) return reject(broken);
      queue.push({ job, resolve, reject });
      giveJobs();
    });
  return {
    read: async (job) => void (await run(job)),
    pack: (job) => run(job) as ReturnType<Threads["pack"]>,
    async close() {
      await Promise.all(workers.map((worker) => worker.terminate()));
    },
  };
}

/** A thread that could not start, or not go on, for want of memory or descriptors. */
function threadFailure(error: Error & { readonly code?: string }): Error {
  if (error.code === undefined || error instanceof TypeError) return error;
  return new ZferryError("io-failed", `a thread failed: ${error.message} (${error.code})`, {
    details: { reason: error.code },
    hint: "use fewer: --threads 1",
    cause: error,
  });
}

const MIB = 1 << 20;

/** Memory that threads share, used again and again: there is never more of it than was out at one time. */
function sharedMemory(): { take(bytes: number): Uint8Array; giveBack(memory: Uint8Array): void } {
  const free: SharedArrayBuffer[] = [];
  return {
    take(bytes) {
      const at = free.findIndex((buffer) => buffer.byteLength >= bytes);
      // One that is too small makes room for the new one.
      const [buffer] = free.splice(at, 1);
      const fits = at !== -1 && buffer !== undefined;
      return new Uint8Array(fits ? buffer : new SharedArrayBuffer(Math.ceil(bytes / MIB) * MIB), 0, bytes);
    },
    giveBack({ buffer }) {
      free.push(buffer as SharedArrayBuffer);
    },
  };
}

// While one result is used and each thread has a job, one more waits, so that no thread has to.
const heldAhead = (count: number): number => count + 2;

/** Reads, hashes and decompresses the members of a bundle in `count` threads. */
export function readingThreads(count: number, volumes: VolumesToRead): MemberWork & Pick<Threads, "close"> {
  const threads = startThreads(count, volumes);
  const memory = sharedMemory();
  return {
    ahead: heldAhead(count),
    check: (member, created) => threads.read({ kind: "check", member, created }),
    async decode(member, rawBytes) {
      const into = memory.take(rawBytes);
      await threads.read({ kind: "decode", member, rawBytes, into });
      return { bytes: into, release: () => memory.giveBack(into) };
    },
    close: threads.close,
  };
}

/** Compresses and hashes chunks in `count` threads, or on the calling one while there is a single chunk. */
export function packingThreads(count: number): PackWork & Pick<Threads, "close"> {
  const [raws, frames] = [sharedMemory(), sharedMemory()];
  let chunks = 0;
  let threads: Threads | undefined;
  return {
    ahead: heldAhead(count),
    memory(bytes) {
      chunks += 1;
      return raws.take(bytes);
    },
    async pack(raw, level) {
      const into = frames.take(frameBound(raw.length));
      if (chunks > 1) threads ??= startThreads(count);
      const job = { kind: "pack", raw, level, into } as const;
      const packed = await (threads?.pack(job) ?? packChunk(raw, level, into));
      raws.giveBack(raw);
      return {
        bytes: into.subarray(0, packed.bytes),
        sha256: packed.sha256,
        release: () => frames.giveBack(into),
      };
    },
    close: async () => threads?.close(),
  };
}
