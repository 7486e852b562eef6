import { describe, expect, it } from "vitest";
import { openRepository } from "../../src/system/git.js";
import { ACCOUNTS, BuildHost, edit, fingerprint, sh, type Site } from "./hosts.js";

const host = new BuildHost();
host.release("r1", {
  ...ACCOUNTS,
  "etc/changed": "a\nb\nc\nd\n",
  "etc/gone": "gone\n",
  "etc/moved": "x\n".repeat(50),
  "etc/stays": "stays\n",
});
host.release("r2", {
  "etc/changed": "A\nb\nc\nd\n",
  "etc/gone": null,
  "etc/moved": null,
  "etc/new": "new\n",
  "etc/renamed": "x\n".repeat(50),
});
host.release("r3", { "etc/changed": "A\nb\nc\nD\n" });

/** A site with a commit of its own, after a shell command there. */
function siteAfter(command: string): Site {
  const site = host.site("r1", "cloned");
  edit(site.root, { "etc/own": "own\n", "etc/stays": "stays here\n" });
  sh(site.root, "git add -A; git commit -q -m own");
  sh(site.root, command);
  return site;
}

/** A plan that is refused, and a site that is as it was. */
async function refused(site: Site, expected: Record<string, unknown>, options = {}): Promise<void> {
  const before = fingerprint(site);
  await expect(site.plan(await host.part("r1", "r2"), options)).rejects.toMatchObject(expected);
  expect(fingerprint(site)).toBe(before);
}

const message = (pattern: RegExp) => expect.stringMatching(pattern) as unknown;

describe("refs/zferry/release", () => {
  it("may be a tag: it counts as its commit, and is there again when an install is taken back", async () => {
    const site = siteAfter("git tag -a -m x R1 r1; git update-ref refs/zferry/release R1");
    const before = site.everything();
    const plan = await site.plan(await host.part("r1", "r2"));
    await site.apply(plan);
    expect(site.git("log -1 --format=%s refs/zferry/release")).toBe("Release r2");
    await site.takeBack(plan);
    expect(site.everything()).toBe(before);
    await site.apply(plan);
    await site.install(await host.part("r2", "r3"), { release: "r3" });
    expect(site.git("log -1 --format=%s refs/zferry/release")).toBe("Release r3");
    expect(site.git("fsck --strict")).toBe("");
  });

  it("is refused where it leads to no commit", async () => {
    await refused(siteAfter("git update-ref refs/zferry/release $(git rev-parse HEAD:etc/own)"), {
      code: "git-failed",
      message: message(/^refs\/zferry\/release of .* leads to no commit$/),
    });
  });
});

describe("a repository that git cannot use", () => {
  it.each([
    ["a line of its settings", "echo [broken >>.git/config", /: bad config line \d+ in file /],
    [
      "an extension",
      "git config core.repositoryFormatVersion 1; git config extensions.unheardof 1",
      /: unknown repository extension found:/,
    ],
    ["a setting's value", "git config core.bare perhaps", /: bad (boolean|numeric) config value 'perhaps'/],
    ["no HEAD", "rm .git/HEAD", /: not a git repository/],
  ])("is told with git's reason: %s", async (_, command, reason) => {
    const site = siteAfter(command);
    await expect(openRepository(site.root)).rejects.toMatchObject({
      code: "not-configured",
      message: message(new RegExp(`^git cannot use the repository of ${site.root}${reason.source}`)),
      hint: message(new RegExp(`^mend ${site.root}/\\.git, .*git -C ${site.root} status must work$`)),
    });
  });
});

