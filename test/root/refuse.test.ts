import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { canonicalJson } from "../../src/canonical-json.js";
import { parseMetadata, type RootMetadata } from "../../src/root/metadata.js";
import { pathOf } from "../../src/root/paths.js";
import { everything } from "./everything.js";
import {
  ACCOUNTS,
  BuildHost,
  command,
  edit,
  file,
  fingerprint,
  link,
  newFolder,
  sh,
  type Edits,
  type Site,
  type RootPart,
} from "./hosts.js";

/** A plan that is refused, and a site that is as it was. */
async function refused(
  site: Site,
  part: RootPart,
  expected: Record<string, unknown>,
  options: Parameters<Site["plan"]>[1] = {},
): Promise<void> {
  const before = fingerprint(site);
  await expect(site.plan(part, options)).rejects.toMatchObject(expected);
  expect(fingerprint(site)).toBe(before);
}

const message = (pattern: RegExp) => expect.stringMatching(pattern) as unknown;

describe("a site that is not in a state for it", () => {
  const host = everything();
  let part: RootPart;
  let site: Site;
  beforeEach(async () => {
    part ??= await host.part("r1", "r2");
    site = host.site("r1", "cloned");
  });

  it.each<[string, Edits, string]>([
    ["a file that differs from the commit", { "etc/unchanged": "dirty\n" }, "etc/unchanged"],
    ["a file that is gone", { "etc/config": null }, "etc/config"],
    ["a mode that differs", { "etc/config": command('chmod +x "$1"') }, "etc/config"],
    [
      "an untracked file where the release has one",
      { "etc/empty": "mine\n" },
      "etc/empty (an untracked file)",
    ],
    [
      "a directory where the release has a file",
      { "etc/empty/x": "" },
      "etc/empty (a directory with etc/empty/x)",
    ],
    [
      "an untracked file in a directory that becomes a file",
      { "etc/dir-to-file/own": "" },
      "etc/dir-to-file (a directory with etc/dir-to-file/own)",
    ],
    [
      "a file where the release has a folder",
      { "etc/acl.d": "mine\n" },
      "etc/acl.d/x (etc/acl.d is no directory)",
    ],
  ])("%s", async (_, edits, path) => {
    edit(site.root, edits);
    await refused(site, part, {
      code: "worktree-dirty",
      details: { paths: expect.arrayContaining([path]) as unknown },
    });
  });

  it("a change in the index", async () => {
    edit(site.root, { "etc/unchanged": "dirty\n" });
    sh(site.root, "git add -A; git show HEAD:etc/unchanged > etc/unchanged");
    await refused(site, part, { code: "worktree-dirty", details: { paths: ["etc/unchanged"] } });
  });

  it("a file that git was told to take for unchanged", async () => {
    sh(site.root, "git update-index --assume-unchanged etc/config; echo dirty >> etc/config");
    await refused(site, part, { code: "worktree-dirty", details: { paths: ["etc/config"] } });
  });

  it.each([
    ["a merge", "git rev-parse HEAD > .git/MERGE_HEAD"],
    ["a bisection", "git bisect start -q"],
    ["a series of cherry-picks or reverts", "mkdir .git/sequencer"],
  ])("%s that is not concluded", async (what, command) => {
    sh(site.root, command);
    await refused(site, part, {
      code: "worktree-dirty",
      message: message(new RegExp(`^${what} is not concluded: .*/\\.git/`)),
      hint: "in its work tree, git status tells how to conclude it, or to abort it",
    });
  });

  it("a sparse checkout, also where what is not committed may be committed", async () => {
    // Git leaves nothing out whose number it does not know, as of a copy.
    sh(site.root, "git update-index -q --refresh; git sparse-checkout set --no-cone /etc/private");
    expect(existsSync(join(site.root, "etc/config"))).toBe(false);
    const expected = {
      code: "worktree-dirty",
      message: message(/^a sparse checkout leaves out tracked files: .*etc\/config/),
      hint: `bring them back: git -C ${site.root} sparse-checkout disable`,
    };
    await refused(site, part, expected);
    await refused(site, part, expected, { commitDrift: true });
    // As its hint says.
    sh(site.root, "git sparse-checkout disable");
    expect(existsSync(join(site.root, "etc/config"))).toBe(true);
  });

  it("not a file that git was told to skip and that is there: its change is one", async () => {
    sh(site.root, "git update-index --skip-worktree etc/config; echo dirty >> etc/config");
    await refused(site, part, { code: "worktree-dirty", details: { paths: ["etc/config"] } });
  });

  it("takes an untracked file that is what the release has", async () => {
    edit(site.root, { "etc/empty": "" });
    await site.install(part);
    expect(site.status()).toBe("");
    expect(site.state()).toBe(host.site("r2", "cloned").state());
  });
});

