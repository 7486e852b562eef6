import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { removeCopiedLocks } from "../../src/root/git-locks.js";
import { openRepository } from "../../src/system/git.js";
import { everything } from "./everything.js";
import { edit, fingerprint, keepsFlags, sh, type Site } from "./hosts.js";

const hasFlags = keepsFlags();

describe("what keeps git from moving a site's references is told by the plan", () => {
  const host = everything();
  let site: Site;
  afterEach(() => sh(site.root, "chattr -R -f -i -a . || true"));

  it.skipIf(!hasFlags).each([
    ["+i", ".git", "immutable"],
    ["+a", ".git", "append-only"],
    ["+i", ".git/refs/heads", "immutable"],
    ["+a", ".git/refs/heads", "append-only"],
    ["+i", ".git/logs/HEAD", "immutable"],
    ["+i", ".git/index", "immutable"],
    ["+a", ".git/index", "append-only"],
  ])("chattr %s %s, and again before anything is written", async (flag, path, reason) => {
    site = host.site("r1", "cloned");
    edit(site.root, { ".git/logs/HEAD": "" });
    const part = await host.part("r1", "r2");
    const plan = await site.plan(part);
    sh(site.root, `chattr ${flag} ${path}`);
    const before = fingerprint(site);
    const expected = {
      code: "worktree-dirty",
      details: { paths: [`${join(site.root, path)} (${reason})`] },
    };
    await expect(site.plan(part)).rejects.toMatchObject(expected);
    await expect(site.requireAsPlanned(plan)).rejects.toMatchObject(expected);
    expect(fingerprint(site)).toBe(before);
  });

  it("a reference below one of zferry's", async () => {
    site = host.site("r1", "cloned");
    const part = await host.part("r1", "r2");
    sh(site.root, "git update-ref -d refs/zferry/release; git update-ref refs/zferry/release/x HEAD");
    await expect(site.plan(part)).rejects.toMatchObject({
      code: "worktree-dirty",
      details: { paths: ["refs/zferry/release/x"] },
    });
  });

  it.skipIf(!hasFlags)("all of it at once", async () => {
    site = host.site("r1", "cloned");
    const part = await host.part("r1", "r2");
    edit(site.root, { ".git/HEAD.lock": "", ".git/packed-refs.lock": "" });
    sh(site.root, "git update-ref refs/zferry/pending/x HEAD; chattr +i .git/index");
    const path = (name: string): string => join(site.root, ".git", name);
    await expect(site.plan(part)).rejects.toMatchObject({
      code: "site-busy",
      details: { path: path("HEAD.lock") },
      also: [
        { code: "site-busy", details: { path: path("packed-refs.lock") } },
        { code: "worktree-dirty", details: { paths: ["refs/zferry/pending/x"] } },
        { code: "worktree-dirty", details: { paths: [`${path("index")} (immutable)`] } },
      ],
    });
  });

  it.each(["HEAD.lock", "packed-refs.lock", "refs/heads/main.lock"])(
    "%s, that was there before",
    async (name) => {
      site = host.site("r1", "cloned");
      const part = await host.part("r1", "r2");
      edit(site.root, { [`.git/${name}`]: "" });
      await expect(site.plan(part)).rejects.toMatchObject({
        code: "site-busy",
        details: { path: join(site.root, ".git", name) },
      });
      expect(existsSync(join(site.root, ".git", name))).toBe(true);
    },
  );

  it("not what a run of zferry's own left that was killed: that is removed", async () => {
    site = host.site("r1", "cloned");
    edit(site.root, { ".git/refs/zferry/pending.lock": "" });
    await site.install(await host.part("r1", "r2"));
    expect(site.git("log -1 --format=%s")).toBe("Install r2");
    expect(site.git("for-each-ref refs/zferry/pending")).toBe("");
  }, 60_000);

  it("a lock that a process has open is never removed", async () => {
    site = host.site("r1", "cloned");
    const plan = await site.plan(await host.part("r1", "r2"));
    edit(site.root, { ".git/HEAD.lock": "" });
    const lock = join(site.root, ".git/HEAD.lock");
    const holder = spawn("sh", ["-c", 'exec 9>>"$0"; echo open; exec sleep 60 >&-', lock], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    try {
      await once(holder.stdout, "data");
      await expect(site.apply(plan)).rejects.toMatchObject({
        code: "site-busy",
        details: { path: lock, holders: [`sleep (${holder.pid ?? 0})`] },
      });
      expect(existsSync(lock)).toBe(true);
    } finally {
      holder.kill();
    }
  }, 30_000);
});

// A clone had the lock of a git that ran when it was made, and the install in it was refused, or could only be given up.
it("the locks that were copied with a repository go, and nothing else", async () => {
  const host = everything();
  const site = host.site("r1", "cloned");
  const part = await host.part("r1", "r2");
  const locks = ["index.lock", "HEAD.lock", "packed-refs.lock", "refs/heads/main.lock"];
  edit(site.root, Object.fromEntries([...locks, "mine.lock"].map((name) => [`.git/${name}`, ""])));
  const place = (name: string): string => join(site.root, ".git", name);
  await expect(site.plan(part)).rejects.toMatchObject({ code: "site-busy" });
  expect((await removeCopiedLocks(await openRepository(site.root))).sort()).toEqual(locks.map(place).sort());
  expect(locks.filter((name) => existsSync(place(name)))).toEqual([]);
  expect(existsSync(place("mine.lock"))).toBe(true);
  await site.apply(await site.plan(part));
  expect(site.status()).toBe("");
});
