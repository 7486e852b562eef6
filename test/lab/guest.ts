/**
 * The lab: a machine with a real OpenZFS, for tests, for the demonstration and for people.
 *
 *     const machine = await openMachine({ zfs: "2.3", disks: [{ name: "tank", size: "2G" }] });
 *     const pool = await machine.createPool("fast");             // on a file, mounted at /mnt/fast
 *     const { stdout, stderr, status } = await machine.run("zpool create tank /dev/lab/tank && zpool list");
 *     await machine.close();
 *
 * `run` may be called again while another script still runs. `bundle`, `zferry` and `node` are in the machine's PATH: a guest
 * has the tree that `npm run dist` packs, as the checkout is when it is opened, and this machine itself the checkout's `dist/`,
 * which must have been built before.
 *
 * A `Guest` can lose its power: `cut()` kills QEMU, `start()` boots it again on the same disks, and imports the pools
 * it finds on them. What was acknowledged by a disk is kept; memory, with all that lies in /tmp, is lost.
 */
import { type ChildProcess, type StdioOptions } from "node:child_process";
import { execFile, execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync } from "node:fs";
import { readFileSync, readSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { constants, tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { CHECKOUT, layTree } from "../dist/tree.js";

/** A release line of OpenZFS that an image can be built for. */
export type ZfsLine = "2.1" | "2.3";

/** A virtio disk of the guest; in the guest it is `/dev/lab/NAME`. */
export interface Disk {
  /** At most 20 of a-z, 0-9 and `-`. */
  name: string;
  /** As truncate(1) takes it, for instance `2G`. */
  size: string;
  /** The host's file to use, made if absent and kept; otherwise the disk is temporary. */
  path?: string;
}

export interface MachineOptions {
  /** Default: ZFERRY_LAB_ZFS, or 2.3. */
  zfs?: ZfsLine;
  disks?: Disk[];
  /** In MiB. */
  memory?: number;
  /** Default: ZFERRY_LAB_CPUS, or 2. */
  cpus?: number;
  /** The host's folder to share; default: a temporary one. */
  share?: string;
  /** Whether a guest that reboots does so, or is off then, which is the default. */
  reboots?: boolean;
}

export interface RunOptions {
  /** Milliseconds until the script and its children are killed; default: two minutes. */
  timeout?: number;
  /** What the script reads from its standard input. */
  input?: string | Uint8Array;
  /** Added to the environment. */
  env?: Record<string, string>;
  /** Throw if the status is not 0; default: true. */
  check?: boolean;
  /** Also print the output as it comes to this process's own stdout and stderr. */
  print?: boolean;
}

export interface RunResult {
  stdout: string;
  stderr: string;
  /** 128 and the signal's number if a signal ended it. */
  status: number;
}

export interface PoolOptions {
  /** As truncate(1) takes it; default: 256M. */
  size?: string;
  /** Further arguments of `zpool create`, for instance `["-o", "feature@longname=disabled"]`. */
  args?: string[];
}

export interface Machine {
  /** What `zfs version` prints. */
  readonly zfsVersion: string;
  /** The checkout, read-only, as the machine sees it. */
  readonly checkout: string;
  /** A folder for files to exchange, by its path here and by its path there. */
  readonly share: { here: string; there: string };
  /** Runs a script by `bash -euo pipefail -c`, in root's home, as root. */
  run(script: string, options?: RunOptions): Promise<RunResult>;
  /** Writes a file, making its folder; `mode` as chmod(1) takes it. */
  write(path: string, data: string | Uint8Array, mode?: string): Promise<void>;
  read(path: string): Promise<Buffer>;
  /** The device of one of `MachineOptions.disks`. */
  disk(name: string): string;
  /** Makes a pool of the name `poolName(name)` on a file; returns that name. It is mounted below `MNT`. */
  createPool(name: string, options?: PoolOptions): Promise<string>;
  /** Ends everything and removes every temporary file. */
  close(): Promise<void>;
}

/**
 * A guest, or this machine itself, with the ZFS it has, if it has one and we are root (ZFERRY_LAB_LOCAL=0 or 1 overrules
 * that).
 */
export async function openMachine(options: MachineOptions = {}): Promise<Machine> {
  return usesLocalZfs() ? LocalMachine.open(options) : openGuest(options);
}

/** Whether `openMachine` gives this machine itself. */
export function usesLocalZfs(): boolean {
  const local = process.env["ZFERRY_LAB_LOCAL"];
  const able = existsSync("/dev/zfs") && process.getuid?.() === 0;
  return local === "1" || (local !== "0" && able);
}

/** The name that a pool gets in `createPool`: this machine has pools of its own, a guest has not. */
export const poolName = (name: string): string =>
  usesLocalZfs() ? `zferry-lab-${process.pid}-${name}` : name;

/** Where file systems are to be mounted. */
export const MNT = usesLocalZfs() ? `/var/tmp/zferry-lab-mnt-${process.pid}` : "/mnt";

/** A guest, whatever this machine itself has. */
export async function openGuest(options: MachineOptions = {}): Promise<Guest> {
  const guest = new Guest(await buildImage(options.zfs ?? defaultZfs()), options);
  try {
    await guest.start();
  } catch (error) {
    await guest.close();
    throw error;
  }
  return guest;
}

/** What a guest is made from. */
export interface Image {
  readonly folder: string;
  /** The program. */
  readonly qemu: string;
}

/** The image for a line of OpenZFS; builds it first if need be, which takes minutes, and tells so. */
export async function buildImage(zfs: ZfsLine): Promise<Image> {
  const suite = { "2.1": "bookworm", "2.3": "bookworm-backports" }[zfs];
  const build = spawn(join(HERE, "image.sh"), [suite], { stdio: ["ignore", "pipe", "inherit"] });
  const [output] = await Promise.all([text(build.stdout), once(build, "exit")]);
  if (build.exitCode !== 0) throw new Error(`no image of OpenZFS ${zfs}: test/lab/image.sh ${suite} failed`);
  const [qemu = "", folder = ""] = output.split("\n");
  return { qemu, folder };
}

/** ZFERRY_LAB_ZFS, or 2.3. */
export function defaultZfs(): ZfsLine {
  const zfs = process.env["ZFERRY_LAB_ZFS"] ?? "2.3";
  if (zfs !== "2.1" && zfs !== "2.3") throw new Error(`ZFERRY_LAB_ZFS is ${zfs}, not 2.1 or 2.3`);
  return zfs;
}

const HERE = dirname(fileURLToPath(import.meta.url));

/** What is still to be undone when this process ends. */
const leftovers = new Set<() => void>();
const cleanUp = () => leftovers.forEach((undo) => undo());

process.once("exit", cleanUp);
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  process.once(signal, () => {
    cleanUp();
    process.kill(process.pid, signal);
  });
}

function quote(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}

function indent(text: string): string {
  return text.trim().replaceAll(/^/gm, "  ");
}

/** What both kinds of machine have in common: a script is run as a job, whose files lie in a folder of its own. */
abstract class JobMachine implements Machine {
  abstract readonly zfsVersion: string;
  abstract readonly checkout: string;
  readonly share: { here: string; there: string };
  /** Everything temporary of this machine; the folders of the jobs are in its `jobs`. */
  protected readonly folder: string;
  private jobs = 0;

  constructor(temporary: string, share: string | undefined, there?: string) {
    this.folder = mkdtempSync(join(temporary, "zferry-lab-"));
    leftovers.add(this.undo);
    for (const name of ["jobs", "share"]) mkdirSync(join(this.folder, name));
    const here = resolve(share ?? join(this.folder, "share"));
    this.share = { here, there: there ?? here };
  }

  /** Runs the file `job` in the folder of a job; resolves to its status. */
  protected abstract execute(job: string): Promise<number>;
  protected abstract kill(job: string): void;
  /** Ends all that runs; synchronous, since a process that exits calls it too. */
  protected abstract release(): void;
  /** The file for a pool. */
  protected abstract place(pool: string): string;
  abstract disk(name: string): string;

  async run(script: string, options: RunOptions = {}): Promise<RunResult> {
    const result = await this.runJob(script, options);
    return { ...result, stdout: result.stdout.toString() };
  }

  async write(path: string, data: string | Uint8Array, mode?: string): Promise<void> {
    const chmod = mode === undefined ? "" : `chmod ${mode} ${quote(path)}`;
    await this.run(`mkdir -p ${quote(dirname(path))}\ncat >${quote(path)}\n${chmod}`, { input: data });
  }

  async read(path: string): Promise<Buffer> {
    return (await this.runJob(`cat ${quote(path)}`)).stdout;
  }

  async createPool(name: string, { size = "256M", args = [] }: PoolOptions = {}): Promise<string> {
    const pool = poolName(name);
    const file = this.place(pool);
    const words = ["-o", "cachefile=none", "-O", `mountpoint=${MNT}/${pool}`, ...args, pool, file];
    await this.run(`truncate -s ${size} ${quote(file)}\nzpool create ${words.map(quote).join(" ")}`);
    return pool;
  }

  close(): Promise<void> {
    leftovers.delete(this.undo);
    this.undo();
    return Promise.resolve();
  }

  private readonly undo = () => {
    this.release();
    rmSync(this.folder, { recursive: true, force: true });
  };

  private async runJob(script: string, options: RunOptions = {}) {
    const { timeout = 300_000, input = "", env = {}, check = true, print = false } = options;
    const job = String(++this.jobs);
    const file = (name: string) => join(this.folder, "jobs", job, name);
    const exports = Object.entries(env).map(([name, value]) => `export ${name}=${quote(value)}\n`);
    mkdirSync(file("."));
    writeFileSync(file("job"), `cd\n${exports.join("")}exec bash -euo pipefail -c ${quote(script)}\n`);
    writeFileSync(file("stdin"), input);
    writeFileSync(file("stdout"), "");
    writeFileSync(file("stderr"), "");

    const printed = print
      ? [follow(file("stdout"), process.stdout), follow(file("stderr"), process.stderr)]
      : [];
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        this.kill(job);
        reject(new Error(`script took more than ${timeout} ms:\n${indent(script)}`));
      }, timeout);
    });
    try {
      const status = await Promise.race([this.execute(job), late]);
      const stdout = readFileSync(file("stdout"));
      const stderr = readFileSync(file("stderr"), "utf8");
      if (check && status !== 0) {
        throw new Error(`script ended with status ${status}:\n${indent(script)}\n${indent(stderr)}`);
      }
      return { stdout, stderr, status };
    } finally {
      clearTimeout(timer);
      for (const stop of printed) stop();
    }
  }
}

