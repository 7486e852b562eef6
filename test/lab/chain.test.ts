import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { setTimeout as sleep } from "node:timers/promises";
import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { MNT, openGuest, type Guest } from "./guest.js";
import { ALL, rarely } from "./rounds.js";
import { makeSystem, RPOOL, SITE_USR } from "./system.js";

/*
 * A stick with the bundles of ten releases, or eight without ZFERRY_TEST_ALL=1, of which a site at R1 installs what it needs
 * with one command: with a conflict in the middle, a kill and a power cut; then volumes on three sticks, and a mirror. The site's pool
 * is on a disk, so that it survives the cut.
 */

const LAST = ALL ? 11 : 9;
const STICK = "stick";
/** What is carried after these: in volumes, then by a mirror, of which the first brings the key that alone signs the second. */
const LARGE = LAST + 1;
const [ROTATING, NEWEST] = [LARGE + 1, LARGE + 2];

let guest: Guest;
const here = (name: string): string => join(guest.share.here, STICK, name);
const there = (): string => `${guest.share.there}/${STICK}`;
const lines = async (script: string): Promise<string> =>
  (await guest.run(script, { timeout: 600_000 })).stdout.trim();
const refused = async (script: string): Promise<{ status: number; stderr: string }> => {
  const { status, stderr } = await guest.run(script, { check: false, timeout: 600_000 });
  return { status, stderr };
};
const installedRelease = async (): Promise<string> => {
  const { installed } = JSON.parse(await lines("bundle status --json")) as {
    installed: { release: { name: string } } | null;
  };
  return installed?.release.name ?? "R1";
};

/** Waits until a release is being installed, with what bash has itself: to start a process takes an emulated machine too long. */
const until = (release: string): string =>
  `(exec 9<> <(:); until read -r journal </var/lib/zferry/journal.json && [[ $journal == *'"name":"${release}"'* ]]; do
     read -t 0.3 -u 9 || true
   done) 2>/dev/null`;

/** Their names are in another order than the releases. */
const fileOf = (number: number): string => `${there()}/${LAST - number}-R${number}.bundle`;

/** A small change of both halves, and the bundle from the release before. */
const makeRelease = (number: number): string => `
  cd ${MNT}/build
  echo 'of release ${number}' >etc/release; echo '${number}' >etc/only-${number}; echo 'release ${number}' >usr/share/release
  bundle snapshot R${number} -m 'release ${number}' -q >&2
  bundle create --base R${number - 1} --target R${number} --level 1 -q -o ${fileOf(number)} >&2`;

/** The bundles after them. The build host is gone after the power cut; these lie outside of the guest. */
const makeLater = (): string => `
  cd ${MNT}/build
  bundle keygen --no-password -o /etc/zferry/next >&2
  head -c 3000000 /dev/urandom >usr/share/noise; cp /bin/sleep usr/share/
  sha256sum <usr/share/noise >${later("noise.sum")}
  for number in ${LARGE} ${ROTATING} ${NEWEST}; do
    [[ $number != ${ROTATING} ]] ||
      printf '[keys]\ncounter = 1\nadd = ["/etc/zferry/next.pub"]\nrevoke = ["/etc/zferry/release.pub"]\n' >>/etc/zferry/build.toml
    [[ $number == ${NEWEST} ]] && key=next || key=release
    echo "release $number" >usr/share/release; echo "of release $number" >etc/release
    bundle snapshot R$number -m "release $number" -q >&2
    bundle create --base R$((number - 1)) --target R$number --key /etc/zferry/$key.key --level 1 -q -o ${later("R$number.bundle")} >&2
  done`;
const later = (name: string): string => `${guest.share.there}/later/${name}`;

beforeAll(async () => {
  guest = await openGuest({ disks: [{ name: "rpool", size: "1G" }] });
  for (const name of [STICK, "later"]) mkdirSync(join(guest.share.here, name));
  await guest.createPool("tank");
  await guest.run(`zpool create -O mountpoint=${MNT}/${RPOOL} ${RPOOL} ${guest.disk("rpool")}
    for name in etc state; do zfs create ${RPOOL}/$name; done
    zfs set mountpoint=/etc/zferry ${RPOOL}/etc; zfs set mountpoint=/var/lib/zferry ${RPOOL}/state`);
  await makeSystem(guest);
  for (let number = 2; number <= LAST; number += 1) await lines(makeRelease(number));
  await lines(makeLater());
});
afterAll(() => guest?.close());

