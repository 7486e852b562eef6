import * as fs from "node:fs";
import { describe, expect, it } from "vitest";
import { parsePattern } from "../../src/root/path-pattern.js";
import type { RootPlan } from "../../src/root/plan.js";
import { ALL } from "../rarely.js";
import { everything } from "./everything.js";
import { ACCOUNTS, BuildHost, command, edit, file, hardLink, link, sh, type Site } from "./hosts.js";
import { stopAfter } from "./stop.js";

/** All steps take many minutes: they are for ZFERRY_TEST_ALL=1. */
const SAMPLE = ALL ? 1 : 97;

describe("a machine that stops at any step, and runs the same again", () => {
  it("ends as one that did not stop", async () => {
    const host = everything();
    const planned = host.site("r1", "cloned");
    planned.commit({ "etc/own": "own\n" });
    const plan = await planned.plan(await host.part("r1", "r2"));
    const smooth = planned.copy();
    const { steps: total, stopped } = await stopAfter(Infinity, () => smooth.apply(plan));
    expect(stopped).toBe(false);
    expect(total).toBeGreaterThan(100);
    const expected = outcome(smooth, plan);
    expect(smooth.status()).toBe("");

    for (let steps = 1; steps < total; steps += SAMPLE) {
      const site = planned.copy();
      expect((await stopAfter(steps, () => site.apply(plan))).stopped).toBe(true);
      // And once more, somewhere in the second run.
      await stopAfter((steps * 7) % total, () => site.apply(plan));
      await site.apply(plan);
      expect(outcome(site, plan), `stopped after ${steps} of ${total} steps`).toBe(expected);
      fs.rmSync(site.folder, { recursive: true });
    }
  }, 1_800_000);

  it("is as before when it is taken back, also if it stops again meanwhile", async () => {
    const host = everything();
    const planned = host.site("r1", "cloned");
    planned.commit({ "etc/own": "own\n" });
    const plan = await planned.plan(await host.part("r1", "r2"));
    const before = untouched(planned);
    const whole = planned.copy();
    const { steps: total } = await stopAfter(Infinity, () => whole.apply(plan));
    const { steps: back } = await stopAfter(Infinity, () => whole.takeBack(plan));
    expect(untouched(whole)).toBe(before);
    expect(back).toBeGreaterThan(50);

    for (let steps = 1; steps <= total; steps += SAMPLE) {
      const site = planned.copy();
      await stopAfter(steps, () => site.apply(plan));
      await stopAfter((steps * 5) % back, () => site.takeBack(plan));
      await site.takeBack(plan);
      expect(untouched(site), `stopped after ${steps} of ${total} steps`).toBe(before);
      // And it can be installed all the same: planned again, it is the same plan.
      fs.cpSync(planned.scratch, site.scratch, { recursive: true, force: true });
      await site.apply(plan);
      expect(site.git("rev-parse HEAD")).toBe(plan.mergeCommit);
      fs.rmSync(site.folder, { recursive: true });
    }
  }, 1_800_000);
});

