import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { BootEnvironment, BootEnvironments } from "../../src/install/environments.js";
import { openBooted, type BootedGuest } from "./booted.js";
import { rarely } from "./rounds.js";

// Boot environments made by hand, on a machine that boots what bootfs names: formats/environments.md.
const ROOT = "rpool/ROOT";
const USR = "rpool/SYSTEM/USR";
const SITE_CONFIG = `product = "gentoo"
[streams]
usr = "${USR}/one"
`;

let machine: BootedGuest;
beforeAll(async () => {
  machine = await openBooted({ memory: 768 });
  await machine.giveZferry();
  await machine.write("/etc/zferry/site.toml", SITE_CONFIG);
  // The guest's own kernel is not in its /boot.
  await machine.run(`
    mkdir -p /boot; rm -rf /boot/*; touch /boot/vmlinuz-6.1 /boot/initrd.img-6.1
    zfs snapshot ${ROOT}/one@hand ${USR}/one@hand
    zfs hold keep ${ROOT}/one@hand`);
});
afterAll(() => machine?.close());

/** A script's lines, without the last line's end. */
const told = async (script: string): Promise<string> => (await machine.run(script)).stdout.trim();
const list = async (): Promise<BootEnvironments> =>
  JSON.parse(await told("bundle environments --json")) as BootEnvironments;
const states = async (): Promise<Record<string, readonly string[]>> =>
  Object.fromEntries((await list()).environments.map((each) => [each.name, each.states]));
const bootfs = (): Promise<string> => told("zpool get -H -o value bootfs rpool");

/** Clones one's root by hand, and changes files of it. */
const makeRoot = (name: string, change: string): Promise<unknown> =>
  machine.run(`
    zfs clone -o canmount=noauto -o mountpoint=/ ${ROOT}/one@hand ${ROOT}/${name}
    mount -t zfs -o zfsutil ${ROOT}/${name} /mnt
    cd /mnt; ${change}
    cd /; umount /mnt`);

/** What must not change: what is set, what is mounted, and what is written to the environment that does not run. */
const SITE = `
  zpool sync; zpool get bootfs
  zfs get -H -p -r -s local,received,temporary -o name,property,value all ${ROOT}
  running=$(findmnt -n -o SOURCE /)
  for name in two bad; do
    [ $running = ${ROOT}/$name ] || zfs get -H -p written,referenced,guid,createtxg ${ROOT}/$name 2>/dev/null || true
  done
  cat /proc/self/mounts; ls -d /run/zferry-* 2>/dev/null || true`;

/** What activating is refused with; nothing is changed by it. */
async function faults(name: string, options = ""): Promise<string[]> {
  const before = await told(SITE);
  const { status, stdout, stderr } = await machine.run(`bundle activate ${options} ${name} --json`, {
    check: false,
  });
  expect([status, stdout]).toEqual([17, ""]);
  expect(await told(SITE)).toBe(before);
  const { error } = JSON.parse(stderr) as {
    error: { code: string; message: string; also?: { message: string }[] };
  };
  return [error.code, error.message, ...(error.also ?? []).map(({ message }) => message)];
}

