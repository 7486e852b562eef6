import { describe, expect, test } from "vitest";
import { parseConfig, siteSchema } from "../../src/config.js";
import {
  apartFrom,
  composeParts,
  mountsToSee,
  requireMayChange,
  requireOffStreams,
  sharedPart,
  sharedPaths,
  waitingFor,
} from "../../src/install/shared-mounts.js";
import { rawPath, type RawPath } from "../../src/raw-path.js";
import type { RootPlan } from "../../src/root/plan.js";
import { ownMounts, parseMounts, type Mount } from "../../src/system/mounts.js";
import { withMode } from "../../src/system/settings.js";
import { refusal } from "../bundle/support.js";

// What is mounted and written is in test/lab/environment-install.test.ts.

/** Two mount points of the machine that runs this, neither below the other, nor below another one. */
const [ONE = "", TWO = ""] = [...ownMounts().keys()].filter(
  (point, _, all) =>
    point !== "/" && !all.some((other) => other !== "/" && other !== point && point.startsWith(`${other}/`)),
);
const [one, two] = [ONE.slice(1), TWO.slice(1)];

const site = withMode(
  parseConfig(siteSchema, 'product = "demo"\n[streams]\nusr = "p/usr"\n[root]\n', "x"),
  new Map(),
);
const raw = (...paths: string[]): RawPath[] => paths.map((path) => rawPath(Buffer.from(path)));

/** Mounts by their places: their type and source. */
const mountsOf = (mounts: Record<string, string>): ReadonlyMap<RawPath, Mount> =>
  new Map(
    parseMounts(
      Object.entries(mounts)
        .map(([path, what]) => `1 1 0:1 / /${path} rw - ${what} rw`)
        .join("\n"),
    ).map((mount) => [mount.point.slice(1) as RawPath, mount]),
  );

describe("file systems that all environments share", () => {
  test("are seen where they have tracked files, read-only unless they may be changed", () => {
    const readOnly = { args: ["-o", "bind,ro", ONE], path: ONE };
    expect(mountsToSee(site, [], raw("etc/hosts", `${one}es/x`))).toEqual([]);
    expect(mountsToSee(site, [], raw(`${one}/x/y`, `${one}/z`, "etc/hosts"))).toEqual([readOnly]);
    const both = mountsToSee(site, [TWO], raw(`${one}/x`, `${two}/x`));
    expect(both).toHaveLength(2);
    expect(both).toEqual(expect.arrayContaining([readOnly, { args: ["--bind", TWO], path: TWO }]));
  });

  test("are not what is not mounted", async () => {
    expect(await refusal(async () => mountsToSee(site, ["/etc"], []))).toMatchObject({
      code: "not-configured",
      message: "nothing is mounted on /etc, which all boot environments share",
    });
  });

  test("are changed only where that is allowed, and the error tells how to allow it", async () => {
    const check = (paths: RawPath[], shared: string[] = []) =>
      refusal(async () => requireMayChange(site, { shared }, paths));
    requireMayChange(site, {}, raw("etc/hosts", `${one}es`));
    requireMayChange(site, { shared: [ONE] }, raw("etc/hosts", `${one}/x`, one));
    const error = await check(raw(`${one}/b`, "etc/hosts", `${one}/a`, `${one}/a`));
    expect(error).toMatchObject({
      code: "dataset-unsuitable",
      details: { paths: [`${one}/b`, `${one}/a`], mounts: [ONE] },
    });
    expect(error.message).toContain(` share: on ${ONE}, which is `);
    expect(error.message).toContain(`: ${one}/b, ${one}/a`);
    expect((await check(raw(`${one}/a`, `${two}/x`), [TWO])).hint).toContain(
      `shared = ["${TWO}", "${ONE}"] under [boot-environment]`,
    );
  });

  test("are no streams' datasets, nor the origin or those below it, which no other file system is", async () => {
    const origin = "p/ROOT/one";
    requireOffStreams(site, [one], { origin, shared: [ONE] }, raw(`${one}/x`));
    const mounts = mountsOf({
      usr: "zfs p/usr",
      var: `zfs ${origin}/var`,
      boot: "zfs p/boot",
      srv: `xfs ${origin}/x`,
      opt: `zfs ${origin}`,
    });
    const check = (paths: string[], shared: string[] = []): void =>
      requireOffStreams(site, ["p/usr"], { origin, shared }, raw(...paths), mounts);
    check(["etc/x", "boot/x", "srv/x"], ["/boot"]);
    expect(await refusal(async () => check(["etc/x", "usr/a", "var/b", "opt/c"]))).toMatchObject({
      code: "dataset-unsuitable",
      details: { paths: ["usr/a", "var/b", "opt/c"] },
    });
    for (const point of ["/usr", "/var", "/opt"])
      expect((await refusal(async () => check([], [point]))).code).toBe("dataset-unsuitable");
  });

  test("are looked into where they wait to be mounted, and only those that are asked of", () => {
    const mounts = mountsOf({ boot: "xfs a", "boot/efi": "autofs b", net: "autofs c" });
    expect(waitingFor(raw("etc/x", "boot/efi/a", "boot/efi/b"), mounts)).toEqual(["/boot/efi"]);
    expect(waitingFor(raw("etc/x", "boot/x", "network"), mounts)).toEqual([]);
  });
});

