import { execFileSync } from "node:child_process";
import {
  appendFileSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from "node:fs";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { EXAMPLE, inFolder, inTerminal, PUBLIC, run, told } from "./support.js";

// The example changes /etc/issue.

const folder = inFolder();
const line = (...args: string[]): string[] => [
  ...["resolve", "--config", "site.toml", "--allow-expired", "2", "--quiet"],
  ...args,
];
const resolve = (...args: string[]) => run(line(...args, EXAMPLE), { cwd: folder.path });
const git = (cwd: string, ...args: string[]): string => execFileSync("git", args, { cwd, encoding: "utf8" });

beforeEach(() => {
  mkdirSync(folder.file("root/etc"), { recursive: true });
  mkdirSync(folder.file("keys"));
  copyFileSync(PUBLIC, folder.file("keys/release.pub"));
  writeFileSync(folder.file("root/etc/issue"), "Release 1 of this site\n");
  const git = ["-c", "user.name=admin", "-c", "user.email=admin@example.org"];
  for (const args of [
    ["init", "-q"],
    ["add", "-A"],
    ["commit", "-q", "-m", "site"],
  ])
    execFileSync("git", [...git, ...args], { cwd: folder.file("root") });
  writeFileSync(
    folder.file("site.toml"),
    `product = "demo"\nstate = "${folder.file("state")}"\n[trust]\nkeys = "${folder.file("keys")}"\n` +
      `[streams]\nusr = "no/such/dataset"\n[root]\npath = "${folder.file("root")}"\n`,
  );
});

describe("bundle resolve", () => {
  test("says what to edit, and takes it", async () => {
    const first = await resolve();
    expect([first.status, first.stderr]).toEqual([0, ""]);
    expect(first.stdout.toString()).toBe(
      `0 of 1 conflicts of demo release R2 (2) settled; those left are in ${folder.file("state/resolve")}:\n` +
        "  etc/issue (contents): edit etc/issue until it has no markers\n" +
        "then run the same command again; nothing of / was changed\n",
    );
    const file = folder.file("state/resolve/etc/issue");
    expect(readFileSync(file, "utf8")).toContain(">>>>>>> release R2\n");
    writeFileSync(file, "Release 2 of this site\n");
    expect((await resolve()).stdout.toString()).toBe(
      `no conflict of demo release R2 (2) is left, 1 settled; bundle install ${EXAMPLE} goes on with it\n`,
    );
    expect(readFileSync(folder.file("root/etc/issue"), "utf8")).toBe("Release 1 of this site\n");
  });

  test("takes a side, with --json", async () => {
    const { stdout } = await resolve("--theirs", "/etc/issue", "--json");
    expect(JSON.parse(stdout.toString())).toMatchObject({ outcome: "settled", settled: 1, left: [] });
  });

  test("is for an install with --live, too, which is in place", async () => {
    expect((await resolve("--ours", "/etc/issue", "--live")).stdout.toString()).toContain(
      `; bundle install ${EXAMPLE} --live goes on with it\n`,
    );
    appendFileSync(folder.file("site.toml"), '[install]\nmode = "boot-environment"\n');
    expect(told(await resolve("--live"))).toMatchObject({
      status: 2,
      message: expect.stringMatching(/^--live is of no use: with mode = "boot-environment"/) as string,
    });
  });

  test("refuses a path without a conflict", async () => {
    expect(told(await resolve("--ours", "etc/motd"))).toMatchObject({
      status: 2,
      message: "etc/motd: there is no conflict that could be settled so",
    });
  });
});

describe("bundle resolve --tool", () => {
  const file = (): string => folder.file("state/resolve/etc/issue");
  /** The user's own settings of git, with a tool that is a script. */
  const configure = (script: string): void => {
    const settings = `[merge]\n\ttool = test\n[mergetool "test"]\n\ttrustExitCode = true\n\tcmd = ${JSON.stringify(script)}\n`;
    writeFileSync(folder.file("gitconfig"), settings);
  };
  const inTool = (...args: string[]) => inTerminal(line(...args), [], folder.path);

  beforeEach(() => {
    vi.stubEnv("GIT_CONFIG_GLOBAL", folder.file("gitconfig"));
    vi.stubEnv("GIT_CONFIG_NOSYSTEM", "1");
    writeFileSync(folder.file("gitconfig"), "");
  });
  afterEach(() => vi.unstubAllEnvs());

  test("opens the user's own tool with the three sides, and takes what it leaves", async () => {
    configure(
      `cp $BASE ${folder.file("base")}; cp $LOCAL ${folder.file("ours")}; cp $REMOTE ${folder.file("theirs")}; ` +
        `cp $MERGED ${folder.file("merged")}; tty >${folder.file("tty")}; echo settled >$MERGED`,
    );
    const { status, screen } = await inTool("--tool", EXAMPLE);
    expect(screen).toContain("no conflict of demo release R2 (2) is left, 1 settled");
    expect(status).toBe(0);
    expect(["base", "ours", "theirs"].map((name) => readFileSync(folder.file(name), "utf8"))).toEqual([
      "Release 1\n",
      "Release 1 of this site\n",
      "Release 2\n",
    ]);
    expect(readFileSync(folder.file("merged"), "utf8")).toContain("<<<<<<< this site\n");
    expect(readFileSync(folder.file("tty"), "utf8")).toMatch(/^\/dev\/pts\//);
    expect(existsSync(folder.file("state/resolve"))).toBe(false);
    const [settled] = readdirSync(folder.file("state/resolutions")).filter((name) => name !== "index.json");
    expect(readFileSync(folder.file(`state/resolutions/${settled}`), "utf8")).toBe("settled\n");
    expect(git(folder.file("root"), "status", "--porcelain")).toBe("");
  });

  test("uses none of the site's own settings and attributes", async () => {
    const root = folder.file("root");
    git(root, "config", "merge.tool", "site");
    git(root, "config", "mergetool.site.cmd", `touch ${folder.file("site-tool")}`);
    git(root, "config", "filter.site.smudge", `touch ${folder.file("site-filter")}; cat`);
    mkdirSync(`${root}/.git/info`, { recursive: true });
    writeFileSync(`${root}/.git/info/attributes`, "* filter=site\n");
    const nothing = await inTool("--tool", EXAMPLE);
    expect(nothing.screen).toContain("git has no merge tool configured");
    expect(nothing.screen).toContain("git config --global merge.tool NAME");
    expect(nothing.status).toBe(17);
    configure("echo settled >$MERGED");
    vi.stubEnv("GIT_DIR", `${root}/.git`);
    expect((await inTool("--tool", EXAMPLE)).screen).toContain("1 settled");
    expect(["site-tool", "site-filter"].map((name) => existsSync(folder.file(name)))).toEqual([false, false]);
  });

  test.each([
    ["fails", "echo begun >$MERGED; exit 3"],
    ["leaves markers", "echo begun >>$MERGED"],
  ])("leaves open what the tool %s with", async (_, script) => {
    configure(script);
    const { status, screen } = await inTool("--tool", EXAMPLE);
    expect(screen).toContain("0 of 1 conflicts of demo release R2 (2) settled");
    expect(screen.includes("git mergetool ended with status 1")).toBe(script.includes("exit"));
    expect(status).toBe(0);
    expect(readFileSync(file(), "utf8")).toContain("<<<<<<< this site\n");
    expect(existsSync(folder.file("state/scratch"))).toBe(false);
    configure("echo settled >$MERGED");
    expect((await inTool(EXAMPLE, "--tool")).screen).toContain("1 settled");
  });

  test("is interrupted by Ctrl-C, and loses nothing", async () => {
    // Not a child of the shell: between the signal and its start it would miss the signal.
    configure("echo begun >>$MERGED; echo tool is open; exec sleep 100");
    const { status, screen } = await inTerminal(
      line("--tool=test", EXAMPLE),
      [{ question: "tool is open", answer: "\x03" }],
      folder.path,
    );
    expect(screen).toContain(`what was settled is in ${folder.file("state/resolve")}`);
    expect(status).toBe(130);
    expect(readFileSync(file(), "utf8")).toMatch(/<<<<<<< this site\n[^]*\nbegun\n$/);
    expect((await resolve()).stdout.toString()).toContain("edit etc/issue until it has no markers");
  });

  test("is for a terminal, and for a bundle", async () => {
    configure("echo settled >$MERGED");
    expect(told(await resolve("--tool"))).toMatchObject({
      status: 2,
      message: "--tool needs a terminal",
      hint: "without it, bundle resolve puts the conflicts into a folder, for any editor",
    });
    expect(told(await run(line("--tool")))).toMatchObject({
      status: 2,
      message: "missing required argument 'file'",
    });
    expect(existsSync(folder.file("state"))).toBe(false);
  });
});
