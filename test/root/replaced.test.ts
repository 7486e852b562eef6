import { readFileSync, readlinkSync, statSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { beforeEach, describe, expect, it } from "vitest";
import { discardRoot, importObjects } from "../../src/root/apply.js";
import { rootPlanSchema } from "../../src/root/plan.js";
import { openRepository } from "../../src/system/git.js";
import { ACCOUNTS, BuildHost, command, edit, file, link, sh, type Edits, type Site } from "./hosts.js";

const host = new BuildHost();
host.release("r1", { ...ACCOUNTS, ".gitignore": "*.local\n", "etc/dir/a": "a\n" });
host.release("r2", {
  "etc/foo": file("new\n", 0o644),
  "etc/bar": "bar\n",
  "etc/link": link("foo"),
  "etc/settings.local": command('echo x > "$1"; git -C "$(dirname "$1")/.." add -f etc/settings.local'),
  "etc/sub/inner": "inner\n",
});

const REF = "refs/zferry/replaced/r2";

describe("untracked files where the release puts its own", () => {
  let site: Site;
  beforeEach(() => {
    site = host.site("r1", "cloned");
    edit(site.root, {
      "etc/foo": file("mine\r\n", 0o600, 'chown 5:80 "$1"'),
      "etc/bar": link("somewhere"),
      "etc/settings.local": "ignored\n",
      "etc/other": "not in the way\n",
    });
  });
  const plan = async (date = 1_700_000_000) =>
    site.plan(await host.part("r1", "r2"), { replaceUntracked: true, date });

  it("are kept in git, and replaced", async () => {
    const made = await plan();
    expect(made.replaced).toMatchObject({
      ref: REF,
      previous: null,
      paths: ["etc/bar", "etc/foo", "etc/settings.local"],
    });
    await site.apply(made);
    expect(readFileSync(join(site.root, "etc/foo"), "utf8")).toBe("new\n");
    expect(readFileSync(join(site.root, "etc/bar"), "utf8")).toBe("bar\n");
    expect(statSync(join(site.root, "etc/foo")).mode & 0o7777).toBe(0o644);
    expect(sh(site.root, `git show ${REF}:etc/foo ${REF}:etc/bar ${REF}:etc/settings.local`)).toBe(
      "mine\r\nsomewhereignored\n",
    );
    expect(site.git(`log -1 --format=%B ${REF}`)).toBe(
      "Replaced by r2\n\n0777 0:0 etc/bar\n0600 5:80 etc/foo\n0644 0:0 etc/settings.local",
    );
    expect(site.status()).toBe("?? etc/other\n");
    expect([site.leftovers(), site.git("fsck --strict")]).toEqual(["", ""]);
  });

  it("are only planned by a plan, which is the same each time and goes through a journal", async () => {
    const all = () => site.everything() + sh(site.root, "find .git -type f | sort | xargs sha1sum");
    const [before, own] = [all(), site.everything()];
    const made = await plan();
    expect(all()).toBe(before);
    expect(JSON.stringify(v.parse(rootPlanSchema, JSON.parse(JSON.stringify(made))))).toBe(
      JSON.stringify(made),
    );
    await importObjects(made, { git: await openRepository(site.root), scratchDir: site.scratch });
    expect(site.git(`rev-parse ${REF}`)).toBe(made.replaced?.commit);
    expect(JSON.stringify(await plan())).toBe(JSON.stringify(made));
    await discardRoot(made, { git: await openRepository(site.root), rootDir: site.root });
    expect(site.everything()).toBe(own);
  });

  it("are back with owner and permissions when the install is taken back", async () => {
    const before = site.everything();
    const made = await plan();
    await site.apply(made);
    await site.takeBack(made);
    expect(site.everything()).toBe(before);
    expect(readlinkSync(join(site.root, "etc/bar"))).toBe("somewhere");
  });

  it("are kept beside those that an earlier install of the same release replaced", async () => {
    const first = await plan();
    await site.apply(first);
    sh(site.root, `git reset -q --hard ${first.head} && git update-ref refs/zferry/release HEAD`);
    edit(site.root, { "etc/foo": "mine again\n" });
    const before = site.everything();
    const second = await plan(1_700_000_001);
    await site.apply(second);
    expect(sh(site.root, `git show ${REF}:etc/foo ${REF}^:etc/foo`)).toBe("mine again\nmine\r\n");
    await site.takeBack(second);
    expect(site.everything()).toBe(before);
    expect(site.git(`rev-parse ${REF}`)).toBe(first.replaced?.commit);
  });

  it("that change after the plan stop the install before anything is touched", async () => {
    const made = await plan();
    edit(site.root, { "etc/foo": "changed later\n" });
    const before = site.state();
    await expect(site.apply(made)).rejects.toMatchObject({
      code: "worktree-dirty",
      details: { paths: ["etc/foo"] },
    });
    await discardRoot(made, { git: await openRepository(site.root), rootDir: site.root });
    expect(site.state()).toBe(before);
  });

  it.each<[string, Edits, string]>([
    [
      "a folder",
      { "etc/foo": command('rm "$1"; mkdir "$1"; touch "$1/x"') },
      "etc/foo (a directory with etc/foo/x)",
    ],
    ["a pipe", { "etc/foo": command('rm "$1"; mkfifo "$1"') }, "etc/foo (an untracked named pipe)"],
    ["a file where a folder goes", { "etc/sub": "mine\n" }, "etc/sub/inner (etc/sub is no directory)"],
    ["a link where a folder goes", { "etc/sub": link("dir") }, "etc/sub/inner (etc/sub is a symbolic link)"],
  ])("are refused all the same: %s", async (_, edits, path) => {
    edit(site.root, edits);
    const before = site.everything();
    await expect(plan()).rejects.toMatchObject({ code: "worktree-dirty", details: { paths: [path] } });
    expect(site.everything()).toBe(before);
  });
});
