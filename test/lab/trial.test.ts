import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { randomOf } from "../fuzz/random.js";
import { BUILD, BUILD_CONFIG, openBooted, type BootedGuest } from "./booted.js";
import { rarely } from "./rounds.js";

// Does it come up? A machine that boots what bootfs names, with the hook in its initramfs: formats/environments.md, On trial.
const ROOT = "rpool/ROOT";
const USR = "rpool/SYSTEM/USR";

const SITE_CONFIG = `product = "gentoo"
[streams]
usr = "${USR}/one"
[root]
path = "/"
[boot-environment]
boots = 1
deadline = 800
accept = ["/root/", "/opt/", "/var/"]
checks = [["/usr/bin/busybox", "sh", "-c", "! grep bad /etc/release >&2"]]
`;
const IN_PLACE_CONFIG = SITE_CONFIG.replace(/^path.*/m, '$&\n[install]\nmode = "in-place"');

const CUTS = Number(process.env["SOAK_CUTS"] ?? 1);
const SEED = Number(process.env["SOAK_SEED"] ?? Math.floor(Math.random() * 1e9));
/** An install, or an activation, is done by then, and a cut may come after it. */
const INSTALL_MS = 40_000;
const ACTIVATE_MS = 6000;

/** Of what runs: the pool, what was written to its /usr, and what is not as its repository has it, with the release of its /usr. */
const whole = (name: string): string => `
  zpool status -x; zfs get -H -p -o value written ${USR}/${name}; cd /; git status --porcelain -uno; cat /usr/share/release`;

/** What makes a release on the build host, of the same machine. */
const release = (name: string, base: string, change: string): string => `
  cd /mnt/build; echo '${name}' >etc/release; echo '${name}' >usr/share/release; ${change}
  git add --all; git commit -qm '${name}'
  bundle snapshot ${name}; bundle create --base ${base} --target ${name} -o /root/${name}.bundle`;

/** A part of an initramfs, to come after the rest: what update-initramfs would have put into it. */
const PART = `
  rm -rf /root/part; mkdir -p /root/part/scripts/local-premount; cd /root/part/scripts/local-premount
  cp -p /etc/initramfs-tools/scripts/local-premount/zferry .
  for name in resume zferry; do echo "/scripts/local-premount/$name \\"\\$@\\""; done >ORDER
  echo '[ -e /conf/param.conf ] && . /conf/param.conf' >>ORDER
  cd /root/part; find . | /opt/lab/busybox cpio -o -H newc >/host/part`;
/** The whole, as a site makes it: it takes minutes under emulation. */
const WHOLE = `echo CONFIG_RD_ZSTD=y >/boot/config-$(uname -r); mkinitramfs -o /host/initrd $(uname -r)`;

/** Where the state lies, and what it has. */
const STATE = `
  findmnt -n -o SOURCE /var/lib/zferry; zfs get -H -o value mountpoint,canmount,zferry:state rpool/zferry
  cd /var/lib/zferry; find . ! -name lock -printf '%P %y %m %l\\n' | sort; cat resolve/*; ls -d /var/lib/zferry.*`;
const MOVED = `rpool/zferry
/var/lib/zferry
on
-
 d 700 
link l 777 nowhere
resolve d 755 
resolve/\ufffd f 644 
kept
/var/lib/zferry.before-rpool-zferry`;

let machine: BootedGuest;
beforeAll(async () => {
  machine = await openBooted({ memory: 768, reboots: true });
  await machine.giveZferry();
});
afterAll(() => machine?.close());

const told = (script: string): Promise<string> => machine.told(script);
const running = (): Promise<string> => machine.running();
const own = (name: string): Promise<string> => machine.marksOf(`${ROOT}/${name}`);

async function useHook(): Promise<void> {
  const isWhole = process.env["ZFERRY_TEST_ALL"] === "1";
  await told(isWhole ? WHOLE : PART);
  const { here } = machine.share;
  if (isWhole) machine.initrd = join(here, "initrd");
  else machine.useInitrd(machine.imageInitrd, join(here, "part"));
}

