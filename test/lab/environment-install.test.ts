import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  EnvironmentSite,
  FILE,
  IS_ENCRYPTED,
  FSTAB,
  NEW,
  OPT,
  POOL,
  RESET,
  ROOT,
  SITE,
  siteConfig,
  USR,
} from "./environment-site.js";
import { MNT } from "./guest.js";
import { ALL, rarely, shareOf } from "./rounds.js";
import { RPOOL, script } from "./system.js";

// Installs as a boot environment: formats/environments.md. Every test begins with the site at R1.

const REST = `ls -A /var/lib/zferry 2>/dev/null | grep -vx -e lock || true; ls -d /run/zferry-* 2>/dev/null || true; grep -v '/[.]zfs/' /proc/self/mounts | sort`;
/** All of the new one but times and numbers. */
const MADE = `
  ${POOL}
  zfs get -H -p -s local,received -o name,property,value all ${NEW.join(" ")} | sort
  mount -t zfs -o zfsutil ${ROOT}/R2 /media
  cd /media; cat etc/fstab tools/seen
  git status --porcelain; git for-each-ref --format='%(refname) %(tree)'; git rev-parse 'HEAD^{tree}'; git log --format=%s -3
  find . -path ./.git -prune -o -printf '%P %y %m %U:%G %l\\n' | sort
  find . -path ./.git -prune -o -type f -print0 | sort -z | xargs -0 sha256sum
  cd /; umount /media
  for each in ${USR} ${OPT}; do
    mount -t zfs -o ro $each/R2 /media; (cd /media; find . -type f -print0 | sort -z | xargs -0 sha256sum); umount /media
  done`;
/** A `zfs` that receives nothing. */
const CUT = `#!/bin/bash
[[ $1 == receive ]] || exec /usr/sbin/zfs "$@"
exec /usr/sbin/zfs "$@" </dev/null
`;

let place: EnvironmentSite;
let before: string;
let pool: string;
let unchanged: string;
let made: string;
/** Those of an install that nothing stops. */
let steps: string[];

const lines = (text: string): Promise<string> => place.lines(text);
const refusal = (command: string) => place.refusal(command);
const useConfig = (text: string): Promise<void> => place.useConfig(text);
const site = (): Promise<string> => lines(`${POOL}\n${REST}`);

beforeAll(async () => {
  place = await EnvironmentSite.open();
  await place.machine.write("/tmp/cut/zfs", CUT, "755");
  before = await site();
  pool = await lines(POOL);
  unchanged = await place.running();
});
afterAll(() => place?.machine.close());

