import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { describe, expect, it } from "vitest";
import type { ProgressOptions, ProgressReport } from "../../src/report.js";
import { commitRoot, discardRoot, importObjects, prepareRoot, revertRoot } from "../../src/root/apply.js";
import { parsePattern } from "../../src/root/path-pattern.js";
import { rootPlanSchema } from "../../src/root/plan.js";
import { openRepository } from "../../src/system/git.js";
import { everything } from "./everything.js";
import { ACCOUNTS, BuildHost, command, edit, file, sh } from "./hosts.js";

describe.each(["cloned", "unrelated"] as const)("a site with %s history", (history) => {
  it("comes to have every kind of change", async () => {
    const host = everything();
    const site = host.site("r1", history);
    const plan = await site.install(await host.part("r1", "r2"));
    expect(site.state()).toBe(host.site("r2", history).state());
    expect(site.status()).toBe("");
    expect(site.leftovers()).toBe("");
    expect(site.git("log -1 --format='%s %an %at'")).toBe("Install r2 zferry 1700000000");
    expect(site.git("fsck --strict")).toBe("");
    expect(plan.releaseCommit === null).toBe(history === "unrelated");
    expect(v.parse(rootPlanSchema, JSON.parse(JSON.stringify(plan)))).toEqual(plan);
    if (history === "cloned") {
      expect(site.git("rev-parse HEAD^{tree}")).toBe(sh(host.root, "git rev-parse r2^{tree}").trim());
      expect(site.git("rev-parse refs/zferry/release^{tree}")).toBe(
        sh(host.root, "git rev-parse r2^{tree}").trim(),
      );
      expect(site.git("rev-parse HEAD^2 refs/zferry/release^").split("\n")).toEqual([
        plan.releaseCommit,
        sh(host.root, "git rev-parse r1").trim(),
      ]);
    }
  });

  it("keeps its own changes", async () => {
    const host = everything();
    const site = host.site("r1", history);
    site.commit({
      "etc/config": "ONE\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n",
      "etc/own": file("own\n", 0o600),
      "etc/unchanged": "changed here\n",
      "etc/kept.d/own": "own\n",
      "etc/modes/data": file("data\n", 0o600),
      "etc/attributes": command('setfattr -n user.own -v 1 "$1"'),
    });
    await site.install(await host.part("r1", "r2"));
    const read = (path: string) => readFileSync(join(site.root, path), "utf8");
    expect(read("etc/config")).toBe("ONE\ntwo\nthree\nfour\nfive\nsix\nseven\nEIGHT\n");
    expect(read("etc/unchanged")).toBe("changed here\n");
    expect(read("etc/own")).toBe("own\n");
    expect(statSync(join(site.root, "etc/modes/data")).mode & 0o7777).toBe(0o600);
    expect(sh(site.root, "getfattr -d -m user etc/attributes")).toContain('user.own="1"');
    expect(site.status()).toBe("");
    expect(site.names("etc/kept.d")).toEqual(["own", "stays"]);
  });

  it("goes on to the next release", async () => {
    const host = everything();
    const site = host.site("r1", history);
    site.commit({ "etc/own": "own\n" });
    const [part, next] = [await host.part("r1", "r2"), await host.part("r2", "r3")];
    await site.install(part);
    const plan = await site.install(next, { release: "r3" });
    expect(readFileSync(join(site.root, "etc/config"), "utf8")).toContain("third release");
    expect(site.git("log -1 --format=%s")).toBe("Install r3");
    expect(site.status()).toBe("");
    expect(plan.previousRelease === null).toBe(history === "unrelated");
    if (history === "cloned") {
      await expect(site.plan(part)).rejects.toMatchObject({ code: "base-mismatch" });
    }
  });
});

it("a full root half fills an empty site", async () => {
  const host = everything();
  const part = await host.part(null, "r2");
  const empty = new BuildHost();
  empty.release("empty", {});
  const site = empty.site("empty", "cloned");
  await site.install(part);
  expect(site.state()).toBe(host.site("r2", "cloned").state());
  expect(site.status()).toBe("");
  await site.install(await host.part("r2", "r3"));
  expect(site.state()).toBe(host.site("r3", "cloned").state());
});

it("a full root half is merged into a machine that was installed by hand: only what differs is a conflict", async () => {
  const host = new BuildHost();
  host.release("r1", {
    ...ACCOUNTS,
    "etc/same": "same\n",
    "etc/theirs": "release\n",
    "etc/differs": "release\n",
  });
  const part = await host.part(null, "r1");
  const site = new BuildHost();
  site.release("by-hand", {
    ...ACCOUNTS,
    "etc/same": "same\n",
    "etc/mine": "site\n",
    "etc/differs": "site\n",
  });
  const first = site.site("by-hand", "unrelated");
  await expect(first.plan(part)).rejects.toMatchObject({
    code: "merge-conflict",
    details: { reasons: ["etc/differs (contents)"] },
  });
  await first.install(part, { policies: [{ ...parsePattern("/**"), policy: "ours", command: [] }] });
  expect(sh(first.root, "cat etc/same etc/mine etc/differs etc/theirs")).toBe("same\nsite\nsite\nrelease\n");
  expect(first.status()).toBe("");
});

