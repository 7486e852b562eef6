import { execFileSync } from "node:child_process";
import { copyFileSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { makeNoise, PUBLIC } from "../cli/support.js";
import { type Guest, openGuest } from "./guest.js";
import { rarely } from "./rounds.js";

/*
 * Copies on the file systems that sticks have, FAT32 and exFAT, which this machine's kernel may lack, and a power cut in the
 * middle of one.
 */

const MIB = 1 << 20;
const STICKS = [
  ["vfat", "fat", 64],
  ["exfat", "exfat", 64],
] as const;

let guest: Guest;
let folder: string;
let noise: Buffer;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "zferry-lab-copy-"));
  for (const [type, name, mib] of STICKS) {
    const image = join(folder, name);
    writeFileSync(image, "");
    truncateSync(image, mib * MIB);
    execFileSync(`mkfs.${type}`, type === "vfat" ? ["-F", "32", "-s", "1", image] : [image]);
  }
  noise = await makeNoise(folder);
  guest = await openGuest({
    disks: STICKS.map(([, name, mib]) => ({ name, size: `${mib}M`, path: join(folder, name) })),
  });
  await putSource();
}, 900_000);
afterAll(async () => {
  await guest.close();
  rmSync(folder, { recursive: true });
});

/** What lies in the guest's memory is lost in a power cut. */
async function putSource(): Promise<void> {
  copyFileSync(join(folder, "R2.bundle"), join(guest.share.here, "R2.bundle"));
  copyFileSync(PUBLIC, join(guest.share.here, "release.pub"));
  await guest.run(`cp ${guest.share.there}/{R2.bundle,release.pub} /root/`);
}

/** The whole disk: the name in /dev/lab is that of its first partition, which these sticks have not. */
const mount = (type: string, name: string): Promise<unknown> =>
  guest.run(
    `modprobe ${type}; mkdir -p /mnt/${name}; partition=$(readlink ${guest.disk(name)}); ` +
      `mount -t ${type} "\${partition%1}" /mnt/${name}`,
  );

const copy = (name: string, ...more: string[]) =>
  guest.run(`cd /root; bundle copy R2.bundle /mnt/${name} --key release.pub ${more.join(" ")}`, {
    check: false,
  });

describe.each(STICKS)("a stick with %s", (type, name) => {
  const test = type === "vfat" ? it : rarely;

  test("is read back past the cache, has the bundle, and after it was taken out and in again still has it", async () => {
    await mount(type, name);
    const { status, stdout, stderr } = await copy(name, "--json");
    expect([status, stderr]).toEqual([0, ""]);
    expect(JSON.parse(stdout)).toMatchObject({
      copies: [{ readBack: "direct", files: [{ outcome: "copied", bytes: noise.length }] }],
    });
    await guest.run(`umount /mnt/${name}`);
    await mount(type, name);
    const verified = await guest.run(
      `cd /root; bundle verify /mnt/${name}/R2.bundle --key release.pub; ls -A /mnt/${name}`,
    );
    expect(verified.stdout).toMatch(/^OK .*\nR2\.bundle\n$/);
    expect((await copy(name)).stdout).toContain("is there already");
    await guest.run(`rm /mnt/${name}/R2.bundle`);
  });

  test("takes volumes, and says how many fit", async () => {
    await guest.run(`head -c ${40 * MIB} /dev/zero >/mnt/${name}/other`);
    const full = await copy(name, "--volume-size", String(8 * MIB));
    expect([full.status, full.stderr]).toEqual([16, expect.stringContaining("volumes 1-2 fit here")]);
    expect((await copy(name, "--volume-size", String(8 * MIB), "--volumes", "1-2")).status).toBe(0);
    await guest.run(`cp /mnt/${name}/R2.bundle.00? /root/; rm /mnt/${name}/*`);
    expect((await copy(name, "--volume-size", String(8 * MIB), "--volumes", "3-4")).status).toBe(0);
    await guest.run(
      `cd /root; bundle verify R2.bundle.001 --key release.pub --search /mnt; rm R2.bundle.* /mnt/${name}/*`,
    );
  });

  test("goes on after a power cut in the middle of the writing", async () => {
    const volumes = ["--volume-size", String(6 * MIB)];
    const cut = copy(name, ...volumes).catch(() => undefined);
    await guest.run(
      `while [[ ! -e /mnt/${name}/.R2.bundle.003.partial && ! -e /mnt/${name}/R2.bundle.001 ]]; do sleep 0.05; done`,
    );
    await guest.cut();
    await cut;
    await guest.start();
    await putSource();
    await mount(type, name);
    // A name is only given to what is whole.
    await guest.run(
      `cd /mnt/${name}; for file in R2*; do [[ -e $file ]] || continue; n=$((10#\${file##*.}));
       cmp $file <(tail -c +$(((n - 1) * ${6 * MIB} + 1)) /root/R2.bundle | head -c ${6 * MIB}); done`,
    );
    const { status, stderr, stdout } = await copy(name, ...volumes);
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout).toContain("all of it is on the medium");
    const files = "/mnt/" + name + "/R2.bundle.*";
    await guest.run(`cat ${files} | cmp - /root/R2.bundle; rm ${files}; umount /mnt/${name}`);
  });
});

describe("FAT", () => {
  it("is told from others, so that no volume is larger than its files can be", async () => {
    await mount("vfat", "fat");
    const { status, stderr } = await copy("fat", "--volume-size", String(2 ** 32));
    expect([status, stderr]).toEqual([
      2,
      "bundle: --volume-size: /mnt/fat is on FAT, whose files have less than 4 GiB\n  4293918720 at most\n",
    ]);
    await mount("exfat", "exfat");
    expect((await copy("exfat", "--volume-size", String(2 ** 32))).status).toBe(0);
  });
});
