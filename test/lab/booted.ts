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
import { existsSync, readFileSync, renameSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { NODE_VERSION } from "../dist/tree.js";
import { buildImage, defaultZfs, drive, Guest, type Image, type MachineOptions } from "./guest.js";

const FILL = join(dirname(fileURLToPath(import.meta.url)), "booted.sh");
const DISK_SIZE = "4G";

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

export class BootedGuest extends Guest {
  private readonly disk0: string;
  /** What is booted from the next start on: by default the image's own. */
  initrd: string;
  readonly imageInitrd: string;

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
      args: "root=zfs:AUTO systemd.show_status=0",
      drives: drive("system", this.disk0, "cache=none"),
    };
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
