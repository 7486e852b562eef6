import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { canonicalJson } from "../../src/canonical-json.js";
import { parseMetadata } from "../../src/root/metadata.js";
import { pathOf } from "../../src/root/paths.js";
import { ACCOUNTS, BuildHost, command, edit, file, link, sh, type Site, type RootPart } from "./hosts.js";

const directory = command('mkdir -p "$1"');

/** Directories as `+etc/new`, `-etc/gone` or `=etc`, as the release has them. */
const carried = (part: RootPart): string[] =>
  parseMetadata(part.metadata).directories.map(
    ({ path, before, after }) => `${before === null ? "+" : after === null ? "-" : "="}${pathOf(path)}`,
  );

describe("of a build host's empty directories", () => {
  it("those are carried that a release adds, changes or removes", async () => {
    const host = new BuildHost();
    host.release("r1", {
      ...ACCOUNTS,
      "etc/a": "a\n",
      "srv/changed": directory,
      "srv/gone/inner": directory,
      "srv/same": directory,
    });
    host.release("r2", {
      "srv/changed": command('chmod 0700 "$1"'),
      "srv/gone": null,
      "var/lib/new/inner": directory,
    });
    const part = await host.part("r1", "r2");
    expect(carried(part)).toEqual([
      "=srv/changed",
      "-srv/gone",
      "-srv/gone/inner",
      "+var",
      "+var/lib",
      "+var/lib/new",
      "+var/lib/new/inner",
    ]);
    expect(part.patch.length).toBe(0);
    expect(part.summary.counts).toEqual({ added: 0, modified: 0, deleted: 0 });
    const site = host.site("r1", "cloned");
    await site.install(part);
    expect(site.state()).toBe(host.site("r2", "cloned").state());
    await site.install(await host.part("r2", "r2"));
  });

  it("those are not that git ignores, that hold something, or that are not the release's", async () => {
    const host = new BuildHost();
    host.release("r1", {
      ...ACCOUNTS,
      ".gitignore": "/usr\n/tmp/\nrun\n/var/cache/*\n!/var/cache/ours\n*.log\n",
    });
    sh(host.root, "echo /mnt >> .git/info/exclude");
    host.release("r2", {
      "etc/zferry/keys": directory,
      "mnt/disk": directory,
      "srv/link": link("ours"),
      "srv/logs/today.log": "log\n",
      "srv/run/x": directory,
      "srv/.git ": directory,
      "srv/ours": directory,
      "srv/:(top)x": directory,
      "tmp/x/y": directory,
      "usr/lib": directory,
      "var/cache/ours": directory,
      "var/cache/x": directory,
      "var/lib/zferry": directory,
    });
    expect(carried(await host.part("r1", "r2"))).toEqual([
      "+srv",
      "+srv/:(top)x",
      "+srv/ours",
      "+var",
      "+var/cache",
      "+var/cache/ours",
    ]);
  });

  it("those are not removed that a release begins to ignore or to fill with what it ignores", async () => {
    const host = new BuildHost();
    host.release("r1", {
      ...ACCOUNTS,
      "srv/spool/a": directory,
      "srv/state": directory,
      "srv/gone": directory,
    });
    host.release("r2", {
      ".gitignore": "/srv/spool/\n*.db\n",
      "srv/gone": null,
      "srv/spool": null,
      "srv/state/x.db": "x\n",
    });
    expect(carried(await host.part("r1", "r2"))).toEqual(["-srv/gone"]);
  });

  it("all are in a full half", async () => {
    const host = new BuildHost();
    host.release("r1", { ...ACCOUNTS, "srv/a/b": directory });
    expect(carried(await host.part(null, "r1"))).toEqual(["+etc", "+srv", "+srv/a", "+srv/a/b"]);
  });
});

