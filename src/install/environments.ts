import { accessSync, constants, existsSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { datasetName, releaseName, sha256Hex } from "../bundle/manifest.js";
import type { SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { guarded } from "../system/files.js";
import { readSmallFile } from "../system/key-files.js";
import { ownMounts } from "../system/mounts.js";
import { openPrivateMounts, type PrivateMounts, type ReadFileSystem } from "../system/private-mounts.js";
import { failedServices } from "../system/health.js";
import { describeEnd, run } from "../system/process.js";
import { resolveWithin } from "../system/tree.js";
import {
  datasetExists,
  dropProperties,
  getProperties,
  hasGuid,
  listBootfs,
  listHolds,
  listProperties,
  poolOf,
  setBootfs,
  setProperties,
  setProperty,
  type Described,
  type Property,
} from "../system/zfs.js";
import {
  deviceOfEntry,
  findKernels,
  isEarly,
  isEnvironment,
  isOfRoot,
  isOptional,
  judgeDataset,
  judgeProperties,
  parseFstab,
  type EnvironmentFault,
  type FstabEntry,
  type Loader,
  type LoaderProperties,
} from "./environment-rules.js";
import { findHook, HOOK_WARNINGS } from "./boot-hooks.js";
import { requireNothingPending } from "./pending.js";
import { datasetOfRoot } from "./site-root.js";
import { lockState, type NewEnvironment, type StateFolder } from "./state.js";
import { describeFailure, readFailure, readTrial, type Trial, type TrialFailure } from "./trial-rules.js";
import { readUnderWay } from "./under-way.js";

// formats/environments.md

const PROPERTIES = [
  ...["guid", "creation", "used", "referenced", "mountpoint", "canmount", "org.zfsbootmenu:active"],
  ...["org.zectl:bootloader", "org.zectl.systemdboot:efi"],
  ...["zferry:release", "zferry:identity", "zferry:previous", "zferry:activated"],
  ...["zferry:trial", "zferry:boots", "zferry:failed", "zferry:confirmed", "zferry:failing"],
  "zferry:pruned",
] as const;
type Properties = Described<(typeof PROPERTIES)[number]>["properties"];

const MAX_FSTAB_BYTES = 1 << 20;

/**
 * `running`: what / is now; `next`: what boots next; `previous`: what ran when the running one was activated; `leaving`: what is
 * being removed.
 */
export type EnvironmentState = "running" | "next" | "previous" | "leaving";

/** A file system that an environment has beside its root. */
export interface EnvironmentDataset {
  readonly path: string;
  readonly dataset: string;
}

export interface BootEnvironment {
  readonly name: string;
  readonly dataset: string;
  /** Decimal; it stays when the dataset is renamed. */
  readonly guid: string;
  readonly states: readonly EnvironmentState[];
  /** That zferry made it for; null for one made otherwise. */
  readonly release: { readonly name: string; readonly identity: string } | null;
  /** Seconds since 1970. */
  readonly created: number;
  /** Bytes that would be free without it. */
  readonly used: number;
  /** Bytes that it has, shared ones too. */
  readonly refers: number;
  /** As its own /etc/fstab mounts them, then its children; null where its files cannot be read. */
  readonly datasets: readonly EnvironmentDataset[] | null;
  /** Why `datasets` is null. */
  readonly fault: string | null;
  readonly holds: readonly { readonly snapshot: string; readonly tag: string }[];
  /** Until it is confirmed; absent where it is not on trial. */
  readonly trial?: Trial;
  /** That its trial ended with going back; absent where it did not. */
  readonly failed?: TrialFailure;
}

export interface BootEnvironments {
  readonly container: string;
  readonly loader: Loader;
  /** The dataset that boots next, also one that is no environment of the container; null where that cannot be told. */
  readonly next: string | null;
  readonly environments: readonly BootEnvironment[];
  /** Datasets that other systems mount: copies of environments right below the container that have another mount point just now. */
  readonly usedElsewhere: readonly string[];
}

/** A dataset below the container. */
export interface Candidate extends LoaderProperties {
  readonly name: string;
  readonly properties: Properties;
}

export interface Survey {
  readonly site: SiteConfig;
  readonly container: string;
  readonly ofContainer: Properties;
  /** The dataset of /; undefined where that is another file system. */
  readonly running: string | undefined;
  readonly next: string | null;
  /** Right below the container. */
  readonly candidates: readonly Candidate[];
  /** And all that is below them. */
  readonly below: readonly Candidate[];
}

/**
 * The boot environments of a site. Nothing is changed: each is mounted read-only, where nobody else sees it.
 * @throws ZferryError `not-configured` where / is not on ZFS and no container is configured, `zfs-failed`, `not-permitted`
 */
export async function listEnvironments(site: SiteConfig): Promise<BootEnvironments> {
  const survey = await look(site);
  const holds = await listHolds(survey.container);
  const found: BootEnvironment[] = [];
  const usedElsewhere: string[] = [];
  const mounts = await openPrivateMounts();
  try {
    for (const candidate of survey.candidates) {
      if (!isEnvironment(candidate)) {
        if (!candidate.mountpoint.startsWith("/")) continue;
        const { datasets } = await readDatasets(candidate, survey, mounts);
        usedElsewhere.push(...(datasets ?? []).map(({ dataset }) => dataset));
        continue;
      }
      const own = holds.filter(({ dataset }) => dataset === candidate.dataset);
      found.push({
        ...describe(candidate, survey),
        ...(await readDatasets(candidate, survey, mounts)),
        holds: own.map(({ name, tag }) => ({ snapshot: name, tag })),
      });
    }
  } finally {
    mounts.close();
  }
  const { container, next } = survey;
  const environments = found.filter((each) => !isPart(each, found));
  return { container, loader: site["boot-environment"].loader, next, environments, usedElsewhere };
}

/** Which of them mounts an environment's root dataset as a part of its own system. */
export const findMounter = (
  { dataset }: BootEnvironment,
  environments: readonly BootEnvironment[],
): BootEnvironment | undefined =>
  environments.find(
    (other) =>
      other.dataset !== dataset &&
      (other.datasets ?? []).some((each) => each.path !== "/" && each.dataset === dataset),
  );

/** A stream right beside the root that mounts it has the looks of an environment, but no file systems of its own. */
export const isPart = (environment: BootEnvironment, environments: readonly BootEnvironment[]): boolean =>
  environment.datasets?.length === 0 &&
  environment.states.length === 0 &&
  findMounter(environment, environments) !== undefined;

/** What is there of environments. @throws ZferryError as `listEnvironments` */
export async function look(site: SiteConfig): Promise<Survey> {
  const running = runningRoot();
  const configured = site["boot-environment"].container;
  const above = running?.slice(0, Math.max(0, running.lastIndexOf("/")));
  const container = configured ?? above;
  if (container === undefined || container === "") {
    throw new ZferryError(
      "not-configured",
      running === undefined
        ? "/ is not on ZFS: this system has no boot environments"
        : `/ is ${running}, the dataset of the pool itself: there is none above it that could have environments`,
      { hint: "where they lie elsewhere, as seen from a rescue system: container under [boot-environment]" },
    );
  }
  const listed = await listProperties(container, PROPERTIES);
  const ofContainer = listed.find(({ dataset }) => dataset === container)?.properties;
  if (ofContainer === undefined) throw new ZferryError("zfs-failed", `zfs get tells nothing of ${container}`);
  const below = listed
    .filter(({ dataset }) => dataset !== container)
    .map(({ dataset, properties }) => ({
      name: dataset.slice(container.length + 1),
      dataset,
      mountpoint: properties.mountpoint.value,
      canmount: properties.canmount.value,
      active: properties["org.zfsbootmenu:active"].value,
      properties,
    }));
  const candidates = below.filter(({ name }) => !name.includes("/"));
  const next = await findNext(site, container, ofContainer, candidates);
  return { site, container, ofContainer, running, next, candidates, below };
}

function runningRoot(): string | undefined {
  const root = ownMounts().get("/");
  return root?.type === "zfs" && !root.source.includes("@") ? root.source : undefined;
}

async function findNext(
  site: SiteConfig,
  container: string,
  ofContainer: Properties,
  candidates: readonly Candidate[],
): Promise<string | null> {
  if (site["boot-environment"].loader !== "command") return readBootfs(container);
  const activated = ofContainer["zferry:activated"];
  return candidates.find((each) => isOwnGuid(activated, each))?.dataset ?? null;
}

async function readBootfs(dataset: string): Promise<string | null> {
  const pool = poolOf(dataset);
  return (await listBootfs()).find((each) => each.pool === pool)?.bootfs ?? null;
}

/** Whether a property, which counts only where it is set itself, names this dataset. */
export const isOwnGuid = ({ value, local }: Property, { properties }: Candidate): boolean =>
  local && value === properties.guid.value;

const isWithin = ({ dataset }: Candidate, environment: Candidate): boolean =>
  dataset.startsWith(`${environment.dataset}/`);

/** What an initramfs or `zfs mount -a` mounts where its properties say. */
const childrenOf = (environment: Candidate, { below }: Survey): ReadFileSystem[] =>
  below
    .filter(
      (each) => isWithin(each, environment) && each.canmount === "on" && each.mountpoint.startsWith("/"),
    )
    .map(({ dataset, mountpoint }) => ({ dataset, path: mountpoint, mountpoint }));

function describe(candidate: Candidate, survey: Survey) {
  const { name, dataset, properties } = candidate;
  const release = ownValue(properties["zferry:release"]);
  const hash = ownValue(properties["zferry:identity"]);
  const isMade = v.is(releaseName, release) && v.is(sha256Hex, hash);
  return {
    name,
    dataset,
    guid: properties.guid.value,
    states: statesOf(candidate, survey),
    release: isMade ? { name: release, identity: hash } : null,
    created: Number(properties.creation.value),
    used: Number(properties.used.value),
    refers: Number(properties.referenced.value),
    ...tellTrial(candidate),
  };
}

/** How an environment stands: both members are absent for most. */
export function tellTrial({ properties }: Candidate): Pick<BootEnvironment, "trial" | "failed"> {
  const trial = readTrial({
    trial: ownValue(properties["zferry:trial"]),
    boots: ownValue(properties["zferry:boots"]),
    previous: ownValue(properties["zferry:previous"]),
  });
  const failed = readFailure(ownValue(properties["zferry:failed"]));
  return { ...(trial === undefined ? {} : { trial }), ...(failed === undefined ? {} : { failed }) };
}

/** A value that the container has is not its children's. */
export const ownValue = ({ value, local }: Property): string => (local ? value : "");

function statesOf(candidate: Candidate, { running, next, candidates }: Survey): EnvironmentState[] {
  const now = candidates.find(({ dataset }) => dataset === running);
  const isPrevious = now !== undefined && isOwnGuid(now.properties["zferry:previous"], candidate);
  return [
    ...(candidate === now ? ["running" as const] : []),
    ...(candidate.dataset === next ? ["next" as const] : []),
    ...(isPrevious && candidate !== now ? ["previous" as const] : []),
    ...(isLeaving(candidate) ? ["leaving" as const] : []),
  ];
}

const isLeaving = ({ properties }: Candidate): boolean => ownValue(properties["zferry:pruned"]) !== "";

const asRoot = ({ dataset, mountpoint }: Candidate): ReadFileSystem => ({ dataset, path: "/", mountpoint });

async function readDatasets(
  candidate: Candidate,
  survey: Survey,
  mounts: PrivateMounts,
): Promise<Pick<BootEnvironment, "datasets" | "fault">> {
  try {
    const entries = await mounts.read([asRoot(candidate)], readFstab);
    const named = entries.filter((entry) => entry.type === "zfs" && !isOfRoot(entry));
    const datasets = [
      ...named.map(({ source, path }) => ({ path, dataset: source })),
      ...childrenOf(candidate, survey).map(({ path, dataset }) => ({ path, dataset })),
    ];
    return { datasets, fault: null };
  } catch (error) {
    // One that cannot be mounted, as without its key, is an environment all the same.
    if (!(error instanceof ZferryError) || error.code === "not-permitted") throw error;
    return { datasets: null, fault: error.message };
  }
}

/**
 * The entries of the system's own /etc/fstab; none where it has no such file.
 * @param folder has the system
 */
export async function readFstab(folder: string): Promise<FstabEntry[]> {
  const path = resolveWithin(folder, "/etc/fstab");
  if (path === undefined) return [];
  return parseFstab((await readSmallFile(path, "fstab", MAX_FSTAB_BYTES)).toString("utf8"));
}

export interface Activation {
  /** Also without a kernel or an initramfs where the loader looks for them. */
  readonly force: boolean;
  /** Also one that was tried, and failed; default: true. */
  readonly again?: boolean;
}

export interface Activated {
  /** `present`: nothing was changed: it was what boots next before, or is not to be tried again. */
  readonly outcome: "activated" | "present";
  readonly name: string;
  readonly dataset: string;
  /** Sentences. */
  readonly warnings: readonly string[];
}

/**
 * Has an environment boot next, after a look whether it would come up; what makes it so is done last.
 * @throws ZferryError `environment-missing`; `environment-incomplete` with all that is missing; `install-pending`,
 * `site-busy`; `not-configured` when the loader's program fails
 */
export async function activateEnvironment(
  site: SiteConfig,
  name: string,
  { force }: Activation,
): Promise<Activated> {
  const folder = await lockState(site.state);
  try {
    await requireNothingPending(await readUnderWay(site), "and what boots next stays until that is done");
    const activated = await makeNext(site, name, { force });
    await takeForInstalled(activated.dataset, folder);
    return activated;
  } finally {
    await folder.release();
  }
}

/** Forward again: the newest installation counts as it did before it was rolled back. */
async function takeForInstalled(dataset: string, folder: StateFolder): Promise<void> {
  const state = await folder.readState();
  const { rolledBack, ...last } = state?.installations.at(-1) ?? {};
  if (state === undefined || rolledBack === undefined || !("environment" in last)) return;
  if (last.environment === undefined || !(await hasGuid(dataset, last.environment.guid))) return;
  await folder.writeState({ ...state, installations: [...state.installations.slice(0, -1), last] });
}

/**
 * The same for who has the site's lock.
 * @throws ZferryError as `activateEnvironment`
 */
export async function makeNext(
  site: SiteConfig,
  name: string,
  { force, again = true }: Activation,
): Promise<Activated> {
  const survey = await look(site);
  const candidate = findCandidate(name, survey);
  const { loader } = site["boot-environment"];
  const told = { name: candidate.name, dataset: candidate.dataset };
  const { failed } = tellTrial(candidate);
  if (failed !== undefined && !again) {
    const doubts = await requireComplete(candidate, survey, force);
    const left = `${candidate.name} was tried, and failed ${describeFailure(failed)}: it is not activated again`;
    return { outcome: "present", ...told, warnings: [...doubts, left] };
  }
  // What a command did is not known after somebody else did something.
  if (candidate.dataset === survey.next && loader !== "command") {
    // From a rescue system somebody looks after it by hand.
    if (runningOf(survey) === undefined) await forgetTrial(candidate);
    return { outcome: "present", ...told, warnings: [] };
  }
  const doubts = await requireComplete(candidate, survey, force);
  const warnings = [...doubts, ...(await beginTrial(candidate, survey))];
  await activate(candidate, survey);
  for (const other of survey.candidates) {
    if (other !== candidate && tellTrial(other).trial !== undefined) await endTrial(other);
  }
  return {
    outcome: "activated",
    ...told,
    warnings: [...warnings, ...(await warnOfPools(candidate, loader))],
  };
}

/** The environment that is `/` now. */
export const runningOf = ({ candidates, running }: Survey): Candidate | undefined =>
  candidates.find(({ dataset }) => dataset === running);

/** Takes away what counts the boots of an environment. */
export const endTrial = ({ dataset }: Candidate): Promise<void> =>
  dropProperties(dataset, ["zferry:trial", "zferry:boots", "zferry:failing"]);

/** What it did before counts no more: it is not on trial, and did not fail. */
async function forgetTrial(candidate: Candidate): Promise<void> {
  await dropProperties(candidate.dataset, ["zferry:failed"]);
  await endTrial(candidate);
}

/**
 * Puts an environment that was never confirmed on trial, before it boots next: until then that changes nothing.
 * @returns sentences to be warned with
 * @throws ZferryError `install-pending` where the running one is on trial itself
 */
async function beginTrial(candidate: Candidate, survey: Survey): Promise<string[]> {
  const { dataset, name, properties } = candidate;
  const running = runningOf(survey);
  if (running === undefined) {
    await forgetTrial(candidate);
    return [];
  }
  if (running === candidate) {
    await dropProperties(dataset, ["zferry:failed"]);
    return [];
  }
  const { boots } = survey.site["boot-environment"];
  const previous = { "zferry:previous": running.properties.guid.value };
  if (boots === 0 || ownValue(properties["zferry:confirmed"]) !== "") {
    await setProperties(dataset, previous);
    await forgetTrial(candidate);
    return [];
  }
  requireNoTrial(tellTrial(running).trial && running.name);
  if (ownValue(running.properties["zferry:confirmed"]) === "")
    await setProperty(running.dataset, "zferry:confirmed", "yes");
  const { failed } = tellTrial(candidate);
  await dropProperties(dataset, ["zferry:failed"]);
  await setProperties(dataset, {
    ...previous,
    "zferry:trial": String(boots),
    "zferry:boots": "0",
    "zferry:failing": (await failedServices()).join(" ").slice(0, MAX_FAILING),
  });
  return [
    ...(failed === undefined ? [] : [`${name} was tried before, and failed ${describeFailure(failed)}`]),
    ...(await warnOfHook(candidate, survey)),
  ];
}

/** Of the names of services, in a property. */
const MAX_FAILING = 4096;

/**
 * @param name the running environment, if that is on trial
 * @throws ZferryError `install-pending`
 */
export function requireNoTrial(name: string | undefined): void {
  if (name === undefined) return;
  throw new ZferryError(
    "install-pending",
    `${name}, which is running, is on trial: it is not confirmed yet`,
    {
      details: { environment: name },
      hint: "keep it: bundle confirm; or go back first: bundle environments names the one before",
    },
  );
}

/** What is missing for going back from an environment that dies before its services start. */
async function warnOfHook(candidate: Candidate, survey: Survey): Promise<readonly string[]> {
  const { loader } = survey.site["boot-environment"];
  if (loader !== "bootfs") return [HOOK_WARNINGS.loader(loader)];
  const mounts = await openPrivateMounts();
  try {
    return HOOK_WARNINGS[await mounts.read([asRoot(candidate)], findHook)];
  } finally {
    mounts.close();
  }
}

/**
 * Only the look whether an environment would come up.
 * @returns sentences to be warned with
 * @throws ZferryError `environment-missing`, `environment-incomplete`
 */
export async function requireBootable(site: SiteConfig, name: string): Promise<readonly string[]> {
  const survey = await look(site);
  return requireComplete(findCandidate(name, survey), survey, false);
}

export interface Standing {
  /** The dataset that boots next; null where that cannot be told. */
  readonly next: string | null;
  /** The running environment, if it is on trial. */
  readonly tried: string | undefined;
  /** What boots next, if it is another one, and on trial. */
  readonly waiting: string | undefined;
  /** The dataset of `/`; undefined where that is another file system. */
  readonly running: string | undefined;
}

/** What runs, and what boots next. @throws ZferryError as `listEnvironments` */
export async function readStanding(site: SiteConfig): Promise<Standing> {
  const survey = await look(site);
  const { next, running } = survey;
  const now = runningOf(survey);
  const then = survey.candidates.find((each) => each !== now && each.dataset === next);
  const onTrial = (each: Candidate | undefined) => each && tellTrial(each).trial && each.name;
  return { next, running, tried: onTrial(now), waiting: onTrial(then) };
}

/**
 * Has what booted next before an environment boot next again, if that was activated since; nothing is checked. Where it is not there any
 * more, that is what ran when the environment was activated, also under another name, or what runs now.
 * @returns a sentence to be warned with, where it is another one
 * @throws ZferryError `environment-missing` where none of these is there
 */
export async function restoreNext(
  site: SiteConfig,
  {
    dataset,
    next,
    origin,
    activate: isWanted,
  }: Pick<NewEnvironment, "dataset" | "next" | "origin" | "activate">,
): Promise<string | undefined> {
  const survey = await look(site);
  const { loader } = site["boot-environment"];
  // What a command did that failed, or was ended, nobody knows.
  if (loader === "command" ? !isWanted : survey.next !== dataset) return undefined;
  // It may be elsewhere than in the container.
  if (loader === "bootfs" && (next === null || (await datasetExists(next)))) {
    await setBootfs(poolOf(dataset), next);
    return undefined;
  }
  const wanted = next ?? origin;
  const made = survey.candidates.find((each) => each.dataset === dataset);
  const found =
    survey.candidates.find((each) => each.dataset === wanted) ??
    survey.candidates.find((each) => made && isOwnGuid(made.properties["zferry:previous"], each)) ??
    [survey.running, seenRoot(site), origin]
      .map((known) => survey.candidates.find((each) => each.dataset === known && each !== made))
      .find((each) => each !== undefined);
  if (found === undefined) throw nothingBefore(wanted, survey);
  await activate(found, survey);
  return found.dataset === wanted
    ? undefined
    : `${wanted}, which booted next before, is not there any more: ${found.dataset} boots next`;
}

function nothingBefore(wanted: string, { site, candidates, container }: Survey): ZferryError {
  const { loader } = site["boot-environment"];
  const names = candidates.filter(isEnvironment).map(({ name }) => name);
  const ways = {
    bootfs: `zpool set bootfs=${container}/NAME ${poolOf(container)}`,
    zectl: "zectl activate NAME",
    command: `zfs rename one of them to ${wanted}`,
  };
  return new ZferryError(
    "environment-missing",
    `${wanted}, which booted next before, is not there any more`,
    {
      details: { dataset: wanted, environments: names },
      hint: `have another one boot next (${names.join(", ")}): ${ways[loader]}; then run the same command again`,
    },
  );
}

function findCandidate(name: string, { candidates, container }: Survey): Candidate {
  const found = candidates.find((each) => each.name === name || each.dataset === name);
  if (found !== undefined) return found;
  const names = candidates.filter(isEnvironment).map((each) => each.name);
  throw new ZferryError("environment-missing", `${container} has no environment ${JSON.stringify(name)}`, {
    details: { name, environments: names },
    hint: names.length === 0 ? `it has none at all` : `it has ${names.join(", ")}`,
  });
}

/**
 * @returns sentences to be warned with
 * @throws ZferryError `environment-incomplete`
 */
async function requireComplete(
  candidate: Candidate,
  survey: Survey,
  force: boolean,
): Promise<readonly string[]> {
  const { name, dataset } = candidate;
  const { faults, doubts } = await findFaults(candidate, survey, force);
  const [first, ...also] = faults.map(
    ({ message, hint }) =>
      new ZferryError("environment-incomplete", message, { details: { name, dataset }, hint }),
  );
  if (first === undefined) return doubts;
  const { code, message, details, hint } = first;
  throw new ZferryError(code, message, { details, hint, also });
}

interface Judged {
  readonly faults: readonly EnvironmentFault[];
  /** What stands against nothing, in sentences. */
  readonly doubts: readonly string[];
}

async function findFaults(candidate: Candidate, survey: Survey, force: boolean): Promise<Judged> {
  const { loader } = survey.site["boot-environment"];
  const others = survey.below.filter((each) => each !== candidate && !isWithin(each, candidate));
  const faults = judgeProperties(loader, candidate, others);
  if (isLeaving(candidate)) {
    faults.push({
      message: `${candidate.dataset} is being removed, and may lack datasets already`,
      hint: `bundle environments --prune goes on with that; to keep it: zfs inherit zferry:pruned ${candidate.dataset}`,
    });
  }
  const doubts: string[] = [];
  if (!isEnvironment(candidate)) return { faults, doubts };
  const mounts = await openPrivateMounts();
  try {
    const { entries, bootFaults } = await mounts.read([asRoot(candidate)], async (folder) => ({
      entries: await readFstab(folder),
      bootFaults: force ? [] : judgeBootFiles(candidate, survey, folder),
    }));
    const needed = entries.filter((entry) => !isOptional(entry) && !isOfRoot(entry));
    const { found, faults: missing } = await lookUp(needed);
    const elsewhere = bootFaults.length === 0 ? undefined : await bootedFromElsewhere(survey, mounts);
    faults.push(...missing, ...(elsewhere === undefined ? bootFaults : []));
    if (elsewhere !== undefined) doubts.push(elsewhere);
    const early = [...found, ...childrenOf(candidate, survey)].filter(({ path }) => isEarly(path));
    early.sort((one, other) => one.path.length - other.path.length);
    const init = await mounts.read([asRoot(candidate), ...early], judgeInit);
    if (init !== undefined) faults.push(init);
  } catch (error) {
    if (!(error instanceof ZferryError) || error.code !== "io-failed") throw error;
    faults.push({ message: error.message, hint: `${candidate.dataset} must be readable to be checked` });
  } finally {
    mounts.close();
  }
  return { faults, doubts };
}

/**
 * That the loader has its kernels on another file system than the environments, in a sentence: that on the site's `/`, which was booted,
 * has none either. Undefined where that is not so.
 */
async function bootedFromElsewhere(survey: Survey, mounts: PrivateMounts): Promise<string | undefined> {
  const { site, candidates } = survey;
  if (isKeptOnEfi(survey)) return undefined;
  const booted = runningOf(survey) ?? candidates.find(({ dataset }) => dataset === seenRoot(site));
  if (booted === undefined) return undefined;
  const lacking = await mounts.read([asRoot(booted)], (folder) => judgeBootFiles(booted, survey, folder));
  return lacking.length === 0
    ? undefined
    : `${booted.name} has no kernel with an initramfs in its own /boot either: the loader is taken to have them elsewhere, and they are not looked for`;
}

/** The dataset on the site's `/`, which is not that of the system that runs where that is a rescue system. */
function seenRoot(site: SiteConfig): string | undefined {
  const path = site.root?.path;
  return path !== undefined && existsSync(path) ? datasetOfRoot(site) : undefined;
}

/** zectl's plugin for systemd-boot keeps the kernels of each environment on the EFI file system, which they all share. */
const isKeptOnEfi = ({ site, ofContainer }: Survey): boolean =>
  site["boot-environment"].loader === "zectl" && ofContainer["org.zectl:bootloader"].value === "systemdboot";

/** Whether what the entries of an fstab name is there; `found` are the datasets that are as they must be. */
async function lookUp(
  entries: readonly FstabEntry[],
): Promise<{ found: ReadFileSystem[]; faults: EnvironmentFault[] }> {
  const found: ReadFileSystem[] = [];
  const faults: EnvironmentFault[] = [];
  for (const entry of entries) {
    const { source, path, type } = entry;
    if (type === "zfs") {
      const mountpoint = await mountpointOf(source);
      const fault = judgeDataset(entry, mountpoint);
      if (fault !== undefined) faults.push(fault);
      else if (mountpoint !== undefined) found.push({ dataset: source, path, mountpoint });
      continue;
    }
    const device = deviceOfEntry(entry);
    if (device === undefined || existsSync(device)) continue;
    faults.push({
      message: `/etc/fstab mounts ${source} on ${path}: there is no ${device}`,
      hint: "correct /etc/fstab, or give it the option nofail",
    });
  }
  return { found, faults };
}

/** Undefined where there is no such dataset. */
async function mountpointOf(dataset: string): Promise<string | undefined> {
  if (!v.is(datasetName, dataset) || !(await datasetExists(dataset))) return undefined;
  return (await getProperties(dataset, ["mountpoint"])).mountpoint;
}

const NO_KERNEL =
  'in an install, after under [install] may make them; where the loader takes them from elsewhere: bundle activate --force, or loader = "command" under [boot-environment]';

/** Whether a kernel with an initramfs lies where the loader looks. Where a command of the site's looks is not known. */
function judgeBootFiles(candidate: Candidate, survey: Survey, folder: string): EnvironmentFault[] {
  const { loader } = survey.site["boot-environment"];
  if (loader === "command") return [];
  const efi = survey.ofContainer["org.zectl.systemdboot:efi"];
  const isOnEfi = isKeptOnEfi(survey);
  const [system, boot] = isOnEfi
    ? ["/", join(efi.value === "-" ? "/efi" : efi.value, "env", `org.zectl-${candidate.name}`)]
    : [folder, "/boot"];
  const where = isOnEfi ? boot : `/boot of ${candidate.dataset}`;
  const { found, alone } = findKernels(namesIn(system, boot));
  if (found.length > 0) return [];
  const what = alone.length === 0 ? "no kernel" : `no initramfs for ${alone.join(", ")}`;
  return [{ message: `${where} has ${what}`, hint: NO_KERNEL }];
}

/** The names in a folder of a system that lead somewhere. */
function namesIn(system: string, path: string): string[] {
  const folder = resolveWithin(system, path);
  if (folder === undefined || !statSync(folder).isDirectory()) return [];
  return guarded(folder, () => readdirSync(folder)).filter(
    (name) => resolveWithin(system, join(path, name)) !== undefined,
  );
}

function judgeInit(folder: string): EnvironmentFault | undefined {
  const init = resolveWithin(folder, "/sbin/init");
  const missing = (what: string): EnvironmentFault => ({
    message: `/sbin/init ${what}`,
    hint: "see whether /etc/fstab mounts the dataset of its /usr",
  });
  if (init === undefined) return missing("leads to nothing in it");
  if (!statSync(init).isFile()) return missing("is no file");
  try {
    accessSync(init, constants.X_OK);
  } catch {
    return missing("cannot be executed");
  }
  return undefined;
}

/** Has an environment boot next, without a look at it. @throws ZferryError `not-configured`, `zfs-failed` */
export async function activate({ name, dataset, properties }: Candidate, survey: Survey): Promise<void> {
  const { loader, command } = survey.site["boot-environment"];
  if (loader === "bootfs") {
    await setBootfs(poolOf(dataset), dataset);
  } else {
    const [program = "", ...args] = loader === "zectl" ? ["zectl", "activate", name] : [...command, dataset];
    const result = await run(program, args);
    if (result.status !== 0) {
      const { stderr } = result;
      const ended = describeEnd(result);
      throw new ZferryError("not-configured", `${[program, ...args].join(" ")}: ${stderr || ended}`, {
        details: { program, stderr, ended },
      });
    }
  }
  if (loader === "command") {
    await setProperty(survey.container, "zferry:activated", properties.guid.value);
    return;
  }
  const bootfs = await readBootfs(dataset);
  if (bootfs === dataset) return;
  throw new ZferryError("zfs-failed", `${poolOf(dataset)} has bootfs=${bootfs ?? "-"} now, not ${dataset}`, {
    details: { expected: dataset, found: bootfs ?? "-" },
  });
}

async function warnOfPools({ dataset }: Candidate, loader: BootEnvironments["loader"]): Promise<string[]> {
  if (loader === "command") return [];
  return (await listBootfs())
    .filter(({ pool, bootfs }) => bootfs !== undefined && pool !== poolOf(dataset))
    .map(({ pool, bootfs }) => `pool ${pool} has bootfs=${bootfs}, too: a loader may take that one`);
}
