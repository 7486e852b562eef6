import { spawn, type ChildProcess, type ChildProcessWithoutNullStreams } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdirSync, openSync, readlinkSync } from "node:fs";
import { mkdtemp, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { ZferryError } from "../errors.js";
import { guarded } from "./files.js";
import { readMounts, visibleMounts, type Mount } from "./mounts.js";
import { run } from "./process.js";
import { MOVED } from "./terminal.js";

/** For mount points that nobody else sees. */
const RUNTIME_FOLDER = "/run";

/** The arguments of mount for a file system that is only read; `mountpoint` is its property. */
export const readOnlyMount = (dataset: string, mountpoint: string): string[] => [
  ...["-t", "zfs", "-o", mountpoint === "legacy" ? "ro" : "ro,zfsutil"],
  dataset,
];

/** A dataset, to be read. */
export interface ReadFileSystem {
  readonly dataset: string;
  /** Within the first one's; that has "/". */
  readonly path: string;
  /** As zfs has it: it says how it can be mounted. */
  readonly mountpoint: string;
}

/** A mount namespace of our own. It goes with the last process in it, and all that is mounted there with it. */
export interface PrivateMounts {
  /**
   * Puts snapshots in the places of their datasets, wherever these are seen. What else is mounted below stays there.
   * @param snapshots full names, by dataset
   * @throws ZferryError `io-failed`
   */
  cover(snapshots: ReadonlyMap<string, string>): Promise<void>;
  /**
   * Runs `use` on a folder that has file systems read-only: the first one, and the others within it. Nobody else sees it.
   * Who reads there must not follow links: they lead out of it.
   * @throws ZferryError `io-failed` where one cannot be mounted, as without its key or when it is mounted for writing elsewhere
   */
  read<T>(fileSystems: readonly ReadFileSystem[], use: (folder: string) => T | Promise<T>): Promise<T>;
  /**
   * Starts this program again with its arguments, inside, in a session of its own. It lives on when we die.
   * @param output the descriptor for its standard output, `errors` for its standard error
   */
  restart(output: number, errors: number): ChildProcess;
  /** Leaves the namespace to the process that was started, or to nobody. */
  close(): void;
}

/**
 * Makes a mount namespace that has the mounts of ours, and gets those that are made in ours from here on: what is mounted
 * in it is not seen outside.
 * @throws ZferryError `not-permitted`, `not-configured`
 */
export async function openPrivateMounts(): Promise<PrivateMounts> {
  // Node cannot make or enter a namespace. This one is held by a process that ends with its input, or with us.
  const holder = spawn("unshare", ["--mount", "--propagation", "slave", "cat"]);
  await untilReady(holder);
  const pid = String(holder.pid);
  const namespace = join("/proc", pid, "ns/mnt");
  return {
    cover: async (snapshots) => {
      const datasets = [...snapshots.keys()];
      // The outer first: the inner ones are then seen through what covers them.
      const points = (await visibleMounts(pid, datasets)).map(({ point }) => point).sort(byLength);
      for (const point of new Set(points)) {
        const place = (await visibleMounts(pid, datasets)).filter((mount) => mount.point === point).at(-1);
        const snapshot = snapshots.get(place?.source ?? "");
        if (place === undefined || snapshot === undefined) continue;
        await coverPlace(namespace, place, snapshot, await readMounts(pid));
      }
    },
    read: async (fileSystems, use) => {
      const mount = async (folder: string, { dataset, path, mountpoint }: ReadFileSystem): Promise<void> => {
        const seen = (await visibleMounts(pid, [dataset])).find(({ root }) => root === "/");
        // A file system is mounted either for writing or not, wherever that is.
        const args = seen ? ["--bind", seen.point] : readOnlyMount(dataset, mountpoint);
        await inside(namespace, "mount", [...args, join(folder, path)]);
      };
      return withMounted(await mkdtemp(join(RUNTIME_FOLDER, "zferry-")), fileSystems, {
        mount,
        unmount: (folder) => inside(namespace, "umount", ["--recursive", folder]),
        use: (folder) => use(join("/proc", pid, "root", folder)),
      });
    },
    restart: (output, errors) => {
      const own = openSync(namespace, "r");
      try {
        return spawn(
          "nsenter",
          ["--mount=/proc/self/fd/3", "--", process.execPath, ...process.argv.slice(1)],
          {
            detached: true,
            env: { ...process.env, [MOVED]: process.cwd() },
            stdio: ["ignore", output, errors, own],
          },
        );
      } finally {
        closeSync(own);
      }
    },
    close: () => void holder.stdin.end(),
  };
}

/**
 * Mounts at a folder, and in what is mounted there, runs `use`, unmounts all and removes the folder. What failed first is what
 * is told.
 */
async function withMounted<Place, T>(
  folder: string,
  places: readonly Place[],
  how: {
    mount(folder: string, place: Place): Promise<void>;
    unmount(folder: string): Promise<void>;
    use(folder: string): T | Promise<T>;
  },
): Promise<T> {
  let isMounted = false;
  const end = async (): Promise<void> => {
    if (isMounted) await how.unmount(folder);
    await rmdir(folder);
  };
  let result: T;
  try {
    for (const place of places) {
      await how.mount(folder, place);
      isMounted = true;
    }
    result = await how.use(folder);
  } catch (error) {
    await end().catch(() => undefined);
    throw error;
  }
  await end();
  return result;
}

/** In the environment of a process that was started by `restartPrivately`: the mount namespace that it left. */
const LEFT = "ZFERRY_LEFT";
const ownNamespace = (): string => readlinkSync("/proc/self/ns/mnt");

/** Whether this process has a mount namespace of its own: what it mounts, nobody else sees. */
export const isPrivate = (): boolean => ![undefined, ownNamespace()].includes(process.env[LEFT]);

/**
 * Starts this program again with its arguments, at the same terminal, in a mount namespace of its own, and passes signals on to it
 * until it ends. All that it mounts goes with it, however it ends, and it ends with this process, however that ends.
 * @throws ZferryError `not-permitted`, `not-configured`
 */
export async function restartPrivately(): Promise<{ readonly status: number } | { readonly signal: string }> {
  const unshare = ["unshare", "--mount", "--propagation", "slave", "--"];
  // Without it a kill of this process would leave the other at work, unseen.
  const bound = ["setpriv", "--pdeathsig", "KILL", "--", ...unshare];
  const [file = "", ...args] = (await refusalOf(bound)) === undefined ? bound : unshare;
  const refused = file === "unshare" ? await refusalOf(unshare) : undefined;
  if (refused !== undefined) throw noNamespace(refused);
  const program = [process.execPath, ...process.execArgv, ...process.argv.slice(1)];
  const child = spawn(file, [...args, ...program], {
    stdio: "inherit",
    env: { ...process.env, [LEFT]: ownNamespace() },
  });
  const pass = (signal: NodeJS.Signals): void => void child.kill(signal);
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  for (const signal of signals) process.on(signal, pass);
  try {
    const [status, signal] = (await once(child, "exit")) as [number | null, string | null];
    return signal === null ? { status: status ?? 0 } : { signal };
  } finally {
    for (const name of signals) process.off(name, pass);
  }
}

/** What is said against running programs by way of a command; undefined for nothing. */
async function refusalOf([file = "", ...args]: readonly string[]): Promise<string | undefined> {
  try {
    const { status, stderr } = await run(file, [...args, "true"]);
    return status === 0 ? undefined : stderr;
  } catch (error) {
    if (error instanceof ZferryError && error.code === "not-configured") return error.message;
    throw error;
  }
}

/** What is mounted: arguments of mount(8) but the last, and the place, within the first one's; that has "/". */
export interface OwnMount {
  readonly args: readonly string[];
  readonly path: string;
}

/**
 * Runs `use` on a folder that has file systems, for writing. It has the same path each time.
 * @param use `add` mounts others in it
 * @param name tells the folder from another one that is there meanwhile
 * @throws ZferryError `io-failed` where one cannot be mounted, or unmounted after `use` ended well
 */
export function withOwnMounts<T>(
  mounts: readonly OwnMount[],
  use: (folder: string, add: (mount: OwnMount) => Promise<void>) => T | Promise<T>,
  name = "",
): Promise<T> {
  if (!isPrivate()) throw new RangeError("what is mounted here would be seen by all");
  const folder = join(RUNTIME_FOLDER, `zferry-${process.pid}${name}`);
  guarded(folder, () => mkdirSync(folder, { recursive: true, mode: 0o700 }));
  const mount = (base: string, { args, path }: OwnMount): Promise<void> =>
    execute("mount", [...args, join(base, path)]);
  return withMounted(folder, mounts, {
    mount,
    unmount: (base) => execute("umount", ["--recursive", base]),
    use: (base) => use(base, (each) => mount(base, each)),
  });
}

const byLength = (one: string, other: string): number => one.length - other.length;

async function untilReady(holder: ChildProcessWithoutNullStreams): Promise<void> {
  const failed = async (): Promise<never> => {
    const [stderr] = await Promise.all([text(holder.stderr), once(holder, "close")]);
    throw noNamespace(stderr);
  };
  holder.stdin.on("error", () => undefined);
  holder.stdin.write("\n");
  try {
    // An error event, as without such a program, rejects either.
    if ((await Promise.race([once(holder.stdout, "data"), once(holder, "exit")])).length !== 1)
      await failed();
  } catch (error) {
    if (error instanceof ZferryError) throw error;
    throw new ZferryError("not-configured", "cannot run unshare", {
      hint: "install util-linux",
      cause: error,
    });
  }
}

const noNamespace = (stderr: string): ZferryError =>
  new ZferryError("not-permitted", `cannot make a mount namespace: ${stderr.trim()}`, {
    hint: "run it as root",
  });

/** `place` is seen in the namespace, and `mounts` is all that is mounted there. */
async function coverPlace(
  namespace: string,
  { id, root, point }: Mount,
  snapshot: string,
  mounts: readonly Mount[],
): Promise<void> {
  const mount = (...args: string[]): Promise<void> => inside(namespace, "mount", args);
  const folder = await mkdtemp(join(RUNTIME_FOLDER, "zferry-"));
  try {
    // Not on the place itself: mount.zfs refuses a folder that is not empty.
    await mount("-t", "zfs", snapshot, folder);
    await mount("--bind", join(folder, root), folder);
    for (const below of mounts) {
      // What ZFS mounts in .zfs by itself cannot be mounted elsewhere (ELOOP), and comes again when it is asked for.
      if (below.parent !== id || below.point.startsWith(join(point, ".zfs/"))) continue;
      await mount("--rbind", below.point, join(folder, below.point.slice(point.length)));
    }
    await mount("--move", folder, point);
    await inside(namespace, "umount", [folder]);
  } finally {
    await rmdir(folder);
  }
}

const inside = (namespace: string, ...command: readonly [string, readonly string[]]): Promise<void> =>
  execute("nsenter", [`--mount=${namespace}`, "--", command[0], ...command[1]], command);

async function execute(
  file: string,
  all: readonly string[],
  [program, args]: readonly [string, readonly string[]] = [file, all],
): Promise<void> {
  const { status, stderr } = await run(file, all);
  if (status === 0) return;
  const said = stderr.replace(/\s*\n\s*/g, "; ");
  throw new ZferryError("io-failed", `${program} ${args.join(" ")} in a private mount namespace: ${said}`, {
    details: { program, status: status ?? "" },
  });
}
