import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { beforeEach, describe, expect, it } from "vitest";
import { rootPlanSchema } from "../../src/root/plan.js";
import { ACCOUNTS, BuildHost, command, edit, file, link, sh, type Edits, type Site } from "./hosts.js";

const LINES = ["one", "two", "three", "four", "five", "six", "seven", "eight"];
const lines = (edits: Record<string, string> = {}): string =>
  LINES.map((line) => `${edits[line] ?? line}\n`).join("");

const host = new BuildHost();
host.release("r1", {
  ...ACCOUNTS,
  ".gitignore": "/usr\n/var/cache\n",
  "etc/config": lines(),
  "etc/gone": "gone\n",
  "etc/link": link("config"),
  "etc/script": "#!/bin/sh\n",
  "etc/sub/inner": "inner\n",
  "etc/unchanged": "unchanged\n",
});
host.release("r2", { "etc/config": lines({ eight: "EIGHT" }), "etc/new": "new\n" });

/** What is neither in the site's last commit nor, but for one file, in its index. */
const DRIFT: Edits = {
  "etc/config": lines({ one: "ONE" }),
  "etc/gone": null,
  "etc/link": link("unchanged"),
  "etc/script": command('chmod 700 "$1"'),
  "etc/sp\nace": "staged\n",
  "etc/unchanged": "changed here\r\n",
  "etc/untracked": "untracked\n",
};

