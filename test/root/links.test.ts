import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { describe, expect, it } from "vitest";
import { commitRoot, importObjects, prepareRoot } from "../../src/root/apply.js";
import type { PlanOptions } from "../../src/root/merge.js";
import { parseMetadata } from "../../src/root/metadata.js";
import { rootPlanSchema, type RootPlan } from "../../src/root/plan.js";
import { openRepository } from "../../src/system/git.js";
import {
  ACCOUNTS,
  BuildHost,
  command,
  edit,
  file,
  hardLink,
  linksIn,
  sh,
  type Edits,
  type Site,
} from "./hosts.js";

const PART = command('cp -p "$1" "$1.copy"; mv "$1.copy" "$1"');
const ONE: Edits = { "t/a": "one\n", "t/b": hardLink("a") };

interface Case {
  readonly name: string;
  readonly base: Edits;
  readonly site?: Edits;
  readonly release: Edits;
  /** The site's paths that are one file after the install. */
  readonly links: string[][];
  /** Contents after the install, where they are in question. */
  readonly contents?: Record<string, string>;
  readonly warns?: RegExp[];
  /** Whether a file that the release changes has names that it does not change. */
  readonly hasOthers?: boolean;
  /** Paths of the plan. */
  readonly plan?: string[];
}

const CASES: Case[] = [
  {
    name: "two new names of one file",
    base: {},
    release: ONE,
    links: [["t/a", "t/b"]],
  },
  {
    name: "a change of both names",
    base: ONE,
    release: { "t/a": "two\n" },
    links: [["t/a", "t/b"]],
    contents: { "t/b": "two\n" },
  },
  {
    name: "a change of attributes alone",
    base: ONE,
    release: { "t/a": command('chmod 0600 "$1"; chgrp 80 "$1"') },
    links: [["t/a", "t/b"]],
  },
  {
    name: "a change of links alone",
    base: { "t/a": "one\n", "t/b": "one\n" },
    release: { "t/b": hardLink("a") },
    links: [["t/a", "t/b"]],
    plan: ["t/a", "t/b"],
  },
  {
    name: "parted, with the same content",
    base: ONE,
    release: { "t/b": PART },
    links: [],
    plan: ["t/a", "t/b"],
  },
  {
    name: "one name more for a file that does not change",
    base: ONE,
    release: { "t/new/c": hardLink("../a") },
    links: [["t/a", "t/b", "t/new/c"]],
  },
  {
    name: "one name less",
    base: { ...ONE, "t/c": hardLink("a") },
    release: { "t/a": null },
    links: [["t/b", "t/c"]],
  },
  {
    name: "one name less, of a file that has a name of the site's own too",
    hasOthers: true,
    base: ONE,
    site: { "t/own": hardLink("a") },
    release: { "t/b": null },
    links: [["t/a", "t/own"]],
  },
  {
    name: "a renamed file with another name",
    base: ONE,
    release: { "t/x": hardLink("b"), "t/a": null },
    links: [["t/b", "t/x"]],
  },
  {
    name: "another partner",
    base: { ...ONE, "t/c": "one\n" },
    release: { "t/a": PART, "t/c": hardLink("b") },
    links: [["t/b", "t/c"]],
  },
  {
    name: "parted by the site, and changed in content by the release",
    base: ONE,
    site: { "t/b": PART },
    release: { "t/a": "two\n" },
    links: [],
    contents: { "t/a": "two\n", "t/b": "two\n" },
  },
  {
    name: "parted by the site, and one more name in the release",
    base: ONE,
    site: { "t/b": PART },
    release: { "t/c": hardLink("a") },
    links: [["t/a", "t/b", "t/c"]],
  },
  {
    name: "linked by the site alone, and changed alike by the release",
    base: { "t/a": "one\n", "t/b": "one\n" },
    site: { "t/b": hardLink("a") },
    release: { "t/a": "two\n", "t/b": "two\n" },
    links: [["t/a", "t/b"]],
  },
  {
    name: "linked by the site alone, and made different by the release",
    base: { "t/a": "one\n", "t/b": "one\n" },
    site: { "t/b": hardLink("a") },
    release: { "t/a": "two\n", "t/b": "three\n" },
    links: [],
    contents: { "t/a": "two\n", "t/b": "three\n" },
    warns: [/^t\/a, t\/b are one file on this site .*, and differ here after the install/],
  },
  {
    name: "linked by the release, and made different by the site",
    base: { "t/a": "1\n2\n3\n4\n5\n", "t/b": "1\n2\n3\n4\n5\n", "t/c": "1\n2\n3\n4\n5\n" },
    site: { "t/a": "site\n2\n3\n4\n5\n" },
    release: { "t/a": "1\n2\n3\n4\nrelease\n", "t/b": hardLink("a"), "t/c": hardLink("a") },
    links: [["t/b", "t/c"]],
    contents: { "t/a": "site\n2\n3\n4\nrelease\n", "t/b": "1\n2\n3\n4\nrelease\n" },
    warns: [/^t\/a, t\/b, t\/c are one file in the release .*, and differ here/],
  },
  {
    name: "linked by the release, with another owner of one on the site",
    base: { "t/a": "one\n", "t/b": "one\n" },
    site: { "t/a": command('chown 80 "$1"') },
    release: { "t/a": command('printf "two\\n" > "$1"'), "t/b": hardLink("a") },
    links: [],
    warns: [/^t\/a, t\/b are one file in the release/],
  },
  {
    name: "a name that the site removed",
    base: ONE,
    site: { "t/b": null },
    release: { "t/c": hardLink("a") },
    links: [["t/a", "t/c"]],
  },
  {
    name: "renamed by the site",
    base: { "t/a": "1\n2\n3\n4\n5\n", "t/b": hardLink("a") },
    site: { "t/x": hardLink("a"), "t/a": null },
    release: { "t/b": "1\n2\n3\n4\nrelease\n" },
    links: [["t/b", "t/x"]],
    contents: { "t/x": "1\n2\n3\n4\nrelease\n" },
  },
  {
    name: "a name of the site's own, which git tracks",
    hasOthers: true,
    base: { "t/a": "one\n" },
    site: { "t/own": hardLink("a") },
    release: { "t/a": "two\n" },
    links: [],
    contents: { "t/own": "one\n" },
    warns: [/^t\/a has another name on this site \(hard links\) that the release does not change/],
  },
  {
    name: "names of the site's own, which git ignores",
    hasOthers: true,
    base: { ...ONE, ".gitignore": "*.local\n" },
    site: { "t/x.local": hardLink("a"), "t/y.local": hardLink("a") },
    release: { "t/a": "two\n" },
    links: [
      ["t/a", "t/b"],
      ["t/x.local", "t/y.local"],
    ],
    contents: { "t/x.local": "one\n" },
    warns: [/^t\/a, t\/b has 2 other names/],
  },
  {
    name: "linked by the site with what the release links to something else",
    base: { "t/a": "one\n", "t/b": "one\n", "t/c": "one\n" },
    site: { "t/b": hardLink("a") },
    release: { "t/a": hardLink("c"), "t/b": command('chmod 0600 "$1"') },
    links: [["t/a", "t/c"]],
    warns: [/^t\/a, t\/b are one file on this site \(hard links\); the release links some of them/],
  },
  {
    name: "done by the site already",
    base: { "t/a": "one\n", "t/b": "one\n" },
    site: { "t/b": hardLink("a") },
    release: { "t/b": hardLink("a") },
    links: [["t/a", "t/b"]],
    plan: [],
  },
  {
    name: "a symbolic link with two names",
    base: {},
    release: { "t/a": command('ln -s x "$1"; ln -P "$1" "$1.too"') },
    links: [],
  },
  {
    name: "names that are not UTF-8",
    base: {},
    release: {
      "t/a": command('d=$(dirname "$1"); printf x > "$d/$(printf "\\377")"; ln "$d/$(printf "\\377")" "$1"'),
    },
    links: [["t/a", "t/\xff"]],
  },
];