describe("a stick with many releases", () => {
  it("is planned: the chain, and the first of it", async () => {
    const { stdout, stderr } = await guest.run(`bundle plan ${there()}`);
    expect(stderr).not.toContain("warning");
    expect(stdout).toMatch(new RegExp(`^${LAST - 1} bundles lead from what this site has to R${LAST}, `));
    expect(stdout).toContain(`\n  R2 (2), `);
    expect(stdout).toContain(
      `\n  afterwards bundle rollback leads from R${LAST} to R${LAST - 1}, and no further\n`,
    );
    expect(stdout).toContain("gentoo release R2 (2) would be installed; nothing was changed");
    expect(await installedRelease()).toBe("R1");
  });

  rarely("is not needed where the site asks for a bundle of its own", async () => {
    const { stdout } = await guest.run(`
      printf '[site]\\nname = "plant"\\nkey = "/etc/zferry/plant.key"\\n' >>/etc/zferry/site.toml
      bundle keygen --no-password -o /etc/zferry/plant >&2
      install -D -m 644 /etc/zferry/plant.pub /etc/zferry/sites/plant.pub
      bundle request -o /tmp/plant.request
      bundle create --for /tmp/plant.request --level 1 -o /tmp/plant.bundle
      bundle plan /tmp/plant.bundle
      if bundle create --for /tmp/plant.request --target R1 -o /tmp/no.bundle; then exit 1; fi
      test ! -e /tmp/no.bundle`);
    expect(stdout).toMatch(
      /^\/tmp\/plant\.request: site plant with no known release, signed by [0-9A-F]{16}\n {2}usr: guid /,
    );
    expect(stdout).toContain(`gentoo release R${NEWEST} (${NEWEST}), usr from R1 to R${NEWEST}, `);
    expect(stdout).toContain(`gentoo release R${NEWEST} (${NEWEST}) would be installed`);
  });

  rarely("with a bundle missing tells what is missing, and installs nothing", async () => {
    const { status, stderr } = await refused(`mv ${fileOf(5)} ${there()}/R5.away
      bundle install ${there()} || status=$?
      mv ${there()}/R5.away ${fileOf(5)}; exit $status`);
    expect(stderr).toContain(`the newest here, R${LAST}, needs R5: missing R4→R5`);
    expect(status).toBe(13);
    expect(await installedRelease()).toBe("R1");
  });

  it("stops at a conflict, with what comes before it installed", async () => {
    writeFileSync(here("torn.bundle"), "no bundle");
    const { status, stderr } = await refused(`cd ${MNT}/site
      echo 'of this site' >etc/only-4; git add --all; git commit --quiet -m 'the same as R4'
      bundle install ${there()}`);
    expect(status).toBe(15);
    expect(stderr).toContain("torn.bundle is left out: ");
    expect(stderr).toMatch(
      new RegExp(`bundle: release R4, 3 of ${LAST - 1}: .*etc/only-4.*; installed before it: R2, R3`),
    );
    expect(stderr).toContain(`bundle resolve ${fileOf(4)}`);
    expect(await installedRelease()).toBe("R3");
    await lines(`cd ${MNT}/site; git rm --quiet etc/only-4; git commit --quiet -m 'not any more'`);
  });

  it("goes on after a kill and a power cut, to the end, with the same command", async () => {
    const killed = await refused(`${until("R6")} && pkill -KILL -f '[l]ib/bundle install' &
      bundle install ${there()}`);
    expect(killed.status).not.toBe(0);
    expect(["R5", "R6"]).toContain(await installedRelease());

    const marker = join(guest.share.here, "marker");
    const run = guest
      .run(`${until("R8")} && touch ${guest.share.there}/marker &\nbundle install ${there()}`, {
        timeout: 600_000,
      })
      .catch(() => undefined);
    const ended = run.then(() => true);
    while (!existsSync(marker) && !(await Promise.race([ended, sleep(10).then(() => false)])));
    await sleep(200);
    await guest.cut();
    await run;
    await guest.start();
    expect(["R6", "R7", "R8"]).toContain(await installedRelease());

    const { stdout } = await guest.run(`bundle install ${there()}`, { timeout: 600_000 });
    expect(stdout).toContain(`installed gentoo release R${LAST} (${LAST})`);
    expect(stdout).not.toContain("release R5");
    expect(await installedRelease()).toBe(`R${LAST}`);
    const both = await lines(
      `cat ${MNT}/site/usr/share/release ${MNT}/site/etc/release; cat ${MNT}/site/etc/only-* | sort -n | tr '\\n' ' '
       cd ${MNT}/site; git status --porcelain; zfs list -H -o name -t snapshot -r ${SITE_USR} | wc -l`,
    );
    const numbers = Array.from({ length: LAST - 1 }, (_, index) => index + 2);
    expect(both).toBe(`release ${LAST}\nof release ${LAST}\n${numbers.join(" ")} ${LAST}`);
    const history = JSON.parse(await lines("bundle history --json")) as {
      installations: { release: { name: string } }[];
    };
    expect(history.installations.map(({ release }) => release.name)).toEqual(
      numbers.map((number) => `R${number}`).toReversed(),
    );
  });

  rarely("with nothing left to do says so", async () => {
    expect(await lines(`bundle install ${there()}`)).toBe(
      `gentoo release R${LAST} (${LAST}) is installed; nothing to do`,
    );
    expect((await refused(`bundle install ${there()} --to R4`)).status).toBe(13);
  });

  rarely("is reported to the build host by a receipt", async () => {
    const known = await lines(`bundle receipt -o /tmp/plant.receipt >&2
      printf 'product = "gentoo"\\n[streams]\\nusr = "tank/usr"\\n[root]\\ndataset = "tank/root"\\n[sites]\\nreceipts = "/tmp/sites"\\n' >/tmp/build.toml
      bundle sites add /tmp/plant.receipt --config /tmp/build.toml >&2
      bundle sites --config /tmp/build.toml`);
    expect(known).toMatch(new RegExp(`^plant +R${LAST} +${LAST} +R${LAST} installed at `, "m"));
  });

  rarely("leads forward again after a rollback, which is of one release", async () => {
    expect(await lines("bundle rollback")).toContain(`R${LAST}`);
    expect(await installedRelease()).toBe(`R${LAST - 1}`);
    expect((await refused("bundle rollback")).status).toBe(17);
    expect(await lines(`bundle install ${there()}`)).toContain(`installed gentoo release R${LAST}`);
  });
});

