import { execFileSync } from "node:child_process";
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { rawPath, type RawPath } from "../../src/raw-path.js";
import {
  closeTree,
  inPlace,
  inspect,
  openTree,
  readFileIn,
  removeIfEmpty,
  removeTree,
  resolveWithin,
  setAttributes,
  type Tree,
} from "../../src/system/tree.js";

if (process.getuid?.() !== 0) throw new Error("these tests set owners and ACLs: run them as root");

const raw = (text: string): RawPath => rawPath(Buffer.from(text));
const all = (): boolean => true;
let root: string;
let tree: Tree;

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "zferry-files-"));
  tree = openTree(root);
});
afterEach(() => {
  closeTree(tree);
  rmSync(root, { recursive: true });
});

describe("below an open folder", () => {
  it("no link is followed, in no component", async () => {
    mkdirSync(join(root, "real"));
    writeFileSync(join(root, "real/file"), "x");
    symlinkSync("real", join(root, "link"));
    symlinkSync("real/file", join(root, "file-link"));
    const paths = ["real/file", "link/file", "file-link", "link", "none", "none/below", "real/file/below"];
    expect(await inspect(tree, paths.map(raw), all)).toMatchObject([
      { kind: "file" },
      { kind: "blocked", at: "link", by: "symlink" },
      { kind: "symlink" },
      { kind: "symlink" },
      { kind: "absent" },
      { kind: "absent" },
      { kind: "blocked", at: "real/file", by: "file" },
    ]);
    expect(() => inPlace(tree, raw("link/file"), () => 0)).toThrow(/is behind link, a symlink/);
    expect(() => readFileIn(tree, raw("file-link"))).toThrow(expect.objectContaining({ code: "io-failed" }));
    removeTree(tree, raw("link/file"));
    removeTree(tree, raw("link"));
    expect(readdirSync(root).sort()).toEqual(["file-link", "real"]);
    expect(readdirSync(join(root, "real"))).toEqual(["file"]);
  });

  it("names may be any bytes", async () => {
    const path = Buffer.concat([Buffer.from(root), Buffer.from("/a\n\xff", "latin1")]);
    writeFileSync(path, "x");
    const name = rawPath(Buffer.from("a\n\xff", "latin1"));
    expect(await inspect(tree, [name], all)).toMatchObject([{ kind: "file", size: 1 }]);
    expect(readFileIn(tree, name)?.toString()).toBe("x");
    removeTree(tree, name);
    expect(readdirSync(root)).toEqual([]);
  });

  it("an empty folder is removed, another one stays", () => {
    for (const path of ["empty", "full/x"]) mkdirSync(join(root, path), { recursive: true });
    for (const path of ["empty", "full", "none", "none/none"]) removeIfEmpty(tree, raw(path));
    expect(readdirSync(root)).toEqual(["full"]);
  });
});

describe("attributes", () => {
  it("are written exactly: what is not asked for goes, what is not ours stays", async () => {
    const path = join(root, "file");
    writeFileSync(path, "x");
    execFileSync("setfattr", ["-n", "user.old", "-v", "1", path]);
    execFileSync("setfattr", ["-n", "trusted.other", "-v", "1", path]);
    const attributes = {
      uid: 5,
      gid: 6,
      permissions: 0o6750,
      xattrs: {
        "user.a=b\nc\\d": Buffer.from([0, 255, 10]).toString("base64"),
        "user.empty": "",
        "user.ü": "YQ==",
      },
    };
    const isWanted = (name: string): boolean => name.startsWith("user.");
    const fd = openSync(path, "r+");
    await setAttributes([{ fd, attributes }], isWanted);
    closeSync(fd);
    expect(await inspect(tree, [raw("file")], isWanted)).toEqual([{ kind: "file", size: 1, attributes }]);
    expect(execFileSync("getfattr", ["-n", "trusted.other", "--absolute-names", path]).toString()).toContain(
      '"1"',
    );
  });

  // setfattr did not write an empty value, and failed without a word, when it was the first or only one.
  it("may be empty", async () => {
    const path = join(root, "file");
    writeFileSync(path, "x");
    const attributes = { uid: 0, gid: 0, permissions: 0o644, xattrs: { "user.empty": "" } };
    const fd = openSync(path, "r+");
    await setAttributes([{ fd, attributes }], all);
    closeSync(fd);
    expect(await inspect(tree, [raw("file")], all)).toMatchObject([{ attributes }]);
  });

  it("an ACL that the folder passes on does not stay", async () => {
    execFileSync("setfacl", ["-d", "-m", "u:80:rwx,g:80:rwx", root]);
    const path = join(root, "file");
    writeFileSync(path, "x", { mode: 0o600 });
    const attributes = { uid: 0, gid: 0, permissions: 0o640, xattrs: {} };
    const fd = openSync(path, "r+");
    await setAttributes([{ fd, attributes }], all);
    closeSync(fd);
    expect(await inspect(tree, [raw("file")], all)).toMatchObject([{ attributes }]);
  });

  it("are read and written for more files than one process takes", async () => {
    const names = Array.from({ length: 600 }, (_, index) => String(index));
    for (const name of names) writeFileSync(join(root, name), "");
    const attributesOf = (name: string) => ({
      uid: 0,
      gid: 0,
      permissions: 0o600,
      xattrs: { "user.n": Buffer.from(name).toString("base64") },
    });
    const fds = names.map((name) => openSync(join(root, name), "r"));
    await setAttributes(
      fds.map((fd, index) => ({ fd, attributes: attributesOf(String(index)) })),
      all,
    );
    fds.forEach(closeSync);
    const found = await inspect(tree, names.map(raw), all);
    expect(found).toEqual(names.map((name) => ({ kind: "file", size: 0, attributes: attributesOf(name) })));
  });
});

describe("resolveWithin", () => {
  const link = (target: string, ...path: string[]): void => symlinkSync(target, join(root, ...path));

  beforeEach(() => {
    mkdirSync(join(root, "usr/sbin"), { recursive: true });
    writeFileSync(join(root, "usr/sbin/init"), "");
  });

  it("follows links as the other system would", () => {
    link("usr/sbin", "sbin");
    link("/sbin/init", "usr/init");
    link("../../../../usr/./init", "usr/up");
    for (const path of [
      "/usr/sbin/init",
      "usr//sbin/init",
      "/sbin/init",
      "/usr/init",
      "/usr/up",
      "/../usr/up",
    ]) {
      expect(resolveWithin(root, path)).toBe(join(root, "usr/sbin/init"));
    }
    expect(resolveWithin(root, "/sbin/..")).toBe(join(root, "usr"));
    expect(resolveWithin(root, "/")).toBe(root);
  });

  it("leads nowhere where a part is missing, no folder, or a ring of links", () => {
    link("/etc", "etc");
    link("/proc/version", "version");
    link("b", "a");
    link("a", "b");
    for (const path of [
      "/nothing",
      "/etc/passwd",
      "/version",
      "/usr/sbin/init/x",
      "/usr/sbin/init/..",
      "/a",
    ]) {
      expect(resolveWithin(root, path)).toBeUndefined();
    }
  });
});
