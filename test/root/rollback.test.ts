import * as fs from "node:fs";
import * as v from "valibot";
import { describe, expect, it } from "vitest";
import { parsePattern } from "../../src/root/path-pattern.js";
import { rootPlanSchema, type RootPlan } from "../../src/root/plan.js";
import { ALL } from "../rarely.js";
import { everything } from "./everything.js";
import { ACCOUNTS, BuildHost, command, edit, file, fingerprint, link, sh, type Site } from "./hosts.js";
import { stopAfter } from "./stop.js";

/** As a state folder gives it back. */
const kept = (plan: RootPlan): RootPlan => v.parse(rootPlanSchema, JSON.parse(JSON.stringify(plan)));

/** What a rollback brings back besides the history: files, what git says of them, and the release. */
const outcome = (site: Site): string => {
  expect(site.leftovers()).toBe("");
  return [
    site.state(),
    site.status(),
    site.git("rev-parse HEAD^{tree}"),
    site.git("for-each-ref refs/zferry"),
  ].join("\n");
};

const small = new BuildHost();
small.release("r1", {
  ...ACCOUNTS,
  "etc/config": "one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n",
  "etc/gone.d/file": "gone\n",
  "etc/modes": file("same\n", 0o640, 'setfattr -n user.a -v 1 "$1"'),
  "etc/old-name": "a text of some length, so that it is known again\nand again\n",
  "etc/stays": "stays\n",
});
small.release("r2", {
  "etc/config": "ONE\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n",
  "etc/gone.d": null,
  "etc/modes": command('chmod 0600 "$1"; chgrp 80 "$1"; setfattr -n user.a -v 2 "$1"'),
  "etc/new": "new\n",
  "etc/new.d/file": file("file\n", 0o600, 'chmod 2750 "$(dirname "$1")"; chgrp 80 "$(dirname "$1")"'),
  "etc/new.local": "r2\n",
  "etc/old-name": null,
  "etc/new-name": "a text of some length, so that it is known again\nand again\nin r2\n",
});

const installedSite = async (
  before: (site: Site) => void = () => undefined,
  options: Parameters<Site["install"]>[1] = {},
): Promise<{ site: Site; installed: RootPlan; original: string }> => {
  const site = small.site("r1", "cloned");
  before(site);
  const original = outcome(site);
  const installed = kept(await site.install(await small.part("r1", "r2"), options));
  return { site, installed, original };
};

/** What it is refused with; the site must be as it was. */
async function refusal(site: Site, installed: RootPlan): Promise<unknown> {
  const before = fingerprint(site);
  const refused: unknown = await site.planRollback(installed).then(
    () => "nothing is refused",
    (error: unknown) => error,
  );
  expect(fingerprint(site)).toBe(before);
  return refused;
}

describe("an install of every kind of change that is rolled back", () => {
  it.each(["cloned", "unrelated"] as const)("leaves a site with a %s history as it was", async (history) => {
    const host = everything();
    const site = host.site("r1", history);
    site.commit({ "etc/own": file("own\n", 0o640), "etc/own.d/x": "x\n" });
    const before = outcome(site);
    const head = site.git("rev-parse HEAD");
    const part = await host.part("r1", "r2");
    const installed = kept(await site.install(part));
    const after = outcome(site);
    expect(after).not.toBe(before);
    await site.rollBack(installed);
    expect(outcome(site)).toBe(before);
    expect(site.git("log --format=%s")).toMatch(/^Roll back r2\nInstall r2\n/);
    expect(site.git("merge-base HEAD " + head)).toBe(head);
    // And forward again.
    await site.install(part);
    expect(outcome(site)).toBe(after);
  });

  it("ends the same after a machine that stopped at any step", async () => {
    const host = everything();
    const planned = host.site("r1", "cloned");
    planned.commit({ "etc/own": "own\n" });
    const before = outcome(planned);
    const installed = kept(await planned.install(await host.part("r1", "r2")));
    const plan = await planned.planRollback(installed);
    const smooth = planned.copy();
    const { steps: total, stopped } = await stopAfter(Infinity, () => smooth.apply(plan));
    expect(stopped).toBe(false);
    expect(total).toBeGreaterThan(100);
    expect(outcome(smooth)).toBe(before);
    for (let steps = 1; steps < total; steps += SAMPLE) {
      const site = planned.copy();
      expect((await stopAfter(steps, () => site.apply(plan))).stopped).toBe(true);
      await stopAfter((steps * 7) % total, () => site.apply(plan));
      await site.apply(plan);
      expect(outcome(site), `stopped after ${steps} of ${total} steps`).toBe(before);
      expect(site.git("rev-parse HEAD")).toBe(plan.mergeCommit);
      fs.rmSync(site.folder, { recursive: true });
    }
  }, 1_800_000);
});

