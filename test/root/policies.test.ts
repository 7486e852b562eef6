import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { parsePattern } from "../../src/root/path-pattern.js";
import type { MergePolicy, SettledConflict } from "../../src/root/settle.js";
import { ACCOUNTS, BuildHost, command, file, link, newFolder, sh, type Edits, type Site } from "./hosts.js";

const host = new BuildHost();
host.release("r1", {
  ...ACCOUNTS,
  "etc/text": "one\ntwo\nthree\n",
  "etc/binary": Buffer.from("\0one"),
  "etc/gone": "gone\n",
  "etc/kept": "kept\n",
  "etc/kind": "kind\n",
  "etc/owned": "owned\n",
  "etc/moved": "moved\n".repeat(9),
});
host.release("r2", {
  "etc/text": file("one\nrelease\nthree\n", 0o755),
  "etc/binary": Buffer.from("\0two"),
  "etc/gone": null,
  "etc/kept": "kept 2\n",
  "etc/kind": link("text"),
  "etc/owned": command('chmod 600 "$1"'),
  "etc/added": "release\n",
  "etc/moved": command('mv "$1" "$1.d"'),
});

const OURS: Edits = {
  "etc/text": "one\nsite\nthree\n",
  "etc/binary": Buffer.from("\0own"),
  "etc/gone": "changed\n",
  "etc/kept": null,
  "etc/kind": "changed\n",
  "etc/owned": command('chmod 640 "$1"'),
  "etc/added": "site\n",
  "etc/moved": null,
};

const policy = (path: string, how: MergePolicy["policy"], ...command: string[]): MergePolicy => ({
  ...parsePattern(path),
  policy: how,
  command,
});

const read = (site: Site, path: string): string => readFileSync(join(site.root, path), "utf8");

function siteWith(edits: Edits): Site {
  const site = host.site("r1", "cloned");
  site.commit(edits);
  return site;
}

async function install(site: Site, ...policies: MergePolicy[]): Promise<SettledConflict[]> {
  const told: SettledConflict[] = [];
  await site.install(await host.part("r1", "r2"), { policies, settled: (found) => told.push(...found) });
  expect(site.status()).toBe("");
  return told;
}

/** What still stands against it. */
async function conflicts(site: Site, ...policies: MergePolicy[]): Promise<unknown> {
  const error: unknown = await site
    .plan(await host.part("r1", "r2"), { policies })
    .catch((caught: unknown) => caught);
  return (error as { details?: { reasons?: unknown } }).details?.reasons;
}

describe("a policy for every path", () => {
  it("ours keeps the site's", async () => {
    const site = siteWith(OURS);
    const before = site.state();
    const told = await install(site, policy("etc/", "ours"));
    expect(site.state()).toBe(before);
    expect(told.map(({ path, what }) => `${path} ${what}`).sort()).toEqual([
      "etc/added contents",
      "etc/binary contents",
      "etc/gone contents",
      "etc/kept contents",
      "etc/kind contents",
      "etc/moved.d contents",
      "etc/owned attributes",
      "etc/text contents",
    ]);
    expect(told[0]?.by).toBe("policy ours for etc/");
  });

  it("theirs takes the release's", async () => {
    const site = siteWith(OURS);
    await install(site, policy("**", "theirs"));
    expect(site.state()).toBe(host.site("r2", "cloned").state());
  });
});

it("the first policy that means a path decides, and none where there is no conflict", async () => {
  const site = siteWith({ "etc/text": "one\nsite\nthree\n" });
  await install(site, policy("text", "ours"), policy("etc/**", "theirs"), policy("etc/kept", "ours"));
  expect(read(site, "etc/text")).toBe("one\nsite\nthree\n");
  expect(read(site, "etc/kept")).toBe("kept 2\n");
});

it("union keeps the lines of both, and leaves what is no text", async () => {
  const site = siteWith({ "etc/text": OURS["etc/text"] ?? null, "etc/binary": OURS["etc/binary"] ?? null });
  const union = policy("etc/*", "union");
  expect(await conflicts(site, union)).toEqual([expect.stringMatching(/^etc\/binary /)]);
  await install(site, policy("binary", "ours"), union);
  expect(read(site, "etc/text")).toBe("one\nsite\nrelease\nthree\n");
  expect(sh(site.root, "stat -c %a etc/text").trim()).toBe("755");
});

describe("a command", () => {
  const script = (text: string): string => {
    const path = join(newFolder(), "merge");
    file(`#!/bin/sh\n${text}\n`, 0o755)(path);
    return path;
  };
  const edits = { "etc/text": "one\nsite\nthree\n" };

  it("gets its arguments and three files, in an empty folder, and leaves the result in the second", async () => {
    const site = siteWith(edits);
    const program = script(
      '[ "$(ls -A | wc -l)" = 0 ]; { echo "$1"; cat "$2" "$4"; cat "$3"; } > new; cat new > "$3"',
    );
    await install(site, policy("etc/text", "command", program, "--word"));
    expect(read(site, "etc/text")).toBe("--word\none\ntwo\nthree\none\nrelease\nthree\none\nsite\nthree\n");
    expect(site.names("../scratch")).not.toContain("merge");
  });

  it("leaves the conflict with another status", async () => {
    expect(
      await conflicts(siteWith(edits), policy("etc/text", "command", script('echo > "$2"; exit 1'))),
    ).toEqual(["etc/text (contents)"]);
  });

  it.each<[string, string, RegExp]>([
    ["fails", script("echo why >&2; exit 200"), /failed with status 200: why/],
    ["is not there", "/does/not/exist", /is not there/],
  ])("stops the install when it %s", async (_, program, pattern) => {
    await expect(
      siteWith(edits).plan(await host.part("r1", "r2"), { policies: [policy("text", "command", program)] }),
    ).rejects.toMatchObject({ code: "not-configured", message: expect.stringMatching(pattern) as string });
  });

  it.each([
    ["a link", 'ln -sf /etc/passwd "$2"'],
    ["a pipe", 'rm "$2"; mkfifo "$2"'],
    ["nothing", 'rm "$2"'],
    ["too much", 'truncate -s 100M "$2"'],
  ])("stops the install when it leaves %s", async (_, text) => {
    await expect(
      siteWith(edits).plan(await host.part("r1", "r2"), {
        policies: [policy("text", "command", script(text))],
      }),
    ).rejects.toMatchObject({ code: "io-failed" });
  });
});
