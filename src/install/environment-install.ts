import { existsSync, mkdirSync, readFileSync, statSync } from "node:fs";
import { basename, join, relative } from "node:path";
import * as v from "valibot";
import { datasetName, type ManifestStream } from "../bundle/manifest.js";
import type { VerifiedBundle } from "../bundle/reader.js";
import { requireRoot, type SiteConfig } from "../config.js";
import { Obstacles, throwAll, ZferryError } from "../errors.js";
import { rawPath } from "../raw-path.js";
import { listFirst } from "../report.js";
import { planEdit } from "../root/edit.js";
import { removeCopiedLocks } from "../root/git-locks.js";
import type { RootPlan } from "../root/plan.js";
import { requireConcluded } from "../root/site.js";
import { guarded } from "../system/files.js";
import { findMountOf, ownMounts, type Mount } from "../system/mounts.js";
import { withOwnMounts } from "../system/private-mounts.js";
import { describeEnd, run } from "../system/process.js";
import { resolveWithin } from "../system/tree.js";
import {
  clone,
  datasetExists,
  destroy,
  findSnapshots,
  fullName,
  getProperties,
  listDepended,
  listProperties,
  listSnapshots,
  outerFirst,
  ownProperties,
  parentOf,
  promote,
  resumeToken,
  takeSnapshots,
  type PropertyValues,
  type Snapshot,
} from "../system/zfs.js";
import { mountPoint, nameDatasets, parseFstab, type FstabDataset } from "./environment-rules.js";
import {
  listEnvironments,
  makeNext,
  readStanding,
  requireBootable,
  requireNoTrial,
  type BootEnvironment,
  type BootEnvironments,
} from "./environments.js";
import {
  baseMissing,
  checkDataset,
  datasetOf,
  pointOf,
  requireSpaceForAll,
  type StreamPlan,
} from "./plan.js";
import { patiently, type ReceiveOptions } from "./receive.js";
import { placesForCommands } from "./shared-mounts.js";
import { rootDataset, rootMount, withRoot, type SiteRoot } from "./site-root.js";
import type { InstalledStream, InstallJournal, NewEnvironment } from "./state.js";

// An install as a boot environment: formats/environments.md, Installing as one

/** Of the root's own properties, those that a clone has otherwise, or cannot be given. */
const NOT_CLONED =
  /^(mountpoint|canmount|zferry:.*|encryption|keyformat|keylocation|pbkdf2iters|encryptionroot)$/;

/** The site, with the container that it has by default. */
export const withContainer = (
  site: SiteConfig,
  { dataset }: Pick<NewEnvironment, "dataset">,
): SiteConfig => ({
  ...site,
  "boot-environment": { ...site["boot-environment"], container: parentOf(dataset) },
});

/** Where several bundles lead that make one environment. */
export type ChainEnd = Pick<NonNullable<NewEnvironment["chain"]>, "release" | "identity">;

/**
 * What a new environment is, before anything of it is made. Nothing is changed.
 * @param end undefined where the bundle alone makes it
 * @throws ZferryError `not-configured`, `dataset-unsuitable`
 */
export async function planEnvironment(
  { manifest }: VerifiedBundle,
  site: SiteConfig,
  end: ChainEnd | undefined,
): Promise<NewEnvironment> {
  const origin = rootDataset(site);
  const { container = parentOf(origin), shared } = site["boot-environment"];
  const name = end?.release ?? manifest.release.name;
  const known = {
    dataset: `${container}/${name}`,
    origin,
    snapshot: `zferry-${name}`,
    ...(end === undefined ? {} : { chain: { ...end, done: [] } }),
    activate: true,
    configured: site.streams,
    ...(shared.length === 0 ? {} : { shared }),
  };
  if (parentOf(origin) !== container || container === "") {
    throw new ZferryError("dataset-unsuitable", `${origin} is no boot environment right below ${container}`, {
      details: { dataset: origin, container },
      hint: "container under [boot-environment] is the dataset above that of /",
    });
  }
  requireName(known.dataset);
  const { next, tried, waiting } = await readStanding(withContainer(site, known));
  requireNoTrial(tried);
  if (waiting !== undefined) throw notBooted(waiting);
  return { ...known, next };
}

/** Its trial could not end while an install is under way, nor the install before that. */
const notBooted = (name: string): ZferryError =>
  new ZferryError("install-pending", `${name}, which boots next, is on trial, and was not booted yet`, {
    details: { environment: name },
    hint: "boot it first; or give it up: bundle rollback, or bundle activate with the running one",
  });

