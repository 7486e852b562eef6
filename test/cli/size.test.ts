import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { expect, it } from "vitest";
import { BuildHost, newFolder } from "../root/hosts.js";

const module = (path: string): string => JSON.stringify(new URL(`../../dist/${path}`, import.meta.url).href);

/** Makes the root half of r2 and plans it, in a process of its own, and tells the most memory that it had. */
const SCRIPT = `
  import { mkdirSync, readFileSync } from "node:fs";
  import { encodeFrameOf, decodeFrameOf } from ${module("bundle/frame.js")};
  import { makeRootPart } from ${module("root/diff.js")};
  import { planRoot } from ${module("root/merge.js")};
  import { openRepository } from ${module("system/git.js")};
  import { readScratchFile, writeScratchFile } from ${module("system/scratch.js")};
  const [rootDir, beforeDir, afterDir, siteDir, folder] = process.argv.slice(1);
  const secrets = { deny: [], allow: [], own: [] };
  for (const name of ["made", "plan"]) mkdirSync(folder + "/" + name);
  const made = await makeRootPart({
    git: await openRepository(rootDir), base: "r1", target: "r2", beforeDir, afterDir, secrets, scratchDir: folder + "/made",
  });
  const carry = async (name) => {
    const raw = made[name];
    const frame = await writeScratchFile(folder + "/" + name + ".zst", encodeFrameOf(readScratchFile(raw), raw.bytes, 1));
    return writeScratchFile(folder + "/" + name, decodeFrameOf(readScratchFile(frame), raw.bytes, name));
  };
  const [patch, objects] = [await carry("patch"), await carry("objects")];
  const plan = await planRoot({
    git: await openRepository(siteDir), rootDir: siteDir, scratchDir: folder + "/plan", patch, objects,
    metadata: made.metadata, summary: made.summary, release: "r2", date: 1,
  });
  const [, peak] = /^VmHWM:\\s*(\\d+)/m.exec(readFileSync("/proc/self/status", "utf8"));
  console.log(JSON.stringify({ paths: plan.changes.map(({ path }) => path), peak: peak * 1024 }));
`;

const MIB = 1 << 20;

function peakWith(bytes: number): number {
  const host = new BuildHost();
  host.release("r1", { "boot/kernel": randomBytes(bytes) });
  host.release("r2", { "boot/kernel": randomBytes(bytes) });
  const site = host.site("r1", "cloned");
  const output = execFileSync(
    process.execPath,
    [
      ...["--input-type=module", "-e", SCRIPT],
      ...[host.root, host.snapshot("r1"), host.snapshot("r2"), site.root, newFolder()],
    ],
    { encoding: "utf8" },
  );
  const { paths, peak } = JSON.parse(output) as { paths: string[]; peak: number };
  expect(paths).toEqual(["boot/kernel"]);
  return peak;
}

it("a large file of / that does not compress is not held in memory", { timeout: 300_000 }, () => {
  const bytes = 40 * MIB;
  // What node collects late is some 50 MiB, whatever the size; patch and objects, whole and compressed, were five times the file.
  expect(peakWith(bytes) - peakWith(1024)).toBeLessThan(2 * bytes);
});