/** A FAT32 file system in a file, as three of which are mounted in turn. */
const STICKS = ["one", "two", "three"];
const VOLUME_BYTES = 1_200_000;

describe("three sticks with FAT", () => {
  const mount = (name: string): string => `mount -o loop /root/${name}.img /mnt/${name}`;
  const bundle = `/mnt/one/R${LARGE}.bundle.001`;
  beforeAll(async () => {
    for (const name of STICKS) {
      const image = join(guest.share.here, `${name}.img`);
      execFileSync("mkfs.vfat", ["-C", "-F", "32", "-s", "1", image, "36864"]);
    }
    await lines(`
      cp ${later(`R${LARGE}.bundle`)} /root
      modprobe -a loop vfat
      cp ${guest.share.there}/*.img /root
      ${STICKS.map((name, at) => `mkdir /mnt/${name}; ${mount(name)}; bundle copy /root/R${LARGE}.bundle /mnt/${name} -q --volume-size ${VOLUME_BYTES} --volumes ${at + 1}; umount /mnt/${name}`).join("\n")}`);
  });

  rarely("of which one is missing: it is named, and nothing is changed", async () => {
    const { status, stderr } =
      await refused(`${mount("one")}; ${mount("two")}; before=$(zfs list -H -t all -o name,guid)
      bundle install ${bundle} --search /mnt/two || status=$?
      [[ $before == $(zfs list -H -t all -o name,guid) ]]; umount /mnt/one /mnt/two; exit $status`);
    expect([status, stderr]).toEqual([
      16,
      expect.stringContaining(`R${LARGE}.bundle.003 of 3 volumes is missing`),
    ]);
    expect(await installedRelease()).toBe(`R${LAST}`);
  });

  it("are planned and installed from where they are", async () => {
    const search = "--search /mnt/two --search /mnt/three";
    const { stdout } = await guest.run(
      `rm /root/R${LARGE}.bundle; ${STICKS.map(mount).join("; ")}; bundle plan ${bundle} ${search} >&2; bundle install ${bundle} ${search}
       umount /mnt/{one,two,three}; sha256sum <${MNT}/site/usr/share/noise | cmp - ${later("noise.sum")}; cat ${MNT}/site/etc/release`,
      { timeout: 600_000 },
    );
    expect(stdout).toContain(`installed gentoo release R${LARGE} (${LARGE})`);
    expect(stdout).toContain(`of release ${LARGE}\n`);
  });
});