function requireName(dataset: string): void {
  if (v.safeParse(datasetName, dataset).success) return;
  throw new ZferryError("dataset-unsuitable", `no dataset can have the name ${dataset}`, {
    details: { dataset },
  });
}

/**
 * Refuses names that are something else's.
 * @param identity of the bundle that the environment is made for
 * @throws ZferryError `environment-exists`, with all of them
 */
export async function requireFree(
  datasets: readonly string[],
  site: SiteConfig,
  identity: string,
  snapshot?: Omit<Snapshot, "guid">,
): Promise<void> {
  const found: Omit<TakenName, "mounts">[] = [];
  for (const name of datasets)
    if (await datasetExists(name)) found.push({ name, what: "dataset", clones: [] });
  if (snapshot !== undefined && (await hasSnapshot(snapshot))) {
    const clones = (await listDepended(fullName(snapshot))).flatMap((each) => each.clones);
    // What was made of it is told already.
    const isTold = found.some(({ name }) => clones.includes(name));
    if (!isTold) found.push({ name: fullName(snapshot), what: "snapshot", clones });
  }
  if (found.length === 0) return;
  const there = await listEnvironments(site);
  const mounts = [...ownMounts().values()].filter(({ type }) => type === "zfs");
  const faults = found.map((each) =>
    taken(each.name, each.what, hintForTaken({ ...each, mounts }, there, identity)),
  );
  throwAll(faults);
}

const hasSnapshot = async ({ dataset, name }: Omit<Snapshot, "guid">): Promise<boolean> =>
  (await listSnapshots(dataset)).some((each) => each.name === name);

const taken = (name: string, what: TakenName["what"], hint: string): ZferryError =>
  new ZferryError("environment-exists", `there is a ${what} ${name} already, which the install would make`, {
    details: { name },
    hint,
  });

/** What has a name that an install would make. */
interface TakenName {
  readonly name: string;
  readonly what: "dataset" | "snapshot";
  /** Of a snapshot. */
  readonly clones: readonly string[];
  /** Of all datasets. */
  readonly mounts: readonly Pick<Mount, "source" | "point">[];
}

/** What may be done about it. What something else needs is neither to be renamed nor destroyed. */
export function hintForTaken(
  { name, what, clones, mounts }: TakenName,
  {
    environments,
    next,
  }: Pick<BootEnvironments, "next"> & {
    readonly environments: readonly Pick<
      BootEnvironment,
      "name" | "dataset" | "release" | "datasets" | "fault"
    >[];
  },
  identity: string,
): string {
  const isWithin = (dataset: string): boolean => dataset === name || dataset.startsWith(`${name}/`);
  const own = environments.find(({ dataset }) => dataset === name);
  const others = environments.filter((each) => each !== own);
  const mount = mounts.find(({ source }) => isWithin(source));
  const user = others.find(({ datasets }) => datasets?.some(({ dataset }) => isWithin(dataset)));
  const unread = what === "dataset" ? others.find(({ fault }) => fault !== null) : undefined;
  const [clone] = clones;
  const needed =
    (clone && `${clone} was made of it`) ??
    (mount && `it is mounted on ${mount.point}`) ??
    (next !== null && isWithin(next) ? "it boots next" : undefined) ??
    (user && `the boot environment ${user.name} has it in its /etc/fstab`) ??
    (unread && `which datasets ${unread.name} has is not known: ${unread.fault ?? ""}`);
  const remove = `zfs destroy ${what === "dataset" ? "-r " : ""}${name}`;
  if (own?.release?.identity === identity) {
    const anew = needed === undefined ? `${remove}, and install again` : `not while ${needed}`;
    return `it was made of this bundle; to have it boot next: bundle activate ${own.name}; to make it anew: ${anew}`;
  }
  if (needed !== undefined) return `${needed}: neither rename nor destroy it while that is so`;
  // Its datasets would keep the names that the install would give.
  if (own?.release) return `it was made of another bundle; if it is of no use any more: ${remove}`;
  return `zfs rename ${name} to another name, or, if it is of no use any more, ${remove}`;
}

/**
 * Holds every stream of a bundle against the datasets of the environment that is cloned: each becomes a new one beside its base.
 * Those that lie below others come after them.
 * @param begun what an install that is under way makes
 * @param obstacles as for `planStreams`
 */