describe("with files of the site that are not committed, some in the way, some renamed, and a policy", () => {
  const LINES = Array.from({ length: 9 }, (_, index) => `line ${index}\n`).join("");
  const host = new BuildHost();
  host.release("r1", {
    ...ACCOUNTS,
    ".gitignore": "*.local\n",
    "etc/a": "a\n",
    "etc/b": "b\n",
    "etc/c": "c\n",
    "etc/contested": "one\n",
    "etc/empty-gone.d/inner": command('mkdir -p "$1"'),
    "etc/moved": LINES,
    "etc/moved-here": LINES.replaceAll("line", "here"),
  });
  host.release("r2", {
    "etc/b": "B\n",
    "etc/new": "new\n",
    "etc/x.local": "x\n",
    "etc/link": link("a"),
    "etc/contested": "release\n",
    "etc/empty-gone.d": null,
    "etc/empty-new.d/inner": command('mkdir -p "$1"; chgrp 80 "$1"; chmod 2750 "$1"'),
    "etc/moved": command('mkdir "$1.d"; mv "$1" "$1.d/to"'),
    "etc/moved-here": `${LINES.replaceAll("line", "here")}release\n`,
  });

  it("a machine that stops at any step, and goes on or takes it back, loses nothing", async () => {
    const planned = host.site("r1", "cloned");
    edit(planned.root, {
      "etc/a": "changed here\n",
      "etc/c": null,
      "etc/contested": "site\n",
      "etc/moved": file(`site\n${LINES}`, 0o600, 'chgrp 80 "$1"'),
      "etc/moved-here": command('mv "$1" "$1.own"'),
      "etc/staged": "staged\n",
      "etc/link": link("elsewhere"),
      "etc/new": file("mine\n", 0o640, 'chgrp 80 "$1"; setfattr -n user.mine -v 1 "$1"'),
      "etc/x.local": "ignored\n",
    });
    sh(planned.root, "git add etc/staged etc/moved-here.own");
    const before = untouched(planned);
    const policies = [{ ...parsePattern("/etc/contested"), policy: "theirs" as const, command: [] }];
    const options = { commitDrift: true, replaceUntracked: true, policies };
    const plan = await planned.plan(await host.part("r1", "r2"), options);
    const whole = planned.copy();
    const { steps: total } = await stopAfter(Infinity, () => whole.apply(plan));
    const expected = outcome(whole, plan);
    expect(whole.status()).toBe("");
    const read = (path: string): string => fs.readFileSync(`${whole.root}/${path}`, "utf8");
    expect(["etc/contested", "etc/moved.d/to", "etc/moved-here.own"].map(read)).toEqual([
      "release\n",
      `site\n${LINES}`,
      `${LINES.replaceAll("line", "here")}release\n`,
    ]);
    expect(sh(whole.root, "stat -c '%a %g' etc/moved.d/to etc/empty-new.d/inner")).toBe("600 80\n2750 80\n");
    expect(whole.has("etc/empty-gone.d")).toBe(false);
    const { steps: back } = await stopAfter(Infinity, () => whole.takeBack(plan));
    expect(untouched(whole)).toBe(before);

    for (let steps = 1; steps <= total; steps += Math.min(SAMPLE, 5)) {
      const site = planned.copy();
      await stopAfter(steps, () => site.apply(plan));
      await stopAfter((steps * 5) % back, () => site.takeBack(plan));
      await site.takeBack(plan);
      expect(untouched(site), `stopped after ${steps} of ${total} steps`).toBe(before);
      fs.cpSync(planned.scratch, site.scratch, { recursive: true, force: true });
      await stopAfter(steps, () => site.apply(plan));
      await site.apply(plan);
      expect(outcome(site, plan), `stopped after ${steps} of ${total} steps`).toBe(expected);
      expect(site.git("show refs/zferry/replaced/r2:etc/new")).toBe("mine");
      fs.rmSync(site.folder, { recursive: true });
    }
  }, 1_800_000);
});

describe("with files of several names", () => {
  const host = new BuildHost();
  host.release("r1", {
    ...ACCOUNTS,
    "t/a": "one\n",
    "t/b": hardLink("a"),
    "t/gone": hardLink("a"),
    "t/parted": "two\n",
    "t/stays": hardLink("parted"),
  });
  host.release("r2", {
    "t/a": file("one 2\n", 0o640),
    "t/gone": null,
    "t/new.d/c": hardLink("../a"),
    "t/new.d/inner/d": hardLink("../../a"),
    "t/parted": file("two\n", 0o600, 'cp -p "$1" "$1.copy"; mv "$1.copy" "$1"'),
  });

  it("a machine that stops at any step, and goes on or takes it back, links what was to be linked", async () => {
    const planned = host.site("r1", "cloned");
    const before = untouched(planned);
    const plan = await planned.plan(await host.part("r1", "r2"));
    const whole = planned.copy();
    const { steps: total } = await stopAfter(Infinity, () => whole.apply(plan));
    const expected = outcome(whole, plan);
    expect(whole.links()).toEqual([["t/a", "t/b", "t/new.d/c", "t/new.d/inner/d"]]);
    const { steps: back } = await stopAfter(Infinity, () => whole.takeBack(plan));
    expect(untouched(whole)).toBe(before);

    for (let steps = 1; steps <= total; steps += Math.min(SAMPLE, 3)) {
      const [site, stopped] = [planned.copy(), planned.copy()];
      for (const each of [site, stopped]) await stopAfter(steps, () => each.apply(plan));
      await stopAfter((steps * 7) % total, () => site.apply(plan));
      await site.apply(plan);
      expect(outcome(site, plan), `stopped after ${steps} of ${total} steps`).toBe(expected);
      await stopAfter((steps * 5) % back, () => stopped.takeBack(plan));
      await stopped.takeBack(plan);
      expect(untouched(stopped), `taken back after ${steps} of ${total} steps`).toBe(before);
      for (const { folder } of [site, stopped]) fs.rmSync(folder, { recursive: true });
    }
  }, 1_800_000);
});

/** All that an install changes. */
function untouched(site: Site): string {
  expect(site.leftovers()).toBe("");
  return [site.status(), site.state(), site.git("rev-parse HEAD"), site.git("for-each-ref")].join("\n");
}

function outcome(site: Site, plan: RootPlan): string {
  expect(site.leftovers()).toBe("");
  expect(site.git("rev-parse HEAD refs/zferry/release")).toBe(
    `${plan.mergeCommit}\n${plan.releaseCommit ?? ""}`,
  );
  return [site.status(), site.state()].join("\n");
}