describe("a conflict changes nothing", () => {
  const host = everything();

  it.each<[string, Edits, Record<string, string>]>([
    [
      "the same lines",
      { "etc/config": "one\ntwo\nthree\nfour\nfive\nsix\nseven\nacht\n" },
      { "etc/config": "contents" },
    ],
    ["a file that the site removed", { "etc/config": null }, { "etc/config": "modify/delete" }],
    ["a file that the release removed", { "etc/gone": "mine\n" }, { "etc/gone": "modify/delete" }],
    [
      "contents and attributes",
      { "etc/config": null, "etc/owned": command('chown 5 "$1"'), "etc/private": command('chmod 0700 "$1"') },
      {
        "etc/config": "modify/delete",
        "etc/owned": "owner: 5 here, web in the release, root before",
        "etc/private": "permissions: 0700 here, 2750 in the release, 0755 before",
      },
    ],
    ["a file that both added", { "etc/acl": "mine\n" }, { "etc/acl": "contents" }],
    [
      "owner",
      { "etc/owned": command('chown 5 "$1"') },
      { "etc/owned": "owner: 5 here, web in the release, root before" },
    ],
    [
      "permissions",
      { "etc/secret": command('chmod 640 "$1"'), "etc/owned": command('chmod 604 "$1"') },
      { "etc/owned": "permissions: 0604 here, 0600 in the release, 0644 before" },
    ],
    [
      "attributes",
      { "etc/attributes": command('setfattr -n user.changed -v 3 "$1"') },
      { "etc/attributes": 'user.changed: "3" here, "2" in the release, "1" before' },
    ],
    [
      "a folder's permissions",
      { "etc/private": command('chmod 0700 "$1"') },
      { "etc/private": "permissions: 0700 here, 2750 in the release, 0755 before" },
    ],
  ])("%s", async (_, edits, conflicts) => {
    for (const history of ["cloned", "unrelated"] as const) {
      const site = host.site("r1", history);
      site.commit(edits);
      const reasons = Object.entries(conflicts).map(([path, reason]) => `${path} (${reason})`);
      await refused(site, await host.part("r1", "r2"), { code: "merge-conflict", details: { reasons } });
    }
  });
});

it("a conflict and an untracked file are told at once", async () => {
  const host = everything();
  const site = host.site("r1", "cloned");
  site.commit({ "etc/config": null });
  edit(site.root, { "etc/empty": "mine\n" });
  await refused(site, await host.part("r1", "r2"), {
    code: "merge-conflict",
    details: { paths: ["etc/config"] },
    also: [{ code: "worktree-dirty", details: { paths: ["etc/empty (an untracked file)"] } }],
  });
});

it("a path through a symbolic link of the site is refused, and nothing is written behind it", async () => {
  const host = new BuildHost();
  host.release("r1", { ...ACCOUNTS, ".gitignore": "/usr\n/bin\n" });
  host.release("r2", { ".gitignore": "/usr\n", "bin/tool": file("tool\n", 0o755) });
  const site = host.site("r1", "unrelated");
  edit(site.root, { "usr/bin/other": "other\n", bin: link("usr/bin") });
  await refused(site, await host.part("r1", "r2"), {
    code: "worktree-dirty",
    details: { paths: ["bin/tool (bin is a symbolic link)"] },
  });
  expect(site.names("usr/bin")).toEqual(["other"]);
});

it("another base is refused", async () => {
  const host = everything();
  const site = host.site("r1", "cloned");
  const part = await host.part("r2", "r3");
  await refused(site, part, { code: "patch-malformed" }).catch(() => undefined);
  await site.install(await host.part("r1", "r2"));
  const other = await host.part("r1", "r3");
  await refused(site, other, {
    code: "base-mismatch",
    details: { bundle: sh(host.root, "git rev-parse r1^{tree}").trim() },
  });
});