/** All steps take many minutes: they are for ZFERRY_TEST_ALL=1. */
const SAMPLE = ALL ? 1 : 97;

describe("what the site did since the install", () => {
  it("stays, committed or, as its own commit, not", async () => {
    const { site, installed } = await installedSite();
    site.commit({
      "etc/config": "ONE\ntwo\nthree\nfour\nfive\nsix\nseven\nEIGHT\n",
      "etc/own": "own\n",
      "etc/stays": command('chmod 0600 "$1"'),
      "etc/modes": command('chown 80 "$1"; setfattr -n user.b -v 3 "$1"'),
    });
    edit(site.root, { "etc/stays": file("not committed\n", 0o600) });
    expect(await refusal(site, installed)).toMatchObject({ code: "worktree-dirty" });
    await site.rollBack(installed, { commitDrift: true });
    expect(site.status()).toBe("");
    expect(site.git("log -3 --format=%s")).toBe(
      "Roll back r2\nChanges of this site before rolling back r2\nlocal",
    );
    const content = (path: string): string => fs.readFileSync(`${site.root}/${path}`, "utf8");
    expect(content("etc/config")).toBe("one\ntwo\nthree\nfour\nfive\nsix\nseven\nEIGHT\n");
    expect([content("etc/own"), content("etc/stays")]).toEqual(["own\n", "not committed\n"]);
    const kept = 'stat -c "%a %u:%g" etc/stays etc/modes; getfattr -d etc/modes | grep user | sort';
    expect(sh(site.root, kept)).toBe('600 0:0\n640 80:0\nuser.a="1"\nuser.b="3"\n');
  });

  it("stays in a file that the install renamed, and in one that the site renamed since", async () => {
    const { site, installed } = await installedSite();
    edit(site.root, { "etc/new-name": null });
    site.commit({
      "etc/elsewhere": "a text of some length, so that it is known again\nand again\nin r2\n",
      "etc/conf.d/config": fs.readFileSync(`${site.root}/etc/config`),
      "etc/config": null,
    });
    expect(await refusal(site, installed)).toMatchObject({
      code: "merge-conflict",
      details: { paths: ["etc/new-name"] },
    });
    site.git("mv etc/elsewhere etc/new-name");
    site.commit({
      "etc/new-name": "a text of some length, so that it is known again\nand again, and here\nin r2\n",
    });
    // Too near one another to be merged.
    expect(await refusal(site, installed)).toMatchObject({ code: "merge-conflict" });
    site.commit({
      "etc/new-name": file("a text of some length, so that it is known again\nand again\nin r2\n", 0o600),
    });
    await site.rollBack(installed);
    expect(site.names("etc")).toEqual(
      expect.arrayContaining(["conf.d", "gone.d", "old-name", "stays"]) as string[],
    );
    expect(site.has("etc/config") || site.has("etc/new-name")).toBe(false);
    expect(fs.readFileSync(`${site.root}/etc/conf.d/config`, "utf8")).toMatch(/^one\n/);
    expect(sh(site.root, 'stat -c "%a" etc/old-name')).toBe("600\n");
  });

  it("is named where the install changed the same, with nothing changed; a policy decides", async () => {
    const { site, installed } = await installedSite();
    site.commit({
      "etc/config": "1\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n",
      "etc/new": "mine\n",
    });
    const refused = await refusal(site, installed);
    expect(refused).toMatchObject({
      code: "merge-conflict",
      message:
        "the site changed since the install what is to be taken back: etc/config (contents), etc/new (modify/delete)",
      details: { paths: ["etc/config", "etc/new"] },
    });
    const policies = [
      { policy: "ours" as const, path: "/etc/new" },
      { policy: "theirs" as const, path: "/etc/config" },
    ].map(({ policy, path }) => ({ ...parsePattern(path), policy, command: [] }));
    await site.rollBack(installed, { policies });
    expect(fs.readFileSync(`${site.root}/etc/new`, "utf8")).toBe("mine\n");
    expect(fs.readFileSync(`${site.root}/etc/config`, "utf8")).toMatch(/^one\n/);
  });

  it("is named where only attributes differ", async () => {
    const { site, installed } = await installedSite();
    edit(site.root, { "etc/modes": command('chmod 0604 "$1"') });
    expect(await refusal(site, installed)).toMatchObject({
      code: "merge-conflict",
      details: { reasons: ["etc/modes (permissions: 0604 here, 0640 before the install, 0600 after it)"] },
    });
  });

  it("keeps a folder that the install made, with what the site put there", async () => {
    const { site, installed } = await installedSite();
    site.commit({ "etc/new.d/own": "own\n" });
    await site.rollBack(installed);
    expect(site.names("etc/new.d")).toEqual(["own"]);
  });

  it("does not make a folder with owner and permissions that nobody knows", async () => {
    const { site, installed } = await installedSite((each) => each.commit({ "etc/gone.d/own": "own\n" }));
    expect(site.has("etc/gone.d/own")).toBe(true);
    site.commit({ "etc/gone.d": null });
    expect(await refusal(site, installed)).toMatchObject({
      code: "worktree-dirty",
      details: { paths: ["etc/gone.d"] },
    });
    edit(site.root, { "etc/gone.d": command('mkdir -m 700 "$1"') });
    await site.rollBack(installed);
    expect(sh(site.root, "stat -c %a etc/gone.d; cat etc/gone.d/file")).toBe("700\ngone\n");
  });

  it("may be a rollback by hand already", async () => {
    const { site, installed, original } = await installedSite();
    sh(
      site.root,
      "git revert --no-edit -m 1 HEAD && chown 0:0 etc/modes && chmod 640 etc/modes && setfattr -n user.a -v 1 etc/modes",
    );
    await site.rollBack(installed);
    expect(outcome(site)).toBe(original);
  });
});

