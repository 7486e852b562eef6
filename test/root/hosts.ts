import { execFileSync } from "node:child_process";
import {
  chmodSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll } from "vitest";
import { applyRoot, takeBackRoot } from "./apply.js";
import { requireAsPlanned } from "../../src/root/apply.js";
import { makeRootPart, type RootSummary } from "../../src/root/diff.js";
import { planRoot, type PlanOptions } from "../../src/root/merge.js";
import { planRootRollback, type RollbackOptions } from "../../src/root/rollback.js";
import type { SecretRules } from "../../src/root/secrets.js";
import type { RootPlan } from "../../src/root/plan.js";
import { openRepository } from "../../src/system/git.js";
import type { ScratchFile } from "../../src/system/scratch.js";
import { describeDisk, linksAmong, listDisk, readXattrs } from "./on-disk.js";

/** The root half of a bundle, in memory: tests change it. */
export interface RootPart {
  readonly patch: Buffer;
  readonly objects: Buffer;
  readonly metadata: Buffer;
  readonly summary: RootSummary;
}

function stored(path: string, content: Buffer): ScratchFile {
  writeFileSync(path, content);
  return { path, bytes: content.length };
}

if (process.getuid?.() !== 0)
  throw new Error("these tests set owners, ACLs and capabilities: run them as root");

const folder = mkdtempSync(join(tmpdir(), "zferry-test-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
let folders = 0;

/** A new empty folder, removed when the test file ends. */
export function newFolder(): string {
  const path = join(folder, String((folders += 1)));
  mkdirSync(path, { mode: 0o755 });
  return path;
}

export const sh = (cwd: string, command: string): string =>
  execFileSync("/bin/sh", ["-euc", command], {
    cwd,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "pipe"],
    env: {
      PATH: process.env["PATH"],
      GIT_CONFIG_GLOBAL: "/dev/null",
      GIT_CONFIG_NOSYSTEM: "1",
      ...Object.fromEntries(
        ["AUTHOR", "COMMITTER"].flatMap((who) => [
          [`GIT_${who}_NAME`, "admin"],
          [`GIT_${who}_EMAIL`, "admin@example.org"],
        ]),
      ),
    },
  });

/** Writes files by path: a string is content, a function does what it likes with the path. */
export type Edits = Record<string, string | Buffer | null | ((path: string) => void)>;

export function edit(root: string, edits: Edits): void {
  for (const [name, content] of Object.entries(edits)) {
    const path = join(root, name);
    if (content === null) {
      rmSync(path, { recursive: true });
      continue;
    }
    mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
    if (typeof content === "function") content(path);
    else writeFileSync(path, content);
  }
}

export const link =
  (target: string) =>
  (path: string): void => {
    rmSync(path, { force: true });
    symlinkSync(target, path);
  };

/** Gives a file one more name; `to` is as of the folder that the name is in. */
export const hardLink =
  (to: string) =>
  (path: string): void => {
    rmSync(path, { force: true });
    linkSync(join(dirname(path), to), path);
  };

export const file =
  (content: string, mode: number, ...commands: string[]) =>
  (path: string): void => {
    writeFileSync(path, content);
    chmodSync(path, mode);
    for (const command of commands) execFileSync("/bin/sh", ["-euc", command, "sh", path]);
  };

export const command =
  (text: string) =>
  (path: string): void => {
    execFileSync("/bin/sh", ["-euc", text, "sh", path]);
  };

export const ACCOUNTS: Edits = {
  "etc/passwd": "root:x:0:0::/root:/bin/sh\nweb:x:80:80::/:/bin/false\n",
  "etc/group": "root:x:0:\nweb:x:80:\n",
};

/** The paths below a folder that are one file, for each that has several, without git's. Paths are latin1. */
export const linksIn = (root: string): string[][] => linksAmong(listDisk(root, [".git"]));

/** Whether files here have the flags of chattr(1), as on ext4, XFS and Btrfs. */
export function keepsFlags(): boolean {
  try {
    sh(newFolder(), "touch a && chattr +i a && chattr -i a");
    return true;
  } catch (error) {
    if (process.env["ZFERRY_REQUIRE_TOOLS"] === "1") throw error;
    return false;
  }
}

/** A build host whose `/` is at `root`, with a copy of the tree for each release, as a ZFS snapshot would be. */
export class BuildHost {
  readonly folder = newFolder();
  readonly root = join(this.folder, "root");
  /** Of those that were asked for, the first: others are copies. */
  readonly #sites = new Map<string, Site>();

  constructor() {
    mkdirSync(this.root, { mode: 0o755 });
    sh(this.root, "git init -q -b main");
  }

  snapshot(name: string): string {
    return join(this.folder, "snapshots", name);
  }

  release(name: string, edits: Edits): void {
    this.#sites.clear();
    edit(this.root, edits);
    sh(this.root, `git add -A && git commit -q --allow-empty -m ${name} && git tag ${name}`);
    mkdirSync(dirname(this.snapshot(name)), { recursive: true });
    sh(this.folder, `cp -a root snapshots/${name} && rm -rf snapshots/${name}/.git`);
  }

  async part(
    base: string | null,
    target: string,
    root = this.root,
    secrets: Partial<SecretRules> = {},
  ): Promise<RootPart> {
    const scratchDir = newFolder();
    const part = await makeRootPart({
      git: await openRepository(root),
      base,
      target,
      beforeDir: base === null ? null : this.snapshot(base),
      afterDir: this.snapshot(target),
      secrets: { deny: [], allow: [], own: [], ...secrets },
      scratchDir,
    });
    const [patch, objects] = [readFileSync(part.patch.path), readFileSync(part.objects.path)];
    rmSync(scratchDir, { recursive: true });
    return { ...part, patch, objects };
  }

  /** A site that was cloned with its history, or has the files and a history of its own. */
  site(release: string, history: "cloned" | "unrelated"): Site {
    const kind = `${release} ${history}`;
    const first = this.#sites.get(kind) ?? this.#makeSite(release, history);
    this.#sites.set(kind, first);
    return first.copy();
  }

  #makeSite(release: string, history: "cloned" | "unrelated"): Site {
    const site = new Site();
    sh(this.folder, `cp -a snapshots/${release}/. ${site.root}`);
    if (history === "cloned") {
      sh(this.folder, `git clone -q --bare root ${site.root}/.git`);
      sh(
        site.root,
        `git config core.bare false && git update-ref refs/heads/main ${release} && git reset -q`,
      );
    } else {
      // Something of its own from the first commit on, so that no tree of it is one of the build host's.
      edit(site.root, { "etc/site": "site\n" });
      sh(site.root, "git init -q -b main && git add -A && git commit -q -m site");
    }
    return site;
  }
}

