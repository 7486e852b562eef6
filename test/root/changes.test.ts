import * as fs from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { describe, expect, it } from "vitest";
import { planChanges, readChanges, type ChangesOptions, type RootChanges } from "../../src/root/changes.js";
import { parsePattern } from "../../src/root/path-pattern.js";
import { rootPlanSchema, type RootPlan } from "../../src/root/plan.js";
import { createBorrower, openRepository } from "../../src/system/git.js";
import {
  ACCOUNTS,
  BuildHost,
  command,
  edit,
  file,
  fingerprint,
  link,
  sh,
  type Edits,
  type Site,
} from "./hosts.js";
import { ALL } from "../rarely.js";
import { stopAfter } from "./stop.js";

/*
 * What was changed in an environment after another one was made from it: formats/environments.md, Merging what was changed before.
 * `then` is the snapshot that was cloned, `old` the one before as it is now, `site` the new one, which has release r2.
 */

const LINES = "one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n";
const host = new BuildHost();
host.release("r1", {
  ...ACCOUNTS,
  "etc/config": LINES,
  "etc/gone": "gone\n",
  "etc/modes": file("same\n", 0o640, 'setfattr -n user.a -v 1 "$1"'),
  "etc/old-name": "a text of some length, so that it is known again\nand again\n",
  "etc/stays": "stays\n",
  "etc/conf.d/a": "a\n",
});
host.release("r2", {
  "etc/config": LINES.replace("one", "ONE"),
  "etc/new": "of the release\n",
  "etc/old-name": null,
  "etc/new-name": "a text of some length, so that it is known again\nand again\n",
});

interface Environments {
  readonly then: Site;
  readonly old: Site;
  readonly site: Site;
}

/** @param before of the one before, when it is cloned */
async function environments(before: (old: Site) => void = () => undefined): Promise<Environments> {
  const old = host.site("r1", "cloned");
  before(old);
  const [then, site] = [old.copy(), old.copy()];
  await site.install(await host.part("r1", "r2"), { commitDrift: true });
  return { then, old, site };
}

const rootOf = async (site: Site) => ({ git: await openRepository(site.root), rootDir: site.root });

async function plan(
  { then, old, site }: Environments,
  options: Partial<ChangesOptions> = {},
): Promise<{ found: RootChanges; root: RootPlan | null }> {
  const { git, rootDir } = await rootOf(site);
  const scratchDir = site.scratch;
  const scratch = createBorrower(join(scratchDir, "root.git"), git);
  const found = await readChanges(scratch, { then: await rootOf(then), now: await rootOf(old), scratchDir });
  const root = await planChanges(scratch, {
    ...{ git, rootDir, scratchDir, found, environment: "one", message: "Merge changes of one" },
    date: 1_700_000_200,
    ...options,
  });
  // As a state folder gives it back.
  return { found, root: root && v.parse(rootPlanSchema, JSON.parse(JSON.stringify(root))) };
}

async function merge(all: Environments, options: Partial<ChangesOptions> = {}): Promise<RootPlan | null> {
  const [then, old] = [fingerprint(all.then), fingerprint(all.old)];
  const { root } = await plan(all, options);
  if (root !== null) await all.site.apply(root);
  // Both are only read.
  expect([fingerprint(all.then), fingerprint(all.old)]).toEqual([then, old]);
  return root;
}

/** What it is refused with; the new one must be as it was. */
async function refusal(all: Environments, options: Partial<ChangesOptions> = {}): Promise<unknown> {
  const before = fingerprint(all.site);
  const refused: unknown = await plan(all, options).then(
    () => "nothing is refused",
    (error: unknown) => error,
  );
  expect(fingerprint(all.site)).toBe(before);
  return refused;
}

const content = (site: Site, path: string): string => fs.readFileSync(join(site.root, path), "utf8");

/** What an administrator did, with a commit and without one. */
const COMMITTED: Edits = {
  "etc/config": LINES.replace("eight", "EIGHT"),
  "etc/own.d/own": file("own\n", 0o600, 'chmod 2750 "$(dirname "$1")"; chgrp 80 "$(dirname "$1")"'),
  "etc/old-name": "a text of some length, so that it is known again\nand again, and here\n",
};
const UNCOMMITTED: Edits = {
  "etc/gone": null,
  "etc/modes": command(
    'chmod 0600 "$1"; chown 80 "$1"; setfattr -n user.a -v 2 "$1"; setfattr -n user.b -v 3 "$1"',
  ),
  "etc/stays": link("config"),
  "etc/conf.d/a": command('chmod 700 "$(dirname "$1")"'),
};

