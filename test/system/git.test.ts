import { execFileSync } from "node:child_process";
import { chownSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, it, vi } from "vitest";
import { openRepository, readBlobs } from "../../src/system/git.js";

const folder = mkdtempSync(join(tmpdir(), "zferry-git-"));
afterAll(() => rmSync(folder, { recursive: true }));
const root = join(folder, "root");
mkdirSync(root);
const sh = (command: string): string =>
  execFileSync("/bin/sh", ["-euc", command], { cwd: root, encoding: "utf8" });
sh("git init -q -b main; git -c user.name=x -c user.email=x@x commit -q --allow-empty -m first");

it("opens a work tree, and none above", async () => {
  const git = await openRepository(root);
  expect(git.gitDir).toBe(join(root, ".git"));
  expect(git.objects).toBe(join(root, ".git/objects"));
  mkdirSync(join(root, "inner"));
  await expect(openRepository(join(root, "inner"))).rejects.toMatchObject({ code: "not-configured" });
});

it("opens one that lies elsewhere, and one of another user", async () => {
  const other = join(folder, "other");
  mkdirSync(other);
  expect((await openRepository(other, { gitDir: join(root, ".git") })).gitDir).toBe(join(root, ".git"));
  chownSync(root, 1234, 1234);
  chownSync(join(root, ".git"), 1234, 1234);
  expect((await (await openRepository(root)).run(["log", "--format=%s"])).toString()).toBe("first\n");
});

it("refuses sha256 objects", async () => {
  const other = join(folder, "sha256");
  execFileSync("git", ["init", "-q", "--object-format=sha256", other]);
  await expect(openRepository(other)).rejects.toMatchObject({
    code: "not-configured",
    message: /sha256 objects/,
  });
});

it("is not led by the caller's variables and settings", async () => {
  const git = await openRepository(root);
  vi.stubEnv("GIT_DIR", "/nowhere");
  vi.stubEnv("GIT_INDEX_FILE", "/nowhere");
  vi.stubEnv("GIT_CONFIG_COUNT", "1");
  vi.stubEnv("GIT_CONFIG_KEY_0", "core.hooksPath");
  vi.stubEnv("GIT_CONFIG_VALUE_0", "/hooks");
  vi.stubEnv("HOME", folder);
  writeFileSync(join(folder, ".gitconfig"), "[alias]\n\tx = version\n");
  try {
    expect((await git.run(["config", "core.hooksPath"])).toString()).toBe("/dev/null\n");
    expect((await git.ask(["config", "alias.x"])).status).toBe(1);
    expect((await git.run(["rev-parse", "--git-dir"])).toString().trim()).toBe(join(root, ".git"));
  } finally {
    vi.unstubAllEnvs();
  }
});

it("needs no home, also where the repository's own settings name a path in it", async () => {
  const settings = join(root, ".git/config");
  execFileSync("git", ["config", "--file", settings, "core.excludesFile", "~/ignored"]);
  vi.stubEnv("HOME", undefined);
  try {
    expect((await (await openRepository(root)).run(["log", "--format=%s"])).toString()).toBe("first\n");
  } finally {
    vi.unstubAllEnvs();
    execFileSync("git", ["config", "--file", settings, "--unset", "core.excludesFile"]);
  }
});

it("says what git said", async () => {
  const git = await openRepository(root);
  await expect(git.run(["rev-parse", "--verify", "nothing"])).rejects.toMatchObject({
    code: "git-failed",
    message: "git rev-parse failed: fatal: Needed a single revision",
    details: { command: "git rev-parse --verify nothing" },
  });
});

it("reads blobs in their order, small ones and large ones", async () => {
  const git = await openRepository(root);
  const contents = [
    Buffer.alloc(0),
    Buffer.from("a\n\0b"),
    Buffer.alloc(33 << 20, 7),
    Buffer.from("a\n\0b"),
    Buffer.from("last"),
  ];
  const ids: string[] = [];
  for (const input of contents) {
    ids.push((await git.run(["hash-object", "-w", "--stdin"], { input })).toString().trim());
  }
  const read: Buffer[] = [];
  for await (const { pieces } of readBlobs(git, ids)) {
    const whole: Uint8Array[] = [];
    for await (const piece of pieces) whole.push(piece);
    read.push(Buffer.concat(whole));
  }
  expect(read.map((bytes) => bytes.length)).toEqual(contents.map((bytes) => bytes.length));
  expect(read.every((bytes, index) => bytes.equals(contents[index] ?? Buffer.alloc(1)))).toBe(true);
  await expect(readBlobs(git, ["1".repeat(40)]).next()).rejects.toMatchObject({ code: "git-failed" });
});

it("fetches nothing for a partial clone", async () => {
  const partial = join(folder, "partial");
  const fetched = join(folder, "fetched");
  execFileSync("git", ["init", "-q", partial]);
  for (const [name, value] of [
    ["core.repositoryFormatVersion", "1"],
    ["extensions.partialClone", "origin"],
    ["remote.origin.promisor", "true"],
    ["remote.origin.url", `ext::touch ${fetched}`],
    ["protocol.ext.allow", "always"],
  ] as const)
    execFileSync("git", ["-C", partial, "config", name, value]);
  const git = await openRepository(partial);
  expect((await git.ask(["cat-file", "-e", "1".repeat(40)])).status).not.toBe(0);
  expect(existsSync(fetched)).toBe(false);
});