describe("an install as a boot environment", () => {
  rarely("tells what it would do, and changes nothing", async () => {
    const plan = await lines(`bundle plan ${FILE}`);
    expect(plan).toContain(`usr: ${USR}/R2, from ${USR}/gentoo@R1 to R2`);
    expect(plan).toMatch(new RegExp(`${ROOT}/R2: \\d+ files change`));
    expect(plan).toContain(`boots next: ${ROOT}/R2`);
    expect(await site()).toBe(before);
  });

  it("makes both halves beside the running ones, and switches both at once", async () => {
    const install = await place.logged(`install ${FILE}`);
    expect(install.told).toContain("installed gentoo release R2 (2)");
    ({ steps } = install);
    expect(await place.running()).toBe(unchanged);
    made = await lines(MADE);
    expect(made.split("\n")[0]).toBe(`${ROOT}/R2`);
    for (const line of [
      `${ROOT}/R2\tmountpoint\t/`,
      `${ROOT}/R2\tcanmount\tnoauto`,
      `${ROOT}/R2\tcompression\tlz4`,
      `${ROOT}/R2\torg.example:own\ta value`,
      `${ROOT}/R2\tzferry:release\tR2`,
      `${USR}/R2\tmountpoint\tlegacy`,
      `${OPT}/R2\tmountpoint\tlegacy`,
      "/usr/bin/sshd\n/opt/app\n/data/log\n/proc/self/status".split("\n").sort().join("\n"),
      "Install R2",
    ]) {
      expect(made).toContain(line);
    }
    expect(made).not.toMatch(/^(run|tmp|var\/tmp)\/left/m);
    expect(await lines(`cat ${SITE}/data/log`)).toBe("log");
    // Merged: of the site, and of the release.
    const root = `mount -t zfs -o zfsutil ${ROOT}/R2 /media; cd /media`;
    expect(
      await lines(`${root}; grep -e Option02 -e Option28 etc/sshd_config; ls etc/newd; cd /; umount /media`),
    ).toBe("Option02 of-this-site\nOption28 of-release-2\nsecret");
    expect(await lines(`${root}; cat etc/fstab; git status --porcelain; cd /; umount /media`)).toBe(
      FSTAB.replaceAll("/gentoo", "/R2").trim(),
    );
    // The new /usr is the build host's.
    const usr = (folder: string): string => script(place.machine, `fingerprint ${folder}`);
    const [there, built] = (
      await lines(`mount -t zfs -o ro ${USR}/R2 /media
        ${usr("/media")} | sha256sum; umount /media; ${usr(`${MNT}/build/usr/.zfs/snapshot/R2`)} | sha256sum`)
    ).split("\n");
    expect(there).toBe(built);
    const key = IS_ENCRYPTED ? RPOOL : "-";
    expect(await lines(`zfs get -H -o value readonly,encryptionroot ${ROOT}/R2 ${USR}/R2`)).toBe(
      `off\n${key}\non\n${key}`,
    );
    expect(await lines("bundle environments")).toMatch(/^R2 +next +R2 /m);
  });

  rarely("says that it is not booted yet, and is not confirmed", async () => {
    expect(await lines("bundle status")).toContain(`boot environment ${ROOT}/R2, which boots next: reboot`);
    expect(await lines(`bundle install ${FILE}`)).toContain("is installed; nothing to do");
    expect((await refusal("bundle confirm"))[0]).toMatchObject({
      code: "install-pending",
      message: expect.stringContaining("which is not the running one") as string,
    });
    await lines("bundle activate site");
    expect(await lines("bundle status")).toContain("to have it boot next: bundle activate R2");
    await lines("bundle activate R2");
  });

  rarely("is rolled back by having the one before boot next, and stays", async () => {
    const there = await lines(POOL);
    expect(await lines("bundle rollback --plan")).toContain(`boots next: ${ROOT}/site`);
    expect(await lines(POOL)).toBe(there);
    expect(await lines("bundle rollback")).toBe(
      `rolled back gentoo release R2 (2)\n  boots next: ${ROOT}/site\n  stays as it is: ${ROOT}/R2`,
    );
    const next = (text: string) => text.replace(`${ROOT}/R2`, `${ROOT}/site`).replaceAll("@R1\t1", "@R1\t0");
    expect(await lines(POOL)).toBe(next(there));
    expect(await lines("bundle history")).toMatch(/^R2 .* rolled back at /m);
    expect(await lines("bundle status")).toContain("installed: no release by zferry any more");
    expect((await refusal("bundle rollback"))[0]?.code).toBe("rollback-impossible");
    // It is there still, and not made again.
    const [error, ...more] = await refusal(`bundle install ${FILE}`);
    expect([error?.code, more]).toEqual(["environment-exists", []]);
    expect(error?.hint).toContain(
      "to have it boot next: bundle activate R2; to make it anew: zfs destroy -r",
    );
    await lines("bundle activate R2");
    expect(await lines("bundle status")).toContain(
      "boots next: reboot\n  can be rolled back: bundle rollback",
    );
    await lines(`zfs set canmount=on ${ROOT}/site`);
    expect((await refusal("bundle rollback"))[0]?.code).toBe("environment-incomplete");
    await lines(`zfs set canmount=noauto ${ROOT}/site`);
  });

  rarely("names itself where /etc/fstab has an entry for /", async () => {
    const entry = (name: string): string => `${ROOT}/${name} / zfs noatime 0 0`;
    await lines(`${RESET}; cd ${SITE}; echo '${entry("site")}' >>etc/fstab; git commit -qam 'its own root'
      bundle install ${FILE}; mount -t zfs -o zfsutil ${ROOT}/R2 /media`);
    expect(await lines("tail -n 1 /media/etc/fstab; umount /media")).toBe(entry("R2"));
    // What names one that is gone stands against nothing.
    await lines(`mount -t zfs -o zfsutil ${ROOT}/R2 /media; sed -i 's|^${ROOT}/R2 / |${ROOT}/gone / |' /media/etc/fstab
      umount /media; bundle rollback; bundle activate R2`);
    expect(await lines("bundle environments --json")).not.toContain(`${ROOT}/gone`);
  });

  rarely("activates nothing with --no-activate", async () => {
    await lines(RESET);
    expect(await lines(`bundle install --no-activate ${FILE}`)).toContain(
      `not activated: bundle activate ${ROOT}/R2`,
    );
    expect(await lines(MADE)).toBe(made.replace(`${ROOT}/R2`, `${ROOT}/site`));
  });

  rarely("starts anew where a rescue system activates it, also if it boots next already", async () => {
    for (const [next, told] of [
      ["R2", "R2 boots next already"],
      ["site", "R2 boots next"],
    ]) {
      await lines(
        `zfs set zferry:trial=1 zferry:boots=2 zferry:failed='1 it hung' ${ROOT}/R2; zpool set bootfs=${ROOT}/${next} ${RPOOL}`,
      );
      expect(
        await lines(`unshare -m --propagation private sh -ec 'umount -R ${SITE}; bundle activate R2'`),
      ).toBe(`${told}: ${ROOT}/R2`);
      expect(
        await lines(
          `zfs get -H -s local -o property all ${ROOT}/R2 | grep -xE 'zferry:(trial|boots|failed)' || true`,
        ),
      ).toBe("");
    }
  });
});