describe("boot environments", () => {
  it("are those in the container of the running one", async () => {
    await machine.run(`zfs create -o mountpoint=none ${ROOT}/data; zfs create -V 1M ${ROOT}/volume`);
    const { container, loader, next, environments } = await list();
    expect([container, loader, next]).toEqual([ROOT, "bootfs", `${ROOT}/one`]);
    expect(
      environments.map(({ created, used, refers, guid, ...rest }) => {
        expect([created > 1_700_000_000, used > 0, refers > 0]).toEqual([true, true, true]);
        expect(guid).toMatch(/^[0-9]+$/);
        return rest;
      }),
    ).toEqual([
      {
        name: "one",
        dataset: `${ROOT}/one`,
        states: ["running", "next"],
        release: null,
        datasets: [{ path: "/usr", dataset: `${USR}/one` }],
        fault: null,
        holds: [{ snapshot: "hand", tag: "keep" }],
      },
    ]);
  });

  it("are read as they are, without a change and without a trace", async () => {
    await makeRoot("two", `sed -i s,USR/one,USR/two, etc/fstab`);
    await machine.run(`zfs clone ${USR}/one@hand ${USR}/two; zpool sync`);
    const before = await told(SITE);
    const { stdout } = await machine.run("bundle environments");
    expect(await told(SITE)).toBe(before);
    expect(
      stdout
        .replace(/ +/g, " ")
        .replace(/\d{4}-\S+ \S+ UTC/g, "TIME")
        .replace(/[\d.]+ [KMG]?i?B/g, "N"),
    ).toBe(
      "name state release created used refers held datasets\n" +
        `one running, next - TIME N N 1 /usr ${USR}/one\n` +
        `two - - TIME N N 0 /usr ${USR}/two\n`,
    );
  });

  rarely("have a release where it is set on them, not where it is inherited", async () => {
    const identity = "ab".repeat(32);
    const releases = async () => (await list()).environments.map((each: BootEnvironment) => each.release);
    await machine.run(`zfs set zferry:release=R1 zferry:identity=${identity} ${ROOT}`);
    expect(await releases()).toEqual([null, null]);
    await machine.run(`zfs set zferry:release=R2 zferry:identity=${identity} ${ROOT}/two`);
    expect(await releases()).toEqual([null, { name: "R2", identity }]);
    await machine.run(`zfs set zferry:identity=x ${ROOT}/two; zfs inherit zferry:release ${ROOT}`);
    expect(await releases()).toEqual([null, null]);
  });

  it("that would not come up are refused, with all that is missing", async () => {
    await makeRoot(
      "bad",
      `rm boot/initrd*; mkdir -p x
      printf '%s\\n' '${USR}/gone /usr zfs ro' '${ROOT}/data /x zfs ro' 'UUID=0-0 /x ext4 ro' 'LABEL=no /x ext4 nofail' >etc/fstab`,
    );
    expect(await faults("bad")).toEqual([
      "environment-incomplete",
      `/etc/fstab mounts ${USR}/gone on /usr: there is no such dataset`,
      `/etc/fstab mounts ${ROOT}/data on /x, and it has mountpoint=none, not legacy`,
      "/etc/fstab mounts UUID=0-0 on /x: there is no /dev/disk/by-uuid/0-0",
      `/boot of ${ROOT}/bad has no initramfs for vmlinuz-6.1`,
      "/sbin/init leads to nothing in it",
    ]);
    // A /usr that is there, and has no init.
    await machine.run(`
      zfs create ${USR}/gone; zfs set mountpoint=legacy ${ROOT}/data
      mount -t zfs -o zfsutil ${ROOT}/bad /mnt; sed -i /UUID/d /mnt/etc/fstab; umount /mnt`);
    expect(await faults("bad", "--force")).toEqual([
      "environment-incomplete",
      "/sbin/init leads to nothing in it",
    ]);
    // With a mount point, it would be an environment itself.
    await machine.run(`zfs set mountpoint=none ${ROOT}/data`);
  });

  rarely("that the loader does not find are refused", async () => {
    const messageOf = async (name: string) => (await faults(name))[1];
    await machine.run(`zfs set org.zfsbootmenu:active=off ${ROOT}/two`);
    expect(await messageOf("two")).toContain("org.zfsbootmenu:active=off");
    await machine.run(
      `zfs inherit org.zfsbootmenu:active ${ROOT}/two; zfs set mountpoint=legacy ${ROOT}/two`,
    );
    expect(await messageOf("two")).toContain("has mountpoint=legacy");
    expect((await list()).environments.find(({ name }) => name === "two")?.datasets).toHaveLength(1);
    await machine.run(`zfs set mountpoint=/ ${ROOT}/two; zfs set canmount=off ${ROOT}/two`);
    expect(await messageOf("two")).toContain("has canmount=off, not noauto");
    await machine.run(`zfs set canmount=noauto ${ROOT}/two; zfs set mountpoint=legacy ${ROOT}/data`);
    expect(await messageOf("data")).toContain("has mountpoint=legacy");
    await machine.run(`zfs set mountpoint=none ${ROOT}/data`);
    expect(await messageOf("data")).toContain("has mountpoint=none, which no loader takes for a root");
    expect(await faults("three")).toEqual(["environment-missing", `${ROOT} has no environment "three"`]);
  });

  rarely("that cannot be mounted are listed, and not activated", async () => {
    await machine.run(`
      (unshare --mount sh -c 'mount -t zfs -o zfsutil ${ROOT}/two /mnt; exec sleep 1000' >/dev/null 2>&1 & echo $! >/root/holder)
      until grep -q '${ROOT}/two ' /proc/$(cat /root/holder)/mounts; do sleep 0.1; done`);
    const { stdout, stderr } = await machine.run("bundle environments");
    expect(stdout).toMatch(/^two .* \?$/m);
    expect(stderr).toContain("two: mount -t zfs -o ro,zfsutil");
    expect((await faults("two"))[1]).toContain(`mount -t zfs -o ro,zfsutil ${ROOT}/two`);
    await machine.run(
      "kill $(cat /root/holder); until ! [ -e /proc/$(cat /root/holder) ]; do sleep 0.1; done",
    );
    await expect.poll(async () => (await list()).environments.at(-1)?.fault, { timeout: 300_000 }).toBeNull();
  });
});

