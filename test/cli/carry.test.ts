import { execFileSync } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  writeFileSync,
} from "node:fs";
import { beforeEach, describe, expect, test, vi } from "vitest";
import { EXIT_STATUS } from "../../src/errors.js";
import { blocksOf, readPage } from "../formats/page.js";
import { errorOf, EXAMPLE, inFolder, keyFile, PUBLIC, run, SECRET, told } from "./support.js";

const folder = inFolder();
const runHere = (...args: string[]) => run(args, { cwd: folder.path });
const state = JSON.parse(blocksOf(readPage("state.md"), "json state")[0] ?? "") as {
  installations: object[];
};

const writeState = (value: object): void => {
  mkdirSync(folder.file("state"), { recursive: true });
  writeFileSync(folder.file("state/state.json"), JSON.stringify(value));
};
const configureSite = (site: string): void =>
  writeFileSync(
    folder.file("site.toml"),
    `product = "gentoo"\nstate = "${folder.file("state")}"\n[streams]\nusr = "p/usr"\n[trust]\nkeys = "${folder.file("keys")}"\n${site}`,
  );
const signing = (): string => `[site]\nname = "plant"\nkey = "${folder.file("site.key")}"\n`;

beforeEach(() => {
  mkdirSync(folder.file("keys"));
  copyFileSync(PUBLIC, folder.file("keys/release.pub"));
  copyFileSync(SECRET, folder.file("site.key"));
  configureSite(signing());
  writeFileSync(
    folder.file("build.toml"),
    `product = "gentoo"\n[streams]\nusr = "p/usr"\n[root]\ndataset = "p/root"\n[sites]\nkeys = "${folder.file("sites")}"\nreceipts = "${folder.file("receipts")}"\n`,
  );
  mkdirSync(folder.file("sites"));
  copyFileSync(PUBLIC, folder.file("sites/plant.pub"));
});

const receipt = (...args: string[]) => runHere("receipt", "--config", "site.toml", ...args);
const sites = (...args: string[]) => runHere("sites", ...args, "--config", "build.toml");

describe("bundle receipt", () => {
  test("says what was installed, signed, and minisign verifies it by hand", async () => {
    writeState(state);
    const { status, stdout, stderr } = await receipt();
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout.toString()).toBe(
      "plant.receipt: site plant with release R2 (2), signed by 0E07B77755AB6E15\n",
    );
    const [, commands = ""] = /## By hand\n\n```sh\n(.*?)```/s.exec(readPage("request.md")) ?? [];
    copyFileSync(PUBLIC, folder.file("plant.pub"));
    copyFileSync(folder.file("plant.receipt"), folder.file("plant.request"));
    const shown = execFileSync("sh", ["-euc", commands], { cwd: folder.path, encoding: "utf8" });
    expect(shown).toContain("Trusted comment: zferry receipt of site plant");
    const { installations } = JSON.parse(readFileSync(folder.file("request.json"), "utf8")) as {
      installations: object[];
    };
    expect(installations).toMatchObject([{ release: { name: "R2" }, result: "installed" }]);
  });

  test("without a key is not signed, and says so", async () => {
    configureSite('[site]\nname = "plant"\n');
    const { status, stdout } = await receipt("-o", "out", "--json");
    expect(status).toBe(0);
    expect(JSON.parse(stdout.toString())).toMatchObject({
      file: "out",
      signedBy: null,
      receipt: { site: "plant", installed: null, events: 0 },
    });
    expect((await receipt("-o", "again")).stdout.toString()).toContain("not signed");
  });

  test.each([
    ["without a name", "", "not-configured"],
    ["with a key that is not there", '[site]\nname = "plant"\nkey = "/nowhere/site.key"\n', "not-configured"],
    ["with a public key for a secret one", `[site]\nname = "plant"\nkey = "${PUBLIC}"\n`, "key-malformed"],
    ["with a name that is a path", '[site]\nname = "a/b"\n', "config-malformed"],
  ])("%s is refused, and leaves no file", async (_, site, code) => {
    configureSite(site);
    const before = readdirSync(folder.path);
    expect(errorOf(await receipt("-o", "out", "--json")).code).toBe(code);
    expect(readdirSync(folder.path)).toEqual(before);
  });

  test("replaces no file", async () => {
    writeFileSync(folder.file("plant.receipt"), "kept");
    expect(errorOf(await receipt("--json")).code).toBe("output-exists");
    expect(readFileSync(folder.file("plant.receipt"), "utf8")).toBe("kept");
  });
});

