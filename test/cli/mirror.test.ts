import { spawn, spawnSync } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { beforeEach, describe, expect, test } from "vitest";
import { encodeIndex, verifyIndex } from "../../src/carry/index-format.js";
import { encodePublicKey, encodeSecretKey, generateKeyPair } from "../../src/trust/minisign.js";
import { flipped, input, KEY, pack, PUBLIC_KEY } from "../bundle/support.js";
import { begin, end as endRecord, seal, write } from "../stream/support.js";
import { CLI, errorOf, inFolder, PUBLIC, run, SECRET, told } from "./support.js";

const folder = inFolder();
const runHere = (...args: string[]) => run(args, { cwd: folder.path });
const mirror = (...args: string[]) => runHere("mirror", ...args, "--key", SECRET);
const r2 = await pack();
const r3 = await pack({ release: { name: "R3", sequence: 3 } });
const other = generateKeyPair();
beforeEach(async () => {
  writeFileSync(folder.file("R2.bundle"), r2);
  writeFileSync(folder.file("R3.bundle"), r3);
  writeFileSync(folder.file("other.key"), await encodeSecretKey(other.secretKey, undefined));
  writeFileSync(folder.file("other.pub"), encodePublicKey(other.publicKey));
});

const files = (): string[] => readdirSync(folder.file("m")).sort();
const bundles = (): string[] => files().filter((name) => name.endsWith(".bundle"));
const index = async (key = PUBLIC_KEY) =>
  (await verifyIndex(readFileSync(folder.file("m/index.signed")), [key], "index")).index;