export async function planStreamsBeside(
  bundle: VerifiedBundle,
  site: SiteConfig,
  environment: NewEnvironment,
  begun: readonly InstalledStream[] | undefined,
  obstacles: Obstacles,
): Promise<StreamPlan[]> {
  const plans: StreamPlan[] = [];
  const { manifest } = bundle;
  for (const stream of manifest.streams) {
    const home = await obstacles.unless(async () => homeOf(datasetOf(stream, site), environment));
    if (home === undefined) continue;
    const known = [...(begun ?? []), ...streamsDone(environment)].find(
      ({ role }) => role === stream.role,
    )?.dataset;
    const base = await obstacles.unless(() => findBase(stream, home, known));
    if (base === undefined) continue;
    const dataset = known ?? nameBeside(base, stream, environment, plans);
    await obstacles.unless(async () => requireName(dataset));
    const found = { stream, dataset, base, later: [], ...(await progressOf(stream, dataset)) };
    const checked = found.received
      ? { space: null, warnings: [] }
      : await checkDataset(found, manifest, undefined, obstacles);
    const properties = base.dataset === dataset ? {} : await propertiesOf(base, endOf(environment, bundle));
    plans.push({ ...found, ...checked, properties });
  }
  for (const missing of missingParents(plans, environment)) {
    if (!(await datasetExists(missing.parent))) obstacles.add(noParent(missing));
  }
  await obstacles.unless(() => requireSpaceForAll(plans));
  return outerFirst(plans);
}

/** A dataset to be made in another one. */
interface Nested {
  readonly dataset: string;
  readonly parent: string;
}

/** The datasets to be made whose parents are not made with them: these must be there. */
export function missingParents(
  streams: readonly Pick<StreamPlan, "dataset" | "base">[],
  { dataset: root }: Pick<NewEnvironment, "dataset">,
): Nested[] {
  const made = [root, ...streams.map(({ dataset }) => dataset)];
  return streams
    .filter(({ dataset, base }) => base?.dataset !== dataset)
    .map(({ dataset }) => ({ dataset, parent: parentOf(dataset) }))
    .filter(({ parent }) => !made.includes(parent));
}

const noParent = ({ dataset, parent }: Nested): ZferryError =>
  new ZferryError("dataset-unsuitable", `there is no dataset ${parent} to make ${dataset} in`, {
    details: { dataset, parent },
    hint: "nothing but the dataset of / and those of the streams is made anew: let what has the base lie right below one of these, or outside of the environment",
  });

/** Where the environment that is cloned has what the configuration names, perhaps in another environment. */
function homeOf(configured: string, { dataset, origin }: NewEnvironment): string {
  const container = `${parentOf(dataset)}/`;
  const [, ...below] = configured.startsWith(container) ? configured.slice(container.length).split("/") : [];
  return below.length === 0 ? configured : [origin, ...below].join("/");
}

/** An earlier environment's dataset lies beside the one that is configured. */
async function findBase(stream: ManifestStream, home: string, known: string | undefined): Promise<Snapshot> {
  const { base, role } = stream;
  if (base === undefined) {
    throw new ZferryError(
      "dataset-unsuitable",
      `the bundle has all of stream ${role}, and a boot environment begins with a base`,
      {
        details: { role },
        hint: 'a full bundle is installed in place: mode = "in-place" under [install], also where / is on ZFS; without that line the next ones are boot environments again',
      },
    );
  }
  if (parentOf(home) === "") {
    throw new ZferryError("dataset-unsuitable", `${home} is a pool's own dataset: none can be beside it`, {
      details: { dataset: home },
      hint: "let the stream have a dataset below it",
    });
  }
  const found = await findSnapshots(parentOf(home), base.guid);
  const inOrder = [known, home].map((wanted) => found.find(({ dataset }) => dataset === wanted));
  const snapshot = inOrder.find((each) => each !== undefined) ?? found[0];
  if (snapshot !== undefined) return snapshot;
  throw baseMissing(stream, home, (await datasetExists(home)) ? await listSnapshots(home) : []);
}

/** In the new environment where the base is in the old one; else as the release is called. */
function nameBeside(
  base: Snapshot,
  { role }: ManifestStream,
  { dataset, origin }: NewEnvironment,
  others: readonly StreamPlan[],
): string {
  if (base.dataset.startsWith(`${origin}/`)) return `${dataset}${base.dataset.slice(origin.length)}`;
  const name = `${parentOf(base.dataset)}/${basename(dataset)}`;
  return [dataset, ...others.map((each) => each.dataset)].includes(name) ? `${name}-${role}` : name;
}

