import { describe, expect, test } from "vitest";
import type { VerifiedBundle } from "../../src/bundle/reader.js";
import { parseConfig, siteSchema } from "../../src/config.js";
import { Obstacles } from "../../src/errors.js";
import { hintForTaken, missingParents, planStreamsBeside } from "../../src/install/environment-install.js";
import type { NewEnvironment } from "../../src/install/state.js";
import { withMode } from "../../src/system/settings.js";
import { refusal } from "../bundle/support.js";

// What ZFS does is in test/lab/environment-install.test.ts.

test("a full bundle says that it needs to be installed in place", async () => {
  const text = 'product = "demo"\n[streams]\nusr = "p/SYSTEM/USR/gentoo"\n[root]\n';
  const site = withMode(parseConfig(siteSchema, text, "x"), new Map());
  const manifest = { streams: [{ role: "usr", target: { snapshot: "R1", guid: "1" } }] };
  const environment = { dataset: "p/ROOT/R1", origin: "p/ROOT/one" } as NewEnvironment;
  const obstacles = new Obstacles();
  await planStreamsBeside({ manifest } as unknown as VerifiedBundle, site, environment, undefined, obstacles);
  expect(await refusal(() => obstacles.throwAny())).toMatchObject({
    code: "dataset-unsuitable",
    message: "the bundle has all of stream usr, and a boot environment begins with a base",
    hint: expect.stringMatching(
      /^a full bundle is installed in place: mode = "in-place" under \[install\], /,
    ) as string,
  });
});

const stream = (dataset: string, base: string) => ({
  dataset,
  base: { dataset: base, name: "R1", guid: "1" },
});
const environment = { dataset: "p/ROOT/R2" };

test("a new dataset lies in one that is made, or in one that must be there", () => {
  const streams = [
    stream("p/ROOT/R2/usr/local", "p/ROOT/R1/usr/local"),
    stream("p/ROOT/R2/usr", "p/ROOT/R1/usr"),
    stream("p/ROOT/R2/var/opt", "p/ROOT/R1/var/opt"),
    stream("p/OPT/R2", "p/OPT/R1"),
    // Received by the bundle before.
    stream("p/ROOT/R2/gone/data", "p/ROOT/R2/gone/data"),
  ];
  expect(missingParents(streams, environment)).toEqual([
    { dataset: "p/ROOT/R2/var/opt", parent: "p/ROOT/R2/var" },
    { dataset: "p/OPT/R2", parent: "p/OPT" },
  ]);
});

describe("a name that is taken", () => {
  const IDENTITY = "a".repeat(64);
  const environment = (name: string, identity?: string, ...datasets: string[]) => ({
    name,
    dataset: `p/ROOT/${name}`,
    release: identity === undefined ? null : { name, identity },
    datasets: datasets.map((dataset) => ({ path: "/usr", dataset })),
    fault: null as string | null,
  });
  const R1 = environment("R1", "b".repeat(64), "p/USR/R1");
  const R2 = environment("R2", IDENTITY, "p/USR/R2");
  const running = { source: "p/ROOT/R1", point: "/" };
  const hint = (
    name: string,
    environments: readonly ReturnType<typeof environment>[],
    { next = "p/ROOT/R1", mounts = [running], clones = [] as string[] } = {},
  ): string =>
    hintForTaken(
      { name, what: name.includes("@") ? "snapshot" : "dataset", clones, mounts },
      { environments, next },
      IDENTITY,
    );

  test("is that of an environment that was made of the same bundle", () => {
    const activate =
      "it was made of this bundle; to have it boot next: bundle activate R2; to make it anew: ";
    expect(hint("p/ROOT/R2", [R1, R2])).toBe(`${activate}zfs destroy -r p/ROOT/R2, and install again`);
    expect(hint("p/ROOT/R2", [R1, R2], { next: "p/ROOT/R2" })).toBe(`${activate}not while it boots next`);
    const mounts = [running, { source: "p/ROOT/R2/data", point: "/data" }];
    expect(hint("p/ROOT/R2", [R1, R2], { mounts })).toBe(`${activate}not while it is mounted on /data`);
  });

  test("is destroyed where nothing needs it", () => {
    const other = environment("R2", "c".repeat(64));
    expect(hint("p/ROOT/R2", [R1, other])).toBe(
      "it was made of another bundle; if it is of no use any more: zfs destroy -r p/ROOT/R2",
    );
    for (const [name, remove] of [
      ["p/ROOT/R2", "zfs destroy -r p/ROOT/R2"],
      ["p/USR/R2", "zfs destroy -r p/USR/R2"],
      ["p/ROOT/R1@zferry-R2", "zfs destroy p/ROOT/R1@zferry-R2"],
    ] as const) {
      expect(hint(name, [R1])).toBe(
        `zfs rename ${name} to another name, or, if it is of no use any more, ${remove}`,
      );
    }
  });

  test.each<[string, string, Parameters<typeof hint>]>([
    ["it is mounted on /", "runs", ["p/ROOT/R1", [R1]]],
    ["it boots next", "boots next", ["p/ROOT/R3", [R1, environment("R3")], { next: "p/ROOT/R3" }]],
    ["the boot environment R2 has it in its /etc/fstab", "is an environment's", ["p/USR/R2", [R1, R2]]],
    ["p/ROOT/old was made of it", "has a clone", ["p/ROOT/R1@zferry-R2", [R1], { clones: ["p/ROOT/old"] }]],
    [
      "which datasets R1 has is not known: no key",
      "may be an environment's",
      ["p/USR/R2", [{ ...R1, datasets: [], fault: "no key" }]],
    ],
  ])("%s: it stays, since it %s", (why, _, args) => {
    expect(hint(...args)).toBe(`${why}: neither rename nor destroy it while that is so`);
  });
});
