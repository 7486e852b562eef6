import { execFileSync } from "node:child_process";
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname } from "node:path";
import { beforeEach, describe, expect, test } from "vitest";
import { CLI, errorOf, hasMounts, inFolder, run, told } from "./support.js";

const folder = inFolder();
const git = (...args: string[]): string => execFileSync("git", args, { cwd: folder.path, encoding: "utf8" });
const put = (path: string, content: string): void => {
  mkdirSync(dirname(folder.file(path)), { recursive: true });
  writeFileSync(folder.file(path), content);
};
const setup = (...args: string[]) => run(["setup", "--repository", "--root", folder.path, ...args]);
const USUAL =
  "/home\n/root\n/mnt\n/media\n/lost+found\n/opt/zferry*\n/var/cache\n/var/log\n/var/spool\n/var/tmp\n";
const NEVER = "/usr\n/proc\n/sys\n/dev\n/run\n/tmp\n";

/** A system that never had git. */
beforeEach(() => {
  put("etc/zferry/site.toml", 'product = "demo"\n[streams]\nusr = "p/usr"\n[root]\n');
  put("etc/motd", "hello\r\n");
  put("etc/shadow", "root:!::\n");
  chmodSync(folder.file("etc/shadow"), 0o600);
  put("etc/tool", "#!/bin/sh\n");
  chmodSync(folder.file("etc/tool"), 0o755);
  symlinkSync("motd", folder.file("etc/issue"));
  for (const path of [
    "usr/bin/x",
    "proc/1",
    "run/x",
    "tmp/x",
    "home/a/x",
    "var/log/x",
    "var/lib/zferry/install.log",
  ])
    put(path, "not ours\n");
  put("var/lib/app/data", "data\n");
});

const TRACKED = [
  "etc/issue",
  "etc/motd",
  "etc/shadow",
  "etc/tool",
  "etc/zferry/site.toml",
  "var/lib/app/data",
];

describe("bundle setup --repository", () => {
  test("commits what is there, byte by byte, in a repository for its owner alone", async () => {
    put(".gitattributes", "* text=auto\n");
    const { status, stdout, stderr } = await setup();
    expect([status, stderr]).toEqual([0, ""]);
    const commit = git("rev-parse", "HEAD").trim();
    expect(stdout.toString()).toBe(`made ${folder.file(".git")}, with 7 files, 95 B, in commit ${commit}\n`);
    expect(lstatSync(folder.file(".git")).mode & 0o7777).toBe(0o700);
    expect(git("ls-tree", "-r", "--name-only", "HEAD").trim().split("\n")).toEqual([
      ".gitattributes",
      ...TRACKED,
    ]);
    expect(git("ls-tree", "HEAD", "etc/issue", "etc/tool", "etc/motd").replace(/ blob .*\t/g, " ")).toBe(
      "120000 etc/issue\n100644 etc/motd\n100755 etc/tool\n",
    );
    expect(git("show", "HEAD:etc/motd")).toBe("hello\r\n");
    expect(git("log", "--format=%an %s")).toBe("zferry This site as it was found\n");
    expect(git("symbolic-ref", "HEAD")).toBe("refs/heads/main\n");
    expect(git("fsck", "--strict")).toBe("");
    expect(readFileSync(folder.file(".git/info/exclude"), "utf8")).toBe(`${NEVER}${USUAL}/var/lib/zferry\n`);
    expect(readdirSync(folder.file(".git/info"))).not.toContain("attributes");
    expect(readdirSync(folder.path).filter((name) => name.includes("zferry"))).toEqual([]);
  });

  test("leaves a clean work tree, that an administrator goes on with", async () => {
    await setup();
    expect(git("status", "--porcelain")).toBe("");
    put("etc/motd", "changed\n");
    put("var/log/y", "log\n");
    expect(git("status", "--porcelain")).toBe(" M etc/motd\n");
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "ours");
    expect(git("rev-list", "--count", "HEAD")).toBe("2\n");
  });

  test("has what --ignore names, and what the product's .gitignore has in place of the usual", async () => {
    put(".gitignore", "/var/log\n*.secret\n");
    put("etc/x.secret", "secret\n");
    await setup("--ignore", "/var/lib/app", "--ignore", "/etc/t*");
    expect(readFileSync(folder.file(".git/info/exclude"), "utf8")).toBe(
      `${NEVER}/var/lib/zferry\n/var/lib/app\n/etc/t*\n`,
    );
    expect(git("ls-files").trim().split("\n")).toEqual([
      ".gitignore",
      "etc/issue",
      "etc/motd",
      "etc/shadow",
      "etc/zferry/site.toml",
      "home/a/x",
    ]);
  });

  test("leaves out repositories within, and says so", async () => {
    put("srv/inner/file", "x\n");
    execFileSync("git", ["init", "-q", folder.file("srv/inner")]);
    execFileSync("sh", ["-c", `echo x > "$(printf 'caf\\351')"`], { cwd: folder.file("etc") });
    const { stdout } = await setup("--json");
    expect(JSON.parse(stdout.toString())).toMatchObject({
      outcome: "written",
      path: folder.file(".git"),
      commit: git("rev-parse", "HEAD").trim(),
      files: 7,
      leftOut: ["srv/inner/"],
    });
    expect(git("status", "--porcelain")).toBe("?? srv/\n");
  });

  test("--print says what it would do, and does nothing", async () => {
    const { status, stdout } = await setup("--print");
    expect([status, stdout.toString()]).toEqual([
      0,
      `# ${folder.file(".git/info/exclude")}\n${NEVER}${USUAL}/var/lib/zferry\n\n6 files would be committed, 83 B\n`,
    ]);
    expect(readdirSync(folder.path).filter((name) => name.startsWith("."))).toEqual([]);
    const json = JSON.parse((await setup("--print", "--json")).stdout.toString()) as object;
    expect(json).toMatchObject({ outcome: "printed", commit: null, files: 6, bytes: 83 });
  });

  test("leaves out the state folder, wherever it is", async () => {
    put(
      "etc/zferry/site.toml",
      'product = "demo"\nstate = "/srv/a*b/my state"\n[streams]\nusr = "p/usr"\n[root]\n',
    );
    put("srv/a*b/my state/install.log", "-");
    put("srv/aXb/my state/file", "kept\n");
    await setup();
    expect(git("ls-files", "srv")).toBe("srv/aXb/my state/file\n");
  });

  test.skipIf(!hasMounts)(
    "leaves out what is mounted, under any name, and in no folder that is left out anyway",
    () => {
      const mounts = `
      mkdir -p data 'srv/my disk[1]' "srv/$(printf 'caf\\351')" home/inner
      for folder in data 'srv/my disk[1]' "srv/$(printf 'caf\\351')" home/inner var/lib/zferry; do
        mount -t tmpfs none "$folder"
        echo mounted >"$folder/file"
      done
      mkdir data/below
      mount -t tmpfs none data/below
      mount --bind etc/motd var/lib/app/data`;
      const command = 'exec "$0" "$1" setup --repository --root "$PWD"';
      const made = execFileSync(
        "unshare",
        ["-m", "sh", "-euc", `${mounts}\n${command}`, process.execPath, CLI],
        {
          cwd: folder.path,
          encoding: "utf8",
        },
      );
      expect(made).toContain("with 5 files");
      expect(git("ls-files").trim().split("\n")).toEqual(
        TRACKED.filter((path) => path !== "var/lib/app/data"),
      );
      expect(readFileSync(folder.file(".git/info/exclude"), "latin1")).toBe(
        `${NEVER}${USUAL}/var/lib/zferry\n/data\n/srv/caf\xe9\n/srv/my\\ disk\\[1]\n/var/lib/app/data\n`,
      );
    },
  );

  test("takes away what an interrupted one left", async () => {
    put(".git.zferry/HEAD", "ref: refs/heads/main\n");
    expect((await setup()).status).toBe(0);
    expect(existsSync(folder.file(".git.zferry"))).toBe(false);
    expect(git("ls-files").trim().split("\n")).toEqual(TRACKED);
  });
});

