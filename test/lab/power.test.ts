import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, it } from "vitest";
import { pick, randomOf } from "../fuzz/random.js";
import { MNT, openGuest, type Guest } from "./guest.js";
import { makeRelease, makeSystem, RPOOL, script, SITE_USR } from "./system.js";

/*
 * Power cuts: QEMU is killed in the middle of an install, at a moment of chance or soon after a step has begun, and booted again on
 * the same disk; then bundle install again, with further cuts, until it is done. The site's pool, with /usr, / and the state
 * folder, is on a disk without a cache of the host's. SOAK_CUTS is the number of cuts (2), SOAK_SEED what they are
 * chosen by.
 */

const CUTS = Number(process.env["SOAK_CUTS"] ?? 2);
const SEED = Number(process.env["SOAK_SEED"] ?? Math.floor(Math.random() * 1e9));
const PHASES = ["holding", "preparing", "receiving", "writing", "recording"];
const ROOT = `${RPOOL}/ROOT/site`;
/** Of a chunk, with the record that did not fit into it: formats/manifest.md */
const MOST_TWICE = 8 << 20;

let guest: Guest;
/** A smooth install's: what the site is then, and how long it takes, in milliseconds. */
let installed: string;
let duration: number;
const bundle = (): string => `${guest.share.there}/R3.bundle`;

const lines = async (text: string): Promise<string> =>
  (await guest.run(text, { timeout: 600_000 })).stdout.trim();

/** Both halves, and all that may be left over. */
const siteState = (): Promise<string> =>
  lines(`
    zfs list -H -p -o name,guid -t snapshot -r ${SITE_USR}
    for release in 1 2 3; do zfs holds -H ${SITE_USR}@R$release 2>/dev/null | cut -f 1,2 || true; done
    zfs get -H -o value receive_resume_token ${SITE_USR}
    ls -A /var/lib/zferry | sed 's/^plan-.*/a plan/'
    flock --nonblock /var/lib/zferry/lock echo not locked
    cd ${MNT}/site
    git status --porcelain; git for-each-ref --format='%(refname) %(tree)'; git rev-parse HEAD^{tree}; git fsck --full --no-dangling 2>&1
    find . -path ./.git -prune -o -path ./usr -prune -o -printf '%P %y %m %U:%G %l\n' | sort
    find . -path ./.git -prune -o -path ./usr -prune -o -type f -print0 | sort -z | xargs -0 sha256sum
    find .git -name '*.lock' -o -name '*zferry'; find . -name '.zferry-*'
    ${script(guest, `fingerprint ${MNT}/site/usr`)} | sha256sum`);

beforeAll(async () => {
  guest = await openGuest({ disks: [{ name: "rpool", size: "1G" }] });
  await guest.createPool("tank");
  await guest.run(`zpool create -O mountpoint=${MNT}/${RPOOL} ${RPOOL} ${guest.disk("rpool")}
    for name in etc state; do zfs create ${RPOOL}/$name; done
    zfs set mountpoint=/etc/zferry ${RPOOL}/etc; zfs set mountpoint=/var/lib/zferry ${RPOOL}/state`);
  await makeSystem(guest);
  for (const number of [2, 3]) await makeRelease(guest, number);
  await lines(`bundle install /tmp/R2.bundle; mv /tmp/R3.bundle ${guest.share.there}
    zpool export tank
    for dataset in ${ROOT} ${RPOOL}/state; do zfs snapshot $dataset@fresh; done
    zpool sync ${RPOOL}
    ${OFTEN}`);
  const started = performance.now();
  await lines(`bundle install ${bundle()}`);
  duration = performance.now() - started;
  installed = await siteState();
});
afterAll(() => guest?.close());

/** ZFS writes what it has every second, so that a receive leaves more than one place to go on from. */
const OFTEN = "echo 1 >/sys/module/zfs/parameters/zfs_txg_timeout";

async function boot(): Promise<void> {
  await guest.start();
  await lines(OFTEN);
}