async function progressOf(
  stream: ManifestStream,
  dataset: string,
): Promise<Pick<StreamPlan, "received" | "taken">> {
  if (!(await datasetExists(dataset))) return { received: false, taken: 0 };
  const received = (await listSnapshots(dataset)).some(({ guid }) => guid === stream.target.guid);
  const token = received ? undefined : await resumeToken(dataset);
  return { received, taken: Number(pointOf(stream, token)?.bytes ?? 0) };
}

async function propertiesOf(base: Snapshot, end: ChainEnd): Promise<PropertyValues> {
  const { readonly } = await ownProperties(base.dataset);
  return {
    origin: fullName(base),
    mountpoint: "legacy",
    ...(readonly === undefined ? {} : { readonly }),
    ...marksOf(end),
  };
}

/** What the bundles before have received into an environment. */
export const streamsDone = ({ chain }: NewEnvironment): InstalledStream[] =>
  (chain?.done ?? []).flatMap(({ streams }) => streams);

/** What the datasets of an environment are marked with. */
export const endOf = ({ chain }: NewEnvironment, { identity, manifest }: VerifiedBundle): ChainEnd =>
  chain ?? { release: manifest.release.name, identity };

/** What tells that a dataset is zferry's own, and may be removed with its environment. */
const marksOf = ({ release, identity }: ChainEnd): PropertyValues => ({
  "zferry:release": release,
  "zferry:identity": identity,
});

const FSTAB = "etc/fstab";

/**
 * Refuses datasets below that of `/` that nothing mounts in another environment: an initramfs mounts those of what it boots, others lack them.
 * @throws ZferryError `dataset-unsuitable`
 */
export async function requireFollowed(
  { origin }: Pick<NewEnvironment, "origin">,
  streams: readonly StreamPlan[],
  site: SiteConfig,
): Promise<void> {
  const path = resolveWithin(requireRoot(site).path, FSTAB);
  const entries = path === undefined ? [] : parseFstab(readText(path));
  const known = [...streams.map(({ base }) => base?.dataset), ...entries.map(({ source }) => source)];
  const lost = (await listProperties(origin, ["mountpoint", "canmount", "mounted"]))
    .filter(({ dataset, properties: { mountpoint, canmount, mounted } }) => {
      const isMountedByAll = canmount.value === "on" && mountpoint.value.startsWith("/");
      return dataset !== origin && mounted.value === "yes" && !isMountedByAll && !known.includes(dataset);
    })
    .map(({ dataset }) => dataset);
  if (lost.length === 0) return;
  throw new ZferryError(
    "dataset-unsuitable",
    `nothing mounts ${listFirst(lost)} in another environment than ${origin}, which it lies below`,
    {
      details: { datasets: lost },
      hint: `name each in /etc/fstab, with the option zfsutil unless its mountpoint is legacy; or zfs set canmount=on ${lost[0] ?? ""}`,
    },
  );
}

/**
 * Has a plan of `/` name the new datasets in /etc/fstab, where that names those of their bases, or that of `/`.
 * @param root as it is to be changed
 * @throws ZferryError `dataset-unsuitable` where a dataset has no place, or one that a boot would mount over the new one
 */
export async function planFstab(
  plan: RootPlan | undefined,
  environment: Pick<NewEnvironment, "dataset">,
  streams: readonly StreamPlan[],
  site: SiteConfig,
  { git, rootDir }: SiteRoot,
  options: Pick<Parameters<typeof planEdit>[3], "scratchDir" | "release" | "date">,
): Promise<RootPlan | undefined> {
  const obstacles = new Obstacles();
  const path = resolveWithin(rootDir, FSTAB);
  const entries = path === undefined ? [] : parseFstab(readText(path));
  const datasets: FstabDataset[] = [{ dataset: environment.dataset, path: "/" }];
  for (const { base, dataset } of streams) {
    if (base === undefined) continue;
    const entry = entries.find(
      ({ type, source }) => type === "zfs" && [base.dataset, dataset].includes(source),
    );
    const place = await obstacles.unless(() => placeOf(base.dataset, entry?.path, site));
    if (place !== undefined) datasets.push({ dataset, path: place });
  }
  obstacles.throwAny();
  const edit = (contents: Buffer): Buffer =>
    Buffer.from(nameDatasets(contents.toString("latin1"), datasets), "latin1");
  return planEdit(plan, rawPath(Buffer.from(FSTAB)), edit, { git, rootDir, ...options });
}