describe("files that git did not track before the install", () => {
  const own = (site: Site): void =>
    edit(site.root, {
      ".git/info/exclude": "*.local\n",
      "etc/new": file("mine\n", 0o640, 'chgrp 80 "$1"; setfattr -n user.mine -v 1 "$1"'),
      "etc/new.local": link("elsewhere"),
      "etc/new-name": "a text of some length, so that it is known again\nand again\nin r2\n",
    });
  const options = { replaceUntracked: true };

  it("come back as they were, untracked", async () => {
    const { site, installed, original } = await installedSite(own, options);
    expect(site.status()).toBe("");
    await site.rollBack(installed);
    expect(outcome(site)).toBe(original);
    expect(site.git("for-each-ref refs/zferry/replaced")).toBe("");
  });

  it("end the same after a machine that stopped at any step", async () => {
    const { site: planned, installed, original } = await installedSite(own, options);
    const plan = await planned.planRollback(installed);
    const whole = planned.copy();
    const { steps: total } = await stopAfter(Infinity, () => whole.apply(plan));
    expect(outcome(whole)).toBe(original);
    for (let steps = 1; steps <= total; steps += Math.min(SAMPLE, 5)) {
      const site = planned.copy();
      await stopAfter(steps, () => site.apply(plan));
      await site.apply(plan);
      expect(outcome(site), `stopped after ${steps} of ${total} steps`).toBe(original);
      fs.rmSync(site.folder, { recursive: true });
    }
  }, 1_800_000);

  it("are named where the site changed what took their place", async () => {
    const { site, installed } = await installedSite(own, options);
    site.commit({ "etc/new": "changed\n" });
    expect(await refusal(site, installed)).toMatchObject({
      code: "merge-conflict",
      details: { reasons: ["etc/new (modify/delete)"] },
    });
  });

  it("stay in git, and are named, where the site keeps what took their place", async () => {
    const { site, installed } = await installedSite(own, options);
    site.commit({ "etc/new": "changed\n" });
    const warnings: string[] = [];
    const policies = [{ ...parsePattern("etc/new"), policy: "ours", command: [] } as const];
    await site.rollBack(installed, { policies, warn: (what) => warnings.push(what) });
    expect(warnings).toEqual([
      "etc/new: what was there before the install stays in git, in refs/zferry/replaced/r2",
    ]);
    expect([sh(site.root, "cat etc/new"), site.git("show refs/zferry/replaced/r2:etc/new")]).toEqual([
      "changed\n",
      "mine",
    ]);
    expect(site.status()).toContain("?? etc/new-name\n");
  });

  it("are told where git does not have them any more", async () => {
    const { site, installed } = await installedSite(own, options);
    sh(
      site.root,
      "git update-ref -d refs/zferry/replaced/r2; git reflog expire --expire=now --all; git gc -q --prune=now",
    );
    const warnings: string[] = [];
    await site.rollBack(installed, { warn: (what) => warnings.push(what) });
    expect(warnings).toEqual([expect.stringContaining("etc/new, etc/new.local") as string]);
    expect([site.has("etc/new"), site.has("etc/new-name"), site.status()]).toEqual([
      false,
      true,
      "?? etc/new-name\n",
    ]);
  });
});

it("is refused where the release is another by now, or the install's commit is not there", async () => {
  const { site, installed } = await installedSite();
  const other = { ...installed, releaseCommit: "c".repeat(40) };
  expect(await refusal(site, other)).toMatchObject({ code: "base-mismatch" });
  const missing = { ...installed, mergeCommit: "c".repeat(40) };
  expect(await refusal(site, missing)).toMatchObject({ code: "base-mismatch" });
});
