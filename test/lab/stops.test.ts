import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MNT, type Machine } from "./guest.js";
import { shareOf } from "./rounds.js";
import { BUILD_USR, makeRelease, openSystem, RPOOL, script, SITE_USR } from "./system.js";

/*
 * An install that is stopped before each of its steps, by kill -9 and by Ctrl-C, and what comes after it. The steps are those of
 * stop-at.mjs; the two versions of ZFS together stop each in one way at least. Every round begins with the same site at R1, and
 * ends with one that is compared with what a smooth install makes of it, or with what it was.
 */

const FILE = "/tmp/R2.bundle";
const ROOT = `${RPOOL}/ROOT/site`;

let machine: Machine;
/** The names of a smooth install's steps. */
let steps: string[];
let before: string;
let installed: string;

const lines = async (text: string): Promise<string> =>
  (await machine.run(text, { timeout: 600_000 })).stdout.trim();

/** Everything of the site but times: both halves, holds, partial receives, what lies beside, the state. */
const STATE = `
  zfs list -H -p -o name,guid,userrefs -t snapshot -r ${SITE_USR}
  zfs get -H -o value receive_resume_token ${SITE_USR}
  ls -A /var/lib/zferry 2>/dev/null | grep -vx lock | sed 's/^plan-.*/a plan/' || true
  grep -A 3 -h '"release"' /var/lib/zferry/state.json 2>/dev/null || true
  cd ${MNT}/site
  git status --porcelain; git for-each-ref --format='%(refname) %(tree)'; git rev-parse HEAD^{tree}
  find . -path ./.git -prune -o -path ./usr -prune -o -printf '%P %y %m %U:%G %l\\n' | sort
  find . -path ./.git -prune -o -path ./usr -prune -o -type f -print0 | sort -z | xargs -0 sha256sum`;
/** The second half as a whole. */
const USR = (): string => `${script(machine, `fingerprint ${MNT}/site/usr`)} | sha256sum`;

const siteState = (): Promise<string> => lines(`${STATE}\n${USR()}`);

/** Brings the site back to R1. */
const RESET = `
  cd /
  zfs get -H -o value receive_resume_token ${SITE_USR} | grep -qx -- - || zfs receive -A ${SITE_USR}
  zfs rollback -r ${SITE_USR}@R1
  zfs release zferry:base ${SITE_USR}@R1 2>/dev/null || true
  zfs rollback ${ROOT}@fresh
  rm -rf /var/lib/zferry`;

/** The command with a stop before a step, or with none. */
const stopped = (command: string, step = 0, by = "KILL"): string =>
  `STOP_AT=${step} STOP_BY=${by} STOP_LOG=/tmp/steps node --import ${machine.checkout}/test/lab/stop-at.mjs /opt/zferry/dist/cli.js ${command}`;

/** The same, where anything but a kill before the step is a failure. */
const killed = (command: string, step: number): string =>
  `if ${stopped(command, step)} >/dev/null 2>&1; then exit 1; fi`;

const stepsOf = async (command: string): Promise<string[]> =>
  (await lines(`rm -f /tmp/steps; ${stopped(command)} >&2; cat /tmp/steps`))
    .split("\n")
    .map((line) => line.replace(/^\d+ /, ""));

beforeAll(async () => {
  machine = await openSystem();
  await makeRelease(machine, 2);
  await lines(`zfs snapshot ${ROOT}@fresh`);
  before = await siteState();
  steps = await stepsOf(`install ${FILE}`);
  installed = await siteState();
});
afterAll(() => machine?.close());

it("has a step for each phase, and for all that changes a pool or a repository", () => {
  expect(steps.filter((step) => step.startsWith("journal: "))).toEqual(
    ["holding", "preparing", "receiving", "writing", "recording"].map((phase) => `journal: ${phase}`),
  );
  for (const step of [
    "zfs hold",
    "git pack-objects",
    "zfs receive",
    "git update-ref",
    "state",
    "remove journal",
  ]) {
    expect(steps).toContain(step);
  }
  expect(installed).not.toBe(before);
});

// A round takes ten seconds, on a busy machine thirty.
const ROUNDS_LIMIT = 2_400_000;

