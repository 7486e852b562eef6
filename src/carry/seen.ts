import { mkdirSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { productName, publicKeyText, seconds, sequenceNumber } from "../bundle/manifest.js";
import { ZferryError } from "../errors.js";
import { formatTime } from "../report.js";
import { checkValue, list, table } from "../schema.js";
import { guarded, writeFileDurably } from "../system/files.js";
import { isMissing, readSmallFile } from "../system/key-files.js";
import { acquireLock } from "../system/lock.js";
import { publicKeyLine, type PublicKey } from "../trust/minisign.js";
import type { MirrorIndex } from "./index-format.js";

// formats/mirror.md, What a client remembers.

const FILE_NAME = "mirrors.json";
const DAY_SECONDS = 86_400;
const LOCK_NAME = "mirrors.lock";
const LOCK_SECONDS = 10;
const MAX_BYTES = 1 << 20;

export const seenSchema = table({
  version: v.literal(1),
  indexes: v.pipe(
    list(
      table({ product: productName, key: publicKeyText, counter: sequenceNumber, created: seconds }),
      1_000,
    ),
    v.description("The newest index by each key, of each product."),
  ),
});
type Seen = v.InferOutput<typeof seenSchema>;

/** The newest indexes that a client accepted, so that no mirror can turn back. */
export interface SeenIndexes {
  /** @throws ZferryError `time-ahead`, `index-expired`, `index-rolled-back` */
  judge(index: MirrorIndex, signer: PublicKey, name: string, now: Date): void;
  /**
   * Remembers an index that was judged, unless another process has seen a newer one meanwhile.
   * @throws ZferryError `site-busy`, `io-failed`, `no-space`
   */
  accept(index: MirrorIndex, signer: PublicKey): Promise<void>;
}

/**
 * @param folder where they are kept; made if it is not there
 * @throws ZferryError `journal-malformed`, `not-permitted`, `io-failed`
 */
export async function openSeenIndexes(folder: string): Promise<SeenIndexes> {
  const path = join(folder, FILE_NAME);
  const seen = await readSeen(path);
  const of = (product: string, signer: PublicKey, all = seen) =>
    all.indexes.find((each) => each.product === product && each.key === publicKeyLine(signer));
  return {
    judge({ product, counter, created, expires }, signer, name, now) {
      const before = of(product, signer);
      const time = Math.max(Math.floor(now.getTime() / 1000), before?.created ?? 0);
      // It would make time go on to there, and every index after it be one that expired.
      if (created > time + DAY_SECONDS) {
        throw new ZferryError(
          "time-ahead",
          `${name}: the index was made at ${formatTime(created)}, more than a day after this machine's ${formatTime(time)}`,
          {
            details: { url: name, created, time },
            hint: "set the clock; or, if it is right, the publisher's was not: ask for a new index",
          },
        );
      }
      if (expires < time) {
        throw new ZferryError(
          "index-expired",
          `${name}: the index expired at ${formatTime(expires)}, it is ${formatTime(time)}`,
          {
            details: { url: name, expires, time },
            hint: "the mirror may hide what is new: ask its publisher, who renews it with bundle mirror index",
          },
        );
      }
      if (before !== undefined && counter < before.counter) {
        throw new ZferryError(
          "index-rolled-back",
          `${name}: the index has counter ${counter}, ${before.counter} was seen before`,
          {
            details: { url: name, found: counter, seen: before.counter },
            hint: "a copy of a mirror may be late: try again later, or take another mirror; where its publisher made the index anew while the clock was behind: bundle mirror index there, once it is set",
          },
        );
      }
    },
    async accept({ product, counter, created }, signer) {
      const known = of(product, signer);
      if (known !== undefined && known.counter >= counter) return;
      guarded(folder, () => mkdirSync(folder, { recursive: true, mode: 0o700 }));
      const unlock = await acquireLock(join(folder, LOCK_NAME), {
        message: `${path}: another process is writing it`,
        hint: "run the same command again",
        waitSeconds: LOCK_SECONDS,
      });
      try {
        const now = await readSeen(path);
        const before = of(product, signer, now);
        if (before !== undefined && before.counter >= counter) return;
        const key = publicKeyLine(signer);
        const indexes = [
          ...now.indexes.filter((each) => each !== before),
          { product, key, counter, created },
        ];
        writeFileDurably(path, `${JSON.stringify({ version: 1, indexes } satisfies Seen)}\n`, 0o600);
      } finally {
        await unlock();
      }
    },
  };
}

async function readSeen(path: string): Promise<Seen> {
  const bytes = await readSmallFile(path, "seen indexes", MAX_BYTES, "journal-malformed").catch(
    (error: unknown) => {
      if (isMissing(error)) return undefined;
      throw error;
    },
  );
  if (bytes === undefined) return { version: 1, indexes: [] };
  const malformed = (fault: string): ZferryError =>
    new ZferryError("journal-malformed", `${path}: ${fault}`, {
      details: { file: path },
      hint: "it says which indexes were seen; without it an old one could be taken for new",
    });
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString("utf8"));
  } catch {
    throw malformed("is no JSON");
  }
  const parsed = checkValue(seenSchema, value);
  if (parsed.fault !== undefined) throw malformed(parsed.fault);
  return parsed.value;
}
