import { spawn, type ChildProcess, type ChildProcessWithoutNullStreams } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { mkdtemp, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { ZferryError } from "../errors.js";
import { readMounts, visibleMounts, type Mount } from "./mounts.js";
import { run } from "./process.js";
import { MOVED } from "./terminal.js";

/** For mount points that nobody else sees. */
const RUNTIME_FOLDER = "/run";

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
      const folder = await mkdtemp(join(RUNTIME_FOLDER, "zferry-"));
      let isMounted = false;
      try {
        for (const { dataset, path, mountpoint } of fileSystems) {
          const place = join(folder, path);
          const seen = (await visibleMounts(pid, [dataset])).find(({ root }) => root === "/");
          const options = mountpoint === "legacy" ? "ro" : "ro,zfsutil";
          // A file system is mounted either for writing or not, wherever that is.
          const args = seen ? ["--bind", seen.point] : ["-t", "zfs", "-o", options, dataset];
          await inside(namespace, "mount", [...args, place]);
          isMounted = true;
        }
        return await use(join("/proc", pid, "root", folder));
      } finally {
        if (isMounted) await inside(namespace, "umount", ["--recursive", folder]);
        await rmdir(folder);
      }
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

const byLength = (one: string, other: string): number => one.length - other.length;

async function untilReady(holder: ChildProcessWithoutNullStreams): Promise<void> {
  const failed = async (): Promise<never> => {
    const [stderr] = await Promise.all([text(holder.stderr), once(holder, "close")]);
    throw new ZferryError("not-permitted", `cannot make a mount namespace: ${stderr.trim()}`, {
      hint: "run it as root",
    });
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

async function inside(namespace: string, program: string, args: readonly string[]): Promise<void> {
  const { status, stderr } = await run("nsenter", [`--mount=${namespace}`, "--", program, ...args]);
  if (status === 0) return;
  throw new ZferryError("io-failed", `${program} ${args.join(" ")} in a private mount namespace: ${stderr}`, {
    details: { program, status: status ?? "" },
  });
}
