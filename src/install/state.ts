import { createHash } from "node:crypto";
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
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
  sha256Hex,
} from "../bundle/manifest.js";
import { ZferryError } from "../errors.js";
import { printable } from "../report.js";
import { checkValue, integer, record, table } from "../schema.js";
import { pathNameSchema } from "../root/paths.js";
import { rootPlanSchema, type RootPlan } from "../root/plan.js";
import { guarded, syncPath, writeFileDurably } from "../system/files.js";
import { readSmallFile } from "../system/key-files.js";
import { acquireSiteLock } from "../system/lock.js";

// formats/state.md: what a site keeps in its state folder.

/** Version 2 is of zferry before boot environments were made, version 1 before an install could be rolled back. */
const STATE_VERSION = 3;
/** As above; version 1 is of zferry before an install could be given up, or finished without its bundle. */
const JOURNAL_VERSION = 4;
/** Of a merge: zferry before there were any refuses it, and goes on with all else. */
const MERGE_VERSION = 5;
/** Seconds since 1970, up to what can be shown as a date: the year 9999. */
export const seconds = integer(0, 253_402_300_799);

const installedStream = table({
  role: roleName,
  dataset: datasetName,
  /** Null after a full stream. */
  base: v.nullable(table({ snapshot: snapshotName, guid })),
  target: table({ snapshot: snapshotName, guid }),
  /** Of the stream; absent where an older zferry installed it. */
  rawBytes: v.optional(integer(0)),
  /** The dataset that has the base, where the stream made a new one beside it. */
  origin: v.optional(datasetName),
  /** The guid of the dataset that has the base, which may be renamed; absent after a full stream, and where an older zferry installed it. */
  baseDataset: v.optional(guid),
});
export type InstalledStream = v.InferOutput<typeof installedStream>;

/** The snapshot that a stream starts from; undefined after a full stream. */
export const baseOf = ({ dataset, origin = dataset, base }: InstalledStream) =>
  base === null ? undefined : { dataset: origin, name: base.snapshot };

const releaseSchema = table({
  name: releaseName,
  sequence: sequenceNumber,
  /** SHA-256 of the bundle's `SHA256SUMS`. */
  identity: sha256Hex,
});

const installationFields = {
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
};
const laterFields = {
  /** SHA-256 of what `plan-….json` holds while it can be rolled back; null without a root half, absent where an older zferry installed it. */
  plan: v.optional(v.nullable(sha256Hex)),
  /** When its base was let go. */
  confirmedAt: v.optional(seconds),
  rolledBack: v.optional(table({ startedAt: seconds, finishedAt: seconds })),
};
const installationSchema = table({
  ...installationFields,
  ...laterFields,
  /** The boot environment that it was installed as; absent for an install in place. `previous`: the dataset that it was cloned from. */
  environment: v.optional(
    table({
      dataset: datasetName,
      guid,
      previous: datasetName,
      /** Files that were changed on file systems that all environments share; absent for none. */
      shared: v.optional(v.array(pathNameSchema)),
    }),
  ),
  /** The releases before it, where several bundles made the environment. */
  onTheWay: v.optional(v.array(releaseSchema)),
});
export type Installation = v.InferOutput<typeof installationSchema>;

const stateFields = {
  product: v.string(),
  /** Never decreases. */
  highestSequence: integer(0),
  /** What bundles and `bundle trust` made of the site's keys; absent while nothing. */
  keys: v.optional(
    table({
      counter: integer(0),
      added: v.array(publicKeyText),
      revoked: v.array(publicKeyText),
    }),
  ),
};

export const stateSchema = table({
  version: v.literal(STATE_VERSION),
  ...stateFields,
  /** Newest last. */
  installations: v.array(installationSchema),
});
const stateSchemaBefore = table({
  version: v.literal(STATE_VERSION - 1),
  ...stateFields,
  installations: v.array(table({ ...installationFields, ...laterFields })),
});
const stateSchemaFirst = table({
  version: v.literal(1),
  ...stateFields,
  installations: v.array(table(installationFields)),
});
export type SiteState = v.InferOutput<typeof stateSchema>;

