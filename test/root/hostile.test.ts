import { createHash } from "node:crypto";
import { renameSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { deflateSync } from "node:zlib";
import { beforeAll, describe, expect, it } from "vitest";
import { canonicalJson } from "../../src/canonical-json.js";
import { parseMetadata, type RootMetadata } from "../../src/root/metadata.js";
import { pathName } from "../../src/root/paths.js";
import { type RawPath } from "../../src/raw-path.js";
import {
  ACCOUNTS,
  BuildHost,
  command,
  edit,
  file,
  fingerprint,
  link,
  sh,
  type Edits,
  type Site,
  type RootPart,
} from "./hosts.js";
import { aclOf } from "./model.js";

/** Puts files beside the site's `/`, for what would follow a link or a setting out of it. */
function withCanary(site: Site): string {
  const outside = join(site.folder, "outside");
  edit(site.folder, { "outside/canary": "alive\n", "outside/x": "alive\n", "outside/conf": "alive\n" });
  return outside;
}

/** A plan that is refused, and a site, and what is beside it, as they were. */
async function refused(site: Site, part: RootPart, code: string, says = /./): Promise<void> {
  const before = fingerprint(site);
  await expect(site.plan(part)).rejects.toMatchObject({
    code,
    message: expect.stringMatching(says) as unknown,
  });
  expect(fingerprint(site)).toBe(before);
}

const blobId = (content: Buffer): string =>
  createHash("sha1").update(`blob ${content.length}\0`).update(content).digest("hex");

const pack = (objects: readonly Buffer[], count = objects.length, version = 2): Buffer => {
  const head = Buffer.from("PACK\0\0\0\0\0\0\0\0", "latin1");
  head.writeUInt32BE(version, 4);
  head.writeUInt32BE(count, 8);
  const body = Buffer.concat([head, ...objects]);
  return Buffer.concat([body, createHash("sha1").update(body).digest()]);
};

/** An object of a pack: 3 is a blob, 7 a difference to the object that is named first. */
const packed = (type: number, content: Buffer, { name = "", size = content.length } = {}): Buffer => {
  const head = [(type << 4) | (size % 16)];
  for (let rest = Math.floor(size / 16); rest > 0; rest = Math.floor(rest / 128)) {
    head[head.length - 1]! |= 0x80;
    head.push(rest % 128);
  }
  return Buffer.concat([Buffer.from(head), Buffer.from(name, "hex"), deflateSync(content)]);
};

interface Forged {
  readonly path: string;
  readonly content: string;
  readonly mode?: "100644" | "100755" | "120000";
}

const NOBODY = { owner: { id: 0, name: "root" }, group: { id: 0, name: "root" }, xattrs: {} };

const quoted = (path: string): string =>
  `"${path.replace(/[^ !#-[\]-~]/g, (char) => `\\${char.charCodeAt(0).toString(8).padStart(3, "0")}`)}"`;

const patchOf = ({
  path,
  content,
  mode = "100644",
}: {
  path: string;
  content: string;
  mode?: string;
}): string => {
  const [before, after] = [quoted(`a/${path}`), quoted(`b/${path}`)];
  const index = `index ${"0".repeat(40)}..${blobId(Buffer.from(content, "latin1"))}`;
  const lines = content.endsWith("\n")
    ? content
        .slice(0, -1)
        .split("\n")
        .map((line) => `+${line}\n`)
    : [`+${content}\n\\ No newline at end of file\n`];
  return (
    `diff --git ${before} ${after}\nnew file mode ${mode}\n${index}\n--- /dev/null\n+++ ${after}\n` +
    `@@ -0,0 +1,${lines.length} @@\n${lines.join("")}`
  );
};

/** A root half that agrees with itself, and adds files that no build host would let into one. */
function forge(files: readonly Forged[], folders?: readonly string[]): RootPart {
  const sorted = [...files].sort((a, b) => (a.path < b.path ? -1 : 1));
  const above = new Set(
    files.flatMap(({ path }) =>
      path.split("/").flatMap((_, index, names) => (index === 0 ? [] : [names.slice(0, index).join("/")])),
    ),
  );
  const metadata: RootMetadata = {
    format: 1,
    changes: sorted.map(({ path, content, mode = "100644" }) => ({
      path: pathName(path as RawPath),
      before: null,
      after: {
        ...NOBODY,
        mode,
        blob: blobId(Buffer.from(content, "latin1")),
        permissions: mode === "120000" ? "0777" : mode === "100755" ? "0755" : "0644",
      },
    })),
    directories: (folders ?? [...above]).toSorted().map((path) => ({
      path: pathName(path as RawPath),
      before: null,
      after: { ...NOBODY, permissions: "0755" },
    })),
  };
  return {
    patch: Buffer.from(sorted.map(patchOf).join(""), "latin1"),
    objects: pack([]),
    metadata: Buffer.from(canonicalJson(metadata)),
    summary: {
      base: { commit: "1".repeat(40), tree: "2".repeat(40) },
      target: { commit: "3".repeat(40), tree: "4".repeat(40) },
      counts: { added: files.length, modified: 0, deleted: 0 },
    },
  };
}

const BASE: Edits = {
  ...ACCOUNTS,
  "etc/app/conf": "one\n",
  "etc/app/gone": "gone\n",
  "etc/stays": "stays\n",
};

const host = new BuildHost();
let part: RootPart;
let next: RootPart;
let r2: string;

beforeAll(async () => {
  host.release("r1", BASE);
  host.release("r2", {
    "etc/app/conf": "two\n",
    "etc/app/x": "x\n",
    "etc/app/gone": null,
    "etc/link": link("/outside/canary"),
    "new.d/x": "x\n",
  });
  host.release("r3", { "etc/app/conf": "three\n" });
  part = await host.part("r1", "r2");
  next = await host.part("r2", "r3");
  r2 = host.site("r2", "cloned").state();
});

describe("a link on the way to a changed path", () => {
  const targets: [string, (site: Site) => string][] = [
    ["relative, out of /", () => "../outside"],
    ["absolute", (site) => join(site.folder, "outside")],
    ["to a folder of /", () => "etc"],
    ["to itself", () => "new.d"],
    ["to nothing", () => "/does/not/exist"],
  ];

  it.each(targets)("not tracked, %s", async (_, target) => {
    const site = host.site("r1", "cloned");
    withCanary(site);
    edit(site.root, { ".git/info/exclude": "new.d\n", "new.d": link(target(site)) });
    await refused(site, part, "worktree-dirty", /new\.d is a symbolic link/);
  });

  it.each(targets)("committed by the site, %s", async (_, target) => {
    const site = host.site("r1", "cloned");
    withCanary(site);
    site.commit({ "new.d": link(target(site)) });
    await refused(site, part, "merge-conflict", /new\.d \(file\/directory\)/);
  });

  it.each(targets)("in the place of a folder of the release, %s", async (_, target) => {
    const site = host.site("r1", "cloned");
    const outside = withCanary(site);
    edit(site.root, { "etc/app": null });
    symlinkSync(target(site), join(site.root, "etc/app"));
    await refused(site, part, "worktree-dirty", /etc\/app/);
    sh(site.root, "git add -A; git commit -q -m local");
    await refused(site, part, "merge-conflict", /etc\/app/);
    expect(sh(outside, "cat *")).toBe("alive\n".repeat(3));
  });

  it.each(["etc/app", "etc", "new.d"])("put at %s between plan and install", async (path) => {
    const site = host.site("r1", "cloned");
    const outside = withCanary(site);
    const plan = await site.plan(part);
    sh(site.folder, `mkdir -p outside/app; echo one > outside/app/conf; echo gone > outside/app/gone`);
    if (site.has(path)) renameSync(join(site.root, path), join(site.folder, "moved"));
    symlinkSync(outside, join(site.root, path));
    const [before, head] = [sh(outside, "find . -type f | sort | xargs sha1sum"), site.git("rev-parse HEAD")];
    await expect(site.apply(plan)).rejects.toMatchObject({
      code: expect.stringMatching(/^(worktree-dirty|io-failed)$/) as unknown,
    });
    expect(sh(outside, "find . -type f | sort | xargs sha1sum")).toBe(before);
    expect(site.git("rev-parse HEAD")).toBe(head);
  });
});

describe("no file in the place of a file", () => {
  it.each([
    ["a pipe", 'mkfifo "$1"'],
    ["a socket", 'python3 -c "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])" "$1"'],
    ["a device", 'mknod "$1" c 1 3'],
    ["a folder", 'mkdir "$1"; touch "$1/x"'],
  ])("%s", async (_, make) => {
    for (const path of ["etc/app/conf", "etc/app/gone", "etc/app/x", "new.d"]) {
      const site = host.site("r1", "cloned");
      edit(site.root, {
        [path]: command(`rm -rf "$1"; cd "$(dirname "$1")"; set -- "$(basename "$1")"; ${make}`),
      });
      await refused(site, part, "worktree-dirty", new RegExp(path));
    }
  });
});

describe("names", () => {
  let site: Site;
  beforeAll(() => {
    site = host.site("r1", "unrelated");
  });

  it.each([
    ".git",
    ".GIT/config",
    ".git /config",
    ".git./config",
    ".git . ./config",
    "etc/.gIt/hooks/post-merge",
    "etc/GIT~1/config",
    "etc/git~1",
    "etc/.git:x/config",
    "etc\\.git\\config",
    Buffer.from("etc/.g\u200eit/config").toString("latin1"),
    Buffer.from("etc/.git\u202e/config").toString("latin1"),
    "../outside/x",
    "etc/../../outside/x",
    "etc/..",
    "etc/./x",
    "/etc/x",
    "etc/x/",
    "usr/lib/x",
    "etc/zferry/keys/mine.pub",
    "var/lib/zferry/state.json",
    `etc/${"n".repeat(256)}`,
    `${"n".repeat(255)}/`.repeat(16) + "n",
  ])("%j is refused", async (path) => {
    withCanary(site);
    await refused(site, forge([{ path, content: "x\n" }]), "metadata-malformed");
  });

  it("a link that git would read its submodules from is refused", async () => {
    await refused(
      site,
      forge([{ path: ".gitmodules", content: "etc/x", mode: "120000" }]),
      "patch-malformed",
    );
  });

  it.each([
    ["of 255 bytes", `etc/${"n".repeat(255)}`],
    ["with a newline", "etc/new\nline"],
    ["that are not UTF-8", "etc/\xff\xfe\x80"],
    ["of an option", "-rf"],
    ["with a quote and a backslash", 'etc/"\\x'],
    ["like the installer's own", "etc/.zferry-0000000000000000"],
    ["like a pathspec", ":(glob)**"],
    ["in a folder that is like an option", "--output=x/-"],
  ])("%s are installed", async (_, path) => {
    const site = host.site("r1", "unrelated");
    await site.install(forge([{ path, content: "x\n" }]));
    expect(site.status() + site.leftovers().replace(/.*\.zferry-0{16}\n/, "")).toBe("");
    const listed = sh(site.root, "git ls-tree -r -z --name-only HEAD | base64 -w0");
    expect(Buffer.from(listed, "base64").toString("latin1").split("\0")).toContain(path);
    expect(sh(site.root, "git fsck --strict")).toBe("");
  });

  it("a path of 4,095 bytes is installed", async () => {
    const site = host.site("r1", "unrelated");
    const path = `${"n".repeat(255)}/`.repeat(15) + "n".repeat(255);
    expect(path.length).toBe(4095);
    const plan = await site.install(forge([{ path, content: "x\n" }]));
    expect(site.status()).toBe("");
    await site.takeBack(plan);
    expect(site.names(".")).toEqual([".git", "etc"]);
  });
});

describe("a patch that lies", () => {
  const FILES: Forged[] = [{ path: "etc/new", content: "new\n" }];
  const withPatch = (patch: string): RootPart => ({ ...forge(FILES), patch: Buffer.from(patch, "latin1") });
  const good = patchOf(FILES[0]!);

  it.each<[string, string]>([
    ["makes a file executable", good.replace("100644", "100755")],
    ["makes a link", good.replace("100644", "120000")],
    ["makes a submodule", good.replace("100644", "160000")],
    ["has other content", good.replace("+new", "+odd")],
    ["has a count of lines that it does not have", good.replace("+1,1", "+1,2")],
    ["has a huge count of lines", good.replace("+1,1", "+1,99999999999999999999")],
    [
      "makes a link and a file behind it",
      patchOf({ path: "etc/a", content: "/etc", mode: "120000" }) +
        patchOf({ path: "etc/a/passwd", content: "x\n" }),
    ],
    [
      "adds a submodule",
      `${good}diff --git a/sub b/sub\nnew file mode 160000\nindex ${"0".repeat(40)}..${"1".repeat(40)}\n--- /dev/null\n+++ b/sub\n@@ -0,0 +1 @@\n+Subproject commit ${"1".repeat(40)}\n`,
    ],
    [
      "renames a file of the site",
      "diff --git a/etc/stays b/etc/new\nsimilarity index 100%\nrename from etc/stays\nrename to etc/new\n",
    ],
    [
      "copies a file of the site",
      "diff --git a/etc/passwd b/etc/new\nsimilarity index 100%\ncopy from etc/passwd\ncopy to etc/new\n",
    ],
    [
      "removes a file of the site",
      `${good}diff --git a/etc/stays b/etc/stays\ndeleted file mode 100644\nindex ${blobId(Buffer.from("stays\n"))}..${"0".repeat(40)}\n--- a/etc/stays\n+++ /dev/null\n@@ -1 +0,0 @@\n-stays\n`,
    ],
    ["goes out of /", good.replaceAll("/etc/new", "/../outside/x")],
    [
      "has a huge binary part",
      good.slice(0, good.indexOf("---")) + "GIT binary patch\nliteral 99999999999999\nKcmZQzfB-N6\n\n",
    ],
    [
      "has a part that does not inflate",
      good.slice(0, good.indexOf("---")) + "GIT binary patch\nliteral 4\nLcmZQzWMT#Y01f~L\n\n",
    ],
    ["has binary garbage", "\0\xff".repeat(4096)],
  ])("%s", async (_, patch) => {
    const site = host.site("r1", "unrelated");
    withCanary(site);
    await refused(site, withPatch(patch), "patch-malformed");
  });

  // Git takes the mode for that of a file, and the same file once more for the same.
  it.each([
    ["does not", good],
    ["makes a device", good.replace("100644", "020644")],
    ["makes the file twice", good + good],
  ])("%s, and leads to what the metadata says", async (_, patch) => {
    const site = host.site("r1", "unrelated");
    await site.install(withPatch(patch));
    expect(sh(site.root, "stat -c '%F %a' etc/new; cat etc/new")).toBe("regular file 644\nnew\n");
  });

  it("agrees with metadata in which a file lies behind a link", async () => {
    const site = host.site("r1", "unrelated");
    const files: Forged[] = [
      { path: "a", content: "/etc", mode: "120000" },
      { path: "a/passwd", content: "x\n" },
    ];
    await refused(site, forge(files, []), "metadata-malformed", /lies below a/);
    await refused(site, forge(files), "metadata-malformed", /lies below a/);
  });
});

describe("metadata that lies", () => {
  let site: Site;
  beforeAll(() => {
    site = host.site("r1", "unrelated");
  });
  const FILES: Forged[] = ["a", "b", "etc/c"].map((path) => ({ path, content: `${path}\n` }));
  const changed = (change: (metadata: RootMetadata) => void): RootPart => {
    const good = forge(FILES);
    const metadata = parseMetadata(good.metadata);
    change(metadata);
    return { ...good, metadata: Buffer.from(canonicalJson(metadata)) };
  };

  it.each<[string, (metadata: RootMetadata) => void]>([
    ["a path twice", ({ changes }) => (changes[1]!.path = "a")],
    ["paths that are not sorted", ({ changes }) => changes.reverse()],
    ["a folder twice", ({ directories }) => directories.push({ ...directories[0]! })],
    ["no folder of a file", ({ directories }) => directories.pop()],
    ["a folder that is a file", ({ directories }) => directories.unshift({ ...directories[0]!, path: "a" })],
    ["a path in another spelling", ({ changes }) => (changes[0]!.path = { base64: "YQ==" })],
    ["a change too many", ({ changes }) => changes.push({ ...changes[2]!, path: "z" })],
    ["a mode that permissions deny", ({ changes }) => (changes[0]!.after!.permissions = "0755")],
    ["a user with a name of two lines", ({ changes }) => (changes[0]!.after!.owner.name = "a\nb")],
    ["a number no user has", ({ changes }) => (changes[0]!.after!.owner.id = 2 ** 32 - 1)],
    [
      "another's attributes",
      ({ changes }) => (changes[0]!.after!.xattrs = { "trusted.overlay.opaque": "eQ==" }),
    ],
    ["a label", ({ changes }) => (changes[0]!.after!.xattrs = { "security.selinux": "eQ==" })],
    [
      "250,001 changes",
      ({ changes }) => {
        const { before } = changes[0]!;
        for (let count = 0; count < 250_001; count += 1) changes.push({ path: "z", before, after: null });
      },
    ],
  ])("%s", async (_, change) => {
    await refused(site, changed(change), "metadata-malformed");
  });

  it.each<[string, string]>([
    ["does not agree with the permissions", aclOf(80, 0o600)],
    ["has more in it than its mask", aclOf(80, 0o644, 7)],
    ["is cut", aclOf(80).slice(0, -2)],
    ["is empty", "02000000"],
    ["has another version", `03${aclOf(80).slice(2)}`],
    ["names nobody", `02000000${aclOf(80).slice(8, 24)}${aclOf(80).slice(40, 56)}${aclOf(80).slice(72)}`],
    [
      "has its entries in another order",
      `02000000${aclOf(80).slice(24, 40)}${aclOf(80).slice(8, 24)}${aclOf(80).slice(40)}`,
    ],
    ["has permissions that there are not", aclOf(80).replace("02000400", "02000900")],
  ])("an access list that %s", async (_, value) => {
    const xattrs = { "system.posix_acl_access": Buffer.from(value, "hex").toString("base64") };
    await refused(
      site,
      changed(({ changes }) => (changes[0]!.after!.xattrs = xattrs)),
      "metadata-malformed",
      /has system\.posix_acl_access/,
    );
  });

  it.each([
    ["is empty", ""],
    ["has another version", "0100000100000000"],
    ["is too long", "01000002".padEnd(48, "0")],
    ["is the first user's, in the form for others", "01000003".padEnd(48, "0")],
  ])("a capability that %s", async (_, value) => {
    const xattrs = { "security.capability": Buffer.from(value, "hex").toString("base64") };
    await refused(
      site,
      changed(({ changes }) => (changes[0]!.after!.xattrs = xattrs)),
      "metadata-malformed",
      /has security\.capability/,
    );
  });

  it("counts that it does not have", async () => {
    const good = forge(FILES);
    for (const counts of [
      { added: 2 ** 53 - 1, modified: 0, deleted: 0 },
      { added: 3, modified: 1, deleted: 0 },
    ]) {
      await refused(site, { ...good, summary: { ...good.summary, counts } }, "metadata-malformed");
    }
  });

  it("says nothing of a file that the site has and the patch does not", async () => {
    const good = forge(FILES);
    const metadata = parseMetadata(good.metadata);
    const stays = { ...NOBODY, mode: "100644" as const, blob: "9".repeat(40), permissions: "0644" };
    metadata.changes.push({
      path: "etc/stays",
      before: stays,
      after: { ...stays, permissions: "4755", mode: "100755" },
    });
    const counts = { added: 3, modified: 1, deleted: 0 };
    const bad = {
      ...good,
      metadata: Buffer.from(canonicalJson(metadata)),
      summary: { ...good.summary, counts },
    };
    await refused(site, bad, "patch-malformed", /objects\.pack lacks 9{40}/);
  });
});

describe("trees that lie", () => {
  it("a base that is another release of the site, or none", async () => {
    const site = host.site("r1", "cloned");
    await site.install(part);
    for (const tree of [sh(host.root, "git rev-parse r1^{tree}").trim(), "5".repeat(40)]) {
      const base = { commit: "5".repeat(40), tree };
      await refused(site, { ...next, summary: { ...next.summary, base } }, "base-mismatch");
    }
    await refused(site, { ...next, summary: { ...next.summary, base: undefined } }, "base-mismatch");
  });

  it("a base of the site's that does not have the files, and a target that they do not lead to", async () => {
    const site = host.site("r2", "cloned");
    const base = { commit: "5".repeat(40), tree: sh(host.root, "git rev-parse r2^{tree}").trim() };
    await refused(site, { ...part, summary: { ...part.summary, base } }, "patch-malformed", /in the base/);
    const target = { commit: "5".repeat(40), tree: base.tree };
    await refused(site, { ...next, summary: { ...next.summary, target } }, "patch-malformed", /target/);
  });
});

describe("a pack", () => {
  const [one, gone] = [Buffer.from("one\n"), Buffer.from("gone\n")];
  const both = [packed(3, one), packed(3, gone)];
  let site: Site;
  beforeAll(() => {
    site = host.site("r1", "unrelated");
  });

  it("with the two blobs is as the builder's", async () => {
    await site.copy().install({ ...part, objects: pack(both) });
  });

  const flipped = (bytes: Buffer, at: number): Buffer => {
    const copy = Buffer.from(bytes);
    copy[at]! ^= 0x10;
    return copy;
  };

  it.each<[string, Buffer]>([
    ["with a blob twice", pack([...both, packed(3, one)])],
    ["with a blob too many", pack([...both, packed(3, Buffer.from("more\n"))])],
    ["without a blob", pack(both.slice(1))],
    ["with a tree", pack([...both, packed(2, Buffer.of())])],
    ["with a commit", pack([...both, packed(1, Buffer.from("tree x\n"))])],
    ["with a count too small", pack(both, 1)],
    ["with a count too large", pack(both, 3)],
    ["with a huge count", pack(both, 0xffffffff)],
    ["of another version", pack(both, 2, 4)],
    ["with another sum", flipped(pack(both), pack(both).length - 1)],
    ["with a damaged object", flipped(pack(both), 16)],
    ["with bytes after the end", Buffer.concat([pack(both), Buffer.from("x")])],
    ["with a huge object", pack([packed(3, one, { size: 2 ** 45 }), both[1]!])],
    [
      "with a difference to an object of the site",
      pack([both[0]!, packed(7, Buffer.from([6, 5, 0x90, 5]), { name: blobId(Buffer.from("stays\n")) })]),
    ],
    [
      "with a difference to itself",
      pack([...both, packed(7, Buffer.from([4, 4, 0x90, 4]), { name: "a".repeat(40) })]),
    ],
  ])("%s", async (_, objects) => {
    await refused(site, { ...part, objects }, "patch-malformed");
  });
});

it("a link of the release may point anywhere, and is never followed", async () => {
  const site = host.site("r1", "cloned");
  const outside = withCanary(site);
  const before = sh(outside, "find . -printf '%p %U %m %s %n\\n' | sort; cat *");
  const away = new BuildHost();
  away.release("r1", BASE);
  away.release("r2", { "etc/app/conf": link(join(outside, "canary")), srv: link(outside) });
  away.release("r3", {
    "etc/app/conf": command(`rm "$1"; ln -s ${outside}/canary "$1"; chown -h 80:80 "$1"`),
    srv: command('rm "$1"; mkdir "$1"; echo mine > "$1/canary"; chmod 700 "$1"'),
  });
  await site.install(await away.part("r1", "r2"));
  expect(sh(site.root, "readlink srv etc/app/conf")).toBe(`${outside}\n${outside}/canary\n`);
  const plan = await site.install(await away.part("r2", "r3"));
  expect(sh(site.root, "cat srv/canary; stat -c %u etc/app/conf")).toBe("mine\n80\n");
  expect(sh(outside, "find . -printf '%p %U %m %s %n\\n' | sort; cat *")).toBe(before);
  await site.takeBack(plan);
  expect(sh(site.root, "readlink srv etc/app/conf")).toBe(`${outside}\n${outside}/canary\n`);
  expect(sh(outside, "find . -printf '%p %U %m %s %n\\n' | sort; cat *")).toBe(before);
});

describe("of the site's repository takes no part", () => {
  it.each<[string, string]>([
    ["a work tree elsewhere", 'git config core.worktree "$OUTSIDE"'],
    ["links as files", "git config core.symlinks false"],
    ["modes that do not count", "git config core.fileMode false"],
    ["names without case", "git config core.ignoreCase true"],
    ["line ends", "git config core.autocrlf true; git config core.eol crlf"],
    [
      "an included file",
      'printf "[core]\\n\\tworktree = %s\\n[merge]\\n\\trenames = false\\n" "$OUTSIDE" > .git/more; git config include.path more',
    ],
    [
      "a merge without renames",
      "git config merge.renames false; git config merge.renormalize true; git config diff.renames false",
    ],
    ["a sparse checkout", "git config core.sparseCheckout true; echo nothing > .git/info/sparse-checkout"],
    [
      "a quick look at files",
      "git config core.checkStat minimal; git config core.trustctime false; git config core.ignoreStat true",
    ],
    [
      "a merge driver and a filter",
      'git config merge.x.driver "touch $OUTSIDE/ran"; git config filter.x.clean "touch $OUTSIDE/ran"; git config filter.x.smudge "touch $OUTSIDE/ran"; git config filter.x.required true; echo "* merge=x filter=x" > .git/info/attributes',
    ],
    [
      "a hook",
      'mkdir -p "$OUTSIDE/hooks"; for hook in post-index-change reference-transaction; do printf "#!/bin/sh\\ntouch $OUTSIDE/ran\\n" > "$OUTSIDE/hooks/$hook"; chmod +x "$OUTSIDE/hooks/$hook"; done; git config core.hooksPath "$OUTSIDE/hooks"',
    ],
    [
      "an attributes file",
      'echo "* text eol=crlf" > .git/attributes; git config core.attributesFile .git/attributes',
    ],
    ["a replaced commit", "git replace HEAD r2"],
    ["a replaced blob", "git replace HEAD:etc/app/conf HEAD:etc/stays"],
    ["a graft without parents", "git rev-parse HEAD > .git/info/grafts"],
    ["a graft of another parent", 'echo "$(git rev-parse HEAD) $(git rev-parse r3)" > .git/info/grafts'],
    ["a commit graph", "git commit-graph write --reachable"],
    [
      "a commit graph that is damaged",
      "git commit-graph write --reachable; chmod u+w .git/objects/info/commit-graph; printf XXXXXXXX | dd of=.git/objects/info/commit-graph bs=1 seek=8 conv=notrunc status=none",
    ],
    [
      "a commit graph that lies",
      "git commit-graph write --reachable; chmod u+w .git/objects/info/commit-graph; python3 -c \"\nimport subprocess\np = '.git/objects/info/commit-graph'\nold, new = (bytes.fromhex(subprocess.check_output(['git', 'rev-parse', n + '^{tree}'], text=True).strip()) for n in ('r1', 'r3'))\ndata = open(p, 'rb').read()\nassert old in data\nopen(p, 'wb').write(data.replace(old, new))\n\"",
    ],
    ["an alternate that is not there", "echo /does/not/exist > .git/objects/info/alternates"],
    [
      "objects kept elsewhere",
      'mv .git/objects "$OUTSIDE/objects"; mkdir -p .git/objects/info; echo "$OUTSIDE/objects" > .git/objects/info/alternates',
    ],
    ["packed references", "git pack-refs --all"],
  ])("%s", async (_, make) => {
    const site = host.site("r1", "cloned");
    site.commit({ "etc/own": file("own\n", 0o600), "etc/stays": "changed here\n" });
    const twin = site.copy();
    const outside = withCanary(site);
    sh(site.root, `OUTSIDE=${outside}; ${make}`);
    const before = sh(outside, "find . -path ./objects -prune -o -printf '%p %s\\n' | sort");
    const plan = await site.install(part);
    expect(plan).toEqual(await twin.install(part));
    expect(site.state()).toBe(twin.state());
    expect(sh(outside, "find . -path ./objects -prune -o -printf '%p %s\\n' | sort")).toBe(before);
    await site.takeBack(plan);
    await twin.takeBack(plan);
    expect(site.state()).toBe(twin.state());
    expect(sh(outside, "find . -path ./objects -prune -o -printf '%p %s\\n' | sort")).toBe(before);
  });

  it("what an administrator would see is as of the release", () => {
    expect(host.site("r2", "cloned").state()).toBe(r2);
  });
});
