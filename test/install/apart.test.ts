import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { parseConfig, siteSchema, type SiteConfig } from "../../src/config.js";
import { requireOwnUntouched, requireStateUntracked } from "../../src/install/apart.js";
import type { RootPlan } from "../../src/root/plan.js";
import { openRepository } from "../../src/system/git.js";
import { withMode } from "../../src/system/settings.js";
import { refusal } from "../bundle/support.js";

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "zferry-apart-"));
});
afterEach(() => rmSync(root, { recursive: true }));

const site = (state: string, keys = join(root, "etc/zferry/keys")): SiteConfig =>
  withMode(
    parseConfig(
      siteSchema,
      `product = "demo"\nstate = "${state}"\n[trust]\nkeys = "${keys}"\n[streams]\nusr = "p/usr"\n`,
      "x",
    ),
    new Map(),
  );

describe("the state folder", () => {
  const git = (...args: string[]) => execFileSync("git", ["-C", root, ...args]);
  beforeEach(() => {
    git("init", "--quiet");
    mkdirSync(join(root, "srv/state"), { recursive: true });
    writeFileSync(join(root, "srv/state/state.json"), "{}");
  });
  const check = async (state: string) => requireStateUntracked(site(state), root, await openRepository(root));

  test("may lie in /, where the repository does not track it", async () => {
    await check(join(root, "srv/state"));
    await check(join(root, "srv/new/state"));
    await check(tmpdir());
  });

  test("must not be tracked, under whatever name", async () => {
    git("add", "srv/state/state.json");
    symlinkSync("srv", join(root, "link"));
    for (const state of ["srv/state", "link/state"]) {
      const { code, message } = await refusal(() => check(join(root, state)));
      expect([code, message]).toEqual([
        "not-configured",
        expect.stringContaining("which a rollback would turn back"),
      ]);
    }
  });
});

describe("a release", () => {
  const plan = (path: string) => ({ changes: [{ path }], directories: [] }) as unknown as RootPlan;
  const check = (path: string) => requireOwnUntouched(site(join(root, "srv/state")), root, plan(path));

  test("may change what is not the site's own", () => {
    for (const path of ["etc/issue", "srv/states", "srv/other/state", "etc/zferry-x"]) check(path);
  });

  test.each(["srv/state", "srv/state/state.json", "srv", "etc/zferry/keys/x.pub", "etc/zferry"])(
    "must not change %s",
    async (path) => {
      const { code, message } = await refusal(() => check(path));
      expect([code, message]).toEqual([
        "not-permitted",
        `the release changes ${path}, where this site keeps what is its own`,
      ]);
    },
  );
});