/** The state of a site on which nothing was installed yet. */
export const emptyState = (product: string): SiteState => ({
  version: STATE_VERSION,
  product,
  highestSequence: 0,
  installations: [],
});

/** What a site has now: the newest installation that was not rolled back. */
export const installed = (state: SiteState | undefined): Installation | undefined =>
  state?.installations.findLast(({ rolledBack }) => rolledBack === undefined);

/** The identities of all bundles that were accepted. */
export const acceptedBy = (state: SiteState | undefined): Set<string> =>
  new Set(
    state?.installations.flatMap(({ release, onTheWay = [] }) =>
      [release, ...onTheWay].map(({ identity }) => identity),
    ),
  );

/** What became of an installation, in a word. */
export const resultOf = ({
  confirmedAt,
  rolledBack,
}: Installation): "installed" | "confirmed" | "rolled-back" =>
  rolledBack !== undefined ? "rolled-back" : confirmedAt !== undefined ? "confirmed" : "installed";

/** The installation that can still be rolled back: only the newest, whose bases are held. */
export function undoable(state: SiteState | undefined): Installation | undefined {
  const last = state?.installations.at(-1);
  return last?.confirmedAt === undefined && last?.rolledBack === undefined ? last : undefined;
}

/** A stream that made its dataset, which so has nothing to go back to. */
export const streamWithoutBase = ({ streams }: Installation): InstalledStream | undefined =>
  streams.find(({ base }) => base === null);

/** Whether it changed `/`, and what it changed was not kept. */
export const isPlanLost = ({ commit, plan }: Installation): boolean =>
  commit !== null && typeof plan !== "string";

/** Whether there is a way back from it; from a boot environment another one is. */
export const isReversible = (installation: Installation): boolean =>
  installation.environment === undefined &&
  streamWithoutBase(installation) === undefined &&
  !isPlanLost(installation);

/** What is done, in this order; each is journalled before it begins, and can be done again. */
export const PHASES = {
  install: ["holding", "preparing", "receiving", "writing", "recording"],
  environment: [
    "holding",
    "cloning",
    "preparing",
    "receiving",
    "writing",
    "linking",
    "finishing",
    "activating",
    "recording",
  ],
  rollback: ["preparing", "rolling-back", "writing", "recording"],
  merge: ["preparing", "writing", "recording"],
} as const;
export type Phase<Kind extends keyof typeof PHASES = keyof typeof PHASES> = (typeof PHASES)[Kind][number];

const journalFields = {
  release: releaseSchema,
  /** By the site's clock; also the date of the site's commit. */
  startedAt: seconds,
  streams: v.array(installedStream),
};

const siteSchema = table({ product: v.string(), root: v.nullable(v.string()) });

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

const underWayFields = {
  ...journalFields,
  /** It is being given up: the phases after `phase` are taken back, if they were ever done. */
  undoing: v.boolean(),
  /** Roles that were there before it began: at their target before an install, at their base before a rollback. */
  present: v.array(roleName),
  /** SHA-256 of what `plan-….json` holds; null without a root half. */
  plan: v.nullable(sha256Hex),
};

/** A bundle that is in an environment, of several that make it. */
const doneLink = table({
  release: releaseSchema,
  startedAt: seconds,
  streams: v.array(installedStream),
  /** The site's commit of `/`; null without a root half. */
  commit: v.nullable(v.string()),
  /** What of its plan of `/` is on file systems that all environments share; absent for nothing. */
  shared: v.optional(rootPlanSchema),
});
export type DoneLink = v.InferOutput<typeof doneLink>;

/** A boot environment that is being made. */
const environmentSchema = table({
  dataset: datasetName,
  /** The root dataset that it is cloned from, by way of a snapshot. */
  origin: datasetName,
  snapshot: snapshotName,
  /** What booted next before; null for nothing. */
  next: v.nullable(datasetName),
  /** Whether it is to boot next. */
  activate: v.boolean(),
  /** The datasets of the roles as they were configured. */
  configured: record(roleName, datasetName),
  /** Paths of `/` where file systems are mounted that all environments share, and that it may change; absent for none. */
  shared: v.optional(v.array(v.string())),
  /** Of several bundles: where the last one leads, and those before the one that is under way; absent of one bundle. */
  chain: v.optional(table({ release: releaseName, identity: sha256Hex, done: v.array(doneLink) })),
});
export type NewEnvironment = v.InferOutput<typeof environmentSchema>;