async function changed(): Promise<Environments> {
  const all = await environments();
  all.old.commit(COMMITTED);
  edit(all.old.root, UNCOMMITTED);
  return all;
}

describe("what was changed in the environment before", () => {
  it("is merged, whether it was committed or not, with what git does not keep", async () => {
    const all = await changed();
    const { site } = all;
    const head = site.git("rev-parse HEAD");
    const release = site.git("rev-parse refs/zferry/release");
    await merge(all);
    expect(site.leftovers()).toBe("");
    expect(site.status()).toBe("");
    expect(content(site, "etc/config")).toBe(LINES.replace("one", "ONE").replace("eight", "EIGHT"));
    expect(content(site, "etc/new")).toBe("of the release\n");
    // What the release renamed has the change under its new name.
    expect(content(site, "etc/new-name")).toContain("and again, and here\n");
    expect(site.has("etc/old-name") || site.has("etc/gone")).toBe(false);
    expect(fs.readlinkSync(join(site.root, "etc/stays"))).toBe("config");
    expect(
      sh(
        site.root,
        'stat -c "%n %a %u:%g" etc/modes etc/own.d etc/own.d/own etc/conf.d; getfattr -d etc/modes | grep user | sort',
      ),
    ).toBe(
      "etc/modes 600 80:0\netc/own.d 2750 0:80\netc/own.d/own 600 0:0\netc/conf.d 700 0:0\n" +
        'user.a="2"\nuser.b="3"\n',
    );
    expect(site.git("log -1 --format='%s %P'")).toBe(`Merge changes of one ${head}`);
    expect(site.git("rev-parse refs/zferry/release")).toBe(release);
    // A second time there is nothing to do.
    expect((await plan(all)).root).toBeNull();
  });

  it("by names of users, whatever number they have here", async () => {
    const all = await environments();
    all.site.commit({ "etc/passwd": "root:x:0:0::/root:/bin/sh\nweb:x:81:80::/:/bin/false\n" });
    edit(all.old.root, { "etc/modes": command('chown 80 "$1"') });
    await merge(all);
    expect(sh(all.site.root, "stat -c %u etc/modes")).toBe("81\n");
  });

  it("is merged where only attributes were changed, of a file and of a folder", async () => {
    const all = await environments();
    edit(all.old.root, {
      "etc/modes": command('chmod 0400 "$1"'),
      "etc/conf.d/a": command('chgrp 80 "$(dirname "$1")"'),
    });
    const root = await merge(all);
    expect(root?.changes.map(({ path }) => path)).toEqual(["etc/modes"]);
    expect(sh(all.site.root, "stat -c '%a %g' etc/modes etc/conf.d")).toBe("400 0\n755 80\n");
    expect(all.site.git("diff --stat HEAD~")).toBe("");
  });

  it("is not what was uncommitted already when it was cloned", async () => {
    const all = await environments((old) => edit(old.root, { "etc/stays": "before the clone\n" }));
    // It was taken back here, and in the one before it is as it was.
    all.site.commit({ "etc/stays": "stays\n" });
    edit(all.old.root, { "etc/config": LINES.replace("eight", "EIGHT") });
    await merge(all);
    expect(content(all.site, "etc/stays")).toBe("stays\n");
    expect(content(all.site, "etc/config")).toContain("EIGHT");
  });

  it("is there already where the new one has the same", async () => {
    const all = await changed();
    await merge({ ...all, site: all.site });
    const again = { ...all, site: all.site.copy() };
    again.site.commit({ "etc/other": "own\n" });
    expect((await plan(again)).root).toBeNull();
  });

  it("leaves files alone that git tracks in neither, or not any more, and those of the site's own", async () => {
    const all = await environments((old) => {
      edit(old.root, { ".git/info/exclude": "*.local\n" });
      old.commit({ "etc/zferry/site.toml": "one\n", "etc/dropped": "kept\n" });
    });
    const before = all.site.state();
    edit(all.old.root, { "etc/untracked": "new\n", "etc/a.local": "ignored\n" });
    sh(all.old.root, "git rm -q --cached etc/dropped; git commit -qm dropped");
    edit(all.old.root, { "etc/zferry/site.toml": "two\n" });
    const { found, root } = await plan(all);
    expect([found.changes, root]).toEqual([[], null]);
    expect(all.site.state()).toBe(before);
  });
});