/** Copies what is appended to a file, until the function that it returns is called. */
function follow(path: string, to: NodeJS.WritableStream): () => void {
  const file = openSync(path, "r");
  const buffer = Buffer.alloc(65_536);
  const copy = () => {
    for (let count; (count = readSync(file, buffer)) > 0;) to.write(Buffer.from(buffer.subarray(0, count)));
  };
  const timer = setInterval(copy, 100);
  return () => {
    clearInterval(timer);
    copy();
    closeSync(file);
  };
}

/**
 * This machine itself, with the ZFS that it has. Pools and disks are files in a temporary folder, and everything runs in
 * a mount namespace of its own, in which what is written to /etc, /tmp and /var/lib is not kept: nothing of the machine's
 * own is changed. What is mounted below `MNT` is seen outside as well, since there the kernel mounts .zfs/snapshot.
 */
export class LocalMachine extends JobMachine {
  readonly zfsVersion = execFileSync("zfs", ["version"], { encoding: "utf8" }).trim();
  readonly checkout = CHECKOUT;
  private readonly running = new Map<string, ChildProcess>();
  private readonly pools: string[] = [];
  /** Keeps the mount namespace. */
  private readonly holder: ChildProcess;

  static async open(options: MachineOptions = {}): Promise<LocalMachine> {
    const machine = new LocalMachine(options);
    const [line] = (await Promise.race([
      once(machine.holder.stdout!, "data"),
      once(machine.holder, "exit"),
    ])) as [unknown];
    if (String(line).trim() === "ready") return machine;
    await machine.close();
    throw new Error("cannot make a mount namespace for the tests: ZFERRY_LAB_LOCAL=0 runs them in a guest");
  }

