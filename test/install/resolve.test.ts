import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import type { MergeTool } from "../../src/install/merge-tool.js";
import { openResolutions } from "../../src/install/resolutions.js";
import { resolveConflicts, type Resolved } from "../../src/install/resolve.js";
import type { RawPath } from "../../src/raw-path.js";
import type { RootPlan } from "../../src/root/plan.js";
import { rarely } from "../rarely.js";
import {
  ACCOUNTS,
  BuildHost,
  command,
  file,
  link,
  sh,
  type Edits,
  type RootPart,
  type Site,
} from "../root/hosts.js";

const host = new BuildHost();
host.release("r1", {
  ...ACCOUNTS,
  "etc/text": "one\ntwo\nthree\n",
  "etc/binary": Buffer.from("\0one"),
  "etc/gone": "gone\n",
  "etc/kept": "kept\n",
  "etc/owned": "owned\n",
});
host.release("r2", {
  "etc/text": file("one\nrelease\nthree\n", 0o755),
  "etc/binary": Buffer.from("\0two"),
  "etc/gone": null,
  "etc/kept": "kept 2\n",
  "etc/owned": command('chmod 600 "$1"'),
});
/** A release that changes the text alone. */
const plain = new BuildHost();
plain.release("r1", { ...ACCOUNTS, "etc/text": file("one\ntwo\nthree\n", 0o644) });
plain.release("r2", { "etc/text": file("one\nrelease\nthree\n", 0o644) });
const OURS: Edits = {
  "etc/text": "one\nsite\nthree\n",
  "etc/binary": Buffer.from("\0own"),
  "etc/gone": "changed\n",
  "etc/kept": null,
  "etc/owned": command('chmod 640 "$1"'),
};

const parts = new Map<BuildHost, Promise<RootPart>>();
const partOf = (from: BuildHost): Promise<RootPart> => {
  const part = parts.get(from) ?? from.part("r1", "r2");
  parts.set(from, part);
  return part;
};

const ODD_NAME = "caf\\\\351 'and' \\$(touch evil) *";

interface Chosen {
  readonly ours?: string[];
  readonly theirs?: string[];
  readonly again?: string[];
}

class Resolving {
  readonly #host: BuildHost;
  readonly site: Site;
  readonly state: string;
  readonly folder: string;
  /** What is rolled back, instead of an install. */
  installed: RootPlan | undefined;

  constructor(edits: Edits, from = host) {
    this.#host = from;
    this.site = from.site("r1", "cloned");
    this.site.commit(edits);
    this.state = join(this.site.folder, "state");
    this.folder = join(this.state, "resolve");
    mkdirSync(this.state, { mode: 0o700 });
  }