describe("nothing is changed", () => {
  it("by one whose / has a conflict", async () => {
    await lines(
      `${RESET}; cd ${SITE}; sed -i 's/^Option28 .*/Option28 of-this-site/' etc/sshd_config; git commit -qam own`,
    );
    const here = await place.running();
    expect((await refusal(`bundle install ${FILE}`))[0]?.code).toBe("merge-conflict");
    expect(await site()).toBe(before);
    expect(await place.running()).toBe(here);
    const settled = await lines(`bundle resolve --ours /etc/sshd_config ${FILE}; bundle plan ${FILE}`);
    expect(settled).toContain("conflict of contents in etc/sshd_config: settled by");
    expect(await place.running()).toBe(here);
  });

  rarely("where a name is something else's", async () => {
    await lines(
      `${RESET}; zfs create -o canmount=off ${USR}/R2; zfs snapshot ${ROOT}/site@zferry-R2; zfs create -o mountpoint=none ${ROOT}/R2`,
    );
    const here = await site();
    const told = await refusal(`bundle install ${FILE}`);
    expect(told.map(({ code }) => code)).toEqual(Array(2).fill("environment-exists"));
    expect(told[0]?.message).toBe(`there is a dataset ${ROOT}/R2 already, which the install would make`);
    expect(told[0]?.hint).toContain(`zfs destroy -r ${ROOT}/R2`);
    expect(await site()).toBe(here);
    await lines(
      `zfs set mountpoint=/media/R2 ${ROOT}/R2; zfs mount ${ROOT}/R2 2>/dev/null || findmnt /media/R2`,
    );
    expect((await refusal(`bundle install ${FILE}`))[0]?.hint).toBe(
      "it is mounted on /media/R2: neither rename nor destroy it while that is so",
    );
    await lines(
      `zfs destroy ${ROOT}/R2; zfs destroy ${ROOT}/site@zferry-R2; rmdir /media/R2 2>/dev/null || true`,
    );
    expect((await refusal(`bundle install ${FILE}`)).map(({ message }) => message)).toEqual([
      `there is a dataset ${USR}/R2 already, which the install would make`,
    ]);
  });

  rarely("where a file system hides tracked files, or a dataset would be mounted over", async () => {
    await lines(`${RESET}; mount -t tmpfs none ${SITE}/boot`);
    expect((await refusal(`bundle install ${FILE}`))[0]).toMatchObject({
      code: "worktree-dirty",
      message: expect.stringContaining("boot/initrd.img-6.1") as string,
    });
    await lines(`umount ${SITE}/boot`);
    await lines(`umount ${SITE}/opt; zfs set mountpoint=${SITE}/opt ${OPT}/gentoo`);
    expect((await refusal(`bundle install ${FILE}`))[0]).toMatchObject({
      code: "dataset-unsuitable",
      message: expect.stringContaining("whichever environment boots") as string,
    });
    await lines(
      `zfs unmount ${OPT}/gentoo; zfs set mountpoint=legacy ${OPT}/gentoo; mount -t zfs -o ro ${OPT}/gentoo ${SITE}/opt`,
    );
  });

  rarely("where there is space for each stream, and not for all", async () => {
    const plan = JSON.parse(await lines(`${RESET}; bundle plan --json ${FILE}`)) as {
      streams: { space: { needed: number; dataset: string } }[];
    };
    expect(plan.streams.map(({ space }) => space.dataset)).toEqual([OPT, USR]);
    const needed = plan.streams.reduce((sum, { space }) => sum + space.needed, 0);
    // The quota of what has the base is not that of what is made beside it.
    await lines(`zfs set quota=$(($(zfs get -H -p -o value used ${RPOOL}/SYSTEM) + ${needed - 1024})) ${RPOOL}/SYSTEM
      zfs set quota=$(zfs get -H -p -o value used ${USR}/gentoo) ${USR}/gentoo`);
    const told = await refusal(`bundle plan ${FILE}`);
    expect(told.map(({ code }) => code)).toEqual(["no-space"]);
    expect(told[0]?.message).toMatch(/^streams opt, usr may take .* together, \S+\/SYSTEM has .* left$/);
    await lines(`zfs set quota=none ${RPOOL}/SYSTEM; zfs set quota=none ${USR}/gentoo`);
    expect(await refusal(`bundle plan ${FILE}`)).toEqual([]);
  });

  rarely("where a dataset below that of / would be missing", async () => {
    await lines(`${RESET}; zfs create -o canmount=noauto ${ROOT}/site/extra; mkdir ${SITE}/tools/extra
      mount -t zfs -o zfsutil ${ROOT}/site/extra ${SITE}/tools/extra`);
    expect((await refusal(`bundle install ${FILE}`))[0]).toMatchObject({
      code: "dataset-unsuitable",
      message: `nothing mounts ${ROOT}/site/extra in another environment than ${ROOT}/site, which it lies below`,
    });
    await lines(`umount ${SITE}/tools/extra; zfs destroy ${ROOT}/site/extra; rmdir ${SITE}/tools/extra`);
    expect(await site()).toBe(before);
  });

  rarely("where the state folder would be cloned, or / is no dataset", async () => {
    await lines(RESET);
    await useConfig(`state = "${SITE}/tools/state"\n${siteConfig()}`);
    expect((await refusal(`bundle plan ${FILE}`))[0]?.message).toContain(
      "each boot environment would have its own",
    );
    await useConfig(siteConfig().replace(`path = "${SITE}"`, 'path = "/"'));
    expect((await refusal(`bundle plan ${FILE}`))[0]?.message).toContain("/ is no ZFS dataset");
    await useConfig(siteConfig());
    expect((await refusal(`bundle plan --live ${FILE}`))[0]?.code).toBe("usage");
  });

  rarely("where / is not in the container, or a dataset or the repository cannot be followed", async () => {
    await lines(RESET);
    const told = async (config: string, file = FILE): Promise<string[]> => {
      await useConfig(config);
      return (await refusal(`bundle plan ${file}`)).map(({ message }) => message);
    };
    const other = siteConfig().replace(`container = "${ROOT}"`, `container = "${RPOOL}/SYSTEM"`);
    expect(await told(other)).toEqual([`${ROOT}/site is no boot environment right below ${RPOOL}/SYSTEM`]);
    await lines("bundle create --target R1 -o /tmp/full.bundle");
    expect((await told(siteConfig(), "/tmp/full.bundle")).slice(0, 2)).toEqual(
      ["opt", "usr"].map(
        (role) => `the bundle has all of stream ${role}, and a boot environment begins with a base`,
      ),
    );
    await lines(`cd ${SITE}; mv .git /tmp/site.git; echo 'gitdir: /tmp/site.git' >.git`);
    expect(await told(siteConfig().replace(`usr = "${USR}/gentoo"`, `usr = "${RPOOL}"`))).toEqual([
      `${RPOOL} is a pool's own dataset: none can be beside it`,
      "the repository of / is /tmp/site.git, which is not cloned with it",
    ]);
    await useConfig(siteConfig());
    await lines(RESET);
    expect(await place.running()).toBe(unchanged);
  });
});

