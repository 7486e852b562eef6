import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { shareOf } from "./rounds.js";
import { FILE, RESET, StoppedSite } from "./stopped-site.js";

/*
 * An install that is stopped before each of its steps, by kill -9 and by Ctrl-C, and what comes after it. The steps are those of
 * stop-at.mjs; the two versions of ZFS together stop each in one way at least. Every round begins with the same site at R1, and
 * ends with one that is compared with what a smooth install makes of it, or with what it was.
 */

let site: StoppedSite;
beforeAll(async () => {
  site = await StoppedSite.open();
});
afterAll(() => site?.machine.close());

it("has a step for each phase, and for all that changes a pool or a repository", () => {
  expect(site.steps.filter((step) => step.startsWith("journal: "))).toEqual(
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
    expect(site.steps).toContain(step);
  }
  expect(site.installed).not.toBe(site.before);
});

// A round takes ten seconds, on a busy machine thirty.
const ROUNDS_LIMIT = 2_400_000;

describe("an install that is killed before any step", () => {
  it(
    "is brought to its end by bundle install, without the file where that is under way",
    async () => {
      for (const [index, step] of shareOf(site.steps, 0, 32)) {
        const output = await site.lines(`${RESET}
        ${site.killed(`install ${FILE}`, index + 1)}
        bundle status | sed -n 's/^under way: //p'
        bundle install >/tmp/out; [[ $(</tmp/out) == installed* ]] || bundle install ${FILE} >/tmp/out; cat /tmp/out`);
        const where = `killed before ${index + 1}, ${step}`;
        expect(`${where}: ${output.split("\n")[0]}`).toMatch(
          /journal: holding|plan|remove|: nothing|: release R2 \(2\), begun at/,
        );
        expect(`${where}\n${await site.state()}`).toBe(`${where}\n${site.installed}`);
      }
    },
    ROUNDS_LIMIT,
  );

  it(
    "is given up by bundle abort, and the site is as it was",
    async () => {
      for (const [index, step] of shareOf(site.steps, 1, 32)) {
        const where = `killed before ${index + 1}, ${step}`;
        await site.lines(`${RESET}
        ${site.killed(`install ${FILE}`, index + 1)}
        bundle abort`);
        // Once it is recorded there is nothing to be given up.
        const recorded = index > site.steps.indexOf("state");
        expect(`${where}\n${await site.state()}`).toBe(
          `${where}\n${recorded ? site.installed : site.before}`,
        );
      }
    },
    ROUNDS_LIMIT,
  );
});

describe("an install that is interrupted by Ctrl-C before any step", () => {
  it(
    "leaves the site as it was, or can be gone on with",
    async () => {
      for (const [index, step] of shareOf(site.steps, 3, 32)) {
        const where = `interrupted before ${index + 1}, ${step}`;
        const status = await site.lines(`${RESET}
        status=0; ${site.stopped(`install ${FILE}`, index + 1, "INT")} >/dev/null 2>/tmp/err || status=$?; echo $status`);
        // What is almost done may be done, if the signal comes after the last place to stop.
        expect([where, ["0", "130"].includes(status)]).toEqual([where, true]);
        const way = await site.lines("bundle status | sed -n 's/^under way: //p'");
        if (status === "130" && way === "nothing")
          expect(`${where}\n${await site.state()}`).toBe(`${where}\n${site.before}`);
        if (way !== "nothing") expect(await site.lines("cat /tmp/err")).toContain("to go on: bundle install");
        await site.lines(`bundle install ${FILE}`);
        expect(`${where}\n${await site.state()}`).toBe(`${where}\n${site.installed}`);
      }
    },
    ROUNDS_LIMIT,
  );
});

it(
  "gives up, killed before any step of that, and again",
  async () => {
    // With everything of both halves done.
    const last = site.steps.indexOf("state") + 1;
    const half = `${RESET}\n${site.killed(`install ${FILE}`, last)}`;
    await site.lines(half);
    const undoing = await site.stepsOf("abort");
    expect(undoing).toContain("zfs rollback");
    expect(await site.state()).toBe(site.before);
    for (const [index, step] of shareOf(undoing, 0, 32)) {
      const where = `giving up, killed before ${index + 1}, ${step}`;
      await site.lines(`${half}
      ${site.killed("abort", index + 1)}
      bundle ${index % 64 < 32 ? "abort" : "install"}`);
      const once = await site.state();
      expect(`${where}\n${once}`).toBe(`${where}\n${site.before}`);
    }
  },
  ROUNDS_LIMIT,
);