async function installed(
  { base, site: local, release }: Pick<Case, "base" | "site" | "release">,
  options: Partial<PlanOptions> = {},
): Promise<{ site: Site; plan: RootPlan; host: BuildHost; before: string; warnings: string[] }> {
  const host = new BuildHost();
  host.release("r1", { ...ACCOUNTS, ...base });
  host.release("r2", release);
  const site = host.site("r1", "cloned");
  site.commit(local ?? {});
  const before = site.everything();
  const warnings: string[] = [];
  const plan = await site.plan(await host.part("r1", "r2"), {
    warn: (what) => warnings.push(what),
    ...options,
  });
  expect(site.everything()).toBe(before);
  await site.apply(plan);
  return { site, plan, host, before, warnings };
}

describe("hard links among tracked files", () => {
  it.each(CASES)("$name", async ({ links, contents = {}, warns = [], plan: paths, hasOthers, ...sides }) => {
    const { site, plan, before, warnings } = await installed(sides);
    expect(site.links()).toEqual(links);
    for (const [path, content] of Object.entries(contents))
      expect(readFileSync(join(site.root, path), "utf8"), path).toBe(content);
    expect(warnings).toEqual(warns.map((pattern) => expect.stringMatching(pattern) as unknown));
    if (paths !== undefined) expect(plan.changes.map(({ path }) => path)).toEqual(paths);
    expect(site.status() + site.leftovers()).toBe("");

    const after = site.everything();
    await site.apply(plan);
    expect(site.everything()).toBe(after);
    await site.takeBack(plan);
    // Taken back, what has names that the release does not change is parted from them; all else is as before.
    const shown = (text: string): string => (hasOthers ? text.replace(/^\[.*\]$/m, "") : text);
    expect(shown(site.everything())).toBe(shown(before));
  });

  it("with a history of its own, and onto a site without a release, a release brings its links", async () => {
    const host = new BuildHost();
    host.release("r1", { ...ACCOUNTS, ...ONE });
    host.release("r2", { "t/a": "two\n", "t/c": hardLink("a") });
    const site = host.site("r1", "unrelated");
    await site.install(await host.part("r1", "r2"));
    expect(site.links()).toEqual([["t/a", "t/b", "t/c"]]);
  });

  it("parted again by git checkout, they stay so, and the next release counts as what it changes", async () => {
    const host = new BuildHost();
    host.release("r1", { ...ACCOUNTS, ...ONE });
    host.release("r2", { "t/a": "two\n" });
    const site = host.site("r1", "cloned");
    sh(site.root, "rm t/b; git checkout -q t/b");
    const plan = await site.install(await host.part("r1", "r2"));
    expect(site.links()).toEqual([]);
    expect(
      plan.changes.every(({ before, after }) => before?.link === undefined && after?.link === undefined),
    ).toBe(true);
  });

  it("an untracked file that is replaced keeps its content under its other name", async () => {
    const { site, warnings } = await installed(
      {
        base: { ".gitignore": "*.local\n" },
        site: { "t/new.local": "mine\n", "t/keep.local": hardLink("new.local") },
        release: { "t/x": "new\n", "t/new.local": hardLink("x"), ".gitignore": "" },
      },
      { replaceUntracked: true },
    );
    expect(site.links()).toEqual([["t/new.local", "t/x"]]);
    expect(readFileSync(join(site.root, "t/keep.local"), "utf8")).toBe("mine\n");
    expect(warnings).toHaveLength(1);
  });

  it("on different file systems they are two files, and plan says so", async () => {
    const host = new BuildHost();
    host.release("r1", { ...ACCOUNTS, "m/stays": "x\n", "t/a": "one\n", "m/b": "one\n" });
    host.release("r2", { "m/b": hardLink("../t/a") });
    const site = host.site("r1", "cloned");
    // Of the same file system, but another mount: link(2) does not lead from one into the other.
    for (const mount of [
      `mount --bind ${site.root}/m ${site.root}/m`,
      `mount -t tmpfs tmpfs ${site.root}/m; cp -a ${site.folder}/m ${site.root}`,
    ]) {
      sh(site.root, `cp -a m ${site.folder}; ${mount}`);
      try {
        const warnings: string[] = [];
        const plan = await site.plan(await host.part("r1", "r2"), { warn: (what) => warnings.push(what) });
        expect(plan.changes).toEqual([]);
        expect(warnings).toEqual([
          expect.stringMatching(/^m\/b, t\/a are one file in the release .*different file systems/),
        ]);
      } finally {
        sh(site.root, "umount m");
      }
    }
  });
});