const readText = (path: string): string => guarded(path, () => readFileSync(path, "latin1"));

/** Where the environment that is cloned has a dataset. */
async function placeOf(dataset: string, entry: string | undefined, site: SiteConfig): Promise<string> {
  const { mountpoint, canmount } = await getProperties(dataset, ["mountpoint", "canmount"]);
  const isPath = mountpoint.startsWith("/");
  if (isPath && canmount === "on") {
    throw new ZferryError(
      "dataset-unsuitable",
      `${dataset} has mountpoint=${mountpoint} and canmount=on: every boot would mount it there, whichever environment boots`,
      {
        details: { dataset, mountpoint },
        hint: `name it in /etc/fstab with the option zfsutil, and zfs set canmount=noauto ${dataset}`,
      },
    );
  }
  if (entry !== undefined) return entry;
  const root = mountPoint(requireRoot(site).path);
  const within = root === "/" ? mountpoint : mountpoint.slice(root.length);
  if (isPath && (root === "/" || mountpoint.startsWith(`${root}/`))) return within;
  throw new ZferryError(
    "dataset-unsuitable",
    `/etc/fstab does not mount ${dataset}, which has the base, and it has mountpoint=${mountpoint}`,
    {
      details: { dataset, mountpoint },
      hint: "boot the environment that has it, or name it there",
    },
  );
}

/** What is journalled of an install that makes an environment. */
type Making = Pick<InstallJournal, "release"> & { readonly environment: NewEnvironment };

/**
 * Clones the root. What an earlier run made stays.
 * @throws ZferryError `environment-exists`, `zfs-failed`
 */
export async function makeClone({ environment, release }: Making): Promise<void> {
  const { dataset, origin, snapshot } = environment;
  if (await datasetExists(dataset)) return requireOwn({ environment, release });
  const from = { dataset: origin, name: snapshot };
  // Of an earlier time.
  if (await hasSnapshot(from)) await destroy(fullName(from));
  await takeSnapshots([from]);
  const { mountpoint } = await getProperties(origin, ["mountpoint"]);
  const kept = Object.entries(await ownProperties(origin)).filter(([name]) => !NOT_CLONED.test(name));
  await clone(from, dataset, {
    ...Object.fromEntries(kept),
    canmount: "noauto",
    mountpoint: mountpoint === "legacy" ? "legacy" : "/",
    ...marksOf(marksIn({ environment, release })),
  });
}

/**
 * Makes a clone one that git can work in: what was cloned may have been in use by git at that very moment. Where there is no clone, or
 * somebody has it mounted, nothing is done.
 * @throws ZferryError `worktree-dirty` where an operation of git was half done then
 */
export async function freeClone(
  { environment, release }: Making,
  site: SiteConfig,
  step: ReceiveOptions["step"],
): Promise<void> {
  const { dataset } = environment;
  if (findMountOf([dataset]) !== undefined || !(await datasetExists(dataset))) return;
  await requireOwn({ environment, release });
  await withRoot(environment, site, async ({ git, rootDir }) => {
    for (const path of await removeCopiedLocks(git))
      step(
        `removing ${dataset}:/${relative(rootDir, path)}, of a git that ran when ${environment.origin} was cloned`,
      );
    try {
      requireConcluded(git);
    } catch (error) {
      if (!(error instanceof ZferryError)) throw error;
      throw new ZferryError(error.code, `when ${environment.origin} was cloned, ${error.message}`, {
        details: error.details,
        hint: "conclude it in /, and install again; where this install is under way by then, give it up first: bundle abort",
        cause: error,
      });
    }
  });
}

async function requireOwn(making: Making): Promise<void> {
  const { dataset } = making.environment;
  if (await isOwn(dataset, marksIn(making).identity)) return;
  throw taken(dataset, "dataset", "it came after the install was begun: let it have another name");
}

const marksIn = ({ environment: { chain }, release }: Making): ChainEnd =>
  chain ?? { release: release.name, identity: release.identity };

/** Whether zferry made a dataset for the bundle with that identity. */
export async function isOwn(dataset: string, identity: string): Promise<boolean> {
  const [own] = await listProperties(dataset, ["zferry:identity"]);
  const property = own?.properties["zferry:identity"];
  return property?.local === true && property.value === identity;
}