/** Another command has the site's lock, until the unit says that it waits for it. */
const LOCKED_UNTIL_WAITED = `
  since=$(date '+%F %T')
  (timeout 200 flock /var/lib/zferry/lock sh -c "
    until journalctl -u zferry-trial -o cat --since '$since' | grep -q '^waiting: '; do sleep 1; done" >/dev/null 2>&1 &)
  while flock --nonblock /var/lib/zferry/lock true; do sleep 0.2; done`;

const reboot = (): Promise<void> => machine.rebootBy("systemctl reboot");

/** The unit that confirms, or goes back, has the site's lock until then. */
const unitEnded = (): Promise<void> =>
  expect
    .poll(() => told("systemctl is-active zferry-trial || true"), { timeout: 300_000, interval: 3000 })
    .toBe("inactive");

describe("a boot environment on trial", () => {
  it("has what looks after it by bundle setup", async () => {
    await machine.write("/etc/zferry/build.toml", BUILD_CONFIG);
    await machine.write("/etc/zferry/site.toml", SITE_CONFIG);
    await machine.write("/root/in-place.toml", IN_PLACE_CONFIG);
    await machine.write("/.gitignore", "/*\n!/.gitignore\n!/etc\n/etc/zferry\n");
    await machine.run(
      `
      mkdir -p /var/lib/zferry/resolve; echo kept >/var/lib/zferry/resolve/$'\\351'; ln -s nowhere /var/lib/zferry/link
      mkdir -p /boot; rm -rf /boot/*; touch /boot/vmlinuz-6.1 /boot/initrd.img-6.1
      bundle keygen --no-password -o /etc/zferry/release
      install -D -m 644 /etc/zferry/release.pub /etc/zferry/keys/release.pub
      git config --system user.name admin; git config --system user.email admin@example.org
      zfs create -o mountpoint=/mnt/build ${BUILD}
      echo R1 >/etc/release
      zfs snapshot ${USR}/one@given
      cd /mnt/build; cp -a /etc /.gitignore .; git init -q .; git add --all; git commit -qm delivered
      cd /; git init -q .; chmod 700 .git; git add --all; git commit -qm delivered
      zfs send ${USR}/one@given | zfs receive -o mountpoint=/mnt/build/usr ${BUILD}/usr
      bundle snapshot R1; zfs send -i @given ${BUILD}/usr@R1 | zfs receive -u ${USR}/one`,
      { timeout: 600_000 },
    );
    expect(await told("bundle setup --print")).toContain(
      "# the state comes from /var/lib/zferry to rpool/zferry",
    );
    expect(await told("zfs list -H -o name")).not.toContain("rpool/zferry");
    const { stdout, stderr } = await machine.run("bundle setup");
    expect(stdout).toContain("  wrote /etc/systemd/system/zferry-trial.service\n");
    expect(stdout).toContain("  wrote /etc/initramfs-tools/scripts/local-premount/zferry\n");
    expect(stderr).toContain("update-initramfs -u -k all");
    expect(await told(STATE)).toBe(MOVED);
    expect(await told("bundle setup")).toBe("systemd is set up already; nothing to do");
    // What is beneath is not taken for a site that has installed nothing yet.
    for (const command of ["status", "history", "setup"]) {
      const { status, stderr: refused } = await machine.run(
        `zfs unmount rpool/zferry; bundle ${command} || status=$?; zfs mount rpool/zferry; exit $status`,
        { check: false },
      );
      expect([command, status, refused]).toEqual([
        command,
        17,
        expect.stringContaining(
          "rpool/zferry, which has the site's state, is not mounted on /var/lib/zferry\n",
        ),
      ]);
    }
    await useHook();
    await machine.run(release("R2", "R1", ""), { timeout: 600_000 });
    await machine.run(release("R3", "R2", "echo bad >>etc/release"), { timeout: 600_000 });
  });

  it("is what a release becomes by default, where / can be cloned", async () => {
    const plan = await told("bundle plan /root/R2.bundle");
    expect(plan).toContain(`mode: boot-environment, by default\n  boots next: ${ROOT}/R2`);
    expect(await told("bundle status")).toContain("mode: boot-environment, by default");
  });

  rarely("is not hindered by what runs from /usr, as an install in place is", async () => {
    const { stderr } = await machine.run("bundle plan --live /root/R2.bundle");
    expect(stderr).toContain(`danger: what runs from ${USR}/one`);
    const refused = await machine.run("bundle plan --config /root/in-place.toml /root/R2.bundle", {
      check: false,
    });
    expect(refused.stderr).toContain(`run from ${USR}/one: systemd (1, `);
  });

  it("is confirmed by the boot that passes the checks, which tells what was changed before it", async () => {
    const { stderr } = await machine.run("bundle install /root/R2.bundle", { timeout: 600_000 });
    expect(stderr).toContain("warning: its initramfs was made before the hook");
    expect(await own("R2")).toMatch(/^zferry:boots\t0$/m);
    expect(await own("R2")).toMatch(/^zferry:trial\t1$/m);
    expect(await told("bundle status")).toContain(
      "on trial: R2, 1 boot; bundle confirm keeps it, else it goes back to one",
    );
    // By somebody who does not know of it.
    await machine.run(
      "echo late >/etc/late; echo '# late' >>/etc/hosts; cd /; git add etc/hosts; git commit -qm late etc/hosts",
    );
    await machine.poweroff();
    await machine.start();
    expect(await running()).toBe(`${ROOT}/R2\n${USR}/R2\nR2`);
    expect(machine.console()).toContain(`zferry: ${ROOT}/R2 is on trial: boot 1 of 1`);
    await expect
      .poll(() => machine.isConfirmed(`${ROOT}/R2`), { timeout: 600_000, interval: 3000 })
      .toBe(true);
    expect(await own("R2")).not.toMatch(/zferry:(trial|boots|failed)/);
    await unitEnded();
    const log = await told("journalctl -u zferry-trial -o cat");
    expect(log).toContain("confirmed gentoo release R2 (2)");
    expect(log).toMatch(
      /changed in one after this one was made from it, and not here: 2\n {2}etc\/hosts\n {2}etc\/late\n/,
    );
    expect(await told("bundle history")).toMatch(/^R2 .* confirmed at /m);
  });

  rarely("has that merged, by hand, or by the boot that confirms it, also after it was cut off", async () => {
    const changeBefore = (change: string): string => `
      mount -t zfs -o zfsutil ${ROOT}/one /mnt; cd /mnt; ${change}; cd /; umount /mnt`;
    expect(await told("bundle confirm --merge")).toMatch(
      /merged what was changed in one: 1 file changes\n {6}A etc\/hosts\nchanged in one .*, and not here: 1\n {2}etc\/late$/,
    );
    expect(
      await told("tail -n 1 /etc/hosts; cd /; git status --porcelain -uno; git log -1 --format=%s"),
    ).toBe("# late\nMerge changes of one into R2");
    const log = "journalctl -u zferry-trial -o cat";
    await machine.run(`${changeBefore("echo two >etc/later; git add etc/later")}
      sed -i 's/^boots.*/&\\nchanges = "merge"/' /etc/zferry/site.toml
      systemctl reset-failed; zfs set zferry:trial=1 zferry:boots=0 ${ROOT}/R2
      ${LOCKED_UNTIL_WAITED}; systemctl restart zferry-trial`);
    await expect
      .poll(() => told(log), { timeout: 300_000, interval: 3000 })
      .toMatch(/merged what was changed in one: 1 file changes\n {6}A etc\/later\n/);
    expect(await told(log)).toMatch(/^waiting: \/var\/lib\/zferry\/lock is locked/m);
    expect(await own("R2")).toMatch(/^zferry:merge\t[0-9a-f]{64}$/m);
    expect(await own("R2")).not.toMatch(/zferry:(trial|boots|failed)/);
    // As after a power cut between the confirmation and the merge; what stands against it is told, and does not come again.
    await machine.run(`${changeBefore("echo three >etc/later")}; cd /; echo four >etc/later; git commit -qam four
      zfs set zferry:merge=wanted ${ROOT}/R2; systemctl restart zferry-trial`);
    await expect
      .poll(() => told(log), { timeout: 300_000, interval: 3000 })
      .toContain(
        "is not merged: git's index has changes that are neither in the last commit nor in the files",
      );
    await expect.poll(() => own("R2"), { timeout: 300_000, interval: 3000 }).not.toContain("zferry:merge");
    expect(await told("cat /etc/later; bundle status")).toMatch(/^four\n[^]*under way: nothing/);
    await machine.run("sed -i '/^changes/d' /etc/zferry/site.toml");
  });

  rarely("is not changed in place, under those who judge it", async () => {
    const refused = await machine.run(
      `zfs set zferry:trial=1 ${ROOT}/R2
      bundle plan --config /root/in-place.toml /root/R3.bundle || status=$?
      zfs inherit zferry:trial ${ROOT}/R2; exit $status`,
      { check: false },
    );
    expect(refused.stderr).toContain("R2, which is running, is on trial: it is not confirmed yet");
  });

  it("whose check fails comes back by itself to the one before", async () => {
    await machine.run("bundle install /root/R3.bundle", { timeout: 600_000 });
    await reboot();
    expect(await running()).toBe(`${ROOT}/R3\n${USR}/R3\nR3\nbad`);
    await expect
      .poll(() => told("journalctl -u zferry-trial -o cat"), { timeout: 600_000, interval: 3000 })
      .toContain("not yet: /usr/bin/busybox sh -c ! grep bad /etc/release >&2: bad");
    expect(await own("R3")).toMatch(/^zferry:trial\t1$/m);
    // The deadline has passed.
    await machine.run(`
      sed -i 's/^deadline.*/deadline = 1/' /etc/zferry/site.toml
      (sleep 1; systemctl restart zferry-trial) >/dev/null 2>&1 &`);
    await machine.rebooted();
    expect(await running()).toBe(`${ROOT}/R2\n${USR}/R2\nR2`);
    expect(await own("R3")).toMatch(/^zferry:failed\t[0-9]+ \/usr\/bin\/busybox sh -c ! grep bad .*: bad$/m);
    expect(await own("R3")).not.toContain("zferry:trial");
    expect(await told("bundle status")).toMatch(/failed: R3, at .*: bad; went back to R2/);
    expect(await told("bundle history")).toMatch(/^R3 .* failed at .*: bad$/m);
    expect(await own("R2")).not.toContain("zferry:trial");
    // What runs again is what is installed.
    await expect
      .poll(() => told("bundle status"), { timeout: 600_000, interval: 3000 })
      .toContain("installed: release R2 (2)");
    expect(await told("bundle history")).toMatch(/^R3 .* failed at .*: bad$/m);
  });

  it("whose init is broken comes back by itself, after a panic", async () => {
    await unitEnded();
    const broken = `echo R4 >etc/release; rm usr/sbin/init; printf '#!/usr/bin/busybox sh\\nexit 1\\n' >usr/sbin/init; chmod 755 usr/sbin/init`;
    await machine.run(`${release("R4", "R2", broken)}; bundle install /root/R4.bundle`, { timeout: 900_000 });
    await reboot();
    const console = machine.console();
    expect(console).toContain(`zferry: ${ROOT}/R4 is on trial: boot 1 of 1`);
    expect(console).toContain("Attempted to kill init");
    expect(console).toContain(`zferry: the boots of ${ROOT}/R4 are spent: going back to ${ROOT}/R2`);
    expect(await running()).toBe(`${ROOT}/R2\n${USR}/R2\nR2`);
    expect(await told("zpool get -H -o value bootfs rpool")).toBe(`${ROOT}/R2`);
    expect(await told("bundle status")).toMatch(
      /failed: R4, at .*: boot 1 of 1 was not confirmed; went back to R2/,
    );
    await unitEnded();
  });

  rarely("that failed is tried again by who is told of that", async () => {
    const { stderr } = await machine.run("bundle activate R4");
    expect(stderr).toContain("warning: R4 was tried before, and failed at ");
    await machine.run("bundle activate R2");
    expect(await own("R4")).not.toContain("zferry:trial");
  });

  rarely("is there whole, or the one before, after a power cut at any time of its install", async () => {
    const repaired = "rm usr/sbin/init; cp -a usr/.zfs/snapshot/R2/sbin/init usr/sbin";
    // The clone has it, too.
    await machine.run("sed -i 's/^boots.*/&\\nkeep = 1/' /etc/zferry/site.toml");
    await machine.run(release("R5", "R2", repaired), { timeout: 600_000 });
    await cutDuring("bundle install /root/R5.bundle", INSTALL_MS);
    if ((await running()).endsWith("R2")) {
      await unitEnded();
      const { stdout } = await machine.run("bundle install /root/R5.bundle", { timeout: 600_000 });
      expect(stdout).toMatch(/R5 \(5\)/);
      expect(await told("zpool get -H -o value bootfs rpool")).toBe(`${ROOT}/R5`);
      expect(await own("R5")).toMatch(/^zferry:trial\t1$/m);
    }
  });

  rarely("is confirmed then, and those that are more than keep go", async () => {
    const environments = `zfs list -H -d 1 -o name -r ${ROOT}`;
    const those = (...names: string[]): string =>
      [ROOT, ...names.map((name) => `${ROOT}/${name}`)].join("\n");
    expect(await told(environments)).toBe(those("R2", "R3", "R4", "R5", "one"));
    if ((await running()).endsWith("R2")) await reboot();
    await expect
      .poll(() => machine.isConfirmed(`${ROOT}/R5`), { timeout: 600_000, interval: 3000 })
      .toBe(true);
    await unitEnded();
    expect(await told(environments)).toBe(those("R2", "R5", "one"));
    expect(await told(`zfs list -H -o name -r ${USR}`)).toBe(`${USR}\n${USR}/R2\n${USR}/R5\n${USR}/one`);
    expect(await told(whole("R5"))).toBe("all pools are healthy\n0\nR5");
  });

  rarely("boots, or the one before does, whole, after a power cut at any time of an activation", async () => {
    await cutDuring("bundle activate $([ $(cat /etc/release) = R2 ] && echo R5 || echo R2)", ACTIVATE_MS);
  });
});

/** Cuts the power at random while something runs that may have another environment boot next. */
async function cutDuring(command: string, lastsMs: number): Promise<void> {
  const random = randomOf(SEED);
  for (let cut = 1; cut <= CUTS; cut += 1) {
    const after = random(lastsMs);
    const where = `cut ${cut} of seed ${SEED}, after ${after} ms`;
    const done = machine.run(command, { check: false, timeout: 600_000 });
    await Promise.race([sleep(after), done.catch(() => undefined)]);
    await Promise.all([machine.cut(), done.catch(() => undefined)]);
    await machine.start();
    const [root, usr, name] = (await running()).split("\n");
    expect(`${where}: ${name}`).toMatch(/: R[25]$/);
    expect([where, root, usr]).toEqual([where, `${ROOT}/${name}`, `${USR}/${name}`]);
    expect(`${where}\n${await told(whole(name ?? ""))}`).toBe(`${where}\nall pools are healthy\n0\n${name}`);
  }
}
