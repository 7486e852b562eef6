import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { beforeEach, describe, expect, test } from "vitest";
import { EXAMPLE, inFolder, PUBLIC, run, told } from "./support.js";

// The example changes /etc/issue.

const folder = inFolder();
const resolve = (...args: string[]) =>
  run(["resolve", EXAMPLE, "--config", "site.toml", "--allow-expired", "2", "--quiet", ...args], {
    cwd: folder.path,
  });

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

  test("refuses a path without a conflict", async () => {
    expect(told(await resolve("--ours", "etc/motd"))).toMatchObject({
      status: 2,
      message: "etc/motd: there is no conflict that could be settled so",
    });
  });
});