describe("an install that is killed before any step", () => {
  it(
    "is brought to its end by bundle install, without the file where that is under way",
    async () => {
      for (const [index, step] of shareOf(steps, 0)) {
        const output = await lines(`${RESET}
        ${killed(`install ${FILE}`, index + 1)}
        bundle status | sed -n 's/^under way: //p'
        bundle install >/tmp/out; [[ $(</tmp/out) == installed* ]] || bundle install ${FILE} >/tmp/out; cat /tmp/out`);
        const where = `killed before ${index + 1}, ${step}`;
        expect(`${where}: ${output.split("\n")[0]}`).toMatch(
          /journal: holding|plan|remove|: nothing|: release R2 \(2\), begun at/,
        );
        expect(`${where}\n${await siteState()}`).toBe(`${where}\n${installed}`);
      }
    },
    ROUNDS_LIMIT,
  );

  it(
    "is given up by bundle abort, and the site is as it was",
    async () => {
      for (const [index, step] of shareOf(steps, 1)) {
        const where = `killed before ${index + 1}, ${step}`;
        await lines(`${RESET}
        ${killed(`install ${FILE}`, index + 1)}
        bundle abort`);
        // Once it is recorded there is nothing to be given up.
        const recorded = index > steps.indexOf("state");
        expect(`${where}\n${await siteState()}`).toBe(`${where}\n${recorded ? installed : before}`);
      }
    },
    ROUNDS_LIMIT,
  );
});

describe("an install that is interrupted by Ctrl-C before any step", () => {
  it(
    "leaves the site as it was, or can be gone on with",
    async () => {
      for (const [index, step] of shareOf(steps, 3)) {
        const where = `interrupted before ${index + 1}, ${step}`;
        const status = await lines(`${RESET}
        status=0; ${stopped(`install ${FILE}`, index + 1, "INT")} >/dev/null 2>/tmp/err || status=$?; echo $status`);
        // What is almost done may be done, if the signal comes after the last place to stop.
        expect([where, ["0", "130"].includes(status)]).toEqual([where, true]);
        const way = await lines("bundle status | sed -n 's/^under way: //p'");
        if (status === "130" && way === "nothing")
          expect(`${where}\n${await siteState()}`).toBe(`${where}\n${before}`);
        if (way !== "nothing") expect(await lines("cat /tmp/err")).toContain("to go on: bundle install");
        await lines(`bundle install ${FILE}`);
        expect(`${where}\n${await siteState()}`).toBe(`${where}\n${installed}`);
      }
    },
    ROUNDS_LIMIT,
  );
});

it(
  "gives up, killed before any step of that, and again",
  async () => {
    // With everything of both halves done.
    const last = steps.indexOf("state") + 1;
    const half = `${RESET}\n${killed(`install ${FILE}`, last)}`;
    await lines(half);
    const undoing = await stepsOf("abort");
    expect(undoing).toContain("zfs rollback");
    expect(await siteState()).toBe(before);
    for (const [index, step] of shareOf(undoing, 0)) {
      const where = `giving up, killed before ${index + 1}, ${step}`;
      await lines(`${half}
      ${killed("abort", index + 1)}
      bundle ${index % 8 < 4 ? "abort" : "install"}`);
      const once = await siteState();
      expect(`${where}\n${once}`).toBe(`${where}\n${before}`);
    }
  },
  ROUNDS_LIMIT,
);

it("refuses a second install, and another bundle by its name, while one is under way", async () => {
  await lines(RESET);
  const { stderr, status } = await machine.run(
    `${stopped(`install ${FILE}`, steps.indexOf("zfs receive") + 1, "STOP")} >/tmp/first.out 2>&1 & first=$!
    until [[ $(ps -o stat= -p $first) == T* ]]; do sleep 0.1; done
    status=0; bundle install ${FILE} || status=$?
    kill -CONT $first; wait $first; exit $status`,
    { check: false },
  );
  expect([status, stderr]).toEqual([
    17,
    expect.stringContaining("another install, or abort, is running on this site"),
  ]);
  expect(await siteState()).toBe(installed);

  const next = await makeRelease(machine, 3);
  await lines(`
    ${RESET}
    ${killed(`install ${FILE}`, steps.indexOf("journal: writing") + 1)}
    mv ${FILE} ${FILE}.away; mv ${next} ${FILE}`);
  const other = await machine.run("bundle install", { check: false });
  await lines(`mv ${FILE} ${next}`);
  // Everything is received, so the bundle is not needed, whatever lies there now.
  expect([other.status, other.stdout]).toEqual([
    0,
    expect.stringContaining("installed gentoo release R2 (2)"),
  ]);
  expect(await siteState()).toBe(installed);

  await lines(`${RESET}; mv ${FILE}.away ${FILE}
    ${killed(`install ${FILE}`, steps.indexOf("zfs receive") + 1)}`);
  const refused = await machine.run(`bundle install ${next}`, { check: false });
  expect([refused.status, refused.stderr]).toEqual([
    17,
    expect.stringMatching(
      /release R2 \(2\) is being installed, \/tmp\/R3.bundle is another bundle: gentoo release R3 \(3\)[^]*bundle abort/,
    ),
  ]);
  await lines(`mv ${FILE} ${FILE}.away`);
  const gone = await machine.run("bundle install </dev/null", { check: false });
  expect([gone.status, gone.stderr]).toEqual([
    16,
    expect.stringMatching(/its bundle is not at \/tmp\/R2\.bundle\n {2}insert the medium with release R2/),
  ]);
  expect(await lines(`bundle install ${FILE}.away; mv ${FILE}.away ${FILE}`)).toContain("installed");
  expect(await siteState()).toBe(installed);
  expect(await lines(`zfs get -H -p -o value guid ${SITE_USR}@R2`)).toBe(
    await lines(`zfs get -H -p -o value guid ${BUILD_USR}@R2`),
  );
});