describe("with conflicts", () => {
  const conflicting = async (): Promise<Environments> => {
    const all = await changed();
    edit(all.old.root, { "etc/config": LINES.replace("one", "1") });
    all.site.commit({ "etc/modes": command('chmod 0604 "$1"') });
    return all;
  };

  it("changes nothing, and names them", async () => {
    const refused = await refusal(await conflicting());
    expect(refused).toMatchObject({
      code: "merge-conflict",
      message:
        "changed here and in the environment one: etc/config (contents), " +
        "etc/modes (permissions: 0604 here, 0600 in the environment one, 0640 before)",
      details: { paths: ["etc/config", "etc/modes"] },
      hint: expect.stringContaining("bundle confirm --merge") as string,
    });
  });

  it("is merged once a policy decides, or the new one has the same", async () => {
    const all = await conflicting();
    const policies = [{ ...parsePattern("/etc/modes"), policy: "ours" as const, command: [] }];
    all.site.commit({ "etc/config": LINES.replace("one", "1") });
    const settled: string[] = [];
    await merge(all, { policies, settled: (found) => settled.push(...found.map(({ path }) => path)) });
    expect(settled).toEqual(["etc/modes"]);
    expect(sh(all.site.root, "stat -c %a etc/modes; head -n 1 etc/config")).toBe("604\n1\n");
    expect(all.site.has("etc/gone")).toBe(false);
  });

  it("of a file in the way, which git does not track here", async () => {
    const all = await changed();
    edit(all.site.root, { "etc/own.d/own": "mine\n" });
    expect(await refusal(all)).toMatchObject({
      code: "worktree-dirty",
      message: "something lies where the environment one puts a file: etc/own.d/own (an untracked file)",
      hint: "move it away, or commit it",
    });
  });
});

describe("where the new one has changes that are not committed", () => {
  it("is nothing where nothing was changed", async () => {
    const all = await environments();
    edit(all.site.root, { "etc/new": "not committed\n" });
    expect((await plan(all)).root).toBeNull();
  });

  it("is refused, or commits them first", async () => {
    const all = await changed();
    edit(all.site.root, { "etc/new": "not committed\n" });
    expect(await refusal(all)).toMatchObject({ code: "worktree-dirty", details: { paths: ["etc/new"] } });
    await merge(all, { commitDrift: true });
    expect(all.site.status()).toBe("");
    expect(all.site.git("log -2 --format=%s")).toBe(
      "Merge changes of one\nChanges of this system before those of one",
    );
    expect([content(all.site, "etc/new"), all.site.has("etc/gone")]).toEqual(["not committed\n", false]);
  });
});

it("is refused while an operation of git is not concluded in the one before", async () => {
  const all = await changed();
  edit(all.old.root, { ".git/MERGE_HEAD": `${all.old.git("rev-parse HEAD")}\n` });
  expect(await refusal(all)).toMatchObject({ code: "worktree-dirty", message: /a merge is not concluded/ });
});

/** All steps take minutes: they are for ZFERRY_TEST_ALL=1. */
const SAMPLE = ALL ? 1 : 41;

it("ends the same after a machine that stopped at any step, and can be taken back from there", async () => {
  const all = await changed();
  const before = all.site.everything();
  const { root } = await plan(all);
  if (root === null) throw new Error("nothing is planned");
  const smooth = all.site.copy();
  const { steps: total, stopped } = await stopAfter(Infinity, () => smooth.apply(root));
  expect(stopped).toBe(false);
  const after = smooth.everything();
  expect(after).not.toBe(before);
  for (let steps = 1; steps < total; steps += SAMPLE) {
    for (const [end, expected] of [["apply", after] as const, ["takeBack", before] as const]) {
      const site = all.site.copy();
      expect((await stopAfter(steps, () => site.apply(root))).stopped).toBe(true);
      await site[end](root);
      const where = `${end} after ${steps} of ${total} steps`;
      expect([site.everything(), site.leftovers()], where).toEqual([expected, ""]);
      fs.rmSync(site.folder, { recursive: true });
    }
  }
}, 600_000);