describe("a hostile root half", () => {
  const host = everything();
  const site = host.site("r1", "unrelated");
  const clone = host.site("r1", "cloned");
  const trees = Object.fromEntries(
    ["r1", "r2"].map((name) => [name, sh(host.root, `git rev-parse ${name}^{tree}`).trim()]),
  );

  /** A root half with other metadata. */
  const withMetadata = async (edit: (metadata: RootMetadata) => void): Promise<RootPart> => {
    const part = await host.part("r1", "r2");
    const metadata = parseMetadata(part.metadata);
    edit(metadata);
    return { ...part, metadata: Buffer.from(canonicalJson(metadata)) };
  };
  const withPatch = async (edit: (patch: string) => string): Promise<RootPart> => {
    const part = await host.part("r1", "r2");
    return { ...part, patch: Buffer.from(edit(part.patch.toString("latin1")), "latin1") };
  };
  const find = (metadata: RootMetadata, path: string) => {
    const change = metadata.changes.find((entry) => entry.path === path);
    if (change === undefined) throw new Error(`no ${path}`);
    return change;
  };

  it("lies about a blob after", async () => {
    const part = await withMetadata((metadata) => {
      find(metadata, "etc/config").after!.blob = "1".repeat(40);
    });
    await refused(site, part, {
      code: "patch-malformed",
      message: message(/the patch makes etc\/config 100644/),
    });
  });

  it("lies about a blob before", async () => {
    const part = await withMetadata((metadata) => {
      find(metadata, "etc/config").before!.blob = "1".repeat(40);
    });
    await refused(site, part, { code: "patch-malformed", message: message(/objects.pack lacks 1{40}/) });
  });

  it("lies about the base tree, where the site knows it", async () => {
    const part = await withMetadata((metadata) => {
      const { before, after } = find(metadata, "etc/owned");
      before!.blob = after!.blob = find(metadata, "etc/gone").before!.blob;
    });
    await refused(clone, part, {
      code: "patch-malformed",
      message: message(/for etc\/owned in the base, the base has/),
    });
  });

  it("lies about the target tree", async () => {
    const part = await host.part("r1", "r2");
    const target = { ...part.summary.target, tree: trees["r1"] ?? "" };
    await refused(clone, { ...part, summary: { ...part.summary, target } }, { code: "patch-malformed" });
  });

  it("lies about counts", async () => {
    const part = await host.part("r1", "r2");
    const counts = { ...part.summary.counts, added: 0 };
    await refused(site, { ...part, summary: { ...part.summary, counts } }, { code: "metadata-malformed" });
  });

  it("has a blob too many, a tree, or no pack", async () => {
    const part = await host.part("r1", "r2");
    const other = await host.part("r2", "r3");
    const trees = Buffer.from(
      sh(host.root, "git rev-parse r1^{tree} | git pack-objects --stdout --quiet | base64 -w0"),
      "base64",
    );
    for (const objects of [other.objects, trees, Buffer.of(), part.objects.subarray(0, -1)]) {
      await refused(site, { ...part, objects }, { code: "patch-malformed" });
    }
  });

  it.each([
    [
      "touches another path",
      (patch: string) =>
        patch +
        "diff --git a/etc/x b/etc/x\nnew file mode 100644\nindex 0000000000000000000000000000000000000000..e69de29bb2d1d6434b8b29ae775ad8c2e48c5391\n",
      /etc\/x 100644 e69de29/,
    ],
    ["is absolute", (patch: string) => patch.replaceAll("b/etc/empty", "b//etc/empty"), /./],
    [
      "goes up",
      (patch: string) => patch.replaceAll("/etc/empty", "/../etc/empty"),
      /invalid path|cannot apply/,
    ],
    [
      "names .git",
      (patch: string) => patch.replaceAll("/etc/empty", "/.git/hooks/x"),
      /invalid path|cannot apply/,
    ],
    ["is cut", (patch: string) => patch.slice(0, patch.length / 2), /./],
    ["is empty", () => "", /root metadata says/],
    ["is no patch", () => "hello\n", /./],
  ])("has a patch that %s", async (_, change, pattern) => {
    await refused(site, await withPatch(change), { code: "patch-malformed", message: message(pattern) });
  });

  it.each([
    "/etc/x",
    "etc//x",
    "etc/../x",
    "./etc",
    "..",
    ".git/config",
    "a/.GIT/x",
    "a/.git",
    "a/git~1/x",
    "a/.git. /x",
    "a/.git::$INDEX_ALLOCATION/x",
    "a\\.git/x",
    "a/.g\u200cit/x",
    "a/.\ufeffgit",
    "etc/zferry/keys/x",
    "etc/zferry",
    "etc",
    "var",
    "var/lib",
    "var/lib/zferry/state",
    "usr",
    "usr/bin/x",
    "a\0b",
    "a/" + "x".repeat(256),
    "x/".repeat(2048) + "x",
  ])("has the path %j", async (path) => {
    const part = await withMetadata((metadata) => {
      find(metadata, "etc/empty").path = path;
      metadata.changes.sort((a, b) => (pathOf(a.path) < pathOf(b.path) ? -1 : 1));
    });
    await refused(site, part, { code: "metadata-malformed" });
  });

  it("is stopped by the same paths at the build host", async () => {
    for (const path of ["usr/bin/x", "etc/zferry/x", "var/lib/zferry/x"]) {
      const bad = new BuildHost();
      bad.release("r1", ACCOUNTS);
      bad.release("r2", { [path]: "x\n" });
      await expect(bad.part("r1", "r2")).rejects.toMatchObject({ code: "git-failed", details: { path } });
    }
    const bad = new BuildHost();
    bad.release("r1", ACCOUNTS);
    bad.release("r2", {
      module: command(
        'git init -q "$1"; cd "$1"; git -c user.name=x -c user.email=x commit -q --allow-empty -m x',
      ),
    });
    await expect(bad.part("r1", "r2")).rejects.toMatchObject({
      code: "git-failed",
      message: message(/a submodule/),
    });
  });
});