describe("refused, with nothing changed:", () => {
  test("a site with an install under way, whose repository is gone", async () => {
    put(
      "var/lib/zferry/journal.json",
      JSON.stringify({
        version: 3,
        operation: "rollback",
        release: { name: "R2", sequence: 2, identity: "a".repeat(64) },
        startedAt: 1_750_400_000,
        phase: "rolling-back",
        undoing: false,
        streams: [],
        present: [],
        site: { product: "demo", root: "/" },
        lost: [],
        plan: null,
      }),
    );
    put("etc/.zferry-0123456789abcdef", "prepared\n");
    for (const args of [["--json"], ["--print", "--json"]]) {
      expect(errorOf(await setup(...args))).toMatchObject({
        code: "install-pending",
        message: expect.stringContaining(`bring ${folder.file(".git")} back`) as string,
      });
    }
    expect(existsSync(folder.file(".git"))).toBe(false);
  });

  test("a site that has a repository, or a file in its place", async () => {
    put(".git", "gitdir: elsewhere\n");
    for (const args of [["--json"], ["--print", "--json"]]) {
      expect(errorOf(await setup(...args))).toMatchObject({
        code: "output-exists",
        message: `${folder.path} has a git repository already: there is ${folder.file(".git")}`,
      });
    }
    expect(readFileSync(folder.file(".git"), "utf8")).toBe("gitdir: elsewhere\n");
  });

  test("a configuration without [root]", async () => {
    put("etc/zferry/site.toml", 'product = "demo"\n[streams]\nusr = "p/usr"\n');
    expect(told(await setup())).toMatchObject({
      status: 17,
      message: "the site's configuration has no [root]",
    });
  });

  test.each<[string[], string]>([
    [["--repository", "--remove"], "--repository and --remove contradict each other"],
    [["--repository", "--init", "openrc"], "--repository and --init contradict each other"],
    [["--ignore", "/srv"], "--ignore goes with --repository"],
    [["--repository", "--ignore", "a\nb"], '--ignore "a\\nb": is not one line'],
    [["--repository", "--config", "site.toml"], '--config "site.toml": is not an absolute path'],
  ])("%j", async (args, message) => {
    expect(told(await run(["setup", "--root", folder.path, ...args]))).toMatchObject({ status: 2, message });
    expect(existsSync(folder.file(".git"))).toBe(false);
  });
});