describe("commands of the site", () => {
  it("that fail leave what boots next, and are run again when they are repaired", async () => {
    await lines(RESET);
    await useConfig(
      siteConfig(
        '["/tools/busybox", "sh", "-c", "/tools/busybox sleep 5 >/dev/null 2>&1 & echo no such thing >&2; exit 3"]',
      ),
    );
    expect((await refusal(`bundle install ${FILE}`))[0]).toMatchObject({
      code: "not-configured",
      message: expect.stringContaining("no such thing") as string,
      hint: expect.stringContaining("to go on: bundle install") as string,
    });
    expect(await lines(`zpool get -H -o value bootfs ${RPOOL}`)).toBe(`${ROOT}/site`);
    expect(await lines("bundle status")).toContain("running the commands of the site");
    await useConfig(siteConfig().replace('gentoo"\n[root]', 'other"\n[root]'));
    expect((await refusal("bundle install"))[0]?.message).toContain(`opt is ${OPT}/other, not ${OPT}/gentoo`);
    await useConfig(
      siteConfig()
        .replace('"boot-environment"\n', '"in-place"\n')
        .replace(/after = .*/, ""),
    );
    expect((await refusal("bundle install"))[0]?.message).toContain("mode is in-place, not boot-environment");
    await useConfig(siteConfig());
    expect(await lines("bundle install")).toContain("installed gentoo release R2 (2)");
    expect(await lines(MADE)).toBe(made);
  });

  rarely("that leave what would not come up are told, and giving it up leaves nothing", async () => {
    await lines(RESET);
    await useConfig(siteConfig('["/tools/busybox", "rm", "/boot/vmlinuz-6.1"]'));
    expect((await refusal(`bundle install ${FILE}`))[0]).toMatchObject({
      code: "environment-incomplete",
      message: `/boot of ${ROOT}/R2 has no kernel`,
    });
    await useConfig(siteConfig());
    await lines(`mount -t zfs -o zfsutil ${ROOT}/R2 /media`);
    expect((await refusal("bundle abort"))[0]).toMatchObject({
      code: "dataset-in-use",
      hint: expect.stringContaining("umount /media") as string,
    });
    await lines(`umount /media; zfs destroy ${ROOT}/R2`);
    expect((await refusal("bundle install"))[0]?.code).toBe("environment-missing");
    expect(await lines("bundle abort")).toContain("gave up gentoo release R2 (2)");
    expect(await site()).toBe(before);
    expect(await place.running()).toBe(unchanged);
  });
});

rarely("has its kernel where the running one has it, if that has none in its own /boot either", async () => {
  const { status, stderr } = await place.attempt(`${RESET}
    cd ${SITE}; git rm -q boot/vmlinuz-6.1; git commit -qm 'on the EFI partition'; bundle install ${FILE}`);
  expect([status, stderr]).toEqual([
    0,
    expect.stringContaining("warning: site has no kernel with an initramfs in its own /boot either"),
  ]);
  expect(await lines(`zpool get -H -o value bootfs ${RPOOL}`)).toBe(`${ROOT}/R2`);
  await lines("bundle rollback; bundle activate R2");
});

/** Has the site run from another environment, as a boot would. */
const boot = (root: string, name: string): string => `
  cd /; umount -R ${SITE}
  mount -t zfs -o zfsutil ${ROOT}/${root} ${SITE}
  mount -t zfs -o ro ${USR}/${name} ${SITE}/usr; mount -t zfs -o ro ${OPT}/${name} ${SITE}/opt
  mount -t zfs -o zfsutil ${ROOT}/site/data ${SITE}/data`;

/** A folder with the bundle of R3, too. */
const MAKE_FOLDER = `
  [ -e /tmp/links/R3.bundle ] || {
    mkdir /tmp/links; ln ${FILE} /tmp/links
    echo three >${MNT}/build/etc/three; echo three >${MNT}/build/usr/share/three
    bundle snapshot R3 -m three; bundle create --base R2 --target R3 -o /tmp/links/R3.bundle; }`;

