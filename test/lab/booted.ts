/**
 * A machine that is booted from a pool, as a site is: / is rpool/ROOT/one, /usr is rpool/SYSTEM/USR/one (readonly=on), the
 * first process is systemd, and the node and zferry that it runs lie in its /usr once `giveZferry` was called.
 *
 *     const machine = await openBooted({ memory: 768 });
 *     await machine.giveZferry();
 *     await machine.run("bundle --version");
 *     await machine.reboot();
 *
 * booted.sh fills the disk once; each machine gets a copy of it.
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { NODE_VERSION } from "../dist/tree.js";
import { buildImage, defaultZfs, drive, Guest, type Image, type MachineOptions } from "./guest.js";

const HERE = dirname(fileURLToPath(import.meta.url));
const FILL = join(HERE, "booted.sh");
const OTHER_BOOT = join(HERE, "dracut-openrc.sh");
const DISK_SIZE = "4G";

/** The build host's / and /usr, on the pool of a machine that is its own site, too. */
export const BUILD = "rpool/BUILD";
export const BUILD_CONFIG = `product = "gentoo"
[streams]
usr = "${BUILD}/usr"
[root]
path = "/mnt/build"
dataset = "${BUILD}"
[create]
key = "/etc/zferry/release.key"
level = 1
`;

/** Fills the disk first if need be, which takes minutes, and tells so. */
export async function openBooted(options: MachineOptions = {}): Promise<BootedGuest> {
  const image = await buildImage(options.zfs ?? defaultZfs());
  const guest = new BootedGuest(image, await filledDisk(image), options);
  try {
    await guest.start();
  } catch (error) {
    await guest.close();
    throw error;
  }
  return guest;
}

/** The disk to be copied, under a hash of what fills it. */
async function filledDisk(image: Image): Promise<string> {
  const hash = createHash("sha256").update(readFileSync(FILL)).update(NODE_VERSION);
  const filled = join(image.folder, `booted-${hash.digest("hex").slice(0, 16)}.disk`);
  if (existsSync(filled)) return filled;
  console.error("lab: filling a disk with a system that boots from it (some minutes, once)");
  const filling = `${filled}.${process.pid}`;
  const guest = new Guest(image, { disks: [{ name: "system", size: DISK_SIZE, path: filling }] });
  try {
    await guest.start();
    await guest.run("/zferry/test/lab/booted.sh", { timeout: 900_000 });
    await guest.poweroff();
    renameSync(filling, filled);
  } finally {
    await guest.close();
    rmSync(filling, { force: true });
  }
  return filled;
}

/** The folder of what dracut-openrc.sh makes from an image's root, which is kept in that of the image under a hash of that script. */
export function otherBoot({ folder }: Image): string {
  const hash = createHash("sha256").update(readFileSync(OTHER_BOOT)).digest("hex").slice(0, 16);
  const made = join(folder, `dracut-openrc-${hash}`);
  if (existsSync(made)) return made;
  console.error("lab: fetching dracut and OpenRC, and making initramfs (a minute, once)");
  const making = `${made}.${process.pid}`;
  try {
    mkdirSync(making);
    execFileSync(OTHER_BOOT, [folder, making], {
      stdio: ["ignore", "pipe", "pipe"],
      maxBuffer: 2 ** 26,
      encoding: "utf8",
    });
    renameSync(making, made);
  } finally {
    rmSync(making, { recursive: true, force: true });
  }
  return made;
}

export class BootedGuest extends Guest {
  private readonly disk0: string;
  /** What is booted from the next start on: by default the image's own. */
  initrd: string;
  readonly imageInitrd: string;
  /** What the kernel is told of it, from the next start on. */
  args = "root=zfs:AUTO systemd.show_status=0";

  /** `filled` is the disk to boot a copy of. */
  constructor(image: Image, filled: string, options: MachineOptions = {}) {
    super(image, options);
    this.imageInitrd = this.initrd = join(image.folder, "initrd-zfs.gz");
    this.disk0 = join(this.folder, "system.disk");
    execFileSync("cp", ["--sparse=always", "--reflink=auto", filled, this.disk0]);
  }

  protected override get system() {
    return {
      initrd: this.initrd,
      args: this.args,
      drives: drive("system", this.disk0, "cache=none"),
    };
  }

  /** Has the next start boot an initramfs, with files of another one, which is not compressed, in it. */
  useInitrd(image: string, part: string): void {
    const main = readFileSync(image);
    this.initrd = join(this.folder, "initrd");
    // What comes after it must be aligned.
    writeFileSync(this.initrd, Buffer.concat([main, Buffer.alloc(-main.length & 511), readFileSync(part)]));
  }

  /** What a script says, without the white space around it. */
  async told(script: string): Promise<string> {
    return (await this.run(script, { timeout: 600_000 })).stdout.trim();
  }

  /** The datasets of `/` and `/usr`, and the release that is written in `/`, on lines of their own. */
  running(): Promise<string> {
    return this.told("findmnt -n -o SOURCE /; findmnt -n -o SOURCE /usr; cat /etc/release");
  }

  /** What zferry has set on a dataset: lines of `property`, a tab, and the value. */
  marksOf(dataset: string): Promise<string> {
    return this.told(`zfs get -H -s local -o property,value all ${dataset} | grep zferry: | sort`);
  }

  /** What is done last of confirming takes `zferry:failing` away. */
  async isConfirmed(dataset: string): Promise<boolean> {
    const marks = await this.marksOf(dataset);
    return marks.includes("zferry:confirmed\tyes") && !marks.includes("zferry:failing");
  }

  /** The machine reboots by itself, as an administrator's command has it. */
  async rebootBy(command: string): Promise<void> {
    await this.run(`(sleep 1; ${command}) >/dev/null 2>&1 &`);
    await this.rebooted();
  }

  /** Writes what was changed, and boots again. */
  async reboot(): Promise<void> {
    await this.poweroff();
    await this.start();
  }

  /** Puts the checkout's zferry where a distribution would: into /usr/lib/zferry, before the first snapshot of /usr. */
  async giveZferry(): Promise<void> {
    await this.run(`
      zfs set readonly=off rpool/SYSTEM/USR/one
      mount -o remount,rw /usr
      mkdir -p /opt/zferry /usr/lib/zferry
      mount -t squashfs -o ro /dev/disk/by-id/virtio-application /opt/zferry
      tar -C /opt/zferry --exclude=./bin/node -c . | tar -C /usr/lib/zferry -x
      umount /opt/zferry
      zfs inherit readonly rpool/SYSTEM/USR/one
      mount -o remount,ro /usr`);
  }
}
