import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { everything } from "../root/everything.js";
import { newFolder, type Site, type RootPart } from "../root/hosts.js";
import { hasMounts } from "./support.js";

/** The test itself has the machine's mounts: the plan is made by a process with its own. */
const SCRIPT = `
  import { readFileSync, statSync } from "node:fs";
  import { planRoot } from ${JSON.stringify(new URL("../../dist/root/merge.js", import.meta.url).href)};
  import { openRepository } from ${JSON.stringify(new URL("../../dist/system/git.js", import.meta.url).href)};
  const [rootDir, scratchDir, folder] = process.argv.slice(1);
  const stored = (name) => ({ path: folder + "/" + name, bytes: statSync(folder + "/" + name).size });
  const [patch, objects, metadata] = [stored("patch"), stored("objects"), readFileSync(folder + "/metadata")];
  const { summary } = JSON.parse(readFileSync(folder + "/part"));
  const git = await openRepository(rootDir);
  const told = await planRoot({ git, rootDir, scratchDir, patch, objects, metadata, summary, release: "r2", date: 1 }).then(
    () => [],
    (error) => [error, ...error.also].map(({ code, details, hint }) => ({ code, paths: details.paths, hint })),
  );
  console.log(JSON.stringify(told));
`;

/** What stands against a plan, after some commands in the site's `/` and in mounts of its own. */
function planWith(commands: string, site: Site, part: RootPart): unknown {
  const folder = newFolder();
  for (const name of ["patch", "objects", "metadata"] as const) writeFileSync(join(folder, name), part[name]);
  writeFileSync(join(folder, "part"), JSON.stringify({ summary: part.summary }));
  const script = `${commands}; exec "$0" --input-type=module -e "$1" ${site.root} ${site.scratch} ${folder}`;
  const args = ["-m", "sh", "-euc", script, process.execPath, SCRIPT];
  return JSON.parse(execFileSync("unshare", args, { cwd: site.root, encoding: "utf8" }));
}

describe.skipIf(!hasMounts)("mounts that a release would have to write over are told by the plan", () => {
  const host = everything();

  it.each<[string, string, object[]]>([
    [
      "a folder that is mounted read-only",
      "mount --bind etc/private etc/private; mount -o remount,bind,ro etc/private",
      [{ paths: ["ROOT/etc/private"], hint: "mount -o remount,rw ROOT/etc/private" }],
    ],
    [
      "a file system that is read-only",
      "cp -a etc/modes etc/copy; mount -t tmpfs none etc/modes; cp -a etc/copy/. etc/modes; rm -r etc/copy; mount -o remount,ro etc/modes",
      [{ paths: ["ROOT/etc/modes"], hint: "mount -o remount,rw ROOT/etc/modes" }],
    ],
    [
      "a file that something is mounted on, and a read-only folder",
      "mount --bind etc/config etc/config; mount --bind etc/modes etc/modes; mount -o remount,bind,ro etc/modes",
      [
        { paths: ["etc/config"], hint: "unmount it first" },
        { paths: ["ROOT/etc/modes"], hint: "mount -o remount,rw ROOT/etc/modes" },
      ],
    ],
    [
      "a folder that becomes a file, and that something is mounted on",
      "mount --bind etc/dir-to-file etc/dir-to-file",
      [{ paths: ["etc/dir-to-file"], hint: "unmount it first" }],
    ],
    [
      "nothing, where it changes nothing",
      "mount --bind bin bin; mkdir srv; mount -t tmpfs -o ro none srv",
      [],
    ],
    [
      "nothing, where the folder is mounted once more, to be written",
      "mount --bind etc etc; mount -o remount,bind,ro etc; mount --bind etc etc; mount -o remount,bind,rw etc",
      [],
    ],
  ])("%s", async (_, commands, expected) => {
    const site = host.site("r1", "cloned");
    const found = planWith(commands, site, await host.part("r1", "r2"));
    const text = JSON.stringify(expected.map((each) => ({ code: "worktree-dirty", ...each })));
    expect(found).toEqual(JSON.parse(text.replaceAll("ROOT", site.root)));
  });
});

it.skipIf(!hasMounts)("a scratch folder that is full is told, whatever wrote there", async () => {
  const host = everything();
  const part = await host.part("r1", "r2");
  const site = host.site("r1", "cloned");
  const before = site.everything();
  const told = [8, 24, 40, 56, 72, 1024].map((kib) =>
    planWith(`mount -t tmpfs -o size=${kib}k none ${site.scratch}`, site, part),
  ) as { code: string }[][];
  expect(new Set(told.flat().map(({ code }) => code))).toEqual(new Set(["no-space"]));
  expect(told.at(-1)).toEqual([]);
  expect(site.everything()).toBe(before);
});