describe("a repository that is not whole", () => {
  /** Unpacks all objects, and gives the path of one as `$object`. */
  const loose = (revision: string): string =>
    `git repack -adq; mkdir .git/t; mv .git/objects/pack/*.pack .git/t/; rm -f .git/objects/pack/*
     cat .git/t/*.pack | git unpack-objects -q; rm -rf .git/t
     id=$(git rev-parse ${revision}); object=.git/objects/$(echo $id | cut -c1-2)/$(echo $id | cut -c3-);`;
  const hint = message(/git fsck .*git fetch --refetch/);

  it.each(["etc/gone", "etc/changed", "etc/moved"])("lacks the contents of %s", async (path) => {
    const site = siteAfter(`${loose(`HEAD:${path}`)} rm -f $object`);
    const missing = [site.git(`rev-parse HEAD:${path}`)];
    const expected = { code: "git-failed", message: message(new RegExp(path)), details: { missing }, hint };
    await refused(site, expected);
    // As its hint says.
    sh(site.root, `git hash-object -w ${path}`);
    await site.install(await host.part("r1", "r2"));
  });

  it("lacks contents that nothing changes", async () => {
    await refused(siteAfter(`${loose("HEAD:etc/stays")} rm -f $object`), {
      code: "git-failed",
      message: message(/etc\/stays/),
      hint,
    });
  });

  it("has damaged contents, for which the bundle is not blamed", async () => {
    await refused(siteAfter(`${loose("HEAD:etc/changed")} chmod +w $object; printf garbage > $object`), {
      code: "git-failed",
      message: message(/^the site's repository is damaged/),
      hint,
    });
  });

  it("has another object by the name of one that the release brings", async () => {
    const site = siteAfter(
      `id=$(printf 'new\\n' | git hash-object --stdin); object=.git/objects/$(echo $id | cut -c1-2)/$(echo $id | cut -c3-)
       mkdir -p $(dirname $object); other=$(printf 'NEW\\n' | git hash-object -w --stdin)
       rm -f $object; cp .git/objects/$(echo $other | cut -c1-2)/$(echo $other | cut -c3-) $object`,
    );
    const filesOf = ({ root }: Site): string => sh(root, "grep -r . --exclude-dir=.git | sort");
    const before = filesOf(site);
    await expect(host.part("r1", "r2").then((part) => site.install(part))).rejects.toMatchObject({
      code: "git-failed",
      message: message(/^the repository has as git object 3e7\w+ what is \w+$/),
      hint,
    });
    expect(filesOf(site)).toBe(before);
  });

  it.each([
    ["an empty reference", ": >.git/refs/heads/main"],
    ["a commit that is gone", `${loose("HEAD")} rm -f $object`],
    ["a tree that is gone", `${loose("HEAD^{tree}")} rm -f $object`],
  ])("has %s: nobody is told to commit", async (_, command) => {
    const site = siteAfter(command);
    await expect(site.plan(await host.part("r1", "r2"))).rejects.toMatchObject({
      code: "git-failed",
      message: message(/^the repository .* is damaged: /),
      hint: message(/^commit nothing: /),
    });
  });

  it("has no index: nobody is told to commit", async () => {
    const site = siteAfter("rm .git/index");
    await expect(site.plan(await host.part("r1", "r2"))).rejects.toMatchObject({
      code: "worktree-dirty",
      details: { paths: [`${site.root}/.git/index`] },
      hint: message(/^commit nothing: .*git reset/),
    });
    await expect(site.plan(await host.part("r1", "r2"), { commitDrift: true })).rejects.toMatchObject({
      hint: message(/^commit nothing: /),
    });
    sh(site.root, "git reset -q");
    await site.install(await host.part("r1", "r2"));
  });

  it("has an index that is damaged", async () => {
    const site = siteAfter("printf garbage >.git/index");
    await expect(site.plan(await host.part("r1", "r2"))).rejects.toMatchObject({
      code: "git-failed",
      hint: message(/git reset/),
    });
  });

  it("does not look at a file: the hint says how it does", async () => {
    const site = siteAfter("git update-index --assume-unchanged etc/own; echo other >etc/own");
    await refused(site, {
      code: "worktree-dirty",
      details: { paths: ["etc/own"] },
      hint: message(/--no-assume-unchanged etc\/own; then /),
    });
  });

  it("is a partial clone: nothing is fetched", async () => {
    const site = siteAfter(
      `${loose("HEAD:etc/gone")} rm -f $object
       printf '#!/bin/sh\ntouch %s/fetched\nexit 1\n' $PWD > .git/fetch; chmod +x .git/fetch
       git config core.repositoryFormatVersion 1; git config extensions.partialClone origin
       git config remote.origin.promisor true; git config remote.origin.url "ext::$PWD/.git/fetch"
       git config protocol.ext.allow always`,
    );
    await refused(site, { code: "git-failed", message: message(/etc\/gone/), hint });
    expect(site.has("fetched")).toBe(false);
  });
});

describe("what is neither file nor folder is named", () => {
  it.each([
    ["mkfifo etc/new", "etc/new (an untracked named pipe)"],
    ["mknod etc/new c 1 3", "etc/new (an untracked device)"],
    [
      `node -e 'require("net").createServer().listen("etc/new", () => process.kill(process.pid, 9))' || true`,
      "etc/new (an untracked socket)",
    ],
  ])("%s", async (command, path) => {
    const site = siteAfter(command);
    const expected = {
      code: "worktree-dirty",
      details: { paths: [path] },
      hint: "move it away, or remove it",
    };
    await refused(site, expected, { replaceUntracked: true });
  });

  it("also in place of a tracked file", async () => {
    await refused(
      siteAfter("rm etc/own; mkfifo etc/own"),
      { code: "worktree-dirty", details: { paths: ["etc/own (now a named pipe)"] } },
      { commitDrift: true },
    );
  });
});

it("takes part with its objects and references alone: no setting changes the plan, and no program of one runs", async () => {
  const planned = JSON.stringify(await siteAfter("true").plan(await host.part("r1", "r2")));
  const site = siteAfter(
    `printf '#!/bin/sh\\ntouch %s/ran\\nexit 1\\n' $PWD > .git/program; chmod +x .git/program
     while read name value; do git config "$name" "$value"; done <<END
log.showSignature true
gpg.program $PWD/.git/program
gpg.openpgp.program $PWD/.git/program
core.fsmonitor $PWD/.git/program
core.pager $PWD/.git/program
core.alternateRefsCommand $PWD/.git/program
diff.external $PWD/.git/program
filter.x.clean $PWD/.git/program
filter.x.smudge $PWD/.git/program
merge.x.driver $PWD/.git/program
log.date broken
log.diffMerges on
diff.renameLimit x
diff.renames x
diff.algorithm bogus
diff.orderFile /nonexistent
diff.ignoreSubmodules broken
merge.renameLimit x
pack.packSizeLimit 1m
END
     echo '* filter=x merge=x diff=x' > .git/info/attributes
     git cat-file commit HEAD | sed '/^committer/a gpgsig -----BEGIN PGP SIGNATURE-----\\n \\n x\\n -----END PGP SIGNATURE-----' > .git/signed
     git update-ref refs/heads/main $(git hash-object -t commit -w .git/signed)`,
  );
  const plan = await site.plan(await host.part("r1", "r2"));
  expect(JSON.stringify({ ...plan, head: "", mergeCommit: "" })).toBe(
    JSON.stringify({ ...(JSON.parse(planned) as object), head: "", mergeCommit: "" }),
  );
  await site.apply(plan);
  await site.takeBack(plan);
  await site.apply(plan);
  expect(site.has("ran")).toBe(false);
});