describe("bundle mirror add", () => {
  test("makes a folder with the bundles, a signed index and a page", async () => {
    const { status, stdout } = await mirror("add", "R3.bundle", "R2.bundle", "m");
    expect([status, stdout.toString()]).toEqual([
      0,
      expect.stringMatching(
        /^added R3-[0-9a-f]{16}\.bundle, .*\nadded R2-[0-9a-f]{16}\.bundle, .*\nm: product demo, bundles: 2, counter [0-9]+, signed by 0E07B77755AB6E15, until .*\n$/,
      ),
    ]);
    expect(files()).toEqual([...bundles(), "index.html", "index.signed"]);
    const { bundles: listed, product } = await index();
    expect([product, listed.map(({ release, path }) => [release.name, path])]).toEqual([
      "demo",
      [
        ["R2", bundles()[0]],
        ["R3", bundles()[1]],
      ],
    ]);
    expect(readFileSync(folder.file(`m/${bundles()[0]}`)).equals(r2)).toBe(true);
    expect(readFileSync(folder.file("m/index.html"), "utf8")).toContain(bundles()[0]);
    expect(statSync(folder.file("m/index.signed")).mode & 0o777).toBe(0o644);
  });

  // A hard link was made: what was written to the given name later was what the mirror had.
  test("copies, so that what is done to the given file later changes nothing", async () => {
    chmodSync(folder.file("R3.bundle"), 0o600);
    copyFileSync(folder.file("R2.bundle"), folder.file("next.bundle"));
    await mirror("add", "next.bundle", "m");
    copyFileSync(folder.file("R3.bundle"), folder.file("next.bundle"));
    await mirror("add", "next.bundle", "m");
    const [two, three] = bundles().map((name) => folder.file(`m/${name}`)) as [string, string];
    expect([readFileSync(two).equals(r2), readFileSync(three).equals(r3)]).toEqual([true, true]);
    expect(statSync(three).mode & 0o777).toBe(0o644);
    // As older versions left it.
    linkSync(two, folder.file("linked.bundle"));
    await mirror("add", "R2.bundle", "m");
    expect(statSync(two).nlink).toBe(1);
  });

  test.each<[string, (path: string) => void, string]>([
    ["gone", (path) => rmSync(path), "is no file that is there"],
    ["another file", (path) => writeFileSync(path, r3.subarray(1)), `has ${r3.length - 1} bytes`],
    ["a link", (path) => (rmSync(path), symlinkSync("../R2.bundle", path)), "is no file that is there"],
  ])("does not list again what is %s by now", async (_, change, what) => {
    await mirror("add", "R2.bundle", "m");
    const [name = ""] = bundles();
    change(folder.file(`m/${name}`));
    const before = [files(), readFileSync(folder.file("m/index.signed"), "hex")];
    expect(told(await mirror("add", "R3.bundle", "m"))).toEqual({
      status: 12,
      message: `m/${name}: ${what}, the index says ${r2.length} bytes`,
      hint: "add that bundle again in the same command, or list what is there: bundle mirror index m",
    });
    expect([files(), readFileSync(folder.file("m/index.signed"), "hex")]).toEqual(before);
    expect((await mirror("add", "R2.bundle", "R3.bundle", "m")).status).toBe(0);
    expect(readFileSync(folder.file(`m/${name}`)).equals(r2)).toBe(true);
  });

  test("adds one at a time; the counter rises, and what is there stays", async () => {
    await mirror("add", "R2.bundle", "m");
    const before = await index();
    const { stdout } = await mirror("add", "R2.bundle", "R3.bundle", "m", "--json");
    const result = JSON.parse(stdout.toString()) as { added: { release: object }[]; bundles: object[] };
    expect(result.added.map(({ release }) => release)).toEqual([{ name: "R3", sequence: 3 }]);
    expect(result.bundles).toHaveLength(2);
    expect((await index()).counter).toBeGreaterThan(before.counter);
  });

  test("a bundle with one more signature takes the place of the one without", async () => {
    await mirror("add", "R2.bundle", "m");
    const [before = ""] = bundles();
    await runHere("sign", "R2.bundle", "--key", "other.key");
    await mirror("add", "R2.bundle", "m");
    const [after = ""] = bundles();
    expect(bundles()).toEqual([after]);
    expect(after).not.toBe(before);
    expect((await index()).bundles[0]?.signers).toHaveLength(2);
  });

  // It took the place of the one with more, whose signature was lost.
  test("a bundle with one signature less does not, and is told", async () => {
    copyFileSync(folder.file("R2.bundle"), folder.file("both.bundle"));
    await runHere("sign", "both.bundle", "--key", "other.key");
    await mirror("add", "both.bundle", "m");
    const [both = ""] = bundles();
    const { status, stderr } = await mirror("add", "R2.bundle", "R3.bundle", "m");
    expect([status, stderr]).toEqual([
      0,
      `R2.bundle is the same bundle as ${both}, which stays: that one is also signed by ${other.publicKey.keyId}\n`,
    ]);
    expect(bundles()).toEqual([both, expect.stringMatching(/^R3-/)]);
    expect((await index()).bundles[0]?.signers).toHaveLength(2);
    // It is better than none.
    rmSync(folder.file(`m/${both}`));
    await mirror("add", "R2.bundle", "m");
    expect((await index()).bundles[0]?.signers).toEqual([KEY.keyId]);
  });

  test("takes an index key of its own, with --trust for the bundles'", async () => {
    const args = ["mirror", "add", "R2.bundle", "m", "--key", "other.key"];
    expect(errorOf(await runHere(...args, "--json")).code).toBe("signature-missing");
    expect((await runHere(...args, "--trust", PUBLIC)).status).toBe(0);
    expect((await index(other.publicKey)).bundles).toHaveLength(1);
  });

  test.each<[string, () => Buffer | Promise<Buffer>, string]>([
    ["a flipped bit", () => flipped(r3, r3.length - 1_500), "content-mismatch"],
    ["a foreign signature", () => pack({ key: other.secretKey }), "signature-missing"],
    ["another product", () => pack({ product: "office" }), "product-mismatch"],
    ["the end missing", () => r3.subarray(0, -512), "bundle-truncated"],
  ])("refuses one with %s, and adds none", async (_, make, code) => {
    await mirror("add", "R2.bundle", "m");
    const before = [files(), readFileSync(folder.file("m/index.signed"), "hex")];
    writeFileSync(folder.file("bad.bundle"), await make());
    expect(errorOf(await mirror("add", "R3.bundle", "bad.bundle", "m", "--json")).code).toBe(code);
    expect([files(), readFileSync(folder.file("m/index.signed"), "hex")]).toEqual(before);
  });

  test("joins volumes, which may be in several folders, into one file", async () => {
    const names = ["R2.bundle.001", "R2.bundle.002", "R2.bundle.003"];
    const bytes = Math.ceil(r2.length / 3);
    mkdirSync(folder.file("other"));
    names.forEach((name, at) => {
      const piece = r2.subarray(at * bytes, (at + 1) * bytes);
      writeFileSync(folder.file(at === 2 ? `other/${name}` : name), piece);
    });
    const alone = errorOf(await mirror("add", "R2.bundle.001", "m", "--json"));
    expect([alone.code, alone.details["missing"]]).toEqual(["volume-missing", ["R2.bundle.003"]]);
    expect((await mirror("add", "R2.bundle.001", "m", "--search", "other")).status).toBe(0);
    expect(files()).toEqual([...bundles(), "index.html", "index.signed"]);
    expect(readFileSync(folder.file(`m/${bundles()[0]}`)).equals(r2)).toBe(true);
    const { message, hint } = told(await mirror("add", "R2.bundle.002", "m"));
    expect([message, hint]).toEqual([
      expect.stringContaining("R2.bundle.002 is no bundle"),
      "a volume of a bundle? Name the first: R2.bundle.001",
    ]);
  });

  test("does not go on from an index that somebody else signed", async () => {
    await mirror("add", "R2.bundle", "m");
    const result = await runHere("mirror", "add", "R3.bundle", "m", "--key", "other.key", "--trust", PUBLIC);
    expect(result.status).toBe(0);
    // R2's own is trusted there; a stranger's is not.
    const { status, hint } = told(await mirror("add", "R3.bundle", "m"));
    expect([status, hint]).toEqual([
      11,
      "bundle mirror index makes it anew, of all the bundles that are there",
    ]);
  });

  // Only what was added was listed then, and all the rest unpublished, with exit status 0.
  test("where the index is missing, lists what lies there too", async () => {
    await mirror("add", "R2.bundle", "m");
    rmSync(folder.file("m/index.signed"));
    const { status, stderr } = await mirror("add", "R3.bundle", "m");
    expect([status, stderr]).toEqual([0, "m has no index.signed: what lies there is listed, bundles: 1\n"]);
    expect((await index()).bundles.map(({ release }) => release.name)).toEqual(["R2", "R3"]);

    rmSync(folder.file("m/index.signed"));
    writeFileSync(folder.file("office.bundle"), await pack({ product: "office" }));
    expect(errorOf(await mirror("add", "office.bundle", "m", "--json")).code).toBe("product-mismatch");
    writeFileSync(folder.file("m/torn.bundle"), r3.subarray(0, 1_000));
    const torn = await mirror("add", "R3.bundle", "m");
    expect([torn.status, torn.stderr]).toEqual([12, expect.stringMatching(/^bundle: m\/torn\.bundle: /)]);
    expect(existsSync(folder.file("m/index.signed"))).toBe(false);
  });

  // Only its size was compared: the damaged one stayed, with exit status 0.
  test("puts a whole bundle in the place of one that is damaged, and says when it is there already", async () => {
    await mirror("add", "R2.bundle", "m");
    const [name = ""] = bundles();
    const same = await mirror("add", "R2.bundle", "m");
    expect([same.status, same.stderr]).toEqual([0, `R2.bundle is there already: ${name}\n`]);
    expect((await mirror("add", `m/${name}`, "m")).stderr).toBe(`m/${name} is there already: ${name}\n`);
    for (const at of [700, r2.length - 1_500]) {
      writeFileSync(folder.file(`m/${name}`), flipped(r2, at));
      const { status, stdout, stderr } = await mirror("add", "R2.bundle", "m");
      expect([status, stderr]).toEqual([0, expect.stringContaining(`m/${name} is replaced by R2.bundle: `)]);
      expect(stdout.toString()).toContain(`added ${name}`);
      expect(readFileSync(folder.file(`m/${name}`)).equals(r2)).toBe(true);
    }
  });

  test("makes what a web server can read, whatever the umask is", async () => {
    const args = [process.execPath, CLI, "mirror", "add", "R2.bundle", "a/m", "--key", SECRET];
    const command = args.map((word) => `'${word}'`).join(" ");
    expect(spawnSync("sh", ["-c", `umask 077; ${command}`], { cwd: folder.path }).status).toBe(0);
    const modes = ["a", "a/m", ...readdirSync(folder.file("a/m")).map((name) => `a/m/${name}`)].map((name) =>
      (statSync(folder.file(name)).mode & 0o777).toString(8),
    );
    expect(modes).toEqual(["755", "755", "644", "644", "644"]);
  });

  test("killed while it copies, leaves nothing that the next one does not remove", async () => {
    await mirror("add", "R2.bundle", "m");
    writeFileSync(folder.file("m/.R3-x.bundle.0123456789ab"), "half");
    writeFileSync(folder.file("m/.keep"), "");
    await mirror("add", "R3.bundle", "m");
    expect(files()).toEqual([".keep", ...bundles(), "index.html", "index.signed"]);
  });

  test("one at a time changes a folder", async () => {
    mkdirSync(folder.file("m"));
    const flock = spawn("flock", ["m", "sh", "-c", "echo locked; read -r line"], {
      cwd: folder.path,
      stdio: ["pipe", "pipe", "ignore"],
    });
    try {
      await new Promise((resolve) => flock.stdout.once("data", resolve));
      expect(errorOf(await mirror("add", "R2.bundle", "m", "--json")).code).toBe("site-busy");
      expect(files()).toEqual([]);
    } finally {
      flock.stdin.end("\n");
      await new Promise((resolve) => flock.once("close", resolve));
    }
  });
});