describe("changes that a site did not commit", () => {
  let site: Site;
  beforeEach(() => {
    site = host.site("r1", "cloned");
    edit(site.root, DRIFT);
    sh(site.root, 'git add "etc/sp\nace"');
  });
  const plan = async () => site.plan(await host.part("r1", "r2"), { commitDrift: true });

  it("are committed first, and then merged", async () => {
    const head = site.git("rev-parse HEAD");
    const made = await plan();
    await site.apply(made);
    expect(made.drift).toEqual({
      commit: site.git("rev-parse HEAD^"),
      paths: ["etc/config", "etc/gone", "etc/link", "etc/script", "etc/sp\nace", "etc/unchanged"],
      staged: ["etc/sp\nace"],
    });
    expect(site.git("rev-parse HEAD^^")).toBe(head);
    expect(site.git("log -1 --format='%s %an %at' HEAD^")).toBe(
      "Changes of this site before r2 zferry 1700000000",
    );
    expect(site.git("diff --raw --no-renames HEAD^^ HEAD^ | cut -d' ' -f1,2,5 | cut -d: -f2")).toBe(
      [
        "100644 100644 M\tetc/config",
        "100644 000000 D\tetc/gone",
        "120000 120000 M\tetc/link",
        "100644 100755 M\tetc/script",
        '000000 100644 A\t"etc/sp\\nace"',
        "100644 100644 M\tetc/unchanged",
      ].join("\n"),
    );
    expect(sh(site.root, "git show HEAD:etc/unchanged")).toBe("changed here\r\n");
    expect(readFileSync(join(site.root, "etc/config"), "utf8")).toBe(lines({ one: "ONE", eight: "EIGHT" }));
    expect(site.status()).toBe("?? etc/untracked\n");
    expect(site.leftovers()).toBe("");
    expect(site.git("fsck --strict")).toBe("");
  });

  it("are only planned by a plan, which is the same each time and goes through a journal", async () => {
    const all = () => site.everything() + sh(site.root, "find .git -type f | sort | xargs sha1sum");
    const before = all();
    const made = await plan();
    expect(JSON.stringify(await plan())).toBe(JSON.stringify(made));
    expect(all()).toBe(before);
    expect(JSON.stringify(v.parse(rootPlanSchema, JSON.parse(JSON.stringify(made))))).toBe(
      JSON.stringify(made),
    );
  });

  it("are uncommitted again, and staged as they were, when the install is taken back", async () => {
    const before = site.everything();
    const made = await plan();
    await site.apply(made);
    expect(site.everything()).not.toBe(before);
    await site.takeBack(made);
    expect(site.everything()).toBe(before);
    await site.takeBack(made);
    expect(site.everything()).toBe(before);
    expect(site.leftovers()).toBe("");
  });

  it("that come after the plan stay as they are, and are uncommitted", async () => {
    const made = await plan();
    edit(site.root, { "etc/unchanged": "changed later\n", "etc/sub/inner": "changed later\n" });
    await site.apply(made);
    expect(readFileSync(join(site.root, "etc/unchanged"), "utf8")).toBe("changed later\n");
    expect(site.status()).toBe(" M etc/sub/inner\n M etc/unchanged\n?? etc/untracked\n");
  });

  it("are in the way when they contradict the release", async () => {
    edit(site.root, { "etc/config": lines({ eight: "acht" }) });
    const before = site.everything();
    await expect(plan()).rejects.toMatchObject({
      code: "merge-conflict",
      details: { reasons: ["etc/config (contents)"] },
    });
    expect(site.everything()).toBe(before);
  });

  it("are refused without being asked to commit them", async () => {
    await expect(site.plan(await host.part("r1", "r2"))).rejects.toMatchObject({ code: "worktree-dirty" });
  });

  it.each<[string, Edits, string]>([
    [
      "a file that became a folder",
      { "etc/script": command('rm "$1"; mkdir "$1"') },
      "etc/script (now a directory)",
    ],
    [
      "a file that became a pipe",
      { "etc/script": command('rm "$1"; mkfifo "$1"') },
      "etc/script (now a named pipe)",
    ],
    [
      "a folder that became a link",
      { "etc/sub": command('mv "$1" "$1.d"; ln -s sub.d "$1"') },
      "etc/sub/inner (etc/sub is now a symlink)",
    ],
  ])("are refused: %s", async (_, edits, path) => {
    edit(site.root, edits);
    const before = site.everything();
    await expect(plan()).rejects.toMatchObject({ code: "worktree-dirty", details: { paths: [path] } });
    expect(site.everything()).toBe(before);
  });

  it("are refused where only the index has them", async () => {
    edit(site.root, { "etc/sp\nace": "changed after it was staged\n" });
    const expected = { code: "worktree-dirty", details: { paths: ['"etc/sp\\012ace"'] } };
    await expect(plan()).rejects.toMatchObject(expected);
    sh(site.root, "git add -A && git rm -q --cached etc/sub/inner");
    await expect(plan()).rejects.toMatchObject({ ...expected, details: { paths: ["etc/sub/inner"] } });
  });

  it("are taken as bytes: no filter of the site runs", async () => {
    const trap = join(site.folder, "ran");
    sh(site.root, `git config filter.trap.clean "sh -c 'echo ran >> ${trap}; cat'"`);
    edit(site.root, { ".gitattributes": "* filter=trap text=auto\n" });
    await site.apply(await plan());
    expect(() => readFileSync(trap)).toThrow("ENOENT");
    expect(sh(site.root, "git show HEAD:etc/unchanged")).toBe("changed here\r\n");
  });
});

it("a site that changed nothing gets no commit of its own", async () => {
  const site = host.site("r1", "unrelated");
  const head = site.git("rev-parse HEAD");
  const plan = await site.install(await host.part("r1", "r2"), { commitDrift: true });
  expect(plan).not.toHaveProperty("drift");
  expect(site.git("rev-parse HEAD^")).toBe(head);
});

it("a removal that is committed merges with a release that does not change the file", async () => {
  const site = host.site("r1", "unrelated");
  edit(site.root, { "etc/sub": null, "etc/own": file("own\n", 0o600) });
  await site.install(await host.part("r1", "r2"), { commitDrift: true });
  expect([site.has("etc/sub"), site.status()]).toEqual([false, "?? etc/own\n"]);
});
