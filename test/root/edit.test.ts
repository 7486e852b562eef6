import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { rawPath } from "../../src/raw-path.js";
import { planEdit } from "../../src/root/edit.js";
import type { RootPlan } from "../../src/root/plan.js";
import { openRepository } from "../../src/system/git.js";
import { applyRoot } from "./apply.js";
import { ACCOUNTS, BuildHost, edit, file, link, sh, type Site } from "./hosts.js";

const host = new BuildHost();
host.release("r1", { ...ACCOUNTS, "etc/fstab": "a\nb\nc\nd\ne\n", "etc/other": "1\n" });
host.release("r2", { "etc/fstab": "A\nb\nc\nd\ne\n", "etc/other": "2\n" });

const FSTAB = rawPath(Buffer.from("etc/fstab"));
const DATE = 1_700_000_000;
const add = (contents: Buffer): Buffer => Buffer.concat([contents, Buffer.from("new\n")]);

describe("a file that a plan is to leave otherwise", () => {
  let site: Site;
  beforeEach(() => {
    site = host.site("r1", "cloned");
  });
  const planned = async (plan: RootPlan | undefined, change = add): Promise<RootPlan | undefined> => {
    const git = await openRepository(site.root);
    const place = { git, rootDir: site.root, scratchDir: site.scratch };
    return planEdit(plan, FSTAB, change, { ...place, release: "r2", date: DATE });
  };
  const apply = (plan: RootPlan | undefined) =>
    applyRoot(plan as RootPlan, { rootDir: site.root, scratchDir: site.scratch });
  const fstab = (): string => readFileSync(join(site.root, "etc/fstab"), "utf8");
  const subjects = (): string => site.git("log --format=%s --first-parent");

  it("has what the merge leaves, and is a part of the same commit", async () => {
    edit(site.root, { "etc/fstab": "a\nb\nc\nd\nE\n" });
    sh(site.root, "git commit -qam own");
    const plan = await site.plan(await host.part("r1", "r2"));
    await apply(await planned(plan));
    expect(fstab()).toBe("A\nb\nc\nd\nE\nnew\n");
    expect(subjects().split("\n").slice(0, 2)).toEqual(["Install r2", "own"]);
    expect(site.git("log -1 --format=%P").split(" ")).toHaveLength(2);
    expect([site.status(), site.leftovers(), site.git("fsck --strict")]).toEqual(["", "", ""]);
  });

  it("is changed where the release does not change it, with its owner and mode", async () => {
    edit(site.root, { "etc/fstab": file("a\nb\nc\nd\ne\n", 0o600, 'chown 5:80 "$1"') });
    const plan = await site.plan(await host.part("r1", "r2"));
    await apply(await planned({ ...plan, changes: [] }));
    expect(fstab()).toBe("a\nb\nc\nd\ne\nnew\n");
    const { mode, uid, gid } = statSync(join(site.root, "etc/fstab"));
    expect([mode & 0o7777, uid, gid]).toEqual([0o600, 5, 80]);
  });

  it("is changed alone where there is no plan, and nothing is where it is so already", async () => {
    expect(await planned(undefined, (contents) => contents)).toBeUndefined();
    await apply(await planned(undefined));
    expect(fstab()).toBe("a\nb\nc\nd\ne\nnew\n");
    expect(subjects().split("\n")[0]).toBe("Install r2");
    expect([site.status(), site.leftovers()]).toEqual(["", ""]);
  });

  // What was cloned then had the merge half done, and the commit beside it.
  it("is refused alone while a merge is not concluded", async () => {
    edit(site.root, { ".git/MERGE_HEAD": `${site.git("rev-parse HEAD")}\n` });
    await expect(planned(undefined)).rejects.toMatchObject({
      code: "worktree-dirty",
      details: { paths: [join(site.root, ".git/MERGE_HEAD")] },
    });
    expect(await planned(undefined, (contents) => contents)).toBeUndefined();
  });

  it("that git does not track, or that is not there, stays out of git", async () => {
    sh(
      site.root,
      "git rm -q --cached etc/fstab; echo /etc/fstab >>.git/info/exclude; git commit -qm untracked",
    );
    const head = site.git("rev-parse HEAD");
    await apply(await planned(undefined));
    expect(fstab()).toBe("a\nb\nc\nd\ne\nnew\n");
    edit(site.root, { "etc/fstab": null });
    await apply(await planned(undefined));
    expect(fstab()).toBe("new\n");
    expect(statSync(join(site.root, "etc/fstab")).mode & 0o7777).toBe(0o644);
    expect([site.git("rev-parse HEAD"), site.status(), site.leftovers()]).toEqual([head, "", ""]);
  });

  it("is refused where something else has its place", async () => {
    edit(site.root, { "etc/fstab": link("other") });
    await expect(planned(undefined)).rejects.toMatchObject({
      code: "dataset-unsuitable",
      message: "etc/fstab of / is no regular file: symlink",
    });
  });
});