  private constructor(options: MachineOptions) {
    // Not in /tmp, of which two views are in use here.
    super("/var/tmp", options.share);
    const cli = `#!/bin/sh\nexec ${quote(process.execPath)} ${quote(join(CHECKOUT, "dist/cli.js"))} "$@"\n`;
    for (const name of ["bin", "disks", "home", "private"]) mkdirSync(join(this.folder, name));
    for (const name of ["bundle", "zferry"])
      writeFileSync(join(this.folder, "bin", name), cli, { mode: 0o755 });
    for (const { name, size, path } of options.disks ?? []) {
      if (path !== undefined) symlinkSync(resolve(path), this.disk(name));
      execFileSync("truncate", ["-s", size, this.disk(name)]);
    }
    const setUp = `
      mkdir "$2"
      mount --bind "$2" "$2"
      mount --make-shared "$2"
      exec unshare --mount --propagation unchanged bash -euc "$3" holder "$1"`;
    const isolate = `
      # What is mounted from here on is not to be seen outside.
      for folder in "$1" /etc /tmp /var/lib; do mount --make-private "$(findmnt -n -o TARGET --target "$folder")"; done
      cd "$1/private"
      mount -t tmpfs -o mode=755 tmpfs .
      cd "$1/private"
      for folder in /etc /tmp /var/lib; do
        mkdir -p "upper$folder" "work$folder"
        mount -t overlay -o "lowerdir=$folder,upperdir=upper$folder,workdir=work$folder" overlay "$folder"
      done
      echo ready
      exec sleep infinity`;
    const bash = ["bash", "-euc", setUp, "holder", this.folder, MNT, isolate];
    this.holder = spawn("setpriv", ["--pdeathsig", "KILL", ...bash], {
      stdio: ["ignore", "pipe", "inherit"],
    });
  }