/** Destroys the clone and its snapshots, and then the snapshot that it was made from; what is not there is no error. */
export async function removeClone(
  { environment, release }: Making,
  options: Pick<ReceiveOptions, "signal" | "step">,
): Promise<void> {
  const { dataset, origin, snapshot } = environment;
  if (await datasetExists(dataset)) {
    await requireOwn({ environment, release });
    await giveBackSnapshots(dataset, origin);
    options.step(`destroying ${dataset}`);
    const snapshots = (await listSnapshots(dataset)).map(fullName);
    for (const name of [...snapshots, dataset]) await patiently(options, () => destroy(name));
  }
  const from = { dataset: origin, name: snapshot };
  if ((await datasetExists(origin)) && (await hasSnapshot(from))) await destroy(fullName(from));
}

/** What activated an environment may have promoted a dataset, as zectl does: then that has the snapshots that the other one had. */
export async function giveBackSnapshots(dataset: string, madeFrom: string): Promise<void> {
  if (!(await datasetExists(madeFrom))) return;
  const { origin } = await getProperties(madeFrom, ["origin"]);
  if (origin.startsWith(`${dataset}@`)) await promote(madeFrom);
}

/**
 * Runs the site's own commands in the new environment, with the datasets of its streams and the kernel's file systems.
 * @throws ZferryError `not-configured` where one fails
 */
export async function runAfter(
  environment: NewEnvironment,
  streams: readonly InstalledStream[],
  site: SiteConfig,
  step: ReceiveOptions["step"],
): Promise<void> {
  const { after } = site.install;
  if (after.length === 0) return;
  const root = await rootMount(environment);
  const entries = await withOwnMounts([root], (folder) => {
    const path = resolveWithin(folder, FSTAB);
    return path === undefined ? [] : parseFstab(readText(path));
  });
  const own = entries
    .filter(({ type, source }) => type === "zfs" && streams.some(({ dataset }) => dataset === source))
    .map(({ source, path }) => ({ args: ["-t", "zfs", "-o", "ro", source], path }))
    .sort((one, other) => one.path.length - other.path.length);
  const kernel = ["/proc", "/sys", "/dev"].map((path) => ({ args: ["--rbind", path], path }));
  const places = placesForCommands(
    site,
    own.map(({ path }) => mountPoint(path)),
  );
  await withOwnMounts([root, ...own, ...kernel], async (folder, add) => {
    for (const { args, path, within } of places) {
      const place = resolveWithin(folder, path);
      if (place === undefined || !statSync(place).isDirectory()) continue;
      const at = `/${relative(folder, place)}`;
      await add({ args, path: at });
      if (within === undefined || !existsSync(within.from)) continue;
      mkdirSync(join(place, within.name));
      await add({ args: ["-o", "bind,ro", within.from], path: join(at, within.name) });
    }
    for (const command of after) {
      step(`running ${command.join(" ")} in ${environment.dataset}`);
      const result = await run("unshare", [...ownProcesses(folder), folder, ...command]);
      if (result.status === 0) continue;
      const { stderr } = result;
      const ended = describeEnd(result);
      throw new ZferryError(
        "not-configured",
        `${command.join(" ")} in ${environment.dataset}: ${stderr || ended}`,
        {
          details: { program: command[0] ?? "", stderr, ended },
          hint:
            "see after under [install]; what is mounted in / besides is read-only for it, but where shared under " +
            "[boot-environment] names it",
        },
      );
    }
  });
}

/**
 * Before chroot's arguments: what a command leaves running ends with it, since the first process of their namespace does. It would have the
 * environment's file systems, and our pipes.
 */
const ownProcesses = (folder: string): string[] => [
  ...["--pid", "--fork", "--kill-child", `--mount-proc=${join(folder, "proc")}`],
  ...["sh", "-c", 'chroot "$@"; exit $?', "sh"],
];

/**
 * Has the new environment boot next, or only makes sure that it could.
 * @returns sentences to be warned with
 * @throws ZferryError `environment-incomplete`, and others of `activateEnvironment`
 */
export async function finishEnvironment(
  environment: NewEnvironment,
  site: SiteConfig,
): Promise<readonly string[]> {
  const [own, name] = [withContainer(site, environment), basename(environment.dataset)];
  // A run before this one may have activated it, and was ended; then its trial may have ended since.
  if (environment.activate) return (await makeNext(own, name, { force: false, again: false })).warnings;
  return requireBootable(own, name);
}