rarely("is made from the one before, whose datasets the configuration does not name", async () => {
  await lines(`${RESET}; ${MAKE_FOLDER}; bundle install ${FILE}; ${boot("R2", "R2")}`);
  const told = await lines("bundle install /tmp/links");
  expect(told).toContain(`opt: ${OPT}/R3, from ${OPT}/R2@R2 to R3`);
  expect(told).toContain(`boots next: ${ROOT}/R3`);
  expect(
    await lines(
      `mount -t zfs -o zfsutil ${ROOT}/R3 /media; cd /media; cat etc/three etc/fstab; cd /; umount /media`,
    ),
  ).toBe(`three\n${FSTAB.replaceAll("/gentoo", "/R3").trim()}`);

  // The older ones go once it is confirmed, and the next release finds its base.
  await useConfig(siteConfig().replace("accept", "keep = 1\naccept"));
  expect((await refusal("bundle environments --prune"))[0]?.message).toContain("R3 (3) is not confirmed");
  await lines(`${boot("R3", "R3")}
    unshare -m --propagation private sh -ec 'mount --bind ${SITE} /; exec bundle confirm'`);
  expect(await lines("bundle environments --prune")).toContain(`  R2: ${NEW.join(", ")}`);
  expect(await lines(`zfs list -H -t all -o name -r ${ROOT}/R3 ${USR}/R3 ${OPT}/R3`)).toBe(
    `${ROOT}/R3\n${OPT}/R3\n${OPT}/R3@R3\n${USR}/R3\n${USR}/R3@R3`,
  );
  await lines(`echo four >${MNT}/build/etc/three
    bundle snapshot R4 -m four; bundle create --base R3 --target R4 -o /tmp/R4.bundle`);
  expect(await lines("bundle install /tmp/R4.bundle")).toContain(`usr: ${USR}/R4, from ${USR}/R3@R3 to R4`);
  await useConfig(siteConfig());
  await lines(`zpool set bootfs=${ROOT}/site ${RPOOL}; ${boot("site", "gentoo")}
    for name in ${ROOT} ${USR} ${OPT}; do
      zfs release zferry:base $name/R3@R3 2>/dev/null || true; zfs destroy -r $name/R4; zfs destroy -r $name/R3
    done`);
});

rarely("receives what lies below another dataset after that, and removes it before", async () => {
  const [usr, opt] = [`${ROOT}/site/usr`, `${ROOT}/site/usr/opt`];
  await lines(`${RESET}; umount ${SITE}/opt ${SITE}/usr
    zfs rename ${USR}/gentoo ${usr}; zfs rename ${OPT}/gentoo ${opt}
    mount -t zfs -o ro ${usr} ${SITE}/usr; mount -t zfs -o ro ${opt} ${SITE}/opt
    cd ${SITE}; sed -i 's|^${USR}/gentoo|${usr}|; s|^${OPT}/gentoo|${opt}|' etc/fstab; git commit -qam 'one in the other'`);
  await useConfig(siteConfig().replace(`${USR}/gentoo`, usr).replace(`${OPT}/gentoo`, opt));
  await lines(place.killed(`install ${FILE}`, "journal: activating"));
  expect(await lines(`zfs list -H -o name -r ${ROOT}/R2`)).toBe(
    `${ROOT}/R2\n${ROOT}/R2/usr\n${ROOT}/R2/usr/opt`,
  );
  await lines("bundle abort");
  expect(await lines(`zfs list -H -o name -r ${ROOT}`)).not.toContain("R2");
  expect(await lines(`bundle install ${FILE}`)).toContain(`opt: ${ROOT}/R2/usr/opt, from ${opt}@R1 to R2`);
  // A dataset between them that nothing makes.
  await lines(`bundle rollback; zfs destroy -r ${ROOT}/R2; zfs destroy ${ROOT}/site@zferry-R2; rm -r /var/lib/zferry
    umount ${SITE}/opt; zfs create -o mountpoint=none ${ROOT}/site/group; zfs rename ${opt} ${ROOT}/site/group/opt
    mount -t zfs -o ro ${ROOT}/site/group/opt ${SITE}/opt`);
  await useConfig(
    siteConfig().replace(`${USR}/gentoo`, usr).replace(`${OPT}/gentoo`, `${ROOT}/site/group/opt`),
  );
  expect((await refusal(`bundle plan ${FILE}`))[0]).toMatchObject({
    code: "dataset-unsuitable",
    message: `there is no dataset ${ROOT}/R2/group to make ${ROOT}/R2/group/opt in`,
  });
  await useConfig(siteConfig());
  await lines(`umount ${SITE}/opt ${SITE}/usr
    zfs rename ${ROOT}/site/group/opt ${OPT}/gentoo; zfs destroy ${ROOT}/site/group; zfs rename ${usr} ${USR}/gentoo
    mount -t zfs -o ro ${USR}/gentoo ${SITE}/usr; mount -t zfs -o ro ${OPT}/gentoo ${SITE}/opt; ${RESET}`);
  expect(await site()).toBe(before);
});