describe("bundle request", () => {
  test.each([
    ["without a name", "", "not-configured"],
    ["with a key that is not there", '[site]\nname = "plant"\nkey = "/nowhere/site.key"\n', "not-configured"],
  ])("%s is refused, and leaves no file", async (_, site, code) => {
    configureSite(site);
    const result = await runHere("request", "--config", "site.toml", "-o", "out", "--json");
    expect(errorOf(result).code).toBe(code);
    expect(existsSync(folder.file("out"))).toBe(false);
  });
});

describe("bundle sites", () => {
  test("takes receipts, and shows which site is where", async () => {
    expect((await sites()).stdout.toString()).toBe("no receipt of any site yet\n");
    writeState(state);
    await receipt("-o", "first");
    expect((await sites("add", "first")).stdout.toString()).toBe("first: site plant with release R2 (2)\n");
    expect(readFileSync(folder.file("receipts/plant.receipt"))).toEqual(readFileSync(folder.file("first")));
    const { stdout } = await sites("list");
    expect(stdout.toString().split("\n")[1]).toMatch(
      /^plant {2}R2 {7}2 {9}R2 installed at 2025-06-16 15:07:40 UTC {2}/,
    );
    expect(JSON.parse((await sites("--json")).stdout.toString())).toMatchObject({
      sites: [{ site: "plant", installed: { name: "R2" }, fault: null }],
    });
  });

  test("never takes an older receipt instead of a newer one", async () => {
    await receipt("-o", "old");
    writeState(state);
    await receipt("-o", "new");
    expect((await sites("add", "new")).status).toBe(0);
    const { status, stdout } = await sites("add", "old", "--json");
    expect([status, JSON.parse(stdout.toString())]).toEqual([
      0,
      { added: [{ file: "old", site: "plant", taken: false, installed: null }] },
    ]);
    expect(readFileSync(folder.file("receipts/plant.receipt"))).toEqual(readFileSync(folder.file("new")));
    // Again the same.
    expect((await sites("add", "new")).stdout.toString()).toContain("nothing to do");
  });

  test("believes each site only what its own key signed", async () => {
    await receipt("-o", "signed");
    copyFileSync(keyFile("low-memory.pub"), folder.file("sites/plant.pub"));
    expect(errorOf(await sites("add", "signed", "--json")).code).toBe("signature-invalid");
    writeFileSync(
      folder.file("changed"),
      readFileSync(folder.file("signed"), "utf8").replace('"events":0', '"events":9'),
    );
    copyFileSync(PUBLIC, folder.file("sites/plant.pub"));
    expect(errorOf(await sites("add", "changed", "--json")).code).toBe("signature-invalid");
    expect(existsSync(folder.file("receipts/plant.receipt"))).toBe(false);
  });

  test.each<[string, () => void, keyof typeof EXIT_STATUS]>([
    [
      "of a site whose key is not known",
      () => configureSite(signing().replace("plant", "other")),
      "signature-missing",
    ],
    ["that is not signed", () => configureSite('[site]\nname = "plant"\n'), "signature-missing"],
    [
      "of another product",
      () =>
        writeFileSync(
          folder.file("build.toml"),
          readFileSync(folder.file("build.toml"), "utf8").replace("gentoo", "demo"),
        ),
      "product-mismatch",
    ],
  ])("refuses a receipt %s", async (_, change, code) => {
    change();
    await receipt("-o", "out");
    const result = await sites("add", "out", "--json");
    expect(errorOf(result).code).toBe(code);
    expect(existsSync(folder.file("receipts"))).toBe(false);
  });

  test("refuses what is no receipt", async () => {
    expect(errorOf(await sites("add", EXAMPLE, "--json")).code).toBe("statement-malformed");
    expect(errorOf(await sites("add", "none", "--json")).code).toBe("io-failed");
    expect(told(await sites("add")).status).toBe(2);
    expect(told(await sites("remove")).status).toBe(2);
    expect(told(await sites("list", "x")).status).toBe(2);
  });

  test("marks a site whose key was taken away", async () => {
    await receipt("-o", "out");
    await sites("add", "out");
    execFileSync("rm", [folder.file("sites/plant.pub")]);
    expect((await sites()).stdout.toString()).toContain("does not count: its key is not known any more");
  });

  // Of all sites none was shown then.
  test("shows a file of its folder that is no receipt, and all the others", async () => {
    await receipt("-o", "out");
    await sites("add", "out");
    writeFileSync(folder.file("receipts/mine.receipt"), "{");
    const { status, stdout } = await sites();
    const [, mine, plant] = stdout.toString().split("\n");
    expect([status, mine, plant]).toEqual([
      0,
      expect.stringMatching(/^mine .* does not count: .*receipts\/mine\.receipt/),
      expect.stringMatching(/^plant /),
    ]);
    expect(JSON.parse((await sites("--json")).stdout.toString())).toMatchObject({
      sites: [
        { site: "mine", fault: expect.any(String) as string },
        { site: "plant", fault: null },
      ],
    });
    writeFileSync(folder.file("receipts/plant.receipt"), "{");
    const refused = told(await sites("add", "out"));
    expect([refused.status, refused.hint]).toEqual([
      10,
      `if it cannot be mended, remove ${folder.file("receipts/plant.receipt")}`,
    ]);
  });

  // Those before the first that is refused were taken, and that one was not named.
  test("takes all receipts or none, and names each that is refused, with its site", async () => {
    await receipt("-o", "good");
    configureSite(signing().replace("plant", "other"));
    await receipt("-o", "bad");
    copyFileSync(keyFile("low-memory.pub"), folder.file("sites/other.pub"));
    const { status, stderr } = await sites("add", "good", "bad", EXAMPLE);
    expect([status, stderr]).toEqual([11, expect.stringMatching(/^bundle: receipt bad of site other: /)]);
    expect(stderr).toContain(EXAMPLE);
    expect(existsSync(folder.file("receipts"))).toBe(false);
  });
});