  /** @param tool a script that git mergetool is to run */
  async run(chosen: Chosen = {}, tool?: string): Promise<Resolved> {
    const part = await partOf(this.#host);
    const before = this.site.state();
    const resolved = await resolveConflicts({
      state: this.state,
      folder: this.folder,
      scratchDir: this.site.scratch,
      with: "release r2",
      theirs: "r2",
      tool: tool === undefined ? undefined : this.tool(tool),
      chosen: {
        ours: (chosen.ours ?? []) as RawPath[],
        theirs: (chosen.theirs ?? []) as RawPath[],
        again: (chosen.again ?? []) as RawPath[],
      },
      plan: (how) =>
        this.installed === undefined
          ? this.site.plan(part, how)
          : this.site.planRollback(this.installed, how),
    });
    expect(this.site.state()).toBe(before);
    return resolved;
  }

  async left(chosen: Chosen = {}): Promise<string[]> {
    return (await this.run(chosen)).left.map(({ path, reason }) => `${path} (${reason})`).sort();
  }

  private tool(script: string): MergeTool {
    const config = join(this.site.folder, "gitconfig");
    const cmd = JSON.stringify(script);
    writeFileSync(config, `[mergetool "test"]\n\ttrustExitCode = true\n\tcmd = ${cmd}\n`);
    vi.stubEnv("GIT_CONFIG_GLOBAL", config);
    onTestFinished(() => void vi.unstubAllEnvs());
    return { name: "test", signal: new AbortController().signal, warn: () => undefined };
  }

  place = (path: string): string => join(this.folder, path);
  write = (path: string, content: string): void => writeFileSync(this.place(path), content);

  async install(): Promise<void> {
    await this.site.install(await partOf(this.#host), {
      resolutions: openResolutions(this.state).lookup,
    });
    expect(this.site.status()).toBe("");
  }

  read = (path: string): string => readFileSync(join(this.site.root, path), "utf8");
}

it("names the line of a marker that was left", async () => {
  const resolving = new Resolving({ "etc/text": "one\nsite\nthree\n" });
  await resolving.run();
  resolving.write("etc/text", "one\nboth\n||||||| before\nthree\n");
  expect((await resolving.run()).left).toContainEqual({
    path: "etc/text",
    reason: "contents",
    how: "edit etc/text until it has no markers: line 3 begins with ||||||| before",
  });
});

it("leads from conflicts, by hand and by a side, to a rollback", async () => {
  const resolving = new Resolving({});
  resolving.installed = await resolving.site.install(await partOf(host));
  resolving.site.commit({
    "etc/text": "one\nsite\nthree\n",
    "etc/kept": "own\n",
    "etc/owned": command('chmod 640 "$1"'),
  });
  const owned = "etc/owned (permissions: 0640 here, 0644 before the install, 0600 after it)";
  expect(await resolving.left()).toEqual(["etc/kept (contents)", owned, "etc/text (contents)"]);
  expect(readFileSync(resolving.place("etc/text"), "utf8")).toBe(
    "one\n<<<<<<< this site\nsite\n||||||| before\nrelease\n=======\ntwo\n>>>>>>> release r2\nthree\n",
  );
  resolving.write("etc/text", "one\nboth\nthree\n");
  await resolving.run({ ours: ["etc/kept"] });
  expect(await resolving.left()).toEqual([owned]);
  expect(await resolving.run({ theirs: ["etc/owned"] })).toEqual({ settled: 3, left: [] });
  const { lookup: resolutions } = openResolutions(resolving.state);
  await resolving.site.rollBack(resolving.installed, { resolutions });
  expect(["etc/text", "etc/kept"].map(resolving.read)).toEqual(["one\nboth\nthree\n", "own\n"]);
  expect(sh(resolving.site.root, "stat -c %a etc/owned")).toBe("644\n");
  expect(resolving.site.status()).toBe("");
});

it("leads from conflicts, by hand, to an install", async () => {
  const resolving = new Resolving(OURS);
  expect(await resolving.left()).toEqual([
    "etc/binary (contents)",
    "etc/gone (modify/delete)",
    "etc/kept (modify/delete)",
    "etc/owned (permissions: 0640 here, 0600 in the release, 0644 before)",
    "etc/text (contents)",
  ]);
  expect(statSync(resolving.folder).mode & 0o777).toBe(0o700);
  expect(readFileSync(resolving.place("etc/text"), "utf8")).toBe(
    "one\n<<<<<<< this site\nsite\n||||||| before\ntwo\n=======\nrelease\n>>>>>>> release r2\nthree\n",
  );
  expect(readFileSync(resolving.place("README"), "utf8")).toContain("etc/text (contents): edit etc/text");

  // Nothing was settled: the same again, and what was begun stays.
  resolving.write("etc/text", "begun\n<<<<<<< this site\n");
  expect(await resolving.left()).toHaveLength(5);
  expect(readFileSync(resolving.place("etc/text"), "utf8")).toBe("begun\n<<<<<<< this site\n");
  await expect(resolving.install()).rejects.toMatchObject({ code: "merge-conflict" });

  resolving.write("etc/text", "one\nboth\nthree\n");
  renameSync(resolving.place("etc/binary.theirs"), resolving.place("etc/binary"));
  expect(await resolving.run()).toMatchObject({
    settled: 2,
    left: [{ path: "etc/owned" }, { path: "etc/gone" }, { path: "etc/kept" }],
  });
  expect(existsSync(resolving.place("etc/text"))).toBe(false);

  rmSync(resolving.place("etc/gone.ours"));
  renameSync(resolving.place("etc/kept.theirs"), resolving.place("etc/kept"));
  expect(await resolving.run()).toMatchObject({ settled: 4, left: [{ path: "etc/owned" }] });
  expect(await resolving.run({ theirs: ["etc/owned"] })).toEqual({ settled: 5, left: [] });
  expect(existsSync(resolving.folder)).toBe(false);

  await resolving.install();
  expect(resolving.read("etc/text")).toBe("one\nboth\nthree\n");
  expect(resolving.read("etc/binary")).toBe("\0two");
  expect(resolving.read("etc/kept")).toBe("kept 2\n");
  expect(resolving.site.has("etc/gone")).toBe(false);
  expect(sh(resolving.site.root, "stat -c %a etc/owned etc/text").trim()).toBe("600\n755");
});

it("takes a side of each path", async () => {
  const resolving = new Resolving(OURS);
  await resolving.run({ ours: ["etc/text", "etc/gone", "etc/owned"], theirs: ["etc/binary", "etc/kept"] });
  await resolving.install();
  expect(resolving.read("etc/text")).toBe("one\nsite\nthree\n");
  expect(resolving.read("etc/gone")).toBe("changed\n");
  expect(resolving.read("etc/kept")).toBe("kept 2\n");
  expect(resolving.read("etc/binary")).toBe("\0two");
  expect(sh(resolving.site.root, "stat -c %a etc/owned").trim()).toBe("640");
});

rarely("takes another decision in the place of the first, or opens it again", async () => {
  const resolving = new Resolving(OURS);
  const all = Object.keys(OURS);
  expect(await resolving.left({ theirs: all })).toEqual([]);
  expect(await resolving.left({ ours: ["etc/text", "etc/owned"] })).toEqual([]);
  expect(await resolving.left({ again: ["etc/binary"] })).toEqual([expect.stringContaining("etc/binary (")]);
  expect(await resolving.left()).toEqual([expect.stringContaining("etc/binary (")]);
  expect(await resolving.left({ ours: ["etc/binary"] })).toEqual([]);
  expect(await resolving.left({ again: ["etc/owned"] })).toEqual([expect.stringContaining("etc/owned (")]);
  expect(await resolving.left({ ours: ["etc/owned"] })).toEqual([]);
  await resolving.install();
  expect(resolving.read("etc/text")).toBe("one\nsite\nthree\n");
  expect(resolving.read("etc/binary")).toBe("\0own");
  expect(sh(resolving.site.root, "stat -c %a etc/owned").trim()).toBe("640");
  expect(resolving.site.has("etc/gone")).toBe(false);
});

it("offers what was settled before for a conflict that is like it, to be confirmed", async () => {
  const resolving = new Resolving({ "etc/text": OURS["etc/text"] ?? null });
  await resolving.run();
  resolving.write("etc/text", "one\nboth\nthree\n");
  expect(await resolving.left()).toEqual([]);
  for (const [third, word] of [
    ["drei", "both"],
    ["trois", "both"],
    ["tre", "other"],
  ] as const) {
    resolving.site.commit({ "etc/text": `one\nsite\nthree\n${"line\n".repeat(9)}${third}\n` });
    const { left } = await resolving.run();
    expect(left).toMatchObject([{ path: "etc/text", how: expect.stringMatching(/^settled like/) as string }]);
    await expect(resolving.install()).rejects.toMatchObject({ code: "merge-conflict" });
    const offered = readFileSync(resolving.place("etc/text"), "utf8");
    expect(offered).toBe(`one\n${word}\nthree\n${"line\n".repeat(9)}${third}\n`);
    // What a person changes of the offer is offered the next time.
    if (third === "trois") resolving.write("etc/text", offered.replace("both", "other"));
    expect(await resolving.left()).toEqual([]);
  }
  await resolving.install();
});

rarely(
  "shows a tool the texts that are left, under their names, and takes each that it settles",
  async () => {
    const odd = "etc/caf\xe9 'and' $(touch evil) *" as RawPath;
    const host = new BuildHost();
    const write = (content: string) =>
      command(`printf '${content}' > "$(dirname "$1")/$(printf "${ODD_NAME}")"`);
    host.release("r1", { ...ACCOUNTS, "etc/a": "one\n", "etc/b": "one\n", "etc/odd": write("one\\n") });
    host.release("r2", { "etc/a": "release\n", "etc/b": "release\n", "etc/odd": write("release\\n") });
    const resolving = new Resolving(
      { "etc/a": "site\n", "etc/b": "site\n", "etc/odd": write("site\\n") },
      host,
    );
    const script = 'case $MERGED in etc/b) exit;; esac; cat "$LOCAL" "$REMOTE" >"$MERGED"';
    expect(await resolving.run({}, script)).toMatchObject({ settled: 2, left: [{ path: "etc/b" }] });
    expect(existsSync(join(resolving.folder, "evil"))).toBe(false);
    expect(await resolving.run({}, script.replace("etc/b", "none"))).toEqual({ settled: 3, left: [] });
    await resolving.install();
    const content = readFileSync(Buffer.from(`${resolving.site.root}/${odd}`, "latin1"), "utf8");
    expect(content).toBe("site\nrelease\n");
  },
);

it("offers a tool nothing that would count without being looked at", async () => {
  const resolving = new Resolving({ "etc/text": OURS["etc/text"] ?? null });
  await resolving.run();
  resolving.write("etc/text", "one\nboth\nthree\n");
  await resolving.run();
  resolving.site.commit({ "etc/text": "one\nsite\nthree\nfour\n" });
  expect(await resolving.run({}, "exit 1")).toMatchObject({ settled: 0, left: [{ path: "etc/text" }] });
  expect(readFileSync(resolving.place("etc/text"), "utf8")).toContain("<<<<<<< this site\n");
  expect(await resolving.left()).toEqual(["etc/text (contents)"]);
});

describe("what the folder cannot show is settled by a side alone, however often it is run:", () => {
  const host = new BuildHost();
  host.release("r1", {
    ...ACCOUNTS,
    "etc/both": link("one"),
    "etc/file": "one\n",
    "etc/gone": link("one"),
    "etc/kept": link("one"),
    "etc/mixed": "one\n",
    README: "one\n",
    ".zferry.json": "{}\n",
  });
  host.release("r2", {
    "etc/both": link("release"),
    "etc/file": link("release"),
    "etc/gone": null,
    "etc/kept": link("release"),
    "etc/mixed": "release\n",
    README: "release\n",
    ".zferry.json": '{"of":"release"}\n',
  });
  it.each<[string, Edits[string]]>([
    ["etc/both", link("site")],
    ["etc/file", null],
    ["etc/gone", link("site")],
    ["etc/kept", null],
    ["etc/mixed", link("site")],
    ["README", "site\n"],
    ["README", null],
    [".zferry.json", "[]\n"],
    [".zferry.json", null],
  ])("%s", async (path, edit) => {
    // One that was listed, with no file that could be missing, was taken for one that a person removed.
    const resolving = new Resolving({ [path]: edit }, host);
    for (let times = 0; times < 3; times++)
      expect(await resolving.run()).toEqual({
        settled: 0,
        left: [
          {
            path,
            reason: expect.any(String) as string,
            how: "choose a side: --ours PATH or --theirs PATH",
          },
        ],
      });
    expect(await resolving.run({ ours: [path] })).toEqual({ settled: 1, left: [] });
    await resolving.install();
  });
});

it("uses what was settled for exactly that conflict", async () => {
  const resolving = new Resolving({ "etc/text": OURS["etc/text"] ?? null });
  expect(await resolving.left({ ours: ["etc/text"] })).toEqual([]);
  resolving.site.commit({ "etc/text": "one\nother\nthree\n" });
  expect(await resolving.left()).toEqual(["etc/text (contents)"]);
});

it("takes the executable bit of what a person settled, whatever both sides have", async () => {
  for (const [settled, permissions] of [
    [0o755, 0o750],
    [0o600, 0o640],
  ] as const) {
    const text = "one\nsite\nthree\n";
    const resolving = new Resolving({ "etc/text": file(text, 0o640) }, plain);
    expect(await resolving.left()).toEqual(["etc/text (contents)"]);
    resolving.write("etc/text", "one\nboth\nthree\n");
    chmodSync(resolving.place("etc/text"), settled);
    expect(await resolving.run()).toEqual({ settled: 1, left: [] });
    await resolving.install();
    expect(resolving.read("etc/text")).toBe("one\nboth\nthree\n");
    expect(statSync(join(resolving.site.root, "etc/text")).mode & 0o7777).toBe(permissions);
  }
});

rarely.each([
  ["a named pipe", "mkfifo etc/text", "etc/text", /text is a named pipe, where/],
  ["a device", "mknod etc/text c 1 5", "etc/text", /text is a device, where/],
  ["a link", "ln -s /etc/hostname etc/text", "etc/text", /text is a symbolic link, where/],
  [
    "a link for its folder",
    "mkdir away; echo settled > away/text; ln -s away etc",
    "etc",
    /etc is a symbolic link, where/,
  ],
])("refuses %s in place of a text, and writes nothing there", async (_, command, path, message) => {
  const resolving = new Resolving({ "etc/text": "one\nsite\nthree\n" });
  await resolving.run();
  rmSync(resolving.place(path), { recursive: true });
  sh(resolving.folder, command);
  const before = sh(resolving.folder, "ls -lR; cat away/* 2>&1 || true");
  await expect(resolving.run()).rejects.toMatchObject({
    code: "output-exists",
    message: expect.stringMatching(message) as unknown,
  });
  expect(sh(resolving.folder, "ls -lR; cat away/* 2>&1 || true")).toBe(before);
  // A side can be chosen all the same.
  expect(await resolving.run({ ours: ["etc/text"] })).toEqual({ settled: 1, left: [] });
});

describe("refuses", () => {
  it("a path without a conflict", async () => {
    const resolving = new Resolving({ "etc/text": OURS["etc/text"] ?? null });
    await expect(resolving.run({ ours: ["etc/kept"] })).rejects.toMatchObject({
      code: "usage",
      message: expect.stringContaining("etc/kept") as string,
    });
  });

  it.each<[string, (folder: string) => void]>([
    ["a folder of somebody else's making", (folder) => mkdirSync(folder, { mode: 0o700 })],
    ["a link", (folder) => symlinkSync("/tmp", folder)],
    [
      "a folder where others may write",
      (folder) => {
        mkdirSync(folder);
        chmodSync(folder, 0o777);
      },
    ],
  ])("%s", async (_, make) => {
    const resolving = new Resolving({ "etc/text": OURS["etc/text"] ?? null });
    make(resolving.folder);
    await expect(resolving.run()).rejects.toMatchObject({ code: "output-exists" });
  });

  it("a record that is not as it was written", async () => {
    const resolving = new Resolving({ "etc/text": OURS["etc/text"] ?? null });
    await resolving.run();
    resolving.write("etc/text", "both\n");
    await resolving.run();
    sh(
      resolving.state,
      "for f in resolutions/????????*; do case $f in *index.json) ;; *) echo x >> $f ;; esac; done",
    );
    await expect(resolving.install()).rejects.toMatchObject({ code: "journal-malformed" });
    writeFileSync(join(resolving.state, "resolutions/index.json"), "{}");
    await expect(resolving.run()).rejects.toMatchObject({ code: "journal-malformed" });
  });
});