describe("a release", () => {
  it("records names by the first of them, and all names of a file that has others now", async () => {
    const host = new BuildHost();
    host.release("r1", {
      ...ACCOUNTS,
      ...ONE,
      "t/z": "one\n",
      "t/stays": "x\n",
      "t/stays-too": hardLink("stays"),
    });
    host.release("r2", { "t/z": hardLink("a") });
    const { metadata, summary, patch } = await host.part("r1", "r2");
    const { changes } = parseMetadata(metadata);
    expect(changes.map(({ path, before, after }) => [path, before?.link, after?.link])).toEqual([
      ["t/a", "t/a", "t/a"],
      ["t/b", "t/a", "t/a"],
      ["t/z", undefined, "t/a"],
    ]);
    expect(summary.counts).toEqual({ added: 0, modified: 3, deleted: 0 });
    expect(patch.length).toBe(0);
  });

  it("has no links to what git does not track", async () => {
    const host = new BuildHost();
    host.release("r1", { ...ACCOUNTS, ".gitignore": "*.local\n" });
    host.release("r2", { "t/a": "one\n", "t/a.local": hardLink("a") });
    expect(linksIn(host.snapshot("r2"))).toHaveLength(1);
    const { changes } = parseMetadata((await host.part("r1", "r2")).metadata);
    expect(changes.map(({ path, after }) => [path, after?.link])).toEqual([["t/a", undefined]]);
  });

  it("is refused when the names of one file have different contents in git", async () => {
    const host = new BuildHost();
    host.release("r1", { ...ACCOUNTS, "t/a": "one\n", "t/b": "two\n" });
    host.release("r2", { "t/a": "three\n" });
    sh(host.snapshot("r2"), "ln -f t/a t/b");
    await expect(host.part("r1", "r2")).rejects.toMatchObject({
      code: "worktree-dirty",
      message: expect.stringMatching(/t\/b: git has another content than for t\/a/) as unknown,
    });
  });
});