  disk(name: string): string {
    return join(this.folder, "disks", name);
  }

  protected place(pool: string): string {
    this.pools.push(pool);
    return join(this.folder, `${pool}.pool`);
  }

  private inside(command: readonly string[]): [string, string[]] {
    return ["nsenter", [`--mount=/proc/${this.holder.pid}/ns/mnt`, ...command]];
  }

  protected async execute(job: string): Promise<number> {
    const file = (name: string, flags: string) => openSync(join(this.folder, "jobs", job, name), flags);
    const stdio = [file("stdin", "r"), file("stdout", "a"), file("stderr", "a")];
    const path = [join(this.folder, "bin"), dirname(process.execPath), process.env["PATH"]].join(":");
    const child = spawn(...this.inside(["bash", join(this.folder, "jobs", job, "job")]), {
      detached: true,
      env: { ...process.env, HOME: join(this.folder, "home"), PATH: path },
      stdio,
    });
    stdio.forEach(closeSync);
    this.running.set(job, child);
    const [status, signal] = (await once(child, "exit")) as [number | null, NodeJS.Signals | null];
    this.running.delete(job);
    return signal === null ? (status ?? 0) : 128 + constants.signals[signal];
  }

  protected kill(job: string): void {
    const pid = this.running.get(job)?.pid;
    if (pid !== undefined) process.kill(-pid, "SIGKILL");
  }

  protected release(): void {
    for (const job of this.running.keys()) this.kill(job);
    for (const pool of this.pools) spawnSync(...this.inside(["zpool", "destroy", "-f", pool]));
    this.holder.kill("SIGKILL");
    spawnSync("umount", [MNT]);
    spawnSync("find", [MNT, "-xdev", "-depth", "-type", "d", "-empty", "-delete"]);
  }
}

/** A QEMU guest. */
export class Guest extends JobMachine {
  readonly zfsVersion: string;
  readonly checkout = "/zferry";
  protected readonly image: Image;
  private readonly options: MachineOptions;
  private qemu: ChildProcess | undefined;
  /** Those who wait for a job, and as `ready` who waits for the boot. */
  private readonly waiting = new Map<string, { resolve(status: number): void; reject(error: Error): void }>();

  /** `image` is what `buildImage` gave. */
  constructor(image: Image, options: MachineOptions = {}) {
    super(tmpdir(), options.share, "/host");
    this.image = image;
    this.options = options;
    this.zfsVersion = readFileSync(join(image.folder, "zfs-version"), "utf8").trim();
    for (const { name, size, path } of options.disks ?? []) {
      const file = join(this.folder, `${name}.disk`);
      if (path !== undefined) symlinkSync(resolve(path), file);
      if (existsSync(file)) continue;
      execFileSync("truncate", ["-s", size, file]);
      // `zpool create` on a whole disk would wait for udev to find the partitions that it makes.
      execFileSync("sfdisk", ["--quiet", file], { input: "type=83" });
    }
  }