describe("several bundles", () => {
  const R3 = [`${ROOT}/R3`, `${USR}/R3`, `${OPT}/R3`];
  const MADE_R3 = `
    ${POOL}
    zfs get -H -p -s local,received -o name,property,value all ${R3.join(" ")} | sort
    mount -t zfs -o zfsutil ${ROOT}/R3 /media; cd /media
    cat etc/fstab etc/three; git status --porcelain; git rev-parse 'HEAD^{tree}'; git log --first-parent --format=%s -2
    cd /; umount /media
    for each in ${USR} ${OPT}; do
      mount -t zfs -o ro $each/R3 /media; (cd /media; find . -type f -print0 | sort -z | xargs -0 sha256sum); umount /media
    done`;
  let all: string;
  /** Of the steps of an install of all: that between the two bundles, and where the second one is received. */
  let linking: number;
  let second: number;

  it("make one environment", async () => {
    await lines(`${RESET}; ${MAKE_FOLDER}`);
    const plan = await lines("bundle plan /tmp/links");
    expect(plan).toContain("2 bundles lead from what this site has to R3");
    expect(plan).toContain(`usr: ${USR}/R3, from ${USR}/gentoo@R1 to R2`);
    expect(plan).toContain("all are one boot environment, and bundle rollback leads back");
    expect(await site()).toBe(before);
    const { told, steps } = await place.logged("install /tmp/links");
    linking = steps.indexOf("journal: linking");
    expect(linking).toBeGreaterThan(0);
    second = linking + steps.slice(linking).indexOf("zfs receive");
    expect(told).toContain(`brought gentoo release R2 (2) into ${ROOT}/R3`);
    expect(told).toContain(`installed gentoo release R3 (3)\n  opt: ${OPT}/R3, from ${OPT}/R3@R2 to R3`);
    expect(told).toContain(`boots next: ${ROOT}/R3`);
    all = await lines(MADE_R3);
    for (const line of [`${ROOT}/R3\tzferry:release\tR3`, `three`, "Install R3\nInstall R2", `${OPT}/R3 `])
      expect(all).toContain(line);
    expect(all).not.toContain(`${ROOT}/R2`);
    expect(await place.running()).toBe(unchanged);
    expect((await lines("bundle history")).split("\n")).toHaveLength(2);
    expect(await lines("bundle install /tmp/links")).toContain("release R3 (3) is installed; nothing to do");
    expect(await lines("bundle rollback")).toContain(`boots next: ${ROOT}/site`);
    expect(await lines("bundle status")).toContain("installed: no release by zferry any more");
  });

  rarely("go on, or are given up, after a kill in the midst of them", async () => {
    const moments: [number, string][] = [
      [linking + 1, "bundle install /tmp/links"],
      [second + 1, "bundle abort"],
      [second + 2, "bundle install"],
    ];
    for (const [, [step, command]] of shareOf(moments, 0, 4)) {
      const where = `killed before ${step}, then ${command}`;
      await lines(`${RESET}; ${place.killed("install /tmp/links", step)}`);
      const status = await lines("bundle status");
      expect(status).toContain(`${ROOT}/R3, by several bundles up to release R3`);
      if (step === linking + 1)
        expect((await refusal(`bundle install ${FILE}`))[0]?.hint).toContain("bundle install FOLDER");
      await lines(command);
      const isMade = command !== "bundle abort";
      expect(`${where}\n${await lines(isMade ? MADE_R3 : POOL)}`).toBe(`${where}\n${isMade ? all : pool}`);
    }
  });

  rarely("are not given up where something came into what the first one received", async () => {
    await lines(`${RESET}; ${MAKE_FOLDER}; ${place.killed("install /tmp/links", second + 1)}`);
    const refused = async (change: string, lost: string, back: string): Promise<void> => {
      await lines(change);
      const there = await lines(POOL);
      const [error] = await refusal("bundle abort");
      expect([change, error]).toEqual([
        change,
        expect.objectContaining({
          code: "base-modified",
          message: expect.stringContaining(`giving it up would lose of ${USR}/R3: ${lost}`) as string,
        }),
      ]);
      expect(await lines(POOL)).toBe(there);
      expect(await lines("bundle status")).toContain("gives it up: bundle abort");
      await lines(back);
    };
    await refused(`zfs snapshot ${USR}/R3@mine`, `${USR}/R3@mine`, `zfs destroy ${USR}/R3@mine`);
    await refused(
      `zfs clone -o mountpoint=none ${USR}/R3@R2 ${USR}/mine`,
      "clones of",
      `zfs destroy ${USR}/mine`,
    );
    await refused(
      `zfs set readonly=off ${USR}/R3; mount -t zfs ${USR}/R3 /media; head -c 300000 /dev/urandom >/media/own; umount /media`,
      "",
      `zfs rollback ${USR}/R3@R2`,
    );
    // What the second one received in part is no loss.
    await lines(`
      bundle send --stream usr /tmp/links/R3.bundle >/tmp/stream
      head -c $(($(stat -c %s /tmp/stream) - 400)) /tmp/stream | zfs receive -s -u ${USR}/R3@R3 2>/dev/null || true
      [[ $(zfs get -H -o value receive_resume_token ${USR}/R3) != - ]]
      bundle abort`);
    expect(await site()).toBe(before);
    // Nor is what it received whole.
    await lines(`${RESET}; ${place.killed("install /tmp/links", "journal: finishing")}; bundle abort`);
    expect(await site()).toBe(before);
  });
});