describe("an environment", () => {
  it("is activated, and boots with its own /usr", async () => {
    expect(await told("bundle activate two")).toBe(`two boots next: ${ROOT}/two`);
    expect(await bootfs()).toBe(`${ROOT}/two`);
    expect(await states()).toEqual({ bad: [], one: ["running"], two: ["next"] });
    expect(await told("bundle activate two")).toBe(`two boots next already: ${ROOT}/two`);
    await machine.reboot();
    expect(await told("findmnt -n -o SOURCE /; findmnt -n -o SOURCE /usr")).toBe(`${ROOT}/two\n${USR}/two`);
    expect(await states()).toEqual({ bad: [], one: ["previous"], two: ["running", "next"] });
  });

  rarely("is on trial then, and no other is that was never confirmed", async () => {
    expect((await list()).environments.map(({ trial }) => trial?.allowed)).toEqual([undefined, undefined, 2]);
    await makeRoot("three", `sed -i s,USR/one,USR/two, etc/fstab`);
    expect(await faults("three")).toEqual([
      "install-pending",
      "two, which is running, is on trial: it is not confirmed yet",
    ]);
    await machine.run(`zfs destroy ${ROOT}/three`);
  });

  rarely("before it is activated again, and boots", async () => {
    expect(await told("bundle activate one")).toBe(`one boots next: ${ROOT}/one`);
    await machine.reboot();
    expect(await told("findmnt -n -o SOURCE /; findmnt -n -o SOURCE /usr")).toBe(`${ROOT}/one\n${USR}/one`);
    expect(await states()).toEqual({ bad: [], one: ["running", "next"], two: ["previous"] });
  });

  rarely("is never removed while it runs, boots next or ran before", async () => {
    const all = ["one", "two", "bad"].map((name) => `${ROOT}/${name}`).join(" ");
    await machine.write("/etc/zferry/site.toml", `${SITE_CONFIG}[boot-environment]\nkeep = 1\n`);
    await machine.run(`zfs set zferry:release=R1 zferry:identity=${"ab".repeat(32)} ${all}`);
    const { staying } = JSON.parse(await told("bundle environments --prune --json")) as {
      staying: { name: string; why: string }[];
    };
    expect(staying.map(({ name, why }) => [name, why])).toEqual([
      ["one", "it is running"],
      ["two", "it ran before the running one"],
    ]);
    await machine.run(
      `for each in ${all}; do zfs inherit zferry:release $each; zfs inherit zferry:identity $each; done`,
    );
    await machine.write("/etc/zferry/site.toml", SITE_CONFIG);
  });

  rarely("without a kernel is activated with --force, and taken back before the reboot", async () => {
    await machine.run(`mount -t zfs -o zfsutil ${ROOT}/two /mnt; rm /mnt/boot/*; umount /mnt`);
    expect(await faults("two")).toEqual(["environment-incomplete", `/boot of ${ROOT}/two has no kernel`]);
    await machine.run("bundle activate --force two");
    expect(await bootfs()).toBe(`${ROOT}/two`);
    expect(await told("bundle activate one")).toBe(`one boots next: ${ROOT}/one`);
    expect(await bootfs()).toBe(`${ROOT}/one`);
    // What ran before is still known.
    expect(await states()).toEqual({ bad: [], one: ["running", "next"], two: ["previous"] });
  });

  rarely("is activated by a command of the site's, or not at all", async () => {
    const configure = (command: string) =>
      machine.write(
        "/etc/zferry/site.toml",
        `${SITE_CONFIG}[boot-environment]\nloader = "command"\ncommand = ["/bin/sh", "-c", "${command}"]\n`,
      );
    await configure("echo it failed >&2; exit 3");
    const { status, stderr } = await machine.run("bundle activate two", { check: false });
    expect([status, stderr]).toEqual([17, expect.stringContaining("it failed")]);
    expect(await states()).toEqual({ bad: [], one: ["running"], two: ["previous"] });
    await configure("echo $0 >>/root/called");
    await machine.run("bundle activate two; bundle activate two");
    expect(await told("cat /root/called")).toBe(`${ROOT}/two\n${ROOT}/two`);
    expect(await states()).toEqual({ bad: [], one: ["running"], two: ["next", "previous"] });
    expect(await bootfs()).toBe(`${ROOT}/one`);
  });

  rarely("is activated by zectl, which must have done it", async () => {
    const zectl = (does: string) =>
      machine.write("/usr/local/bin/zectl", `#!/bin/sh\necho "$@" >>/root/zectl\n${does}\n`, "755");
    await machine.run("mount -t tmpfs tmpfs /usr/local; mkdir /usr/local/bin");
    await machine.write("/etc/zferry/site.toml", `${SITE_CONFIG}[boot-environment]\nloader = "zectl"\n`);
    await zectl("true");
    const { status, stderr } = await machine.run("bundle activate --force two", { check: false });
    expect([status, stderr]).toEqual([14, `bundle: rpool has bootfs=${ROOT}/one now, not ${ROOT}/two\n`]);
    await zectl(`zpool set "bootfs=${ROOT}/$2" rpool`);
    await machine.run("bundle activate --force two");
    expect(await told("cat /root/zectl")).toBe("activate two\nactivate two");
    expect(await states()).toEqual({ bad: [], one: ["running"], two: ["next", "previous"] });
  });

  rarely("has its kernel where zectl's plugin for systemd-boot keeps it", async () => {
    await machine.run(`zfs set org.zectl:bootloader=systemdboot org.zectl.systemdboot:efi=/root/efi ${ROOT}`);
    await machine.run("bundle activate --force one");
    expect(await faults("two")).toEqual([
      "environment-incomplete",
      "/root/efi/env/org.zectl-two has no kernel",
    ]);
    await machine.run(`
      mkdir -p /root/efi/env/org.zectl-two; cd /root/efi/env/org.zectl-two; touch vmlinuz-linux initramfs-linux.img
      bundle activate two`);
    expect(await bootfs()).toBe(`${ROOT}/two`);
  });
});