const installFieldsBefore = {
  ...underWayFields,
  phase: v.picklist(PHASES.install),
  /** The site as it was configured; null in a journal of version 1. */
  site: v.nullable(siteSchema),
  /** Null in a journal of version 1: then only the bundle leads on. */
  origin: v.nullable(originSchema),
};

const installSchema = table({
  version: v.literal(JOURNAL_VERSION),
  operation: v.literal("install"),
  ...installFieldsBefore,
  phase: v.picklist(PHASES.environment),
  /** Null for an install in place. */
  environment: v.nullable(environmentSchema),
});

/** What going back takes from a dataset for good. */
const lossSchema = table({
  dataset: datasetName,
  snapshots: v.array(table({ snapshot: v.string(), guid })),
  /** Absent for none. The guid is that of the snapshot. */
  bookmarks: v.optional(v.array(table({ bookmark: v.string(), guid }))),
  /** Bytes since what the release left. */
  written: integer(0),
});
export type Loss = v.InferOutput<typeof lossSchema>;

const rollbackFields = {
  operation: v.literal("rollback"),
  ...underWayFields,
  phase: v.picklist(PHASES.rollback),
  /** The site as it was configured. */
  site: siteSchema,
  /** What was agreed to be lost. */
  lost: v.array(lossSchema),
};
const rollbackSchema = table({ version: v.literal(JOURNAL_VERSION), ...rollbackFields });

const rollbackSchemaBefore = table({ version: v.literal(JOURNAL_VERSION - 1), ...rollbackFields });
const installSchemaBefore = table({
  version: v.literal(JOURNAL_VERSION - 1),
  operation: v.literal("install"),
  ...installFieldsBefore,
});
const installSchemaSecond = table({ version: v.literal(2), ...installFieldsBefore });

/** Of what was changed in the environment before, into the one that was made of it. */
const mergeSchema = table({
  version: v.literal(MERGE_VERSION),
  operation: v.literal("merge"),
  startedAt: seconds,
  phase: v.picklist(PHASES.merge),
  undoing: v.boolean(),
  site: siteSchema,
  /** Root datasets. */
  into: datasetName,
  from: datasetName,
  /** What tells the difference that is merged from any other. */
  difference: sha256Hex,
  plan: sha256Hex,
});

const journalSchemaFirst = table({
  version: v.literal(1),
  ...journalFields,
  phase: v.picklist(["receiving", "writing"]),
  root: v.nullable(rootPlanSchema),
});

interface WithRoot {
  /** What changes in `/`; null for a release without a root half. */
  readonly root: RootPlan | null;
}

/** An install that is under way. */
export type InstallJournal = Omit<v.InferOutput<typeof installSchema>, "version" | "plan"> & WithRoot;
/** A rollback that is under way; `release` and `streams` are those of the installation that is rolled back. */
export type RollbackJournal = Omit<v.InferOutput<typeof rollbackSchema>, "version" | "plan"> & WithRoot;
/** A merge of what was changed in the environment before, that is under way. */
export type MergeJournal = Omit<v.InferOutput<typeof mergeSchema>, "version" | "plan"> & WithRoot;
export type Journal = InstallJournal | RollbackJournal | MergeJournal;

/** Whether bundles come after the one that is under way, into the same environment. */
export const isOnTheWay = ({
  environment,
  release,
}: Pick<InstallJournal, "environment" | "release">): boolean =>
  environment?.chain !== undefined && environment.chain.identity !== release.identity;

/** The bundles that are in the environment already. */
export const doneLinks = ({ environment }: Pick<InstallJournal, "environment">): readonly DoneLink[] =>
  environment?.chain?.done ?? [];

/** The steps of an install that is under way, in their order. */
export function phasesOf(journal: InstallJournal): readonly InstallJournal["phase"][] {
  if (journal.environment === null) return PHASES.install;
  const phases: readonly InstallJournal["phase"][] = PHASES.environment;
  return isOnTheWay(journal)
    ? phases.slice(0, phases.indexOf("linking") + 1)
    : phases.filter((phase) => phase !== "linking");
}