rarely("has another boot by a command of the site's, and back", async () => {
  const command = `loader = "command"\ncommand = ["/bin/sh", "-c", "echo $0 >>/tmp/called"]\naccept`;
  await useConfig(siteConfig().replace("accept", command));
  await lines(`${RESET}; bundle install ${FILE}`);
  expect(await lines("bundle status")).toContain(`boot environment ${ROOT}/R2, which boots next: reboot`);
  await lines("bundle rollback");
  expect(await lines("cat /tmp/called")).toBe(`${ROOT}/R2\n${ROOT}/site`);
  expect(await lines(`zpool get -H -o value bootfs ${RPOOL}`)).toBe(`${ROOT}/site`);
  await useConfig(siteConfig());
});

rarely("is given up where the site's command promoted it, as zectl does, and failed", async () => {
  const command = `loader = "command"\ncommand = ["/bin/sh", "-c", "zfs promote $0; [ $0 = ${ROOT}/site ]"]\naccept`;
  await useConfig(siteConfig().replace("accept", command));
  await lines(RESET);
  expect((await refusal(`bundle install ${FILE}`))[0]?.code).toBe("not-configured");
  expect(await lines(`zfs get -H -o value origin ${ROOT}/site`)).toBe(`${ROOT}/R2@zferry-R2`);
  await lines("bundle abort");
  expect(await site()).toBe(before);
  expect(await place.running()).toBe(unchanged);
  await useConfig(siteConfig());
});

rarely("is not given up once it was used, and the install can still be finished", async () => {
  await lines(`${RESET}; ${place.killed(`install ${FILE}`, "journal: recording")}
    zfs set zferry:boots=1 ${ROOT}/R2; zfs snapshot ${ROOT}/R2@mine`);
  const [error] = await refusal("bundle abort");
  expect(error).toMatchObject({
    code: "base-modified",
    message: `giving it up would lose of ${ROOT}/R2: what was written since it booted, ${ROOT}/R2@mine`,
  });
  await lines(`bundle install; bundle rollback; zfs list -H -o name ${ROOT}/R2@mine`);
});

rarely("goes on in the midst of a stream that makes a dataset", async () => {
  // What a kill in the midst leaves: the same receive, of a stream that ends too early.
  const { stdout, stderr } = await place.attempt(`${RESET}
    ${place.killed(`install ${FILE}`, "zfs receive")}
    bundle install --at-boot
    bundle send --stream usr ${FILE} >/tmp/stream; size=$(stat -c %s /tmp/stream)
    head -c $((size - 200000)) /tmp/stream |
      zfs receive -s -u -o origin=${USR}/gentoo@R1 -o mountpoint=legacy ${USR}/R2@R2 || true
    bundle install ${FILE}`);
  expect(stdout).toContain("gentoo release R2 (2) is beside what runs: it is left until the system is up\n");
  expect(stderr).toMatch(new RegExp(`receiving usr into ${USR}/R2, from byte [1-9]`));
  expect(await lines(MADE)).toBe(made);
});

rarely(
  "stays under way where a stream was destroyed by hand after it was to boot next, and cannot be received again",
  async () => {
    for (const ends of ["abort", "install"]) {
      await lines(`${RESET}; ${place.killed(`install ${FILE}`, "journal: recording")}
      zfs destroy -r ${USR}/R2; zfs destroy -r ${OPT}/R2`);
      const [error] = await refusal(`PATH=/tmp/cut:$PATH bundle install ${FILE}`);
      expect(error?.hint).toContain(
        `${ROOT}/R2 stays; to go on: bundle install; to give it up: bundle abort`,
      );
      expect(await lines("bundle status")).toMatch(/under way: release R2 .*, having it boot next/);
      await lines(`bundle ${ends}`);
      expect(await lines(ends === "abort" ? POOL : MADE)).toBe(ends === "abort" ? pool : made);
      expect(await place.running()).toBe(unchanged);
    }
  },
);

rarely("is not given up by itself while it is mounted", async () => {
  await lines(
    `${RESET}; ${place.killed(`install ${FILE}`, "zfs receive")}; mount -t zfs -o zfsutil ${ROOT}/R2 /media`,
  );
  const [error] = await refusal(`PATH=/tmp/cut:$PATH bundle install ${FILE}`);
  expect(error?.hint).toMatch(
    /what was prepared is not taken back: the boot environment .* is mounted on \/media/,
  );
  expect(await lines("bundle status")).toContain("under way: release R2 (2)");
  await lines(`umount /media; bundle install ${FILE}`);
  expect(await lines(MADE)).toBe(made);
});

rarely("lets the base go where a dataset was promoted, as zectl does, and has it now", async () => {
  const isHeld = (dataset: string): Promise<string> =>
    lines(`zfs list -H -p -t snapshot -o userrefs ${dataset}@R1`);
  await lines(`${RESET}; bundle install ${FILE}; zfs promote ${USR}/R2`);
  expect(await isHeld(`${USR}/R2`)).toBe("1");
  await lines("bundle rollback");
  expect(await isHeld(`${USR}/R2`)).toBe("0");
  // One that was made later has it, and what was made of it is gone.
  await lines(`zfs promote ${USR}/gentoo; ${RESET}; bundle install ${FILE}
    zfs clone -o mountpoint=none ${USR}/gentoo@R1 ${USR}/three; zfs promote ${USR}/three; zfs destroy -r ${USR}/R2`);
  expect(await isHeld(`${USR}/three`)).toBe("1");
  await lines("bundle rollback");
  expect(await isHeld(`${USR}/three`)).toBe("0");
  await lines(`zfs promote ${USR}/gentoo; zfs destroy ${USR}/three; ${RESET}`);
  expect(await site()).toBe(before);
});

