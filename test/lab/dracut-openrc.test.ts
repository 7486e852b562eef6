import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { BUILD, BUILD_CONFIG, openBooted, otherBoot, type BootedGuest } from "./booted.js";
import { buildImage, defaultZfs } from "./guest.js";
import { rarely } from "./rounds.js";

// What counts boots in an initramfs by dracut, and what looks after an environment on trial with OpenRC: formats/boot.md. The system
// has systemd and OpenRC: an initramfs with systemd goes on with systemd, one without runs /sbin/init, which starts OpenRC.
const ROOT = "rpool/ROOT";
const USR = "rpool/SYSTEM/USR";

const SITE_CONFIG = `product = "gentoo"
[streams]
usr = "${USR}/one"
[root]
path = "/"
[install]
mode = "boot-environment"
[boot-environment]
boots = 1
deadline = 800
accept = ["/root/", "/opt/", "/var/"]
checks = [["/usr/bin/busybox", "sh", "-c", "! grep bad /etc/release >&2"]]
`;

/** What OpenRC starts of Debian's scripts, what it does not need left out, and the job agent. */
const SET_UP = `
  zfs set readonly=off ${USR}/one
  mount -o remount,rw /usr
  tar -C / -xf /host/dracut.tar
  tar -C / -xf /host/openrc.tar
  cd /etc/runlevels
  rm -f */{zfs-share,zfs-load-key,rsync} sysinit/{hwclock.sh,mountnfs*,urandom,brightness}
  sed -i '/^jobs/s/rw,/rw,x-mount.mkdir,/' /etc/fstab
  sed -i '/^[1-6]:/d' /etc/inittab
  echo 'lab:2345:respawn:/usr/bin/env HOME=/root LANG=C.UTF-8 /opt/lab/busybox sh /lab/agent serve' >>/etc/inittab
  mkdir -p /boot /etc/dracut.conf.d
  rm -rf /boot/*
  touch /boot/vmlinuz-6.1 /boot/initrd.img-6.1`;

/** The hook, as a real dracut takes it into an initramfs by its configuration, and as update-initramfs would. */
const PARTS = `
  dracut --no-hostonly --no-early-microcode --no-compress --modules base --kver "$(uname -r)" /root/base.img
  mkdir -p /root/dracut; cd /root/dracut
  /opt/lab/busybox cpio -idu '*/80-zferry.sh' 'usr/bin/date' 'usr/bin/sync' </root/base.img
  find . | /opt/lab/busybox cpio -o -H newc >/host/dracut.part
  mkdir -p /root/tools/scripts/local-premount; cd /root/tools/scripts/local-premount
  cp -p /etc/initramfs-tools/scripts/local-premount/zferry .
  for name in resume zferry; do echo "/scripts/local-premount/$name \\"\\$@\\""; done >ORDER
  echo '[ -e /conf/param.conf ] && . /conf/param.conf' >>ORDER
  cd /root/tools; find . | /opt/lab/busybox cpio -o -H newc >/host/tools.part`;

/** What runs, made again as an environment of another name, with a change to its / and /usr in /mnt. */
const makeEnvironment = (name: string, change: string): string => `
  for running in $(findmnt -n -o SOURCE /) $(findmnt -n -o SOURCE /usr); do
    zfs snapshot $running@${name}
    zfs clone -o canmount=noauto -o mountpoint=$(zfs get -H -o value mountpoint $running) -o readonly=off \\
      $running@${name} \${running%/*}/${name}
  done
  mount -t zfs -o zfsutil ${ROOT}/${name} /mnt
  mount -t zfs ${USR}/${name} /mnt/usr
  sed -i 's,^${USR}/[^ ]*,${USR}/${name},' /mnt/etc/fstab
  echo ${name} >/mnt/etc/release
  ${change}
  umount /mnt/usr /mnt
  bundle activate ${name}`;

/** What runs, named six, is put under git as release R1, and a bundle made that leads from it to R2. */
const MAKE_RELEASE = `
  bundle keygen --no-password -o /etc/zferry/release
  install -D -m 644 /etc/zferry/release.pub /etc/zferry/keys/release.pub
  git config --system user.name admin; git config --system user.email admin@example.org
  printf '/*\\n!/.gitignore\\n!/etc\\n/etc/zferry\\n' >/.gitignore
  zfs create -o mountpoint=/mnt/build ${BUILD}
  cd /mnt/build; cp -a /etc /.gitignore .; git init -q .; git add --all; git commit -qm delivered
  cd /; git init -q .; chmod 700 .git; git add --all; git commit -qm delivered
  zfs snapshot ${USR}/six@given; zfs send ${USR}/six@given | zfs receive -o mountpoint=/mnt/build/usr ${BUILD}/usr
  bundle snapshot R1; zfs send -i @given ${BUILD}/usr@R1 | zfs receive -F -u ${USR}/six
  cd /mnt/build; echo R2 >etc/release; echo R2 >usr/share/release; git commit -qam R2
  bundle snapshot R2; bundle create --base R1 --target R2 -o /root/R2.bundle`;