describe("bundle mirror remove", () => {
  test("takes all bundles of a release out", async () => {
    await mirror("add", "R2.bundle", "R3.bundle", "m");
    const { stdout } = await mirror("remove", "R2", "m");
    expect(stdout.toString()).toMatch(/^removed R2-/);
    expect((await index()).bundles.map(({ release }) => release.name)).toEqual(["R3"]);
    expect(bundles()).toEqual([expect.stringMatching(/^R3-/)]);
    expect(existsSync(folder.file("R2.bundle"))).toBe(true);
    await mirror("remove", "R3", "m");
    expect((await index()).bundles).toEqual([]);
  });

  // The page came first, and what could not be written left the file, which the next index listed again without a word.
  test("removes the files though the page cannot be written; what the index lists anew is told", async () => {
    await mirror("add", "R2.bundle", "R3.bundle", "m");
    const [path = ""] = bundles();
    rmSync(folder.file("m/index.html"));
    mkdirSync(folder.file("m/index.html"));
    expect((await mirror("remove", "R2", "m")).status).not.toBe(0);
    expect(bundles()).toEqual([expect.stringMatching(/^R3-/)]);
    rmSync(folder.file("m/index.html"), { recursive: true });
    // As of one that was killed before it.
    writeFileSync(folder.file(`m/${path}`), r2);
    expect((await mirror("index", "m")).stdout.toString()).toMatch(
      new RegExp(`^added ${path}, .*\nm: product`),
    );
    rmSync(folder.file(`m/${path}`));
    expect((await mirror("index", "m")).stdout.toString()).toMatch(
      new RegExp(`^removed ${path}\nm: product`),
    );
  });

  test("of a release that is not there changes nothing", async () => {
    await mirror("add", "R2.bundle", "m");
    expect(told(await mirror("remove", "R2", "R9", "m"))).toEqual({
      status: 2,
      message: "m: has no bundle of release R9",
      hint: undefined,
    });
    expect(bundles()).toHaveLength(1);
  });
});