describe("a build host", () => {
  const host = everything();

  it("makes the same bytes from a repacked clone with other settings", async () => {
    const part = await host.part("r1", "r2");
    const clone = join(newFolder(), "clone");
    sh("/", `git clone -q ${host.root} ${clone}`);
    sh(clone, "git repack -q -adf --depth=50 --window=50 && git prune-packed -q");
    for (const setting of [
      "diff.algorithm patience",
      "diff.noprefix true",
      "diff.renames copies",
      "core.compression 1",
      "diff.context 9",
      "pack.compression 9",
      "core.quotePath false",
      "diff.indentHeuristic false",
      "core.bigFileThreshold 1k",
      "pack.packSizeLimit 1m",
      "diff.suppressBlankEmpty true",
      "core.abbrev 7",
      "color.ui always",
    ])
      sh(clone, `git config ${setting}`);
    sh(clone, "echo '* -diff' > .git/info/attributes; git replace r1^{commit} r2^{commit}");
    expect(await host.part("r1", "r2", clone)).toEqual(part);
    expect(parseMetadata(part.metadata)).toBeDefined();
    expect(part.summary).toMatchObject({
      base: { tree: trees(host, "r1") },
      target: { tree: trees(host, "r2") },
    });
  });

  it("refuses a snapshot that does not have what its commit says", async () => {
    const dirty = new BuildHost();
    dirty.release("r1", { ...ACCOUNTS, "etc/a": "a\n", "srv/a": "a\n" });
    dirty.release("r2", { "etc/a": "b\n" });
    sh(dirty.snapshot("r2"), "chmod +x etc/a");
    await expect(dirty.part("r1", "r2")).rejects.toMatchObject({ code: "worktree-dirty" });
    sh(dirty.snapshot("r2"), "rm etc/a; ln -s b etc/a");
    await expect(dirty.part("r1", "r2")).rejects.toMatchObject({ code: "worktree-dirty" });
    sh(dirty.snapshot("r2"), "rm etc/a; echo b > etc/a; mv srv real; ln -s real srv");
    await expect(dirty.part("r1", "r2")).rejects.toMatchObject({ code: "worktree-dirty" });
  });

  it("can be followed by hand: git apply -3", async () => {
    const part = await host.part("r1", "r2");
    const clone = join(newFolder(), "clone");
    sh("/", `git clone -q -b main ${host.root} ${clone} && git -C ${clone} reset -q --hard r1`);
    const patch = join(newFolder(), "patch");
    writeFileSync(patch, part.patch);
    sh(clone, `git apply --index -3 ${patch}`);
    expect(sh(clone, "git write-tree").trim()).toBe(part.summary.target.tree);
  });
});

const trees = (host: BuildHost, name: string) => sh(host.root, `git rev-parse ${name}^{tree}`).trim();
