import { createHash } from "node:crypto";
import { existsSync, lstatSync, mkdirSync, readdirSync, rmSync } from "node:fs";
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
import { rootPlanSchema, type RootPlan } from "../root/plan.js";
import { guarded, syncPath, writeFileDurably } from "../system/files.js";
import { readSmallFile } from "../system/key-files.js";
import { acquireLock } from "../system/lock.js";

// formats/state.md: what a site keeps in its state folder.

const STATE_VERSION = 1;
/** Version 1 is of zferry before it could be given up, or finished without its bundle. */
const JOURNAL_VERSION = 2;
const identity = v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/));
/** Seconds since 1970, up to what can be shown as a date: the year 9999. */
const seconds = integer(0, 253_402_300_799);

const installedStream = table({
  role: roleName,
  dataset: datasetName,
  /** Null after a full stream. */
  base: v.nullable(table({ snapshot: snapshotName, guid })),
  target: table({ snapshot: snapshotName, guid }),
  /** Of the stream; absent where an older zferry installed it. */
  rawBytes: v.optional(integer(0)),
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
  version: v.literal(STATE_VERSION),
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

/** What an install does, in this order; each is journalled before it begins, and can be done again. */
export const PHASES = ["holding", "preparing", "receiving", "writing", "recording"] as const;
export type Phase = (typeof PHASES)[number];

const journalFields = {
  release: releaseSchema,
  /** By the site's clock; also the date of the site's commit. */
  startedAt: seconds,
  streams: v.array(installedStream),
};

/** What of a bundle is needed after its last byte was used. */
const originSchema = table({
  /** The absolute path that the bundle was read from. */
  file: v.string(),
  /** The manifest's. */
  created: seconds,
  signers: v.array(v.string()),
  /** The change of the site's keys that it brings; null for none. */
  keys: v.nullable(
    table({ counter: sequenceNumber, add: v.array(publicKeyText), revoke: v.array(publicKeyText) }),
  ),
});

const journalSchema = table({
  version: v.literal(JOURNAL_VERSION),
  ...journalFields,
  phase: v.picklist(PHASES),
  /** The install is being given up: the phases after `phase` are taken back, if they were ever done. */
  undoing: v.boolean(),
  /** Roles whose target was there before the install began. */
  present: v.array(roleName),
  /** The site as it was configured; null in a journal of version 1. */
  site: v.nullable(table({ product: v.string(), root: v.nullable(v.string()) })),
  /** Null in a journal of version 1: then only the bundle leads on. */
  origin: v.nullable(originSchema),
  /** SHA-256 of what `plan-….json` holds; null without a root half. */
  plan: v.nullable(identity),
});

const journalSchemaBefore = table({
  version: v.literal(1),
  ...journalFields,
  phase: v.picklist(["receiving", "writing"]),
  root: v.nullable(rootPlanSchema),
});

/** An install that is under way. */
export interface Journal extends Omit<v.InferOutput<typeof journalSchema>, "version" | "plan"> {
  /** What changes in `/`; null for a bundle without a root half. */
  readonly root: RootPlan | null;
}

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
  const journalPath = join(path, JOURNAL);
  return {
    path,
    async readState() {
      const value = await readVersioned(statePath, [STATE_VERSION]);
      return value && checked(statePath, stateSchema, value);
    },
    writeState: async (state) => writeFileDurably(statePath, `${JSON.stringify(state, null, 2)}\n`, 0o600),
    async readJournal() {
      const value = await readVersioned(journalPath, [JOURNAL_VERSION - 1, JOURNAL_VERSION]);
      if (value === undefined) return undefined;
      if (value.version !== JOURNAL_VERSION)
        return fromBefore(checked(journalPath, journalSchemaBefore, value));
      const { plan, ...journal } = checked(journalPath, journalSchema, value);
      if (plan === null) return { ...journal, root: null };
      const root = await readPlan(path, plan);
      if (root !== undefined) return { ...journal, root };
      // Who changes the folder may just have removed it, with the journal.
      const again = await readStateFile(journalPath);
      if (again?.includes(plan)) {
        throw malformed(join(path, planName(plan)), "is not there, and the journal needs it");
      }
      return this.readJournal();
    },
    async writeJournal({ root, ...journal }) {
      const text = root === null ? null : `${JSON.stringify(root)}\n`;
      const plan = text === null ? null : sha256(text);
      // It can be large, and does not change from one phase to the next.
      if (text !== null && plan !== null && !existsSync(join(path, planName(plan)))) {
        writeFileDurably(join(path, planName(plan)), text, 0o600);
      }
      writeFileDurably(
        journalPath,
        `${JSON.stringify({ ...journal, version: JOURNAL_VERSION, plan })}\n`,
        0o600,
      );
      removePlans(path, plan);
    },
    async removeJournal() {
      guarded(journalPath, () => rmSync(journalPath, { force: true }));
      syncPath(path);
      removePlans(path, null);
    },
  };
}

const JOURNAL = "journal.json";
/** By its hash, so that a journal's plan is there until another journal is. */
const planName = (hash: string): string => `plan-${hash}.json`;
export const isPlanName = (name: string): boolean => /^plan-[0-9a-f]{64}\.json$/.test(name);

function removePlans(folder: string, kept: string | null): void {
  for (const name of readdirSync(folder)) {
    if (isPlanName(name) && (kept === null || name !== planName(kept)))
      rmSync(join(folder, name), { force: true });
  }
}

const sha256 = (bytes: string | Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

function fromBefore(journal: v.InferOutput<typeof journalSchemaBefore>): Journal {
  return { ...journal, undoing: false, present: [], site: null, origin: null };
}

async function readPlan(folder: string, hash: string): Promise<RootPlan | undefined> {
  const path = join(folder, planName(hash));
  const bytes = await readStateFile(path);
  if (bytes === undefined) return undefined;
  const found = sha256(bytes);
  if (found !== hash) throw malformed(path, `has SHA-256 ${found}, not that of its name`);
  return checked(path, rootPlanSchema, parseJson(path, bytes));
}

/**
 * Opens the folder for an install, making it where there is none. The lock goes with the process that has it.
 * @throws ZferryError `site-busy` when another process has it
 */
export async function lockState(path: string): Promise<StateFolder & { release(): Promise<void> }> {
  guarded(path, () => mkdirSync(path, { recursive: true, mode: 0o700 }));
  const release = await acquireLock(join(path, "lock"));
  // What a write that was interrupted left.
  for (const name of readdirSync(path)) {
    if (/^\.(state|journal|plan-[0-9a-f]{64})\.json\.[0-9a-f]{12}$/.test(name)) rmSync(join(path, name));
  }
  if (!existsSync(join(path, JOURNAL))) removePlans(path, null);
  return { ...openState(path), release };
}

const malformed = (path: string, fault: string): ZferryError =>
  new ZferryError("journal-malformed", `${path}: ${fault}`, {
    details: { file: path },
    // It is only ever written whole.
    hint: "its disk may be failing; nothing is changed before it is as it was: bring it back from a copy",
  });

function checked<Schema extends v.GenericSchema>(
  path: string,
  schema: Schema,
  value: unknown,
): v.InferOutput<Schema> {
  const parsed = checkValue(schema, value);
  if (parsed.fault !== undefined) throw malformed(path, parsed.fault);
  return parsed.value;
}

async function readStateFile(path: string): Promise<Buffer | undefined> {
  try {
    return await readSmallFile(path, "state", MAX_STATE_BYTES);
  } catch (error) {
    const cause = error instanceof Error ? (error.cause as NodeJS.ErrnoException | undefined) : undefined;
    if (cause?.code !== "ENOENT") throw error;
    const link = lstatSync(path, { throwIfNoEntry: false });
    if (link === undefined) return undefined;
    throw malformed(path, "is a link that leads to nothing");
  }
}

function parseJson(path: string, bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString("utf8"));
  } catch (error) {
    throw malformed(path, `is cut off or no JSON: ${error instanceof Error ? error.message : String(error)}`);
  }
}

async function readVersioned(
  path: string,
  versions: readonly number[],
): Promise<{ readonly version?: unknown } | undefined> {
  const bytes = await readStateFile(path);
  if (bytes === undefined) return undefined;
  const value = parseJson(path, bytes);
  if (typeof value !== "object" || value === null) throw malformed(path, "is no table");
  const version = "version" in value ? value.version : undefined;
  if (typeof version !== "number") throw malformed(path, "has no number as its version");
  if (!versions.includes(version)) {
    throw new ZferryError(
      "format-unsupported",
      `${path} has version ${version}, this zferry reads ${versions.length === 1 ? "version" : "versions"} ${versions.join(" and ")}`,
      {
        hint: "use the zferry that wrote it",
      },
    );
  }
  return value;
}