describe("bundle install DIR", () => {
  beforeEach(() => {
    mkdirSync(folder.file("stick"));
  });
  const install = (...args: string[]) => runHere("install", ...args, "--config", "site.toml");

  test.each([
    ["--allow-downgrade is for one bundle", ["stick", "--allow-downgrade", "2"]],
    ["--to and --full choose from a folder", [EXAMPLE, "--to", "R2"]],
    ["--to and --full choose from a folder", [EXAMPLE, "--full"]],
    ["without a file", ["--to", "R2"]],
  ])("%s", async (message, args) => {
    const { status, message: found } = told(await install(...args));
    expect([status, found]).toEqual([2, expect.stringContaining(message)]);
  });

  test("names what is left out, and why, before it fails", async () => {
    writeFileSync(folder.file("stick/torn.bundle"), readFileSync(EXAMPLE).subarray(0, 3_000));
    const { status, stderr } = await install("stick");
    expect(status).not.toBe(0);
    expect(stderr).toMatch(/^warning: stick\/torn\.bundle is left out: .*\nbundle: /);
  });

  test.each(["install", "plan"])("names the folder where nothing is in it: %s", async (verb) => {
    const fakes = { zpool: "echo ONLINE", zfs: "echo 'cannot open: dataset does not exist' >&2; exit 1" };
    mkdirSync(folder.file("bin"));
    for (const [name, text] of Object.entries(fakes))
      writeFileSync(folder.file(`bin/${name}`), `#!/bin/sh\n${text}\n`, { mode: 0o755 });
    vi.stubEnv("PATH", `${folder.file("bin")}:${process.env["PATH"] ?? ""}`);
    const { status, message } = told(await runHere(verb, "stick", "--config", "site.toml"));
    vi.unstubAllEnvs();
    expect([status, message]).toEqual([
      EXIT_STATUS["chain-missing"],
      "stick: no bundle is here that counts, and this site has no known release",
    ]);
  });

  test("that cannot be read is told", async () => {
    chmodSync(folder.file("stick"), 0o755);
    expect(errorOf(await install("nowhere", "--json")).code).toBe("io-failed");
  });
});