const BROKEN = `
  rm /mnt/usr/lib/systemd/systemd; printf '#!/usr/bin/busybox sh\\nexit 1\\n' >/mnt/usr/lib/systemd/systemd
  chmod 755 /mnt/usr/lib/systemd/systemd`;

/** What has an initramfs reboot that cannot mount /; the lab's machines have panic=-1 already. */
const REBOOTS = "rd.shell=0 rd.emergency=reboot";

let machine: BootedGuest;
let parts: string;
beforeAll(async () => {
  parts = otherBoot(await buildImage(defaultZfs()));
  machine = await openBooted({ memory: 768, reboots: true });
  for (const name of ["dracut.tar", "openrc.tar"]) copyFileSync(join(parts, name), inShare(name));
  await machine.run(SET_UP);
  await machine.giveZferry();
});
afterAll(() => machine?.close());

const told = (script: string): Promise<string> => machine.told(script);
const running = (): Promise<string> => machine.running();
const own = (name: string): Promise<string> => machine.marksOf(`${ROOT}/${name}`);
const isAt = (name: string): string => `${ROOT}/${name}\n${USR}/${name}\n${name}`;

const inShare = (name: string): string => join(machine.share.here, name);

/** What is booted from the next start on. */
function bootBy(initramfs: "dracut.img" | "dracut-plain.img" | "initramfs-tools", root: string): void {
  if (initramfs === "initramfs-tools") machine.useInitrd(machine.imageInitrd, inShare("tools.part"));
  else machine.useInitrd(join(parts, initramfs), inShare("dracut.part"));
  machine.args = `root=${root} ${REBOOTS}`;
}

/** Starts the machine, and cuts its power as soon as the hook has said something. */
async function cutAfter(said: string): Promise<void> {
  const start = machine.start().catch(() => undefined);
  await expect.poll(() => machine.console(), { timeout: 180_000, interval: 100 }).toContain(said);
  await Promise.all([machine.cut(), start]);
}

const reboot = (): Promise<void> => machine.rebootBy("reboot");

async function awaitConfirmed(name: string): Promise<void> {
  await expect
    .poll(() => machine.isConfirmed(`${ROOT}/${name}`), { timeout: 300_000, interval: 3000 })
    .toBe(true);
  expect(await own(name)).not.toMatch(/zferry:(trial|boots|failed)/);
}

describe("dracut", () => {
  it("takes the hook into an initramfs by its configuration", async () => {
    await machine.write("/etc/zferry/site.toml", SITE_CONFIG);
    const { stdout, stderr } = await machine.run("mkdir -p /var/lib/zferry; bundle setup");
    expect(stdout).toContain("  wrote /etc/dracut.conf.d/zferry.conf\n");
    expect(stderr).toContain("dracut --regenerate-all --force\n");
    expect(stderr).toContain(`command line has no ${REBOOTS}: `);
    await machine.run(PARTS, { timeout: 300_000 });
    const taken = "/root/dracut/usr/lib/dracut/hooks/pre-mount/80-zferry.sh";
    expect(await told(`cmp ${taken} /etc/dracut.conf.d/zferry-hook.sh; cd /root/dracut/usr/bin; ls`)).toBe(
      "date\nsync",
    );
    await machine.run(makeEnvironment("two", ""));
  });

  it("counts a boot before / is mounted, and what comes up is confirmed", async () => {
    bootBy("dracut.img", "zfs:AUTO");
    await machine.reboot();
    expect(await running()).toBe(isAt("two"));
    expect(machine.console()).toContain(`zferry: ${ROOT}/two is on trial: boot 1 of 1`);
    await awaitConfirmed("two");
  });

  it("comes back by itself from what cannot be started", async () => {
    await machine.run(makeEnvironment("three", BROKEN));
    await reboot();
    const console = machine.console();
    expect(console).toContain(`zferry: ${ROOT}/three is on trial: boot 1 of 1`);
    expect(console).toContain("Attempted to kill init");
    expect(console).toContain(`zferry: the boots of ${ROOT}/three are spent: going back to ${ROOT}/two`);
    expect(await running()).toBe(isAt("two"));
    expect(await own("three")).toMatch(/^zferry:failed\t[1-9][0-9]+ boot 1 of 1 was not confirmed$/m);
    expect(await own("three")).not.toContain("zferry:trial");
  });

  rarely("and initramfs-tools do so, too, of what the command line names, as ZFSBootMenu does", async () => {
    await machine.run(`
      ${makeEnvironment("four", "")}
      ${makeEnvironment("five", "")}
      zfs set zferry:trial=1 zferry:boots=0 zferry:previous=$(zfs get -H -p -o value guid ${ROOT}/two) ${ROOT}/four`);
    await machine.poweroff();
    for (const [name, initramfs] of [["four", "dracut.img"] as const, ["five", "initramfs-tools"] as const]) {
      bootBy(initramfs, `zfs:${ROOT}/${name}`);
      await cutAfter(`zferry: ${ROOT}/${name} is on trial: boot 1 of 1`);
      await cutAfter(`zferry: the boots of ${ROOT}/${name} are spent: going back to ${ROOT}/two`);
    }
  });
});

