import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { ALL } from "../rarely.js";
import { ACCOUNTS, BuildHost, command, file, hardLink, type Site } from "./hosts.js";
import { listDisk } from "./on-disk.js";
import { stopAfter } from "./stop.js";

/** A file whose content tells nothing but where it is from, and what its folder is. */
const within = (
  path: string,
  from: string,
  mode: number,
  folder: string,
): Record<string, (path: string) => void> => ({
  [path]: file(`${from} ${path}\n`, mode, `cd "$(dirname "$1")"; ${folder}`),
});

const host = new BuildHost();
host.release("r1", {
  ...ACCOUNTS,
  ...within("etc/opens/key", "old", 0o644, "chmod 700 ."),
  ...within("etc/opens/sub/key", "old", 0o644, "chmod 755 ."),
  ...within("etc/opens/gone", "old", 0o644, ":"),
  ...within("etc/closes/key", "old", 0o600, "chmod 755 ."),
  ...within("etc/closes/a", "old", 0o600, ":"),
  "etc/closes/b": hardLink("a"),
  ...within("etc/closes/sub/run", "old", 0o700, "chmod 755 ."),
  ...within("etc/other-owner/key", "old", 0o644, "chmod 700 .; chown 80:80 ."),
  ...within("etc/other-bits/key", "old", 0o644, "chmod 750 .; chgrp 80 ."),
  ...within("etc/other-group/key", "old", 0o644, "chmod 750 .; chgrp 80 ."),
  ...within("etc/list/key", "old", 0o644, "chmod 700 .; setfacl -m u:80:rx ."),
});
host.release("r2", {
  ...within("etc/opens/key", "new", 0o600, "chmod 755 ."),
  ...within("etc/opens/sub/key", "new", 0o600, ":"),
  "etc/opens/gone": null,
  ...within("etc/closes/key", "new", 0o644, "chmod 700 ."),
  "etc/closes/a": command('printf "new etc/closes/a\\n" > "$1"; chmod 644 "$1"'),
  ...within("etc/closes/sub/run", "new", 0o4755, ":"),
  ...within("etc/closes/new.d/key", "new", 0o644, "chmod 755 ."),
  ...within("etc/other-owner/key", "new", 0o644, "chown 5:5 ."),
  ...within("etc/other-bits/key", "new", 0o644, "chmod 705 ."),
  ...within("etc/other-group/key", "new", 0o644, "chgrp 5 ."),
  ...within("etc/list/key", "new", 0o644, "setfacl -b .; setfacl -m u:5:rx ."),
});

const SUBJECTS = [80, 5, 65534];

/** Whether somebody, who is in the group of the same number, has a bit of `rwx`; lists mean one user in these tests. */
function has(stat: { uid: number; gid: number; mode: number }, who: number, bit: number): boolean {
  if (stat.uid === who) return true;
  return (stat.mode & (stat.gid === who ? bit << 3 : bit)) !== 0;
}

/** Who can read which contents, as "80 old etc/opens/key"; who a list means is asked of the kernel elsewhere. */
function readable(site: Site): Set<string> {
  const found = new Set<string>();
  for (const who of SUBJECTS) {
    const shut: string[] = [];
    for (const { path, place, stat } of listDisk(site.root, [".git"])) {
      if (shut.some((folder) => path.startsWith(`${folder}/`))) continue;
      if (stat.isDirectory() && !has(stat, who, 1)) shut.push(path);
      if (stat.isFile() && has(stat, who, 4)) found.add(`${who} ${readFileSync(place, "latin1").trim()}`);
    }
  }
  return found;
}

it("lets nobody read for an instant what they could not before, and cannot afterwards", async () => {
  const site = host.site("r1", "cloned");
  const plan = await site.plan(await host.part("r1", "r2"));
  const before = readable(site);
  const whole = site.copy();
  await whole.apply(plan);
  const after = readable(whole);
  expect(whole.status()).toBe("");
  expect(before).toContain("80 old etc/other-owner/key");
  expect(after).toContain("5 new etc/other-owner/key");
  for (const [path, mode] of [
    ["etc/closes/a", 0o644],
    ["etc/closes/key", 0o644],
    ["etc/closes/sub/run", 0o4755],
    ["etc/opens/key", 0o600],
  ] as const) {
    expect(whole.mode(path), path).toBe(mode);
  }
  expect(whole.links()).toEqual([["etc/closes/a", "etc/closes/b"]]);

  const allowed = new Set([...before, ...after]);
  const seen = new Set<string>();
  const look = (): void => {
    for (const each of readable(site)) if (!allowed.has(each)) seen.add(each);
  };
  const first = await stopAfter(Infinity, () => site.apply(plan), look);
  expect(first.steps).toBeGreaterThan(50);
  await stopAfter(Infinity, () => site.takeBack(plan), look);
  expect(readable(site)).toEqual(before);
  expect([...seen]).toEqual([]);
});

it("goes on from any folder between the two states", async () => {
  const planned = host.site("r1", "cloned");
  const plan = await planned.plan(await host.part("r1", "r2"));
  const before = planned.state();
  const whole = planned.copy();
  const { steps } = await stopAfter(Infinity, () => whole.apply(plan));
  const expected = whole.state();
  for (let step = 1; step < steps; step += ALL ? 1 : 31) {
    const [site, back] = [planned.copy(), planned.copy()];
    for (const each of [site, back]) await stopAfter(step, () => each.apply(plan));
    await site.apply(plan);
    expect(site.state(), `stopped after ${step} of ${steps} steps`).toBe(expected);
    await back.takeBack(plan);
    expect(back.state(), `taken back after ${step} of ${steps} steps`).toBe(before);
  }
});