describe("what people do in between", () => {
  const failing = async (command: string): Promise<{ status: number; stderr: string }> => {
    const { status, stderr } = await machine.run(command, { check: false });
    return { status, stderr };
  };
  const whileWriting = (): string =>
    `${RESET}\n${killed(`install ${FILE}`, steps.indexOf("journal: writing") + 2)}`;
  const allReceived = (): string =>
    `${RESET}\n${killed(`install ${FILE}`, steps.indexOf("journal: writing") + 1)}`;
  const bothDone = (): string => `${RESET}\n${killed(`install ${FILE}`, steps.indexOf("state") + 1)}`;

  it("rolls /usr back by hand: it is received again", async () => {
    await lines(`${whileWriting()}\nzfs rollback -r ${SITE_USR}@R1\nbundle install`);
    expect(await siteState()).toBe(installed);
  });

  it("changes the configuration: neither gone on with nor given up, until it is brought back", async () => {
    const config = "/etc/zferry/site.toml";
    await lines(`${whileWriting()}\ncp ${config} /tmp/site.toml`);
    for (const edit of [
      `s,${SITE_USR},${RPOOL}/other,`,
      's,"gentoo"$,"alpine",',
      `s,"${MNT}/site","${MNT}/build",`,
    ]) {
      await lines(`sed '${edit}' /tmp/site.toml >${config}; ! cmp -s ${config} /tmp/site.toml`);
      for (const command of ["install", "abort"]) {
        const { status, stderr } = await failing(`bundle ${command}`);
        expect([edit, command, status, stderr]).toEqual([
          edit,
          command,
          17,
          expect.stringContaining("has changed: "),
        ]);
      }
    }
    await lines(`cp /tmp/site.toml ${config}; bundle abort`);
    expect(await siteState()).toBe(before);
  });

  it("commits a change: it is planned again, and the change stays; or given up, and it stays too", async () => {
    const change = `cd ${MNT}/site; echo hello >etc/motd; git add etc/motd; git commit -qm motd`;
    const own = `cd ${MNT}/site; cat etc/motd; git status --porcelain; git log -1 --format=%s; find . -name '.zferry-*'`;
    await lines(`${allReceived()}\n${change}\nbundle install`);
    expect(await lines(own)).toBe("hello\nInstall R2");
    await lines(`${allReceived()}\n${change}\nbundle abort`);
    expect(await lines(own)).toBe("hello\nmotd");
    // Half of it is written: the commit is in the way of both, and says so.
    await lines(`${bothDone()}\n${change}`);
    expect(await failing("bundle abort")).toEqual({
      status: 17,
      stderr: expect.stringContaining("HEAD is") as string,
    });
    expect(await lines("bundle install")).toContain("installed");
  });

  it("keeps something of /usr: giving up names it, before anything is taken back and where it goes on", async () => {
    await lines(`${bothDone()}\nzfs clone ${SITE_USR}@R2 ${RPOOL}/clone`);
    const cloned = await failing("bundle abort");
    expect([cloned.status, cloned.stderr]).toEqual([13, expect.stringContaining(`${RPOOL}/clone`)]);
    await lines(`bundle status | grep 'bundle install'; zfs destroy ${RPOOL}/clone`);
    const undoing = await stepsOf("abort");
    await lines(`${bothDone()}
      ${killed("abort", undoing.indexOf("zfs rollback") + 1)}
      zfs snapshot ${SITE_USR}@mine`);
    const kept = await failing("bundle abort");
    expect([kept.status, kept.stderr]).toEqual([13, expect.stringContaining("@mine")]);
    await lines(`zfs destroy ${SITE_USR}@mine; bundle abort`);
    expect(await siteState()).toBe(before);
  });
});