/** The web server of this machine and its libraries, for a guest that has no other and no network. */
const NGINX = "/usr/sbin/nginx";
const withLibraries = (program: string): string[] => [
  program,
  ...[...execFileSync("ldd", [program], { encoding: "utf8" }).matchAll(/=> (\/\S+)/g)]
    .map(([, library = ""]) => library)
    .filter((library) => basename(library) !== "libc.so.6"),
];

describe("a mirror that nginx serves", () => {
  const URL = "http://127.0.0.1:8080/";
  beforeAll(async () => {
    for (const file of withLibraries(NGINX)) copyFileSync(file, join(guest.share.here, basename(file)));
    await guest.write(
      "/root/nginx.conf",
      `error_log stderr crit; pid /root/nginx.pid; events {}
       http { access_log off; client_body_temp_path /tmp; proxy_temp_path /tmp; fastcgi_temp_path /tmp; uwsgi_temp_path /tmp; scgi_temp_path /tmp;
              server { listen 127.0.0.1:8080; root /srv/mirror; gzip on; gzip_types *; } }`,
    );
    await lines(`
      bundle mirror add ${later(`R${ROTATING}.bundle`)} ${later(`R${NEWEST}.bundle`)} /srv/mirror --key /etc/zferry/release.key --trust /etc/zferry/next.pub -q
      LD_LIBRARY_PATH=${guest.share.there} ${guest.share.there}/nginx -p /root -c /root/nginx.conf`);
  });

  rarely("gives another machine what a site's request asks for", async () => {
    const names = await lines(`
      bundle request -o /root/next.request >&2
      mkdir /root/for
      bundle fetch ${URL} --key /etc/zferry/release.pub --for /root/next.request --site-key /etc/zferry/plant.pub -o /root/for
      cmp /root/for/R${ROTATING}-*.bundle ${later(`R${ROTATING}.bundle`)}
      mkdir /root/same; bundle fetch ${URL} -o /root/same >&2; diff -r /root/for /root/same >&2`);
    expect(names).toMatch(
      new RegExp(
        `^/root/for/R${ROTATING}-[0-9a-f]{16}\\.bundle\n/root/for/R${NEWEST}-[0-9a-f]{16}\\.bundle$`,
      ),
    );
  });

  it("leads the site itself on, over a change of its keys, while something runs from it", async () => {
    const { stdout, stderr } = await guest.run(
      `mkdir /root/own; bundle fetch ${URL} -o /root/own >&2
       ${MNT}/site/usr/share/sleep 1000 & sleep 1
       if bundle install /root/own; then exit 1; else [[ $? == 17 ]]; fi
       bundle install /root/own --live; kill %1`,
      { timeout: 600_000 },
    );
    expect(stderr).toContain(
      `danger: what runs from ${SITE_USR} loses its files and will likely die: sleep (`,
    );
    expect(stdout).toContain(`installed gentoo release R${ROTATING} (${ROTATING})`);
    expect(stdout).toContain(`installed gentoo release R${NEWEST} (${NEWEST})`);
    expect(await installedRelease()).toBe(`R${NEWEST}`);
    expect(await lines(`cat ${MNT}/site/usr/share/release ${MNT}/site/etc/release`)).toBe(
      `release ${NEWEST}\nof release ${NEWEST}`,
    );
  });
});