describe("giving it up", () => {
  /** With all received, and the clone written. */
  const received = (): string => `${RESET}; ${place.killed(`install ${FILE}`, "journal: activating")}`;

  rarely("comes to its end where a dataset was busy, when it is not any more", async () => {
    await lines(`${received()}; mount -t zfs -o ro ${USR}/R2 /media`);
    const busy = await place.attempt("cd /media; bundle abort");
    expect([busy.status, busy.stderr]).toEqual([17, expect.stringMatching(/busy.*\n/)]);
    expect(await lines(`zfs list -H -t all -o name -r ${USR}/R2`)).toBe(`${USR}/R2`);
    expect(await lines("bundle status")).toContain("goes on with: bundle abort");
    // What came since is not lost.
    await lines(`zfs snapshot ${USR}/R2@mine`);
    expect((await refusal("bundle abort"))[0]).toMatchObject({
      code: "base-modified",
      message: `giving it up would lose of ${USR}/R2: ${USR}/R2@mine`,
    });
    await lines(`zfs destroy ${USR}/R2@mine; umount /media; bundle abort`);
    expect(await site()).toBe(before);
  });

  rarely("comes to its end after a kill between a snapshot and its dataset", async () => {
    await lines(`${received()}; ${place.killed("abort", "zfs destroy:2")}`);
    expect(await lines(`zfs list -H -t all -o name -r ${USR}/R2`)).toBe(`${USR}/R2`);
    await lines("bundle abort");
    expect(await site()).toBe(before);
  });

  rarely("leaves the snapshots of one that was promoted", async () => {
    await lines(`${received()}; zfs promote ${USR}/R2; bundle abort`);
    expect(await site()).toBe(before);
  });
});

rarely("is given up where what booted next before is gone, or has another name", async () => {
  const [other, renamed] = [`${ROOT}/other`, `${ROOT}/renamed`];
  const cases = [
    [`zfs destroy ${other}`, `${ROOT}/site`],
    [
      `zfs set zferry:previous=$(zfs get -H -p -o value guid ${other}) ${ROOT}/R2; zfs rename ${other} ${renamed}`,
      renamed,
    ],
  ] as const;
  for (const [change, next] of cases) {
    const { status, stderr } = await place.attempt(`${RESET}
      zfs clone -o canmount=noauto -o mountpoint=/ ${ROOT}/site@fresh ${other}; zpool set bootfs=${other} ${RPOOL}
      ${place.killed(`install ${FILE}`, "journal: recording")}
      ${change}; bundle abort`);
    expect([status, stderr]).toEqual([
      0,
      expect.stringContaining(
        `warning: ${other}, which booted next before, is not there any more: ${next} boots next`,
      ),
    ]);
    expect(await lines(`zpool get -H -o value bootfs ${RPOOL}`)).toBe(next);
  }
  await lines(`zpool set bootfs=${ROOT}/site ${RPOOL}; zfs destroy ${renamed}`);
  expect(await site()).toBe(before);
});

rarely("goes on only in the environment in which it was begun", async () => {
  await lines(`${RESET}; ${place.killed(`install ${FILE}`, "zfs snapshot")}
    zfs clone -o canmount=noauto -o mountpoint=/ ${ROOT}/site@fresh ${ROOT}/two; ${boot("two", "gentoo")}`);
  expect((await refusal(`bundle install ${FILE}`))[0]).toMatchObject({
    code: "install-pending",
    message: `the install that is under way was begun in ${ROOT}/site, and / is ${ROOT}/two now`,
  });
  expect(await lines("bundle abort")).toContain("gave up gentoo release R2 (2)");
  await lines(`${boot("site", "gentoo")}; zfs destroy ${ROOT}/two`);
  expect(await site()).toBe(before);
});

it("is gone on with, or given up, after a kill before any step", async () => {
  for (const step of ["zfs clone", "zfs receive", "mount", "chroot", "zpool set", "journal: activating"])
    expect(steps).toContain(step);
  // If not all: one that is gone on with, and one that is given up.
  const rounds = shareOf(steps, 0, 32).slice(0, ALL ? steps.length : 2);
  for (const [round, [index, step]] of rounds.entries()) {
    const ends = round % 2 === 0 ? "install" : "abort";
    const where = `killed before ${index + 1}, ${step}, then ${ends}`;
    await lines(`${RESET}
        ${place.killed(`install ${FILE}`, index + 1)}
        ${ends === "abort" ? "bundle abort" : `bundle install ${FILE}`}`);
    const isDone = index > steps.indexOf("state");
    const isMade = ends === "install" || isDone;
    expect(`${where}\n${await lines(isMade ? MADE : POOL)}`).toBe(`${where}\n${isMade ? made : pool}`);
    expect(`${where}\n${await place.running()}`).toBe(`${where}\n${unchanged}`);
  }
}, 2_400_000);