describe("between plan and commit", () => {
  const host = new BuildHost();
  host.release("r1", { ...ACCOUNTS, ...ONE });
  host.release("r2", { "t/a": file("two\n", 0o640), "t/c": hardLink("a") });

  it("what is prepared and then replaced by somebody is written again, not taken", async () => {
    const site = host.site("r1", "cloned");
    edit(site.folder, { "outside/canary": "alive\n" });
    const plan = await site.plan(await host.part("r1", "r2"));
    const place = { git: await openRepository(site.root), rootDir: site.root };
    await importObjects(plan, { ...place, scratchDir: site.scratch });
    await prepareRoot(plan, place);
    const prepared = sh(site.root, "find . -name '.zferry-*' -type f").trim().split("\n");
    expect(prepared).toHaveLength(3);
    expect(new Set(prepared.map((path) => statSync(join(site.root, path)).ino)).size).toBe(1);
    // One is the same in all but that it is a file of its own, and one leads outside.
    sh(
      site.root,
      `cp -p ${prepared[0] ?? ""} copy; mv copy ${prepared[0] ?? ""}; ln -sf ../../outside/canary ${prepared[1] ?? ""}`,
    );
    await commitRoot(plan, { ...place, scratchDir: site.scratch });
    expect(site.links()).toEqual([["t/a", "t/b", "t/c"]]);
    expect(readFileSync(join(site.folder, "outside/canary"), "utf8")).toBe("alive\n");
    expect(site.status() + site.leftovers()).toBe("");
  });

  it("the journal's JSON is read as the same plan, byte by byte", async () => {
    const plan = await host.site("r1", "cloned").plan(await host.part("r1", "r2"));
    expect(plan.changes.map(({ before, after }) => [before?.link, after?.link])).toEqual([
      ["t/a", "t/a"],
      ["t/a", "t/a"],
      [undefined, "t/a"],
    ]);
    const text = JSON.stringify(plan);
    expect(JSON.stringify(v.parse(rootPlanSchema, JSON.parse(text)))).toBe(text);
  });

  it("names that the site parts or links meanwhile stand against nothing", async () => {
    const site = host.site("r1", "cloned");
    const plan = await site.plan(await host.part("r1", "r2"));
    sh(site.root, "cp -p t/b copy; mv copy t/b");
    await site.requireAsPlanned(plan);
    await site.apply(plan);
    expect(site.links()).toEqual([["t/a", "t/b", "t/c"]]);
  });

  it("a plan of before there were links is carried out without them", async () => {
    const site = host.site("r1", "cloned");
    const plan = await site.plan(await host.part("r1", "r2"));
    const without = JSON.parse(
      JSON.stringify(plan, (key, value: unknown) => (key === "link" ? undefined : value)),
    ) as RootPlan;
    await site.apply(without);
    expect(site.links()).toEqual([]);
    expect(site.status() + site.leftovers()).toBe("");
  });
});