const UNWRITTEN: readonly Phase[] = ["holding", "cloning", "preparing", "receiving", "rolling-back"];

/** Whether `/` may be written, in part or as a whole. */
export const isWritten = ({ phase }: Journal): boolean => !UNWRITTEN.includes(phase);

const MAX_STATE_BYTES = 1 << 30;

/** Whether what is under way was recorded already: then only its traces are left to be removed. */
export function isRecorded(state: SiteState | undefined, journal: Journal): boolean {
  if (journal.operation === "merge") return false;
  const last = state?.installations.at(-1);
  if (last?.release.identity !== journal.release.identity) return false;
  if (journal.operation === "rollback") return last.rolledBack?.startedAt === journal.startedAt;
  // The same release may be installed again, after a rollback.
  return last.rolledBack === undefined && last.startedAt === beganAt(journal);
}

/** When the first of its bundles was begun. */
export const beganAt = (journal: InstallJournal): number =>
  doneLinks(journal)[0]?.startedAt ?? journal.startedAt;

/** A site's state folder, which one process at a time may change. */
export interface StateFolder {
  readonly path: string;
  readState(): Promise<SiteState | undefined>;
  writeState(state: SiteState): Promise<void>;
  readJournal(): Promise<Journal | undefined>;
  writeJournal(journal: Journal): Promise<void>;
  removeJournal(): Promise<void>;
  /** Writes a plan of `/` unless it is there, and gives its SHA-256; null for none. */
  keepPlan(root: RootPlan | null): string | null;
  /** The plan of an installation that can be rolled back. */
  readPlan(hash: string): Promise<RootPlan>;
  /** Removes every plan that is neither of an installation that can be rolled back nor of what is under way. */
  removePlans(): Promise<void>;
}

/** In the folder that a dataset with the state is mounted over: the name of that dataset. formats/boot.md, The state */
export const MOUNTED_FROM = "mounted-from";

/**
 * What the folder lacks that is only a place to mount the state on would be taken for what the site lacks.
 * @throws ZferryError `not-configured` where the state's dataset is not mounted
 */
export function requireStateMounted(path: string): void {
  const name = join(path, MOUNTED_FROM);
  const found = guarded(name, () => lstatSync(name, { throwIfNoEntry: false }));
  if (found === undefined) return;
  const isName = found.isFile() && found.size <= MAX_NAME_BYTES;
  const dataset = isName ? printable(guarded(name, () => readFileSync(name, "utf8")).trim()) : "its dataset";
  throw new ZferryError(
    "not-configured",
    `${dataset}, which has the site's state, is not mounted on ${path}`,
    {
      details: { path, dataset },
      hint: "zfs mount -a, and have the system do so at boot; if the state is not to be there any more, remove the file mounted-from",
    },
  );
}

const MAX_NAME_BYTES = 1024;

/**
 * Opens the folder for reading: nothing is made, nothing is locked.
 * @throws ZferryError as `requireStateMounted`
 */