async function reset(): Promise<void> {
  await lines(`cd /
    zfs rollback -r ${SITE_USR}@R2
    zfs release zferry:base ${SITE_USR}@R2 2>/dev/null || true
    zfs hold zferry:base ${SITE_USR}@R1 2>/dev/null || true
    for dataset in ${ROOT} ${RPOOL}/state; do zfs rollback $dataset@fresh; done
    zpool sync ${RPOOL}`);
}

/** Starts an install, and cuts the power after `wait` milliseconds, or so long after a phase has begun. */
async function cutInstall(command: string, wait: number, phase: string | undefined): Promise<void> {
  const marker = join(guest.share.here, "marker");
  rmSync(marker, { force: true });
  const watch =
    phase === undefined
      ? ""
      : `(until grep -qs '"phase":"${phase}"' /var/lib/zferry/journal.json; do sleep 0.01; done; touch ${guest.share.there}/marker) &`;
  const run = guest
    .run(`${watch}\n${command} >${guest.share.there}/out 2>&1`, { timeout: 600_000 })
    .catch(() => undefined);
  const ended = run.then(() => true);
  for (let waited = 0; phase !== undefined && !existsSync(marker) && waited < 60_000; waited += 5) {
    if (await Promise.race([ended, sleep(5).then(() => false)])) break;
  }
  await Promise.race([ended, sleep(wait)]);
  await guest.cut();
  await run;
}

/** Where a stream went on, as the install says it, and where ZFS said it was. */
interface Resumption {
  readonly from: number;
  readonly taken: number;
}

it(
  `ends as one that nothing interrupted, after ${CUTS} power cuts, seed ${SEED}`,
  async () => {
    const random = randomOf(SEED);
    const resumptions: Resumption[] = [];
    const when: string[] = [];
    for (let cuts = 0; cuts < CUTS;) {
      await reset();
      const file = `bundle install ${bundle()}`;
      let command = file;
      // One cut, and in every third round two more.
      const inRound = Math.min(CUTS - cuts, random(3) === 0 ? 3 : 1);
      for (let cut = 0; cut < inRound; cut += 1) {
        const phase = random(2) === 0 ? pick(random, PHASES) : undefined;
        const wait = random(phase === undefined ? Math.ceil(duration) : 400);
        await cutInstall(command, wait, phase);
        await boot();
        cuts += 1;
        when.push(
          (await lines(
            "bundle status | sed -n 's/^under way: [^,]*, [^,]*, //p; s/^under way: nothing/nothing/p'",
          )) || "?",
        );
        // Where nothing is under way it had not begun, or had ended.
        command = when.at(-1) === "nothing" ? file : "bundle install";
      }
      const { underWay } = JSON.parse(await lines("bundle status --json")) as {
        underWay: { streams: { taken: number; received: boolean }[] } | null;
      };
      const output = await guest.run(`${command} 2>&1`, { timeout: 600_000 });
      const where = `cut ${cuts} (${when.at(-1)}), seed ${SEED}:\n${output.stdout}`;
      const from = /receiving usr into .*, from byte (\d+) on/.exec(output.stdout)?.[1];
      const [stream] = underWay?.streams ?? [];
      if (stream !== undefined && stream.taken > 0 && !stream.received) {
        resumptions.push({ from: Number(from ?? 0), taken: stream.taken });
      }
      expect(`${where}${await siteState()}`).toBe(`${where}${installed}`);
      expect(await lines(`zpool scrub -w ${RPOOL}; zpool status -x ${RPOOL}`)).toContain("is healthy");
    }
    // What ZFS had is not received twice.
    for (const { from, taken } of resumptions) expect(taken - from).toBeLessThan(MOST_TWICE);
    const counts = new Map<string, number>();
    for (const phase of when) counts.set(phase, (counts.get(phase) ?? 0) + 1);
    const told = [...counts].map(([phase, count]) => `${count} ${phase}`).join(", ");
    console.log(
      `survived ${CUTS} power cuts (seed ${SEED}): ${told}; ${resumptions.length} in the middle of the stream`,
    );
    expect(readFileSync(join(guest.share.here, "R3.bundle")).length).toBeGreaterThan(MOST_TWICE);
  },
  24 * 3_600_000,
);