describe("OpenRC, started by an initramfs of dracut without systemd", () => {
  rarely("boots what bootfs was given back to, and has what zferry needs by bundle setup", async () => {
    // It may be off already.
    await machine.poweroff();
    bootBy("dracut-plain.img", "zfs:AUTO");
    await machine.start();
    expect(await running()).toBe(isAt("two"));
    const { stdout } = await machine.run("bundle setup");
    expect(stdout).toMatch(/^set up openrc: /);
    expect(stdout).toContain("  wrote /etc/runlevels/default/zferry-trial\n");
  });

  rarely("is told by the initramfs before what failed", async () => {
    for (const name of ["four", "five"]) {
      expect(await own(name)).toMatch(/^zferry:failed\t[1-9][0-9]+ boot 1 of 1 was not confirmed$/m);
      expect(await own(name)).not.toContain("zferry:trial");
    }
  });

  rarely("has one confirmed that passes its checks", async () => {
    await machine.run(makeEnvironment("six", ""));
    await reboot();
    expect(machine.console()).toContain(`zferry: ${ROOT}/six is on trial: boot 1 of 1`);
    expect(await running()).toBe(isAt("six"));
    await awaitConfirmed("six");
    expect(await told("cat /run/zferry-trial.log")).toContain("boot environment six is kept");
  });

  rarely("has one go back of which a service does not start", async () => {
    const service = `
      printf '#!/sbin/openrc-run\\nstart() { return 1; }\\n' >/mnt/etc/init.d/broken; chmod 755 /mnt/etc/init.d/broken
      ln -s /etc/init.d/broken /mnt/etc/runlevels/default/broken`;
    await machine.run(makeEnvironment("seven", service));
    await reboot();
    expect(await running()).toBe(isAt("seven"));
    await expect
      .poll(() => told("cat /run/zferry-trial.log"), { timeout: 300_000, interval: 3000 })
      .toContain("not yet: failed: broken");
    expect(await own("seven")).toMatch(/^zferry:trial\t1$/m);
    // The deadline has passed.
    await machine.run(`
      sed -i 's/^deadline.*/deadline = 1/' /etc/zferry/site.toml
      (sleep 1; rc-service zferry-trial restart) >/dev/null 2>&1 &`);
    await machine.rebooted();
    expect(await running()).toBe(isAt("six"));
    expect(await own("seven")).toMatch(/^zferry:failed\t[1-9][0-9]+ failed: broken$/m);
    expect(await own("seven")).not.toContain("zferry:trial");
  });

  rarely("goes on at boot with an install that lost its power", async () => {
    await machine.write("/etc/zferry/build.toml", BUILD_CONFIG);
    await machine.run(MAKE_RELEASE, { timeout: 600_000 });
    const install = machine.run("bundle install /root/R2.bundle", { check: false, timeout: 600_000 });
    const journal = "cat /var/lib/zferry/journal.json 2>/dev/null || true";
    await expect.poll(() => told(journal), { timeout: 300_000, interval: 300 }).toContain('"phase":');
    await Promise.all([machine.cut(), install.catch(() => undefined)]);
    await machine.start();
    // Not before the services of this boot.
    expect(machine.console()).toContain("Finishing an interrupted install of zferry");
    await expect.poll(() => told(journal), { timeout: 600_000, interval: 3000 }).toBe("");
    expect(await told("cat /run/zferry-trial.log")).toContain("going on with release R2 (2)");
    expect(await running()).toBe(isAt("six"));
    expect(await told("zpool get -H -o value bootfs rpool")).toBe(`${ROOT}/R2`);
    expect(await told("bundle history")).toMatch(/^R2 /m);
    expect(await own("R2")).toMatch(/^zferry:trial\t1$/m);
  });
});