  /** Boots the guest; resolves when it can run scripts. */
  async start(): Promise<void> {
    rmSync(this.consoleLog, { force: true });
    const log = openSync(this.consoleLog, "a");
    const qemu = await this.boot(
      [
        ...["-chardev", `file,id=console,path=${this.consoleLog},append=on`, "-serial", "chardev:console"],
        ...["-device", "virtio-serial-pci", "-chardev", "stdio,id=jobs,signal=off"],
        ...["-device", "virtserialport,chardev=jobs"],
      ],
      "",
      ["pipe", "pipe", log],
    );
    closeSync(log);
    qemu.stdin?.on("error", () => undefined); // a job that cannot be sent ends when the guest's death is seen
    createInterface({ input: qemu.stdout! }).on("line", (line) => {
      const [verb, job = "ready", status] = line.split(" ");
      if (verb === "ready" || verb === "done") this.waiting.get(job)?.resolve(Number(status));
    });
    qemu.once("exit", () => {
      const error = new Error(
        `the guest is off; the end of its console:\n${indent(this.console().slice(-4000))}`,
      );
      for (const { reject } of this.waiting.values()) reject(error);
    });
    const timer = setTimeout(() => void qemu.kill("SIGKILL"), BOOT_TIMEOUT);
    try {
      await this.wait("ready");
    } finally {
      clearTimeout(timer);
    }
  }

  /** Boots the guest with a shell on this process's terminal; resolves when it is off. */
  async shell(): Promise<void> {
    const { rows = 24, columns = 80 } = process.stdout;
    const qemu = await this.boot(
      ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"],
      `lab.shell=${rows}x${columns},${process.env["TERM"] ?? "dumb"}`,
      "inherit",
    );
    await once(qemu, "exit");
  }

  /** A power cut: QEMU is killed at once. Scripts that run are rejected. */
  async cut(): Promise<void> {
    await this.end(() => this.qemu?.kill("SIGKILL"));
  }

  /** Unmounts what lies on pools and switches the guest off. */
  async poweroff(): Promise<void> {
    await this.end(() => this.tell("poweroff"));
  }

  override async close(): Promise<void> {
    await this.cut();
    await super.close();
  }

  /** What the guest's kernel and first process have printed since it was started. */
  console(): string {
    return readFileSync(this.consoleLog, "utf8");
  }

  disk(name: string): string {
    return `/dev/lab/${name}`;
  }

  protected place(pool: string): string {
    return `/tmp/${pool}.pool`;
  }

  protected execute(job: string): Promise<number> {
    const status = this.wait(job);
    this.tell(`run ${job}`);
    return status;
  }

  protected kill(job: string): void {
    this.tell(`kill ${job}`);
  }

  protected release(): void {
    this.qemu?.kill("SIGKILL");
  }

  private get consoleLog(): string {
    return join(this.folder, "console");
  }

  private tell(line: string): void {
    this.qemu?.stdin?.write(`${line}\n`);
  }

  /** Resolves when a guest that reboots by itself can run scripts again. */
  async rebooted(): Promise<void> {
    const timer = setTimeout(() => void this.qemu?.kill("SIGKILL"), REBOOT_TIMEOUT);
    try {
      await this.wait("ready");
    } finally {
      clearTimeout(timer);
    }
  }

  private async wait(job: string): Promise<number> {
    if (this.qemu === undefined) throw new Error("the guest is off");
    try {
      return await new Promise((resolve, reject) => this.waiting.set(job, { resolve, reject }));
    } finally {
      this.waiting.delete(job);
    }
  }

  private async end(how: () => void): Promise<void> {
    if (this.qemu === undefined) return;
    const exit = once(this.qemu, "exit");
    how();
    await exit;
  }

  /** What is booted: the initramfs in the image, and what it needs to find its root. */
  protected get system(): { initrd: string; args: string; drives: string[] } {
    // The first drive, since it must be vda.
    const drives = drive("root", join(this.image.folder, "rootfs.sqfs"), "readonly=on");
    return { initrd: "initrd.gz", args: "", drives };
  }