export function openState(path: string): StateFolder {
  requireStateMounted(path);
  const statePath = join(path, "state.json");
  const journalPath = join(path, JOURNAL);
  const removePlans = async (kept: string | null): Promise<void> => {
    const plans = readdirSync(path).filter(isPlanName);
    if (plans.length === 0) return;
    const needed = [kept, undoable(await folder.readState())?.plan].map((hash) => hash && planName(hash));
    for (const name of plans) if (!needed.includes(name)) rmSync(join(path, name), { force: true });
  };
  const folder: StateFolder = {
    path,
    async readState() {
      const value = await readVersioned(statePath, [1, STATE_VERSION - 1, STATE_VERSION]);
      if (value === undefined) return undefined;
      if (value.version === STATE_VERSION) return checked(statePath, stateSchema, value);
      const before = value.version === 1 ? stateSchemaFirst : stateSchemaBefore;
      return { ...checked(statePath, before, value), version: STATE_VERSION };
    },
    writeState: async (state) => writeFileDurably(statePath, `${JSON.stringify(state, null, 2)}\n`, 0o600),
    async readJournal() {
      const value = await readVersioned(journalPath, [
        ...[1, 2, JOURNAL_VERSION - 1, JOURNAL_VERSION],
        MERGE_VERSION,
      ]);
      if (value === undefined) return undefined;
      if (value.version === 1) return fromFirst(checked(journalPath, journalSchemaFirst, value));
      const { plan, ...journal } = checkedJournal(journalPath, value);
      if (plan === null) return { ...journal, root: null };
      const root = await readPlan(path, plan);
      if (root !== undefined) return { ...journal, root };
      // Who changes the folder may just have removed it, with the journal.
      const again = await readStateFile(journalPath);
      if (again?.includes(plan)) {
        throw malformed(join(path, planName(plan)), "is not there, and the journal needs it");
      }
      return folder.readJournal();
    },
    async writeJournal({ root, ...journal }) {
      const plan = folder.keepPlan(root);
      const version = journal.operation === "merge" ? MERGE_VERSION : JOURNAL_VERSION;
      writeFileDurably(journalPath, `${JSON.stringify({ ...journal, version, plan })}\n`, 0o600);
      await removePlans(plan);
    },
    async removeJournal() {
      guarded(journalPath, () => rmSync(journalPath, { force: true }));
      syncPath(path);
      await removePlans(null);
    },
    keepPlan(root) {
      if (root === null) return null;
      const text = `${JSON.stringify(root)}\n`;
      const hash = sha256(text);
      // It can be large, and does not change from one phase to the next.
      if (!existsSync(join(path, planName(hash)))) {
        writeFileDurably(join(path, planName(hash)), text, 0o600);
      }
      return hash;
    },
    async readPlan(hash) {
      const root = await readPlan(path, hash);
      if (root !== undefined) return root;
      throw malformed(join(path, planName(hash)), "is not there, and rolling back needs it");
    },
    removePlans: async () => {
      if (!existsSync(journalPath)) await removePlans(null);
    },
  };
  return folder;
}

const JOURNAL = "journal.json";
/** By its hash, so that a journal's plan is there until another journal is, and an installation's while it can be rolled back. */
export const planName = (hash: string): string => `plan-${hash}.json`;
export const isPlanName = (name: string): boolean => /^plan-[0-9a-f]{64}\.json$/.test(name);

const sha256 = (bytes: string | Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** An older version's journal is of an install in place, or of a rollback. */
function checkedJournal(path: string, value: { readonly version?: unknown }) {
  if (value.version === MERGE_VERSION) return checked(path, mergeSchema, value);
  const isNow = value.version === JOURNAL_VERSION;
  if ("operation" in value && value.operation === "rollback")
    return checked(path, isNow ? rollbackSchema : rollbackSchemaBefore, value);
  if (!isNow) {
    const before = value.version === 2 ? installSchemaSecond : installSchemaBefore;
    return { ...checked(path, before, value), operation: "install" as const, environment: null };
  }
  const journal = checked(path, installSchema, value);
  if (journal.environment === null && !v.is(v.picklist(PHASES.install), journal.phase))
    throw malformed(path, `phase: is ${journal.phase}, and no boot environment is made`);
  return journal;
}

function fromFirst(journal: v.InferOutput<typeof journalSchemaFirst>): InstallJournal {
  const none = { site: null, origin: null, environment: null };
  return { ...journal, operation: "install", undoing: false, present: [], ...none };
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
  requireStateMounted(path);
  guarded(path, () => mkdirSync(path, { recursive: true, mode: 0o700 }));
  const release = await acquireSiteLock(join(path, "lock"));
  // What a write that was interrupted left.
  for (const name of readdirSync(path)) {
    if (/^\.(state|journal|plan-[0-9a-f]{64})\.json\.[0-9a-f]{12}$/.test(name)) rmSync(join(path, name));
  }
  const folder = openState(path);
  try {
    await folder.removePlans();
  } catch (error) {
    await release();
    throw error;
  }
  return { ...folder, release };
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
      `${path} has version ${version}, this zferry reads versions ${versions.slice(0, -1).join(", ")} and ${versions.at(-1)}`,
      {
        hint: "use the zferry that wrote it",
      },
    );
  }
  return value;
}