it("gives files to the site's user of that name, also one that the release brings", async () => {
  const host = new BuildHost();
  host.release("r1", { ...ACCOUNTS, "etc/a": "a\n", "etc/b": "b\n" });
  host.release("r2", {
    "etc/a": command('echo 2 > "$1"; chown 80:80 "$1"'),
    "etc/b": command('echo 2 > "$1"; chown 90:80 "$1"'),
    "etc/passwd": "root:x:0:0::/root:/bin/sh\nweb:x:80:80::/:/bin/false\nnew:x:90:90::/:/bin/false\n",
  });
  const site = host.site("r1", "unrelated");
  site.commit({
    "etc/passwd": "root:x:0:0::/root:/bin/bash\nweb:x:1080:80::/:/bin/false\n",
    "etc/group": "root:x:0:\nweb:x:2080:\n",
  });
  await expect(site.plan(await host.part("r1", "r2"))).rejects.toMatchObject({ code: "merge-conflict" });
  site.commit({ "etc/passwd": "root:x:0:0::/root:/bin/sh\nweb:x:80:80::/:/bin/false\n" });
  await site.install(await host.part("r1", "r2"));
  expect(sh(site.root, "stat -c %u:%g etc/a etc/b")).toBe("80:2080\n90:2080\n");
});

it("names the users and groups that the site lacks", async () => {
  const host = new BuildHost();
  host.release("r1", { ...ACCOUNTS });
  host.release("r2", { "etc/a": command('echo 2 > "$1"; chown 80:80 "$1"') });
  const site = host.site("r1", "unrelated");
  site.commit({ "etc/passwd": "root:x:0:0::/root:/bin/sh\n", "etc/group": "root:x:0:\n" });
  await expect(site.plan(await host.part("r1", "r2"))).rejects.toMatchObject({
    code: "not-configured",
    details: { missing: ["group web", "user web"] },
  });
});

it("discards what was prepared, without a trace", async () => {
  const host = everything();
  const site = host.site("r1", "cloned");
  const before = site.state();
  const plan = await site.plan(await host.part("r1", "r2"));
  const git = await openRepository(site.root);
  await importObjects(plan, { git, scratchDir: site.scratch });
  await prepareRoot(plan, { git, rootDir: site.root });
  expect(site.leftovers()).not.toBe("");
  expect(await discardRoot(plan, { git, rootDir: site.root })).toEqual([]);
  expect(await discardRoot(plan, { git, rootDir: site.root })).toEqual([]);
  expect(site.state()).toBe(before);
  expect(site.leftovers()).toBe("");
  expect(site.status()).toBe("");
});

/** A site where all of a release is prepared. */
async function prepareSite() {
  const host = everything();
  const site = host.site("r1", "cloned");
  const plan = await site.plan(await host.part("r1", "r2"));
  const git = await openRepository(site.root);
  await importObjects(plan, { git, scratchDir: site.scratch });
  await prepareRoot(plan, { git, rootDir: site.root });
  return { site, plan, git };
}

// They stayed where the folder was moved to, and nothing told of them.
it.each([
  ["beside it", "mv etc elsewhere; ln -s elsewhere etc"],
  ["by an absolute link", "mkdir srv/x; mv etc srv/x/etc; ln -s /srv/x/etc etc"],
])("discards what was prepared in a folder that was moved %s since", async (_, script) => {
  const { site, plan, git } = await prepareSite();
  sh(site.root, `mkdir -p srv; ${script}`);
  expect(await discardRoot(plan, { git, rootDir: site.root })).toEqual([]);
  expect(sh(site.root, "find . -name '.zferry-*'")).toBe("");
});

it("names what was prepared where the folder is not found any more, and does not follow a link out of /", async () => {
  const { site, plan, git } = await prepareSite();
  sh(site.root, "mv etc ../moved; ln -s ../moved etc");
  const before = sh(site.folder, "find moved | sort");
  const prepared = sh(site.folder, "cd moved; find . -maxdepth 1 -name '.zferry-*' -printf 'etc/%f\\n'");
  const left = await discardRoot(plan, { git, rootDir: site.root });
  expect(left).toEqual(expect.arrayContaining(prepared.trim().split("\n")));
  expect(left.every((path) => path.startsWith("etc/"))).toBe(true);
  expect(sh(site.folder, "find moved | sort")).toBe(before);
});

