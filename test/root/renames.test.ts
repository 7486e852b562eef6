import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { ACCOUNTS, BuildHost, command, edit, file, newFolder, sh, type Edits, type Site } from "./hosts.js";

const lines = (...changes: Record<number, string>[]): string =>
  Array.from({ length: 12 }, (_, index) => `${changes[0]?.[index] ?? `line ${index}`}\n`).join("");

const BEFORE: Edits = { ...ACCOUNTS, "etc/a": lines(), "etc/other": "other\n" };

/** A build host with releases r1 and r2. */
function hostOf(after: Edits, before: Edits = BEFORE): BuildHost {
  const host = new BuildHost();
  host.release("r1", before);
  host.release("r2", after);
  return host;
}

const moved = (path: string, to: string, more = ""): Edits => ({
  [path]: command(
    `mkdir -p "$(dirname "$1")/$(dirname ${to})"; cd "$(dirname "$1")"; mv "$1" ${to}; ${more}`,
  ),
});

const read = (site: Site, path: string): string => readFileSync(join(site.root, path), "utf8");
const attributes = (site: Site, path: string): string => sh(site.root, `stat -c '%u:%g %a' ${path}`).trim();

/** What git's own merge makes of it: the tree, or null for a conflict. */
function asGit(host: BuildHost, site: Site): string | null {
  const clone = join(newFolder(), "clone");
  sh(
    "/",
    `git clone -q ${site.root} ${clone}; git -C ${clone} fetch -q ${host.root} 'refs/tags/*:refs/tags/*'`,
  );
  try {
    sh(clone, "git -c merge.renames=true -c merge.directoryRenames=false merge -q -s ort -m m r2");
  } catch {
    return null;
  }
  return sh(clone, "git rev-parse HEAD^{tree}").trim();
}

async function ownTree(host: BuildHost, site: Site): Promise<string | null> {
  try {
    const plan = await site.plan(await host.part("r1", "r2"));
    await site.apply(plan);
  } catch (error) {
    if ((error as { code?: string }).code === "merge-conflict") return null;
    throw error;
  }
  expect(site.status()).toBe("");
  return site.git("rev-parse HEAD^{tree}");
}

it("a file that the site closed to others stays closed where the release makes a folder of another file for it", async () => {
  const host = hostOf({ "etc/other": null, ...moved("etc/a", "other/a") });
  const site = host.site("r1", "cloned");
  site.commit({ "etc/a": command('chmod 600 "$1"; chown 5 "$1"') });
  await site.install(await host.part("r1", "r2"));
  expect(attributes(site, "etc/other/a")).toBe("5:0 600");
  expect(read(site, "etc/other/a")).toBe(lines());
});

describe("a file that the release renames", () => {
  const renamed = moved(
    "etc/a",
    "new.d/b",
    'sed -i "s/line 11/LAST/" new.d/b; chmod 640 new.d/b; chgrp 80 new.d/b',
  );

  it.each(["cloned", "unrelated"] as const)("takes the site's changes with it, %s", async (history) => {
    const host = hostOf(renamed);
    const site = host.site("r1", history);
    const before = site.state();
    site.commit({
      "etc/a": file(lines({ 0: "FIRST" }), 0o644, 'chown 5 "$1"', 'setfattr -n user.own -v 1 "$1"'),
    });
    const changed = site.state();
    const plan = await site.install(await host.part("r1", "r2"));
    expect(site.has("etc/a")).toBe(false);
    expect(read(site, "etc/new.d/b")).toBe(lines({ 0: "FIRST", 11: "LAST" }));
    expect(attributes(site, "etc/new.d/b")).toBe("5:80 640");
    expect(sh(site.root, "getfattr -d -m user etc/new.d/b")).toContain('user.own="1"');
    expect(site.status()).toBe("");
    await site.takeBack(plan);
    expect(site.state()).toBe(changed);
    expect(changed).not.toBe(before);
  });

  it("keeps what only the site's owner could read", async () => {
    const host = hostOf(moved("etc/a", "b"));
    const site = host.site("r1", "cloned");
    site.commit({ "etc/a": file(lines({ 3: "secret" }), 0o600) });
    await site.install(await host.part("r1", "r2"));
    expect(attributes(site, "etc/b")).toBe("0:0 600");
    expect(read(site, "etc/b")).toContain("secret");
  });

  it("is a conflict where both changed an attribute", async () => {
    const host = hostOf(renamed);
    const site = host.site("r1", "cloned");
    site.commit({ "etc/a": command('chmod 600 "$1"') });
    await expect(site.plan(await host.part("r1", "r2"))).rejects.toMatchObject({
      code: "merge-conflict",
      details: { reasons: ["etc/new.d/b (permissions: 0600 here, 0640 in the release, 0644 before)"] },
    });
  });

  it("does not replace an untracked file", async () => {
    const host = hostOf(moved("etc/a", "b"));
    const site = host.site("r1", "cloned");
    edit(site.root, { "etc/b": "mine\n" });
    await expect(site.plan(await host.part("r1", "r2"))).rejects.toMatchObject({
      code: "worktree-dirty",
      details: { paths: ["etc/b (an untracked file)"] },
    });
  });
});