  private async boot(args: string[], kernelArgs: string, stdio: StdioOptions): Promise<ChildProcess> {
    if (this.qemu !== undefined) throw new Error("the guest is on already");
    const application = join(this.folder, "application.sqfs");
    if (!existsSync(application)) await packApplication(join(this.folder, "application"), application);
    const { memory = 3072, cpus = Number(process.env["ZFERRY_LAB_CPUS"] ?? 2), disks = [] } = this.options;
    const share = (tag: string, path: string, readonly: "on" | "off") => [
      ...["-fsdev", `local,id=${tag},path=${path},security_model=none,multidevs=remap,readonly=${readonly}`],
      ...["-device", `virtio-9p-pci,fsdev=${tag},mount_tag=${tag}`],
    ];
    const { initrd, args: systemArgs, drives } = this.system;
    // When a machine is reset, QEMU gives the initramfs again to a kernel of the usual form alone.
    const kernel = this.options.reboots ? "vmlinuz" : "vmlinux";
    const qemu = [
      ...[
        this.image.qemu,
        ...BARE,
        ...(this.options.reboots ? [] : ["-no-reboot"]),
        "-m",
        String(memory),
        "-smp",
        String(cpus),
        ...(await accelerator(this.image)),
      ],
      ...["-kernel", join(this.image.folder, kernel), "-initrd", resolve(this.image.folder, initrd)],
      ...[
        "-append",
        `console=ttyS0 quiet panic=-1 oops=panic mitigations=off no_timer_check ${systemArgs} ${kernelArgs}`,
      ],
      ...drives,
      ...drive("application", application, "readonly=on"),
      ...disks.flatMap(({ name }) => drive(name, join(this.folder, `${name}.disk`), "cache=none")),
      ...share("lab", join(HERE, "guest"), "on"),
      ...share("zferry", CHECKOUT, "on"),
      ...share("host", this.share.here, "off"),
      ...share("jobs", join(this.folder, "jobs"), "off"),
      ...["-device", "virtio-rng-pci", ...args],
    ];
    // QEMU must not outlive this process, however that ends.
    const child = spawn("setpriv", ["--pdeathsig", "KILL", ...qemu], { stdio });
    await once(child, "spawn");
    this.qemu = child;
    child.once("exit", () => (this.qemu = undefined));
    return child;
  }
}

/** QEMU's arguments for a disk. */
export const drive = (name: string, path: string, mode: string): string[] => [
  ...["-drive", `if=none,id=drive-${name},file=${path},format=raw,${mode}`],
  ...["-device", `virtio-blk-pci,drive=drive-${name},serial=${name}`],
];

/** Milliseconds until a guest that does not answer is given up. */
const BOOT_TIMEOUT = 400_000;
/** The same from one boot to the next, with all that fails in between. */
const REBOOT_TIMEOUT = 600_000;

const BARE = "-nodefaults -display none -machine q35".split(" ");
const KVM = "-accel kvm -cpu host".split(" ");
/** Without AVX, which is slow to emulate. */
const TCG = "-accel tcg,thread=multi,tb-size=512 -cpu Nehalem".split(" ");

/** QEMU's arguments for the quickest way to run a guest here. ZFERRY_LAB_ACCEL is kvm, tcg or not set. */
async function accelerator(image: Image): Promise<string[]> {
  const answer = join(image.folder, "accelerator"); // asking takes ten seconds where /dev/kvm is there but does not work
  let found = process.env["ZFERRY_LAB_ACCEL"];
  if (found === undefined && existsSync(answer)) found = readFileSync(answer, "utf8");
  if (found === undefined) {
    found = (await kvmWorks(image)) ? "kvm" : "tcg";
    writeFileSync(answer, found);
  }
  return found === "kvm" ? KVM : TCG;
}

/** Whether a kernel comes to its first process with KVM. */
async function kvmWorks({ qemu, folder }: Image): Promise<boolean> {
  const args = [...BARE, "-no-reboot", ...KVM, "-m", "512", "-serial", "stdio"];
  args.push("-kernel", join(folder, "vmlinux"), "-initrd", join(folder, "initrd.gz"));
  args.push("-append", "console=ttyS0 quiet lab.probe");
  const run = promisify(execFile)(qemu, args, { timeout: 10_000, killSignal: "SIGKILL" });
  const { stdout } = await run.catch((error: { stdout?: string }) => error);
  return stdout?.includes("lab: the kernel runs") ?? false;
}

/** Packs the tree that a site unpacks as a squashfs. */
async function packApplication(folder: string, file: string): Promise<void> {
  await layTree(folder);
  const pack = 'cd "$2" && tar -c * | sqfstar -comp lz4 -quiet -no-progress "$1"';
  execFileSync("bash", ["-euo", "pipefail", "-c", pack, "pack", file, folder], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  rmSync(folder, { recursive: true });
}
