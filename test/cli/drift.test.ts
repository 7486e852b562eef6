import { execFileSync } from "node:child_process";
import { chmodSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { beforeEach, describe, expect, test } from "vitest";
import { errorOf, inFolder, inTerminal, run, told } from "./support.js";

const folder = inFolder();
const git = (...args: string[]): string =>
  execFileSync("git", ["-c", "user.name=admin", "-c", "user.email=admin@example.org", ...args], {
    cwd: folder.file("root"),
    encoding: "utf8",
  }).trim();
const put = (path: string, content: string): void => {
  mkdirSync(dirname(folder.file(path)), { recursive: true });
  writeFileSync(folder.file(path), content);
};
const drift = (...args: string[]) => run(["drift", "--config", folder.file("site.toml"), ...args]);
const LINES = "one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n";

/** A site whose first commit is the release. */
beforeEach(() => {
  put("site.toml", `product = "demo"\n[streams]\nusr = "p/usr"\n[root]\npath = "${folder.file("root")}"\n`);
  put("root/etc/hosts", "localhost\n");
  put("root/etc/long", LINES);
  put("root/etc/motd", "hello\n");
  put("root/etc/unused", "unused\n");
  git("init", "-q");
  git("add", "-A");
  git("commit", "-q", "-m", "R1");
  git("update-ref", "refs/zferry/release", "HEAD");
});

/** A change of each kind, some of them committed. */
function change(): void {
  put("root/etc/hosts", "localhost\nplc 10.0.0.2\n");
  put("root/etc/own", "own\n");
  put("root/etc/longer", `${LINES}nine\n`);
  rmSync(folder.file("root/etc/long"));
  git("add", "-A");
  git("commit", "-q", "-m", "ours");
  put("root/etc/own", "our own\n");
  chmodSync(folder.file("root/etc/hosts"), 0o755);
  rmSync(folder.file("root/etc/unused"));
  rmSync(folder.file("root/etc/motd"));
  symlinkSync("hosts", folder.file("root/etc/motd"));
  put("root/etc/untracked", "not looked at\n");
}

describe("bundle drift", () => {
  test("tells what this site committed from what it did not commit", async () => {
    change();
    const { status, stdout, stderr } = await drift();
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout.toString()).toBe(
      `release:     ${git("rev-parse", "refs/zferry/release")}\n` +
        "committed: 3\n  M etc/hosts\n  R etc/long -> etc/longer\n  A etc/own\n" +
        "uncommitted: 4\n  M etc/hosts\n  T etc/motd\n  M etc/own\n  D etc/unused\n" +
        "not compared: owners, permissions and extended attributes, and files that git does not track\n",
    );
  });

  test("says the same in JSON, where a path may be bytes", async () => {
    change();
    execFileSync("sh", ["-c", `echo x > "$(printf 'caf\\351')"`], { cwd: folder.file("root") });
    git("add", "caf*");
    git("commit", "-q", "-m", "bytes");
    const { stdout } = await drift("--json");
    expect(JSON.parse(stdout.toString())).toEqual({
      release: git("rev-parse", "refs/zferry/release"),
      head: git("rev-parse", "HEAD"),
      committed: [
        { kind: "added", path: { base64: Buffer.from("caf\xe9", "latin1").toString("base64") } },
        { kind: "modified", path: "etc/hosts" },
        { kind: "renamed", path: "etc/longer", from: "etc/long" },
        { kind: "added", path: "etc/own" },
      ],
      uncommitted: [
        { kind: "modified", path: "etc/hosts" },
        { kind: "retyped", path: "etc/motd" },
        { kind: "modified", path: "etc/own" },
        { kind: "deleted", path: "etc/unused" },
      ],
    });
  });

  test("does not command a terminal with --json, on either output", async () => {
    const name = "m\u009b31m\u202et\u{e0041}";
    put(`root/etc/${name}`, "x\n");
    git("add", "-A");
    git("commit", "-q", "-m", "names");
    const { stdout } = await drift("--json");
    expect(stdout.toString()).toContain('"etc/m\\u009b31m\\u202et\\udb40\\udc41"');
    expect(JSON.parse(stdout.toString())).toMatchObject({ committed: [{ path: `etc/${name}` }] });
    const { stderr } = await run(["drift", "--config", `${name}.toml`, "--json"]);
    expect(stderr).toContain("m\\u009b31m\\u202et");
    expect(stderr).not.toMatch(/[\u009b\u202e]/);
  });

  test("tells what only git's index has, which an install refuses, too", async () => {
    put("root/etc/staged", "staged\n");
    put("root/etc/meant", "not staged yet\n");
    put("root/etc/away", "staged and removed\n");
    put("root/etc/hosts", "staged and taken back\n");
    git("add", "etc/staged", "etc/away", "etc/hosts");
    git("add", "-N", "etc/meant");
    git("rm", "-q", "--cached", "etc/unused");
    put("root/etc/hosts", "localhost\n");
    rmSync(folder.file("root/etc/away"));
    expect((await drift()).stdout.toString()).toContain(
      "uncommitted: 5\n  A etc/away\n  M etc/hosts\n  A etc/meant\n  A etc/staged\n  D etc/unused\n",
    );
    const patch = (await drift("--patch")).stdout.toString();
    expect(patch).toContain("\n+staged\n");
    expect(patch).toContain("\n+not staged yet\n");
  });

  test("status 0 without any, too", async () => {
    const { status, stdout } = await drift();
    expect([status, stdout.toString().split("\n").slice(1, 3)]).toEqual([
      0,
      ["committed: none", "uncommitted: none"],
    ]);
    expect((await drift("--patch")).stdout.length).toBe(0);
  });

  test("--patch makes of the release what is there", async () => {
    change();
    const { status, stdout } = await drift("--patch");
    expect(status).toBe(0);
    writeFileSync(folder.file("patch"), stdout);
    const work = folder.file("work");
    git("worktree", "add", "-q", "--detach", work, "refs/zferry/release");
    execFileSync("git", ["apply", folder.file("patch")], { cwd: work });
    expect(readFileSync(`${work}/etc/own`, "utf8")).toBe("our own\n");
    expect(readFileSync(`${work}/etc/longer`, "utf8")).toBe(`${LINES}nine\n`);
    rmSync(folder.file("root/etc/untracked"));
    rmSync(`${work}/.git`);
    execFileSync("diff", ["-r", "--exclude=.git", work, folder.file("root")]);
  });

  test("--patch does not command a terminal", async () => {
    put("root/etc/motd", "\x1b[31mred\n");
    const { screen } = await inTerminal(["drift", "--config", folder.file("site.toml"), "--patch"]);
    expect(screen).toContain("+\\u{1b}[31mred");
  });

  test("runs no filter, driver or monitor of the site, and leaves its repository as it is", async () => {
    const trap = folder.file("ran");
    const program = `sh -c 'echo ran >> ${trap}; cat'`;
    put("root/.gitattributes", "* filter=trap diff=trap\n");
    for (const key of ["filter.trap.clean", "diff.trap.textconv", "diff.trap.command", "core.fsmonitor"])
      git("config", key, program);
    put("root/etc/motd", "changed\n");
    const index = readFileSync(folder.file("root/.git/index"));
    expect((await drift()).stdout.toString()).toContain("uncommitted: 1\n  M etc/motd\n");
    expect((await drift("--patch")).stdout.toString()).toContain("\n+changed\n");
    expect(() => readFileSync(trap)).toThrow("ENOENT");
    expect(readFileSync(folder.file("root/.git/index"))).toEqual(index);
  });
});

describe("refused:", () => {
  test("a site of which no release is known", async () => {
    git("update-ref", "-d", "refs/zferry/release");
    const { status, message, hint } = told(await drift());
    expect([status, message]).toEqual([
      17,
      `the repository ${folder.file("root/.git")} has no refs/zferry/release: which release this site was made from is not known`,
    ]);
    expect(hint).toContain(`git -C ${folder.file("root")} update-ref refs/zferry/release COMMIT`);
  });

  test("a site without a repository, and one without [root]", async () => {
    rmSync(folder.file("root/.git"), { recursive: true });
    expect(errorOf(await drift("--json")).code).toBe("not-configured");
    put("site.toml", 'product = "demo"\n[streams]\nusr = "p/usr"\n');
    expect(told(await drift())).toMatchObject({
      status: 17,
      message: "the site's configuration has no [root]",
    });
  });

  test("--patch with --json", async () => {
    expect(errorOf(await drift("--patch", "--json"))).toMatchObject({
      code: "usage",
      message: "--patch and --json contradict each other",
    });
  });
});
