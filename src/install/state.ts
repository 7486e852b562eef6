import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import * as v from "valibot";
import {
  datasetName,
  guid,
  publicKeyText,
  releaseName,
  roleName,
  sequenceNumber,
  snapshotName,
} from "../bundle/manifest.js";
import { ZferryError } from "../errors.js";
import { checkValue, integer, table } from "../schema.js";
import { rootPlanSchema } from "../root/plan.js";
import { writeFileDurably } from "../system/files.js";
import { readSmallFile } from "../system/key-files.js";
import { acquireLock } from "../system/lock.js";

// formats/state.md: what a site keeps in its state folder.

const VERSION = 1;
const identity = v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/));
const seconds = integer(0);

const installedStream = table({
  role: roleName,
  dataset: datasetName,
  /** Null after a full stream. */
  base: v.nullable(table({ snapshot: snapshotName, guid })),
  target: table({ snapshot: snapshotName, guid }),
});
export type InstalledStream = v.InferOutput<typeof installedStream>;

const releaseSchema = table({
  name: releaseName,
  sequence: sequenceNumber,
  /** SHA-256 of the bundle's `SHA256SUMS`. */
  identity,
});

const installationSchema = table({
  release: releaseSchema,
  /** The manifest's. Seconds since 1970. */
  created: seconds,
  /** Seconds since 1970, by the site's clock. */
  startedAt: seconds,
  finishedAt: seconds,
  signers: v.array(v.string()),
  streams: v.array(installedStream),
  /** The site's commit of `/`; null for a bundle without a root half. */
  commit: v.nullable(v.string()),
});
export type Installation = v.InferOutput<typeof installationSchema>;

export const stateSchema = table({
  version: v.literal(VERSION),
  product: v.string(),
  /** Never decreases. */
  highestSequence: integer(0),
  /** Newest last. */
  installations: v.array(installationSchema),
  /** What bundles and `bundle trust` made of the site's keys; absent while nothing. */
  keys: v.optional(
    table({
      counter: integer(0),
      added: v.array(publicKeyText),
      revoked: v.array(publicKeyText),
    }),
  ),
});
export type SiteState = v.InferOutput<typeof stateSchema>;

const journalSchema = table({
  version: v.literal(VERSION),
  release: releaseSchema,
  startedAt: seconds,
  /** `receiving`: `/` is as it was, but for prepared files. `writing`: every stream is received, `/` is being written. */
  phase: v.picklist(["receiving", "writing"]),
  streams: v.array(installedStream),
  root: v.nullable(rootPlanSchema),
});
export type Journal = v.InferOutput<typeof journalSchema>;

const MAX_STATE_BYTES = 1 << 30;

/** Whether the install was recorded already: then only its traces are left to be removed. */
export function isRecorded(state: SiteState | undefined, { release, startedAt }: Journal): boolean {
  const last = state?.installations.at(-1);
  // The same release may be installed again, after a rollback.
  return last?.release.identity === release.identity && last.startedAt === startedAt;
}

/** A site's state folder, which one process at a time may change. */
export interface StateFolder {
  readonly path: string;
  readState(): Promise<SiteState | undefined>;
  writeState(state: SiteState): Promise<void>;
  readJournal(): Promise<Journal | undefined>;
  writeJournal(journal: Journal): Promise<void>;
  removeJournal(): Promise<void>;
}

/** Opens the folder for reading: nothing is made, nothing is locked. */
export function openState(path: string): StateFolder {
  const statePath = join(path, "state.json");
  const journalPath = join(path, "journal.json");
  return {
    path,
    readState: () => readVersioned(statePath, stateSchema),
    writeState: async (state) => writeFileDurably(statePath, `${JSON.stringify(state, null, 2)}\n`, 0o600),
    readJournal: () => readVersioned(journalPath, journalSchema),
    writeJournal: async (journal) => writeFileDurably(journalPath, `${JSON.stringify(journal)}\n`, 0o600),
    removeJournal: () => rm(journalPath, { force: true }),
  };
}

/**
 * Opens the folder for an install, making it where there is none. The lock goes with the process that has it.
 * @throws ZferryError `site-busy` when another process has it
 */
export async function lockState(path: string): Promise<StateFolder & { release(): Promise<void> }> {
  await mkdir(path, { recursive: true, mode: 0o700 });
  const release = await acquireLock(join(path, "lock"));
  return { ...openState(path), release };
}

async function readVersioned<Schema extends v.GenericSchema>(
  path: string,
  schema: Schema,
): Promise<v.InferOutput<Schema> | undefined> {
  const malformed = (fault: string): ZferryError =>
    new ZferryError("journal-malformed", `${path}: ${fault}`, { details: { file: path } });
  let bytes: Buffer;
  try {
    bytes = await readSmallFile(path, "state", MAX_STATE_BYTES);
  } catch (error) {
    const cause = error instanceof Error ? (error.cause as NodeJS.ErrnoException | undefined) : undefined;
    if (cause?.code === "ENOENT") return undefined;
    throw error;
  }
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString("utf8"));
  } catch (error) {
    throw malformed(error instanceof Error ? error.message : String(error));
  }
  const version =
    typeof value === "object" && value !== null && "version" in value ? value.version : undefined;
  if (typeof version === "number" && version !== VERSION) {
    throw new ZferryError(
      "format-unsupported",
      `${path} has version ${version}, this zferry reads version ${VERSION}`,
      {
        hint: "use the zferry that wrote it",
      },
    );
  }
  const parsed = checkValue(schema, value);
  if (parsed.fault !== undefined) throw malformed(parsed.fault);
  return parsed.value;
}
