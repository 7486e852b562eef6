import { realpathSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import type { BuildConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { makeRootPart } from "../root/diff.js";
import { parsePattern } from "../root/path-pattern.js";
import { findSecrets, type Secret, type SecretRules } from "../root/secrets.js";
import { listTree, openRepository, trimmed, type Git } from "../system/git.js";
import {
  estimateSend,
  fullName,
  holdSnapshots,
  listSnapshots,
  send,
  takeSnapshots,
  zfsFailure,
  type SendFlags,
  type Snapshot,
} from "../system/zfs.js";
import type { PackOptions, StreamInput } from "./pack.js";

/** A release of the build host: a tag of `/`'s repository, and a snapshot of the same name of every dataset. */
export interface Release {
  readonly name: string;
  /** Rises by one from release to release. */
  readonly sequence: number;
  readonly commit: string;
  readonly flags: SendFlags;
}

/** Keeps a release's snapshots from being destroyed. */
const HOLD_TAG = "zferry:release";

// formats/release-tag.md: the trailers of the annotated tag.
const SEQUENCE_TRAILER = "Zferry-Sequence";
const SEND_TRAILER = "Zferry-Send";
const trailerOf = (message: string, name: string): string | undefined =>
  new RegExp(`^${name}: (.*)$`, "m").exec(message)?.[1];

const FLAG_NAMES = {
  largeBlocks: "large-blocks",
  embedded: "embedded",
  compressed: "compressed",
  raw: "raw",
} as const satisfies Record<keyof SendFlags, string>;

const encodeFlags = (flags: SendFlags): string =>
  Object.entries(FLAG_NAMES)
    .filter(([flag]) => flags[flag as keyof SendFlags])
    .map(([, name]) => name)
    .join(" ") || "plain";

function decodeFlags(text: string): SendFlags {
  const names = new Set(text.split(" "));
  const flag = (key: keyof SendFlags): boolean => names.has(FLAG_NAMES[key]);
  return {
    largeBlocks: flag("largeBlocks"),
    embedded: flag("embedded"),
    compressed: flag("compressed"),
    raw: flag("raw"),
  };
}

/** The releases that the repository's tags tell, by sequence number. */
export async function listReleases(git: Git): Promise<Release[]> {
  const format = "--format=%(refname:strip=2)%00%(*objectname)%00%(contents)%00";
  const fields = (await git.run(["for-each-ref", format, "refs/tags"])).toString("utf8").split("\0");
  const releases: Release[] = [];
  for (let at = 0; at + 2 < fields.length; at += 3) {
    const [name = "", commit = "", message = ""] = fields.slice(at, at + 3);
    const sequence = trailerOf(message, SEQUENCE_TRAILER);
    if (commit === "" || sequence === undefined || !/^[1-9][0-9]{0,15}$/.test(sequence)) continue;
    const flags = decodeFlags(trailerOf(message, SEND_TRAILER) ?? "");
    releases.push({ name: name.trim(), commit, sequence: Number(sequence), flags });
  }
  return releases.sort((a, b) => a.sequence - b.sequence);
}

async function findRelease(git: Git, name: string): Promise<Release> {
  const releases = await listReleases(git);
  const found = releases.find((release) => release.name === name);
  if (found !== undefined) return found;
  throw new ZferryError("usage", `there is no release ${name}`, {
    hint: `releases: ${releases.map((release) => release.name).join(", ") || "none; bundle snapshot makes one"}`,
  });
}

/** The datasets that a release snapshots: every stream's and that of `/`. */
const datasetsOf = (config: BuildConfig): string[] => [
  ...new Set([...Object.values(config.streams), config.root.dataset]),
];

/**
 * Makes a release: commits `/` if a message is given, tags the commit, and snapshots and holds all datasets at once.
 * One that was interrupted after its tag is completed.
 * @throws ZferryError `worktree-dirty`, `release-exists`, `config-malformed`, `git-failed`, `zfs-failed`
 */
export async function makeRelease(
  config: BuildConfig,
  name: string,
  message: string | undefined,
): Promise<
  Release & {
    readonly snapshots: readonly Snapshot[];
    readonly committed: boolean;
    /** What a bundle from the release before to this one would be refused for. */
    readonly secrets: readonly Secret[];
  }
> {
  const git = await openRepository(config.root.path);
  const committed = await commitWorkTree(git, message, name);
  const datasets = datasetsOf(config);
  const wanted = datasets.map((dataset) => ({ dataset, name }));
  const present = (await Promise.all(datasets.map(listSnapshots)))
    .flat()
    .filter((snapshot) => snapshot.name === name);
  // Whoever repeats an interrupted command gets the holds that it had not come to.
  if (present.length === datasets.length) await holdSnapshots(HOLD_TAG, wanted);
  const release = await tagRelease(git, config, name, present);
  if (present.length === 0) {
    try {
      await takeSnapshots(wanted);
    } catch (error) {
      await git.run(["tag", "-d", name]);
      throw error;
    }
  }
  await holdSnapshots(HOLD_TAG, wanted);
  const snapshots = (await Promise.all(datasets.map(listSnapshots)))
    .flat()
    .filter((snapshot) => snapshot.name === name);
  return { ...release, snapshots, committed, secrets: await secretsSinceLast(git, config, release) };
}

async function secretsSinceLast(git: Git, config: BuildConfig, release: Release): Promise<Secret[]> {
  const previous = (await listReleases(git)).findLast(({ sequence }) => sequence < release.sequence);
  const before = previous === undefined ? new Map() : await listTree(git, previous.commit);
  return findSecrets(git, before, await listTree(git, release.commit), secretRules(config));
}

/** Where a path leads that may be a link, or lie behind one; itself where nothing is there. */
function leadsTo(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return resolve(path);
  }
}

/** What may travel, as the configuration and a command have it. */
function secretRules(
  { root, secrets, create }: BuildConfig,
  { allow = [], files = [] }: { allow?: readonly string[]; files?: readonly (string | undefined)[] } = {},
): SecretRules {
  return {
    deny: secrets.deny.map(parsePattern),
    allow: [...secrets.allow, ...allow].map(parsePattern),
    own: [create.key, create.password_file, ...files].flatMap((path) =>
      path === undefined
        ? []
        : [relative(root.path, resolve(path)), relative(leadsTo(root.path), leadsTo(path))],
    ),
  };
}

async function commitWorkTree(git: Git, message: string | undefined, name: string): Promise<boolean> {
  const status = (await git.run(["status", "--porcelain", "-z", "--no-renames"])).toString("utf8");
  if (status === "") return false;
  if (message === undefined) {
    const paths = status.split("\0").filter((entry) => entry !== "");
    const isFirst = (await git.ask(["rev-parse", "--verify", "--quiet", "HEAD"])).status !== 0;
    const commit = `bundle snapshot ${name} -m MESSAGE`;
    throw new ZferryError(
      "worktree-dirty",
      `the work tree has ${paths.length} changes that are not committed`,
      {
        details: { paths: paths.slice(0, 20) },
        hint: isFirst
          ? `nothing is committed yet: have a .gitignore first, as formats/build-host.gitignore, so that no secret is; then ${commit}`
          : `commit them, or let zferry do it: ${commit}`,
      },
    );
  }
  await git.run(["add", "--all"]);
  await git.run(["commit", "--quiet", "--no-verify", "-m", message]);
  return true;
}

async function tagRelease(
  git: Git,
  config: BuildConfig,
  name: string,
  present: readonly Snapshot[],
): Promise<Release> {
  const commit = (await git.run(["rev-parse", "--verify", "HEAD^{commit}"])).toString("utf8").trim();
  const releases = await listReleases(git);
  const existing = releases.find((release) => release.name === name);
  const exists = (what: string): ZferryError =>
    new ZferryError("release-exists", what, { details: { release: name }, hint: "choose another name" });
  if (present[0] !== undefined && existing === undefined)
    throw exists(`there is a snapshot ${fullName(present[0])} already`);
  if (existing !== undefined) {
    if (present.length > 0 || existing.commit !== commit) throw exists(`there is a release ${name} already`);
    return existing;
  }
  const tags = (await git.run(["tag", "--list", name])).toString("utf8");
  if (tags !== "") throw exists(`the repository has a tag ${name} already that is no release`);

  const { send: flags } = config;
  const wanted = {
    largeBlocks: flags.large_blocks,
    embedded: flags.embedded,
    compressed: flags.compressed,
    raw: flags.raw,
  };
  const previous = releases.at(-1);
  if (previous !== undefined && previous.flags.largeBlocks !== wanted.largeBlocks) {
    throw new ZferryError(
      "config-malformed",
      `large_blocks is ${wanted.largeBlocks}, it was ${previous.flags.largeBlocks} for release ${previous.name}`,
      { hint: "it must never change between increments: files came out zeroed where it did (openzfs#6224)" },
    );
  }
  const sequence = (previous?.sequence ?? 0) + 1;
  const text = `Release ${name}\n\n${SEQUENCE_TRAILER}: ${sequence}\n${SEND_TRAILER}: ${encodeFlags(wanted)}\n`;
  await git.run(["tag", "--annotate", "--file=-", name, commit], { input: text });
  return { name, sequence, commit, flags: wanted };
}

/**
 * What `packBundle` needs of two releases of this host, or of one for a full bundle.
 * @param secrets patterns of what is carried all the same, and the files of the signing key and its passphrase
 * @param scratchDir a folder for the root half, which is there until the bundle is packed
 * @param enabled for each role the features of the pool that is to receive it, where that is known
 */
export async function releaseInputs(
  config: BuildConfig,
  baseName: string | undefined,
  targetName: string,
  secrets: { allow: readonly string[]; files: readonly (string | undefined)[] },
  scratchDir: string,
  enabled?: ReadonlyMap<string, ReadonlySet<string>>,
): Promise<Pick<PackOptions, "release" | "streams" | "root">> {
  const git = await openRepository(config.root.path);
  const target = await findRelease(git, targetName);
  const base = baseName === undefined ? undefined : await findRelease(git, baseName);
  if (base !== undefined && base.sequence >= target.sequence) {
    throw new ZferryError(
      "usage",
      `base ${base.name} has sequence number ${base.sequence}, target ${target.name} has ${target.sequence}`,
      { hint: "the base is the older one" },
    );
  }
  const streams: StreamInput[] = [];
  for (const [role, dataset] of Object.entries(config.streams)) {
    const snapshots = await listSnapshots(dataset);
    const to = requireSnapshot(snapshots, dataset, target.name);
    const from = base === undefined ? undefined : requireSnapshot(snapshots, dataset, base.name);
    const flags = flagsFor(target.flags, enabled?.get(role));
    const estimate = await estimateSend(to, from, flags);
    streams.push({
      role,
      ...(estimate === undefined ? {} : { estimate }),
      source: sendStream(to, from, flags),
      expected: {
        base: from === undefined ? undefined : { snapshot: from.name, guid: from.guid },
        target: { snapshot: to.name, guid: to.guid },
      },
    });
  }
  const snapshotFolder = (release: Release): string => join(config.root.path, ".zfs/snapshot", release.name);
  const root = await makeRootPart({
    git,
    base: base?.commit ?? null,
    target: target.commit,
    beforeDir: base === undefined ? null : snapshotFolder(base),
    afterDir: snapshotFolder(target),
    secrets: secretRules(config, secrets),
    scratchDir,
  });
  return { release: { name: target.name, sequence: target.sequence }, streams, root };
}

/**
 * A release's flags without those that a pool cannot take and that may change from one increment to the next. The others
 * must stay: such a stream is for other pools.
 */
export function flagsFor(flags: SendFlags, enabled: ReadonlySet<string> | undefined): SendFlags {
  if (enabled === undefined || flags.raw) return flags;
  return {
    ...flags,
    embedded: flags.embedded && enabled.has("embedded_data"),
    compressed: flags.compressed && enabled.has("lz4_compress") && enabled.has("zstd_compress"),
  };
}

/** The releases of this host by sequence number, each with what a site that has it would have. */
export async function describeReleases(
  config: BuildConfig,
): Promise<readonly (Release & { readonly guids: ReadonlyMap<string, string>; readonly tree: string })[]> {
  const git = await openRepository(config.root.path);
  const releases = await listReleases(git);
  const guids = new Map(releases.map(({ name }) => [name, new Map<string, string>()]));
  for (const [role, dataset] of Object.entries(config.streams)) {
    for (const { name, guid } of await listSnapshots(dataset)) guids.get(name)?.set(role, guid);
  }
  return Promise.all(
    releases.map(async (release) => ({
      ...release,
      guids: guids.get(release.name) ?? new Map<string, string>(),
      tree: trimmed(await git.run(["rev-parse", "--verify", `${release.commit}^{tree}`])),
    })),
  );
}

function requireSnapshot(snapshots: readonly Snapshot[], dataset: string, name: string): Snapshot {
  const found = snapshots.find((snapshot) => snapshot.name === name);
  if (found !== undefined) return found;
  throw new ZferryError("zfs-failed", `there is no snapshot ${dataset}@${name}`, {
    hint: "the release's snapshots must be kept as long as bundles are made from it",
  });
}

/** The output of `zfs send`, which ends in an error when the sender failed. */
async function* sendStream(
  to: Snapshot,
  from: Snapshot | undefined,
  flags: SendFlags,
): AsyncGenerator<Uint8Array> {
  const sender = send(to, from, flags);
  let ended = false;
  try {
    yield* sender.stdout;
    ended = true;
  } finally {
    if (!ended) sender.kill();
    const result = await sender.finish();
    if (ended && result.status !== 0) throw zfsFailure(`zfs send ${fullName(to)}`, result);
  }
}