describe("bundle mirror index", () => {
  test("renews the expiry, and counts on", async () => {
    await mirror("add", "R2.bundle", "m", "--expires-days", "1");
    const before = await index();
    expect(before.expires - before.created).toBe(86_400);
    await mirror("index", "m");
    const after = await index();
    expect(after.expires).toBeGreaterThan(before.expires);
    expect(after.counter).toBeGreaterThan(before.counter);
    expect(after.bundles).toEqual(before.bundles);
  });

  test("has what lies there, whoever put it there, and not what is gone", async () => {
    await mirror("add", "R2.bundle", "m");
    rmSync(folder.file(`m/${bundles()[0]}`));
    copyFileSync(folder.file("R3.bundle"), folder.file("m/mine.bundle"));
    await mirror("index", "m");
    expect((await index()).bundles.map(({ path }) => path)).toEqual(["mine.bundle"]);
  });

  test("of bundles by another key names --trust", async () => {
    await mirror("add", "R2.bundle", "m");
    const by = (...args: string[]) => runHere("mirror", ...args, "--key", "other.key");
    const { status, stderr } = await by("index", "m");
    expect([status, stderr]).toEqual([
      11,
      expect.stringMatching(
        /\n {2}nothing was changed: name the public key that signed it with --trust, or move /,
      ),
    ]);
    expect((await by("index", "m", "--trust", PUBLIC)).status).toBe(0);
    expect(told(await by("add", "R3.bundle", "new")).hint).toBe(
      "if you trust one of these signers, name its public key with --trust",
    );
  });

  test("begins anew where the index is somebody else's or damaged, and still counts on", async () => {
    await mirror("add", "R2.bundle", "m");
    const { counter } = await index();
    writeFileSync(folder.file("m/index.signed"), "x");
    const { status, stderr } = await mirror("index", "m");
    expect([status, stderr]).toEqual([0, expect.stringContaining("the index of before counts for nothing")]);
    expect((await index()).counter).toBeGreaterThanOrEqual(counter);
  });

  test.each([
    ["index", ["index", "m"]],
    ["add", ["add", "R3.bundle", "m"]],
    ["remove", ["remove", "R3", "m"]],
  ])("%s counts on by the time where the index was lost", async (_, args) => {
    await mirror("add", "R2.bundle", "R3.bundle", "m");
    const { counter, created } = await index();
    expect(counter).toBe(created);
    rmSync(folder.file("m/index.signed"));
    expect((await mirror(...args)).status).toBe(0);
    expect((await index()).counter).toBeGreaterThanOrEqual(counter);
  });

  test("tells of a clock that is behind the bundles: nothing else would count on where the index was lost", async () => {
    const creationTime = BigInt(Math.floor(Date.now() / 1000) + 2 * 86_400);
    const late = seal([begin({ creationTime }), write(1n, 24), endRecord()]);
    writeFileSync(folder.file("late.bundle"), await pack({ streams: [input("usr", late)] }));
    const { status, stderr } = await mirror("add", "late.bundle", "m");
    expect([status, stderr]).toEqual([
      0,
      expect.stringMatching(
        /^warning: the index is of .*: clients that saw a newer index refuse it\. Set the clock, and run bundle mirror index m\n$/,
      ),
    ]);
  });

  test("of one bundle twice has the one with more signatures", async () => {
    await mirror("add", "R2.bundle", "m");
    linkSync(folder.file(`m/${bundles()[0]}`), folder.file("m/again.bundle"));
    await runHere("sign", "m/again.bundle", "--key", "other.key");
    const { stderr } = await mirror("index", "m");
    expect(stderr).toMatch(/^R2-.*\.bundle is the same bundle as again\.bundle, and is left out\n$/);
    expect((await index()).bundles.map(({ path }) => path)).toEqual(["again.bundle"]);
  });

  /** Changes a byte in the head of R2 and of nothing else, and puts its times back as far as they can be. */
  const damage = (name: string): void => {
    const path = folder.file(`m/${name}`);
    const { atime, mtime } = statSync(path);
    // Not through the name outside of the mirror.
    const bytes = flipped(readFileSync(path), 700);
    rmSync(path);
    writeFileSync(path, bytes);
    utimesSync(path, atime, mtime);
  };

  test("does not believe that a file is what it was because it looks so", async () => {
    await mirror("add", "R2.bundle", "R3.bundle", "m");
    await mirror("index", "m");
    const [two = "", three = ""] = bundles();
    damage(two);
    damage(three);
    const before = readFileSync(folder.file("m/index.signed"), "hex");
    const { status, stderr } = await mirror("index", "m");
    expect(status).toBe(10);
    for (const name of [two, three]) expect(stderr).toContain(name);
    expect(stderr).toContain("nothing was changed: move it out of the folder");
    expect(readFileSync(folder.file("m/index.signed"), "hex")).toBe(before);
  });

  test("lists what did not change since its own index without reading it, and reads all of it with --verify", async () => {
    await mirror("add", "R2.bundle", "m");
    const [name = ""] = bundles();
    damage(name);
    // As if the index had been written after.
    const later = Date.now() / 1000 + 3_600;
    utimesSync(folder.file("m/index.signed"), later, later);
    expect((await mirror("index", "m")).status).toBe(0);
    expect((await index()).bundles.map(({ path }) => path)).toEqual([name]);
    utimesSync(folder.file("m/index.signed"), later, later);
    expect((await mirror("index", "m", "--verify")).status).toBe(10);
    // Nor by another key than that of the index.
    utimesSync(folder.file("m/index.signed"), later, later);
    expect((await runHere("mirror", "index", "m", "--key", "other.key", "--trust", PUBLIC)).status).toBe(10);
  });

  test("reads again what somebody signed whose key is not trusted any more", async () => {
    writeFileSync(folder.file("both.bundle"), r2);
    await runHere("sign", "both.bundle", "--key", "other.key");
    await mirror("add", "both.bundle", "m", "--trust", "other.pub");
    damage(bundles()[0] ?? "");
    const later = Date.now() / 1000 + 3_600;
    utimesSync(folder.file("m/index.signed"), later, later);
    expect((await mirror("index", "m")).status).toBe(10);
    expect((await mirror("index", "m", "--trust", "other.pub")).status).toBe(0);
  });

  test("with --verify finds what is wrong within a bundle", async () => {
    await mirror("add", "R2.bundle", "m");
    const path = folder.file(`m/${bundles()[0]}`);
    writeFileSync(path, flipped(r2, r2.length - 1_500));
    expect((await mirror("index", "m")).status).toBe(0);
    expect(errorOf(await mirror("index", "m", "--verify", "--json")).code).toBe("content-mismatch");
    writeFileSync(path, r2);
    expect((await mirror("index", "m", "--verify")).status).toBe(0);
  });

  test("of before that was made with a wrong clock is told, with the way out", async () => {
    await mirror("add", "R2.bundle", "m");
    const before = await index();
    const created = before.created + 40 * 86_400;
    const ahead = { ...before, created, counter: created, expires: created + 86_400 };
    writeFileSync(folder.file("m/index.signed"), encodeIndex(ahead, KEY));
    const { status, stderr } = await mirror("index", "m");
    expect([status, stderr]).toEqual([
      0,
      expect.stringMatching(/^warning: the index of before is of .* remove m\/index\.signed and run/),
    ]);
    rmSync(folder.file("m/index.signed"));
    expect((await mirror("index", "m")).stderr).toBe("");
    expect((await index()).created).toBeLessThan(created);
  });

  test("does not take over another mirror's product with its index", async () => {
    await mirror("add", "R2.bundle", "m");
    writeFileSync(folder.file("office.bundle"), await pack({ product: "office" }));
    await mirror("add", "office.bundle", "office");
    copyFileSync(folder.file("office/index.signed"), folder.file("m/index.signed"));
    expect(errorOf(await mirror("add", "R3.bundle", "m", "--json")).code).toBe("product-mismatch");
    const { status, stderr } = await mirror("index", "m");
    expect([status, stderr]).toEqual([
      0,
      "the index of before counts for nothing: it is of product office\n",
    ]);
    expect((await index()).product).toBe("demo");
  });

  test.each<[string, Buffer | undefined, string]>([
    ["a folder without bundles", undefined, "usage"],
    ["a damaged bundle", Buffer.alloc(2_000), "archive-malformed"],
  ])("refuses %s", async (_, bytes, code) => {
    mkdirSync(folder.file("m"));
    if (bytes !== undefined) writeFileSync(folder.file("m/x.bundle"), bytes);
    expect(errorOf(await mirror("index", "m", "--json")).code).toBe(code);
    expect(existsSync(folder.file("m/index.signed"))).toBe(false);
  });
});

describe("bundle mirror", () => {
  test.each([
    [["add", "m"], "mirror add: m is the only name; the mirror's folder comes last"],
    [["add", "R2.bundle", "m", "--verify"], "--verify is for mirror index; mirror add has none"],
    [["index", "R2.bundle", "m"], "mirror index takes the mirror's folder alone, not also R2.bundle"],
    [
      ["add", "R2.bundle", "m", "--expires-days", "367"],
      "--expires-days: 367 is not a whole number from 1 to 366",
    ],
  ])("%j is a usage error", async (args, message) => {
    expect(told(await mirror(...args))).toMatchObject({ status: 2, message });
  });
});
