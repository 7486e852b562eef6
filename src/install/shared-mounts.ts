import { existsSync } from "node:fs";
import { join, relative } from "node:path";
import { requireRoot, type SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { ancestors, rawBytes, rawPath, showPath, type RawPath } from "../raw-path.js";
import { listFirst } from "../report.js";
import { pathOf, type PathName } from "../root/paths.js";
import type { RootPlan } from "../root/plan.js";
import { mountPath, ownMounts, type Mount } from "../system/mounts.js";
import type { OwnMount } from "../system/private-mounts.js";
import type { NewEnvironment } from "./state.js";

// What all environments of a site mount: formats/environments.md, File systems that all share

/** What is mounted in the site's `/`, by paths in that. */
type OtherMounts = ReadonlyMap<RawPath, Mount>;

/** The site's `/` as the kernel names mount points. */
export const placeOfRoot = (site: SiteConfig): string => mountPath(requireRoot(site).path);

/** @param paths what is asked of: no other place is looked into */
function otherMounts(site: SiteConfig, paths: readonly RawPath[]): OtherMounts {
  const root = placeOfRoot(site);
  const found = (): OtherMounts =>
    new Map(
      [...ownMounts()].flatMap(([point, mount]): [RawPath, Mount][] => {
        const path = relative(root, point);
        return path === "" || path.startsWith("..") ? [] : [[path as RawPath, mount]];
      }),
    );
  const mounts = found();
  const waiting = waitingFor(paths, mounts);
  // They are mounted when somebody looks there.
  for (const point of waiting) existsSync(rawBytes(`${point}/.` as RawPath));
  return waiting.length === 0 ? mounts : found();
}

/** Where what paths lie on waits to be mounted. What others wait for may be a server that does not answer. */
export const waitingFor = (paths: readonly RawPath[], mounts: OtherMounts): string[] =>
  [...pointsOn(paths, mounts)].flatMap((path) => {
    const { type, point } = mounts.get(path) ?? {};
    return type === "autofs" && point !== undefined ? [point] : [];
  });

/** The mount points that paths lie on or below, and those that these lie below. */
function pointsOn(paths: readonly RawPath[], mounts: OtherMounts): Set<RawPath> {
  const found = new Set<RawPath>();
  for (const path of paths)
    for (const each of [...ancestors(path), path]) if (mounts.has(each)) found.add(each);
  return found;
}

/** The mount point that a path lies on, or below; undefined where that is the root's own. */
const pointOf = (path: RawPath, mounts: OtherMounts): RawPath | undefined =>
  [...ancestors(path), path].findLast((each) => mounts.has(each));

const asPath = (point: string): RawPath => rawPath(Buffer.from(point.replace(/^\/+/, "")));

/**
 * What a clone of the root is to see of the site's other file systems: those that have tracked files, and those that it may change.
 * @param writable mount points in `/`; the others are read-only
 * @throws ZferryError `not-configured` where one of these is none; `dataset-unsuitable`
 */
export function mountsToSee(
  site: SiteConfig,
  writable: readonly string[],
  tracked: readonly RawPath[],
): OwnMount[] {
  const paths = [...writable.map(asPath), ...tracked];
  const mounts = otherMounts(site, paths);
  const changeable = new Set(writable.map((point) => requirePoint(point, mounts)));
  return [...pointsOn(paths, mounts)]
    .sort((one, other) => one.length - other.length)
    .map((point) => {
      const [path, place] = [asText(point), join(requireRoot(site).path, asText(point))];
      return { args: changeable.has(point) ? ["--bind", place] : ["-o", "bind,ro", place], path: `/${path}` };
    });
}

/** A folder of an environment that has a file system of its own while commands run in it. */
export interface PlaceForCommands extends OwnMount {
  /** A folder of the running system that is seen in it, by its name. */
  readonly within?: { readonly name: string; readonly from: string };
}

const inMemory = (path: string, mode: string): PlaceForCommands => ({
  args: ["-t", "tmpfs", "-o", `mode=${mode}`, "tmpfs"],
  path,
});

/**
 * What a site's commands find in a new environment, besides its own: what else is mounted in the running `/`, from disks and pools,
 * read-only but where all environments share it; and what they write that is not to stay.
 * @param taken paths that the environment has its own for
 * @returns the outer ones first; a place may not be there
 */
export function placesForCommands(site: SiteConfig, taken: readonly string[]): PlaceForCommands[] {
  const writable = new Set(site["boot-environment"].shared.map(asPath));
  const others = [...otherMounts(site, [])].flatMap(([path, { type, source }]): PlaceForCommands[] => {
    const text = rawBytes(path).toString("utf8");
    const isOfDisk = type === "zfs" ? !source.includes("@") : source.startsWith("/");
    if (!isOfDisk || rawPath(Buffer.from(text)) !== path || taken.includes(`/${text}`)) return [];
    const place = join(requireRoot(site).path, text);
    return [{ args: writable.has(path) ? ["--bind", place] : ["-o", "bind,ro", place], path: `/${text}` }];
  });
  // What asks for devices, as dracut does, finds them there.
  const run = { ...inMemory("/run", "755"), within: { name: "udev", from: "/run/udev" } };
  return [...others, run, inMemory("/tmp", "1777"), inMemory("/var/tmp", "1777")].sort(
    (one, other) => one.path.length - other.path.length,
  );
}

function requirePoint(point: string, mounts: OtherMounts): RawPath {
  const path = asPath(point);
  if (mounts.has(path)) return path;
  throw new ZferryError(
    "not-configured",
    `nothing is mounted on ${point}, which all boot environments share`,
    {
      details: { path: point },
      hint: "mount it; or, if it is a part of /, take it out of shared under [boot-environment]",
    },
  );
}

/** For a program's arguments, which are text. */
function asText(path: RawPath): string {
  const text = rawBytes(path).toString("utf8");
  if (rawPath(Buffer.from(text)) === path) return text;
  throw new ZferryError("dataset-unsuitable", `the mount point ${showPath(path)} in / is no UTF-8`, {
    details: { path: showPath(path) },
    hint: "let git track nothing there",
  });
}

/**
 * Refuses tracked files, and what is to be shared, on the datasets of streams, for which the new environment has others, on
 * the origin, which is seen there once more, and on those below it, which are not cloned.
 * @param streams datasets
 * @param shared mount points in `/`
 * @throws ZferryError `dataset-unsuitable`
 */
export function requireOffStreams(
  site: SiteConfig,
  streams: readonly string[],
  { origin, shared = [] }: Pick<NewEnvironment, "origin" | "shared">,
  tracked: readonly RawPath[],
  mounts = otherMounts(site, [...tracked, ...shared.map(asPath)]),
): void {
  const isOwn = (point: RawPath | undefined): boolean => {
    const mount = point === undefined ? undefined : mounts.get(point);
    if (mount?.type !== "zfs") return false;
    return [origin, ...streams].includes(mount.source) || mount.source.startsWith(`${origin}/`);
  };
  const paths = [...tracked, ...shared.map(asPath)].filter((path) => isOwn(pointOf(path, mounts)));
  const found = [...new Set(paths)].map(showPath);
  if (found.length === 0) return;
  throw new ZferryError(
    "dataset-unsuitable",
    `what a stream replaces, or lies on ${origin} or below it, is neither tracked by the repository of / nor shared: ${listFirst(found)}`,
    {
      details: { paths: found },
      hint: `let git not track it, and shared under [boot-environment] not name it; or use mode = "in-place" under [install]`,
    },
  );
}

/**
 * Refuses changes on file systems that all environments share, but for those that an install may change.
 * @throws ZferryError `dataset-unsuitable`
 */
export function requireMayChange(
  site: SiteConfig,
  { shared: writable = [] }: Pick<NewEnvironment, "shared">,
  paths: readonly RawPath[],
): void {
  const mounts = otherMounts(site, paths);
  const allowed = new Set<RawPath | undefined>([undefined, ...writable.map(asPath)]);
  const found = new Map<RawPath, string[]>();
  for (const path of new Set(paths)) {
    const point = pointOf(path, mounts);
    if (point !== undefined && !allowed.has(point))
      found.set(point, [...(found.get(point) ?? []), showPath(path)]);
  }
  if (found.size === 0) return;
  const points = [...found.keys()].sort();
  const told = points.map((point) => {
    const { source, type } = mounts.get(point) ?? { source: "", type: "" };
    return `/${showPath(point)}, which is ${source} (${type}): ${listFirst(found.get(point) ?? [])}`;
  });
  const named = [...writable, ...points.map((point) => `/${showPath(point)}`)].map((point) =>
    JSON.stringify(point),
  );
  throw new ZferryError(
    "dataset-unsuitable",
    `the release changes files on what all boot environments share: on ${told.join("; on ")}`,
    {
      details: { paths: [...found.values()].flat(), mounts: points.map((point) => `/${showPath(point)}`) },
      hint: `to have them changed for the running system, too, and at once: shared = [${named.join(", ")}] under [boot-environment]`,
    },
  );
}

/** What of a plan of `/` lies on shared file systems; undefined for nothing. */
export function sharedPart(
  plan: RootPlan | null | undefined,
  environment: Pick<NewEnvironment, "shared"> | null,
): RootPlan | undefined {
  if (plan == null) return undefined;
  const points = (environment?.shared ?? []).map(asPath);
  const isShared = ({ path }: { readonly path: RootPlan["changes"][number]["path"] }): boolean => {
    const raw = pathOf(path);
    return points.some((point) => raw === point || raw.startsWith(`${point}/`));
  };
  const [changes, directories] = [plan.changes.filter(isShared), plan.directories.filter(isShared)];
  if (changes.length + directories.length === 0) return undefined;
  const { format, head, branch, mergeCommit, releaseCommit, previousRelease } = plan;
  return { format, head, branch, mergeCommit, releaseCommit, previousRelease, changes, directories };
}

/** The paths of such a part. */
export const sharedPaths = (part: RootPlan | undefined): PathName[] =>
  [...(part?.changes ?? []), ...(part?.directories ?? [])].map(({ path }) => path);

/** What such parts of plans, one carried out after the other, change together; undefined for nothing. */
export function composeParts(parts: readonly (RootPlan | undefined)[]): RootPlan | undefined {
  const all = parts.filter((part) => part !== undefined);
  const [first, last] = [all[0], all.at(-1)];
  if (first === undefined || last === undefined) return undefined;
  const changes = compose(all.flatMap((part) => part.changes));
  const directories = compose(all.flatMap((part) => part.directories));
  const { head, previousRelease } = first;
  return { ...last, head, previousRelease, changes, directories };
}

/** Parts that are taken back, the later one first, by what is there before either is: a file of both is as the later one has it. */
export function apartFrom(later: RootPlan | undefined, earlier: RootPlan | undefined): RootPlan[] {
  const paths = new Set(later?.changes.map(({ path }) => pathOf(path)));
  const rest = earlier && {
    ...earlier,
    changes: earlier.changes.filter(({ path }) => !paths.has(pathOf(path))),
  };
  return [later, rest].filter((part) => part !== undefined);
}

type Change<State> = { readonly path: PathName; readonly before: State | null; readonly after: State | null };

/** @param changes the earlier ones first */
function compose<State>(changes: readonly Change<State>[]): Change<State>[] {
  const found = new Map<RawPath, Change<State>>();
  for (const change of changes) {
    const path = pathOf(change.path);
    found.set(path, { ...change, before: (found.get(path) ?? change).before });
  }
  return [...found]
    .filter(([, { before, after }]) => before !== null || after !== null)
    .sort(([one], [other]) => (one < other ? -1 : 1))
    .map(([, change]) => change);
}