describe("a site", () => {
  const host = new BuildHost();
  host.release("r1", {
    ...ACCOUNTS,
    ".gitignore": "*.own\n",
    "etc/gone.d/x": "x\n",
    "srv/changed": directory,
    "srv/gone/inner": directory,
    "srv/to-file": directory,
  });
  host.release("r2", {
    "etc/gone.d": null,
    "srv/changed": command('chmod 0700 "$1"'),
    "srv/gone": null,
    "srv/new/inner": command('mkdir -p "$1"; chown 80 "$1"'),
    "srv/to-file": command('rmdir "$1"; echo x > "$1"'),
  });
  const install = async (site: Site) => site.install(await host.part("r1", "r2"));
  const mode = (site: Site, path: string) => sh(site.root, `stat -c '%a %u' ${path}`).trim();

  it("keeps what it has in one that the release removed, and its own attributes", async () => {
    const site = host.site("r1", "cloned");
    edit(site.root, { "srv/gone/inner/mine.own": "mine\n", "srv/changed": command('chgrp 80 "$1"') });
    const before = site.state();
    const plan = await install(site);
    expect(site.names("srv/gone/inner")).toEqual(["mine.own"]);
    expect(sh(site.root, "stat -c '%a %g' srv/changed").trim()).toBe("700 80");
    await site.takeBack(plan);
    expect(site.state()).toBe(before);
    expect(site.leftovers()).toBe("");
  });

  it("does not get back one that it removed, and may have filled one that the release adds", async () => {
    const site = host.site("r1", "cloned");
    rmSync(join(site.root, "srv/changed"), { recursive: true });
    mkdirSync(join(site.root, "srv/new"), { mode: 0o755 });
    edit(site.root, { "srv/new/mine.own": "mine\n" });
    const before = site.state();
    const plan = await install(site);
    expect(site.names("srv")).toEqual(["new", "to-file"]);
    expect(site.names("srv/new")).toEqual(["inner", "mine.own"]);
    expect(mode(site, "srv/new/inner")).toBe("755 80");
    await site.takeBack(plan);
    expect(site.state()).toBe(before);
  });

  it("is refused where something else lies in the place of one", async () => {
    for (const [own, path] of [
      [{ "srv/new": link("/srv/gone") }, "srv/new (srv/new is a symbolic link)"],
      [{ "srv/new/inner": "mine\n" }, "srv/new/inner (srv/new/inner is no directory)"],
    ] as const) {
      const site = host.site("r1", "cloned");
      site.commit(own);
      await expect(install(site)).rejects.toMatchObject({
        code: "worktree-dirty",
        details: { paths: expect.arrayContaining([path]) as unknown },
      });
    }
  });

  it("is refused where it has one with other attributes", async () => {
    const site = host.site("r1", "cloned");
    edit(site.root, { "srv/new/inner": command('mkdir "$1"; chown 5 "$1"') });
    await expect(install(site)).rejects.toMatchObject({
      code: "merge-conflict",
      details: { reasons: ["srv/new/inner (owner: 5 here, web in the release)"] },
    });
  });

  it("keeps a file in a folder of files that the release removed, and it can be taken back", async () => {
    const site = host.site("r1", "cloned");
    edit(site.root, { "etc/gone.d/mine.own": "mine\n" });
    const before = site.state();
    const plan = await install(site);
    expect(site.names("etc/gone.d")).toEqual(["mine.own"]);
    await site.takeBack(plan);
    expect(site.state()).toBe(before);
  });

  it("is not changed where one was made meanwhile in another way", async () => {
    const site = host.site("r1", "cloned");
    const plan = await site.plan(await host.part("r1", "r2"));
    edit(site.root, { "srv/new": command('mkdir -m 0700 "$1"') });
    await expect(site.apply(plan)).rejects.toMatchObject({
      code: "worktree-dirty",
      details: { paths: ["srv/new (permissions)"] },
    });
    expect(mode(site, "srv/new")).toBe("700 0");
    expect(site.names("srv")).toEqual(expect.arrayContaining(["changed", "gone", "new", "to-file"]));
  });
});

it("an entry of a file's own place is refused by readers", async () => {
  const host = new BuildHost();
  host.release("r1", { ...ACCOUNTS, "srv/a": file("a\n", 0o644) });
  host.release("r2", { "srv/a": "b\n", "srv/empty": directory });
  const metadata = parseMetadata((await host.part("r1", "r2")).metadata);
  const [srv, empty] = metadata.directories;
  for (const [directories, says] of [
    [[srv, { ...empty, before: null, after: null }], /srv\/empty is neither in the base nor in the target/],
    [[srv, { ...empty, path: "srv/a/b" }], /srv\/a\/b lies below srv\/a, a file of the target/],
    [
      [srv, { ...empty, path: "srv/a", before: srv?.before, after: null }],
      /srv\/a is a file and a directory of the base/,
    ],
    [[{ ...srv, after: null }, empty], /srv has no entry in directories/],
  ] as const) {
    const bytes = Buffer.from(canonicalJson({ ...metadata, directories }));
    expect(() => parseMetadata(bytes)).toThrow(says);
  }
});
