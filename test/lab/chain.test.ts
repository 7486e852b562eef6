import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { setTimeout as sleep } from "node:timers/promises";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { MNT, openGuest, type Guest } from "./guest.js";
import { makeSystem, RPOOL, SITE_USR } from "./system.js";

/*
 * A stick with the bundles of ten releases, of which a site at R1 installs what it needs with one command: with a
 * conflict in the middle, a kill and a power cut. The site's pool is on a disk, so that it survives the cut.
 */

const LAST = 11;
const STICK = "stick";

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

/** A small change of both halves, and the bundle from the release before. */
const makeRelease = (number: number): string => `
  cd ${MNT}/build
  echo 'of release ${number}' >etc/release; echo '${number}' >etc/only-${number}; echo 'release ${number}' >usr/share/release
  bundle snapshot R${number} -m 'release ${number}' -q >&2
  bundle create --base R${number - 1} --target R${number} --level 1 -q -o ${there()}/${LAST - number}-R${number}.bundle >&2`;

beforeAll(async () => {
  guest = await openGuest({ disks: [{ name: "rpool", size: "1G" }] });
  mkdirSync(join(guest.share.here, STICK));
  await guest.createPool("tank");
  await guest.run(`zpool create -O mountpoint=${MNT}/${RPOOL} ${RPOOL} ${guest.disk("rpool")}
    for name in etc state; do zfs create ${RPOOL}/$name; done
    zfs set mountpoint=/etc/zferry ${RPOOL}/etc; zfs set mountpoint=/var/lib/zferry ${RPOOL}/state`);
  await makeSystem(guest);
  for (let number = 2; number <= LAST; number += 1) await lines(makeRelease(number));
});
afterAll(() => guest?.close());

describe("a stick with ten releases", () => {
  it("is planned: the chain, and the first of it", async () => {
    const { stdout, stderr } = await guest.run(`bundle plan ${there()}`);
    expect(stderr).not.toContain("warning");
    expect(stdout).toMatch(/^10 bundles lead from what this site has to R11, /);
    expect(stdout).toContain(`\n  R2 (2), `);
    expect(stdout).toContain("\n  afterwards bundle rollback leads from R11 to R10, and no further\n");
    expect(stdout).toContain("gentoo release R2 (2) would be installed; nothing was changed");
    expect(await installedRelease()).toBe("R1");
  });

  it("is not needed where the site asks for a bundle of its own", async () => {
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
    expect(stdout).toContain(`gentoo release R${LAST} (${LAST}), usr from R1 to R${LAST}, `);
    expect(stdout).toContain(`gentoo release R${LAST} (${LAST}) would be installed`);
  });

  it("with a bundle missing tells what is missing, and installs nothing", async () => {
    const { status, stderr } = await refused(`cd ${there()}; mv 6-R5.bundle R5.away
      bundle install ${there()} || status=$?
      mv R5.away 6-R5.bundle; exit $status`);
    expect(stderr).toContain("the newest here, R11, needs R5: missing R4→R5");
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
    expect(stderr).toMatch(/bundle: release R4, 3 of 10: .*etc\/only-4.*; installed before it: R2, R3/);
    expect(stderr).toContain(`bundle resolve ${there()}/7-R4.bundle`);
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
    expect(both).toBe(`release ${LAST}\nof release ${LAST}\n2 3 4 5 6 7 8 9 10 11 ${LAST}`);
    const history = JSON.parse(await lines("bundle history --json")) as {
      installations: { release: { name: string } }[];
    };
    expect(history.installations.map(({ release }) => release.name)).toEqual(
      Array.from({ length: LAST - 1 }, (_, index) => `R${LAST - index}`),
    );
  });

  it("with nothing left to do says so", async () => {
    expect(await lines(`bundle install ${there()}`)).toBe(
      `gentoo release R${LAST} (${LAST}) is installed; nothing to do`,
    );
    expect((await refused(`bundle install ${there()} --to R4`)).status).toBe(13);
  });

  it("is reported to the build host by a receipt", async () => {
    const known = await lines(`bundle receipt -o /tmp/plant.receipt >&2
      printf 'product = "gentoo"\\n[streams]\\nusr = "tank/usr"\\n[root]\\ndataset = "tank/root"\\n[sites]\\nreceipts = "/tmp/sites"\\n' >/tmp/build.toml
      bundle sites add /tmp/plant.receipt --config /tmp/build.toml >&2
      bundle sites --config /tmp/build.toml`);
    expect(known).toMatch(new RegExp(`^plant +R${LAST} +${LAST} +R${LAST} installed at `, "m"));
  });

  it("leads forward again after a rollback, which is of one release", async () => {
    expect(await lines("bundle rollback")).toContain(`R${LAST}`);
    expect(await installedRelease()).toBe(`R${LAST - 1}`);
    expect((await refused("bundle rollback")).status).toBe(17);
    expect(await lines(`bundle install ${there()}`)).toContain(`installed gentoo release R${LAST}`);
  });
});