const attributes = { uid: 0, gid: 0, permissions: 0o755, xattrs: {} };
const state = (blob: string) => ({ mode: "100755" as const, blob: blob.repeat(40), attributes });
const plan = (
  id: string,
  changes: RootPlan["changes"],
  directories: RootPlan["directories"] = [],
): RootPlan => ({
  format: 1,
  head: id.repeat(40),
  branch: null,
  mergeCommit: "f".repeat(40),
  releaseCommit: null,
  previousRelease: null,
  changes,
  directories,
});

describe("a plan's part on shared file systems", () => {
  test("is what lies on them, and nothing for a plan that has none", () => {
    const inside = { path: "boot/efi/a", before: null, after: state("a") };
    const whole = plan(
      "1",
      [inside, { path: "boot/efis", before: null, after: state("b") }],
      [
        { path: "boot/efi", before: attributes, after: null },
        { path: "boot", before: attributes, after: null },
      ],
    );
    const part = sharedPart({ ...whole, blobs: ["b".repeat(40)] }, { shared: ["/boot/efi"] });
    expect(part).toEqual({ ...whole, changes: [inside], directories: [whole.directories[0]] });
    expect(sharedPaths(part)).toEqual(["boot/efi/a", "boot/efi"]);
    for (const environment of [null, {}, { shared: ["/srv"] }])
      expect(sharedPart(whole, environment)).toBeUndefined();
    expect(sharedPart(null, { shared: ["/boot/efi"] })).toBeUndefined();
    expect(sharedPaths(undefined)).toEqual([]);
  });

  test("of several bundles is what they change together", () => {
    const first = plan("1", [
      { path: "e/b", before: null, after: state("a") },
      { path: "e/c", before: null, after: state("a") },
    ]);
    const second = plan("2", [
      { path: "e/a", before: state("d"), after: null },
      { path: "e/b", before: state("a"), after: state("c") },
      { path: "e/c", before: state("a"), after: null },
    ]);
    expect(composeParts([first, undefined, second])).toEqual({
      ...second,
      head: first.head,
      changes: [
        { path: "e/a", before: state("d"), after: null },
        { path: "e/b", before: null, after: state("c") },
      ],
    });
    expect(composeParts([undefined])).toBeUndefined();
  });

  test("is looked at file by file before it is taken back, after that of the bundle before", () => {
    const first = plan("1", [
      { path: "e/a", before: null, after: state("a") },
      { path: "e/b", before: null, after: state("a") },
    ]);
    const second = plan("2", [{ path: "e/b", before: state("a"), after: state("c") }]);
    expect(apartFrom(second, first)).toEqual([second, { ...first, changes: [first.changes[0]] }]);
    expect(apartFrom(undefined, first)).toEqual([first]);
    expect(apartFrom(second, undefined)).toEqual([second]);
    expect(apartFrom(undefined, undefined)).toEqual([]);
  });
});