export class Site {
  readonly folder: string;

  constructor(folder = newFolder()) {
    this.folder = folder;
    mkdirSync(this.root, { mode: 0o755, recursive: true });
    mkdirSync(this.scratch, { mode: 0o700, recursive: true });
  }

  get root(): string {
    return join(this.folder, "root");
  }

  get scratch(): string {
    return join(this.folder, "scratch");
  }

  commit(edits: Edits): void {
    edit(this.root, edits);
    sh(this.root, "git add -A && git commit -q --allow-empty -m local");
  }

  copy(): Site {
    const folder = newFolder();
    sh(this.folder, `cp -a root scratch ${folder}`);
    return new Site(folder);
  }

  async plan(part: RootPart, options: Partial<PlanOptions> = {}): Promise<RootPlan> {
    return planRoot({
      git: await openRepository(this.root),
      rootDir: this.root,
      scratchDir: this.scratch,
      ...part,
      patch: stored(join(this.scratch, "patch"), part.patch),
      objects: stored(join(this.scratch, "objects.pack"), part.objects),
      release: "r2",
      date: 1_700_000_000,
      ...options,
    });
  }

  /** Applies a plan as an installer does. */
  async apply(plan: RootPlan): Promise<void> {
    await applyRoot(plan, { rootDir: this.root, scratchDir: this.scratch });
  }

  /** Gives a plan up that was applied, wholly or in part. */
  async takeBack(plan: RootPlan): Promise<void> {
    await takeBackRoot(plan, { rootDir: this.root, scratchDir: this.scratch });
  }

  /** What an installer asks before it begins to write. */
  async requireAsPlanned(plan: RootPlan): Promise<void> {
    await requireAsPlanned(plan, { git: await openRepository(this.root), rootDir: this.root });
  }

  async install(part: RootPart, options: Partial<PlanOptions> = {}): Promise<RootPlan> {
    const plan = await this.plan(part, options);
    await this.apply(plan);
    return plan;
  }

  /** The paths that are one file, for each that has more than one name here. */
  links(): string[][] {
    return linksIn(this.root);
  }

  async planRollback(installed: RootPlan, options: Partial<RollbackOptions> = {}): Promise<RootPlan> {
    return planRootRollback({
      git: await openRepository(this.root),
      rootDir: this.root,
      scratchDir: this.scratch,
      installed,
      release: "r2",
      date: 1_700_000_100,
      ...options,
    });
  }

  async rollBack(installed: RootPlan, options: Partial<RollbackOptions> = {}): Promise<RootPlan> {
    const plan = await this.planRollback(installed, options);
    await this.apply(plan);
    return plan;
  }

  /** Every file and folder with owner, permissions, attributes, content and links, without git's. */
  state(): string {
    const found = listDisk(this.root, [".git"]);
    const xattrs = [...readXattrs(this.root)].map((entry) => `${JSON.stringify(entry)}\n`).sort();
    return `${describeDisk(found)}${xattrs.join("")}${JSON.stringify(linksAmong(found))}\n`;
  }

  /** What `git status` of an administrator says. */
  status(): string {
    return sh(this.root, "git status --porcelain");
  }

  /** All of that, with the commit and the references: what an install changes, and giving it up brings back. */
  everything(): string {
    return [this.state(), this.status(), this.git("rev-parse HEAD"), this.git("for-each-ref")].join("\n");
  }

  leftovers(): string {
    return sh(
      this.root,
      "find . -name '.zferry-*' -o -name '*.lock' -o -name 'index.zferry*'; git for-each-ref refs/zferry/pending",
    );
  }

  git(args: string): string {
    return sh(this.root, `git ${args}`).trim();
  }

  has(path: string): boolean {
    return existsSync(join(this.root, path));
  }

  mode(path: string): number {
    return statSync(join(this.root, path)).mode & 0o7777;
  }

  names(path: string): string[] {
    return readdirSync(join(this.root, path)).sort();
  }
}

/** A reason of a conflict: its path, and why it is one. */
export function parseReason(reason: string): { path: string; why: string } {
  const [, path = "", why = ""] = /^(.*?) \((.*)\)$/s.exec(reason) ?? [];
  return { path, why };
}

/** The attributes that are named as those both sides changed. */
export const fieldsOf = (why: string): string[] =>
  why.split("; ").map((difference) => difference.split(": ")[0] ?? "");

/** Everything that could change on a site, and beside it: files, and with git's own its references. */
export const fingerprint = (site: Site): string =>
  `${site.state()}\n${describeDisk(listDisk(site.folder, ["scratch"]))}`;