describe("a file that the site renamed", () => {
  it("gets the release's content and attributes", async () => {
    const host = hostOf({ "etc/a": file(lines({ 11: "LAST" }), 0o640) });
    const site = host.site("r1", "cloned");
    site.commit(moved("etc/a", "own.d/c", 'sed -i "s/line 0/FIRST/" own.d/c; chown 5 own.d/c'));
    await site.install(await host.part("r1", "r2"));
    expect(site.has("etc/a")).toBe(false);
    expect(read(site, "etc/own.d/c")).toBe(
      lines({ 0: "FIRST", 10: "line 10", 11: "LAST" }).replace("line 0", "FIRST"),
    );
    expect(attributes(site, "etc/own.d/c")).toBe("5:0 640");
    expect(site.status()).toBe("");
  });

  it("gets attributes alone", async () => {
    const host = hostOf({ "etc/a": command('chgrp 80 "$1"; setfattr -n user.new -v 1 "$1"') });
    const site = host.site("r1", "cloned");
    site.commit(moved("etc/a", "c"));
    await site.install(await host.part("r1", "r2"));
    expect(attributes(site, "etc/c")).toBe("0:80 644");
    expect(sh(site.root, "getfattr -d -m user etc/c")).toContain('user.new="1"');
  });

  it("is not followed to where the site keeps what is its own", async () => {
    const host = hostOf({ "etc/a": lines({ 11: "LAST" }) });
    const site = host.site("r1", "cloned");
    site.commit(moved("etc/a", "zferry/site.toml"));
    await expect(site.plan(await host.part("r1", "r2"))).rejects.toMatchObject({
      code: "merge-conflict",
      details: { reasons: ["etc/a (modify/delete)"] },
    });
    expect(statSync(join(site.root, "etc/zferry/site.toml")).size).toBe(lines().length);
  });

  it("is not followed without the whole base, which is said", async () => {
    const host = hostOf({ "etc/a": command('chgrp 80 "$1"') });
    const site = host.site("r1", "unrelated");
    const told: string[] = [];
    const warn = (what: string) => told.push(what);
    await site.plan(await host.part("r1", "r2"), { warn });
    expect(told).toEqual([]);
    site.commit(moved("etc/a", "c"));
    await site.install(await host.part("r1", "r2"), { warn });
    expect(told).toEqual([expect.stringMatching(/this site's renames are not followed: .* etc\/a, which/)]);
    expect(attributes(site, "etc/c")).toBe("0:0 644");
  });
});

describe("as git's own merge", () => {
  const theirsRenames = moved("etc/a", "b", 'sed -i "s/line 11/LAST/" b');
  it.each<[string, Edits, Edits]>([
    ["the release renames, the site changes", theirsRenames, { "etc/a": lines({ 0: "FIRST" }) }],
    ["the release renames, the site does nothing", theirsRenames, { "etc/other": "2\n" }],
    [
      "the release renames, the site changes the same lines",
      theirsRenames,
      { "etc/a": lines({ 11: "ours" }) },
    ],
    ["the release renames, the site deletes", moved("etc/a", "b"), { "etc/a": null }],
    ["the release renames and changes, the site deletes", theirsRenames, { "etc/a": null }],
    [
      "the release renames, the site has that name",
      theirsRenames,
      { "etc/a": lines({ 0: "1" }), "etc/b": "b\n" },
    ],
    ["the release deletes, the site renames", { "etc/a": null }, moved("etc/a", "c")],
    ["the release changes, the site renames", { "etc/a": lines({ 1: "x" }) }, moved("etc/a", "c")],
    [
      "the release changes and adds, the site renames",
      { "etc/a": lines({ 1: "x" }), "etc/c": "c\n" },
      moved("etc/a", "c"),
    ],
    ["both rename to one name", theirsRenames, moved("etc/a", "b", 'sed -i "s/line 0/FIRST/" b')],
    ["both rename to two names", theirsRenames, moved("etc/a", "c")],
    ["both rename two files to one name", theirsRenames, { ...moved("etc/other", "b") }],
    [
      "the release makes a folder of it",
      { "etc/a": command('mv "$1" "$1.t"; mkdir "$1"; mv "$1.t" "$1/x"') },
      { "etc/a": lines({ 0: "FIRST" }) },
    ],
    [
      "the release renames it below a file of the site",
      moved("etc/a", "f/x"),
      { "etc/a": lines({ 0: "1" }), "etc/f": "f\n" },
    ],
  ])("%s", async (_, theirs, ours) => {
    const host = hostOf(theirs);
    const site = host.site("r1", "cloned");
    site.commit(ours);
    const expected = asGit(host, site);
    expect(await ownTree(host, site)).toBe(expected);
  });

  it("two names are both told", async () => {
    const host = hostOf(theirsRenames);
    const site = host.site("r1", "cloned");
    site.commit(moved("etc/a", "c"));
    await expect(site.plan(await host.part("r1", "r2"))).rejects.toMatchObject({
      code: "merge-conflict",
      details: { reasons: ["etc/a (rename/rename, here to etc/c, in the release to etc/b)"] },
    });
  });
});