it("prepares until it is interrupted, and leaves nothing then", async () => {
  const host = everything();
  const site = host.site("r1", "cloned");
  const before = site.state();
  const plan = await site.plan(await host.part("r1", "r2"));
  const git = await openRepository(site.root);
  await importObjects(plan, { git, scratchDir: site.scratch });
  const interrupt = new AbortController();
  const told: ProgressOptions["files"][] = [];
  const progress: ProgressReport = {
    update: (_what, _done, _total, { files } = {}) => {
      told.push(files);
      if (files !== undefined && files.done > 5) interrupt.abort();
    },
    end: () => undefined,
  };
  const { signal } = interrupt;
  await expect(prepareRoot(plan, { git, rootDir: site.root, progress, signal })).rejects.toMatchObject({
    code: "interrupted",
  });
  const total = plan.changes.filter(({ after }) => after !== null).length;
  expect(told.at(-1)?.total).toBe(total);
  expect(told.at(-1)?.done).toBeLessThan(total);
  await discardRoot(plan, { git, rootDir: site.root });
  expect(site.state()).toBe(before);
  expect(site.leftovers()).toBe("");
});

it("tells how many files are compared, prepared and written", async () => {
  const host = everything();
  const site = host.site("r1", "cloned");
  const told = new Map<string, number[]>();
  const progress: ProgressReport = {
    update: (what, done, total = 0) => void told.set(what, [done, total]),
    end: () => undefined,
  };
  const plan = await site.plan(await host.part("r1", "r2"), { progress });
  const place = { git: await openRepository(site.root), rootDir: site.root, scratchDir: site.scratch };
  await importObjects(plan, place);
  await prepareRoot(plan, place);
  await commitRoot(plan, { ...place, progress });
  expect([...told.keys()]).toEqual([
    "comparing the files of /",
    "checking what is prepared of /",
    "writing the files of /",
  ]);
  for (const [done, total] of told.values()) expect(done).toBe(total);
  told.clear();
  await revertRoot(plan, { ...place, progress });
  expect([...told.keys()]).toContain("preparing /");
});

it("is done when it is run again", async () => {
  const host = everything();
  const site = host.site("r1", "cloned");
  const plan = await site.install(await host.part("r1", "r2"));
  const after = site.state();
  await site.apply(plan);
  expect(site.state()).toBe(after);
  expect(site.leftovers()).toBe("");
  expect(site.git("log -1 --format=%H")).toBe(plan.mergeCommit);
});

it("does not run filters, hooks, drivers and monitors of the site", async () => {
  const host = everything();
  const site = host.site("r1", "cloned");
  const trap = join(site.folder, "ran");
  const run = `sh -c 'echo ran >> ${trap}; cat'`;
  site.commit({
    ".gitattributes": "* merge=trap diff=trap text=auto\n*.own filter=trap\n",
    "etc/x.own": "x\n",
  });
  // As new as the index for ever: git then looks into the files themselves whenever it writes an index.
  sh(site.root, "touch -d tomorrow etc/x.own etc/config");
  site.git("update-index --refresh");
  site.git(`config filter.trap.clean "${run}"`);
  site.git(`config filter.trap.smudge "${run}"`);
  site.git(`config filter.trap.process "${run}"`);
  site.git(`config merge.trap.driver "${run}"`);
  site.git(`config diff.trap.command "${run}"`);
  site.git(`config diff.external "${run}"`);
  site.git(`config core.fsmonitor "${run}"`);
  for (const hook of [
    "reference-transaction",
    "post-index-change",
    "pre-commit",
    "post-merge",
    "post-checkout",
  ]) {
    sh(
      site.root,
      `printf '#!/bin/sh\\necho ${hook} >> ${trap}\\n' > .git/hooks/${hook}; chmod +x .git/hooks/${hook}`,
    );
  }
  await site.install(await host.part("r1", "r2"));
  expect(() => readFileSync(trap)).toThrow("ENOENT");
});

describe("putting into place", () => {
  const host = everything();

  it("refuses what is as neither before nor after, with nothing touched", async () => {
    const site = host.site("r1", "cloned");
    const plan = await site.plan(await host.part("r1", "r2"));
    edit(site.root, { "etc/config": "in between\n" });
    const before = site.state();
    const git = await openRepository(site.root);
    const place = { git, rootDir: site.root, scratchDir: site.scratch };
    await importObjects(plan, place);
    await expect(commitRoot(plan, place)).rejects.toMatchObject({
      code: "worktree-dirty",
      details: { paths: ["etc/config"] },
    });
    expect(site.state()).toBe(before);
  });

  it("refuses when HEAD moved, or git runs", async () => {
    const site = host.site("r1", "cloned");
    const plan = await site.plan(await host.part("r1", "r2"));
    edit(site.root, { ".git/index.lock": "" });
    await expect(site.apply(plan)).rejects.toMatchObject({ code: "site-busy" });
    edit(site.root, { ".git/index.lock": null });
    site.commit({ "etc/own": "own\n" });
    await expect(site.apply(plan)).rejects.toMatchObject({ code: "worktree-dirty" });
  });

  it("clears the locks that a git left when the power went", async () => {
    const site = host.site("r1", "cloned");
    const plan = await site.plan(await host.part("r1", "r2"));
    edit(site.root, { ".git/refs/heads/main.lock": "", ".git/HEAD.lock": "", ".git/index.zferry.lock": "" });
    await site.apply(plan);
    expect(site.leftovers()).toBe("");
    expect(site.status()).toBe("");
  });
});
