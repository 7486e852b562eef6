import { spawnSync } from "node:child_process";
import {
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { describe, expect, test } from "vitest";
import { SITE_CONFIG_PATH } from "../../src/config.js";
import { readPage, blocksOf } from "../formats/page.js";
import { CLI, errorOf, EXAMPLE, inFolder, PUBLIC, run, told } from "./support.js";

const folder = inFolder();
const runHere = (...args: string[]) => run(args, { cwd: folder.path });
const VERBS = [
  ...["keygen", "snapshot", "create", "sign", "sums", "verify", "inspect", "copy"],
  ...["plan", "install", "resolve", "rollback", "confirm", "history", "trust", "setup", "status", "send"],
  ...["environments", "activate", "request", "receipt", "sites", "mirror", "fetch"],
];

describe("help", () => {
  test("names every command", async () => {
    const { status, stdout } = await runHere("--help");
    expect(status).toBe(0);
    for (const verb of VERBS) expect(stdout.toString()).toMatch(new RegExp(`^  ${verb} `, "m"));
  });

  test.each(VERBS)("of %s has an example, also as bundle help VERB", async (verb) => {
    const { status, stdout, stderr } = await runHere(verb, "--help");
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout.toString()).toMatch(new RegExp(`^Examples?:\\n.*bundle ${verb}\\b`, "ms"));
    expect((await runHere("help", verb)).stdout.equals(stdout)).toBe(true);
  });

  test.each([["--help"], ["--version"], ["verify", "--help"]])(
    "%s fails where it cannot be written",
    (...args) => {
      const full = openSync("/dev/full", "w");
      const { status, stderr } = spawnSync(process.execPath, [CLI, ...args], {
        stdio: ["ignore", full, "pipe"],
        encoding: "utf8",
      });
      closeSync(full);
      expect([status, stderr]).toEqual([16, "bundle: cannot write to standard output: ENOSPC\n"]);
    },
  );

  test("tells the version", async () => {
    const { version } = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")) as {
      version: string;
    };
    expect((await runHere("--version")).stdout.toString()).toBe(`${version}\n`);
  });
});

describe("started as zferry", () => {
  const asZferry = (...args: string[]) => {
    symlinkSync(CLI, folder.file("zferry"));
    const { stdout, stderr } = spawnSync(process.execPath, [folder.file("zferry"), ...args], {
      cwd: folder.path,
      encoding: "utf8",
    });
    return { stdout, stderr };
  };

  test("names itself so in help and examples", () => {
    const { stdout } = asZferry("install", "--help");
    expect(stdout).toContain("Usage: zferry install [options] [file]\n");
    expect(stdout).toContain("\n  zferry install /media/stick/R2.bundle\n");
    expect(stdout).toContain("\nzferry abort gives it up.");
    expect(stdout).toContain("the bundle; without it");
    expect(stdout).not.toMatch(/bundle (install|abort)/);
  });

  test.each([[], ["--json"]])("names itself so in messages and hints, %j", (...json) => {
    writeFileSync(
      folder.file("site.toml"),
      `product = "demo"\n[streams]\nusr = "p/usr"\n[trust]\nkeys = "${folder.file("keys")}"\n`,
    );
    const { stderr } = asZferry("verify", EXAMPLE, "--config", "site.toml", ...json);
    expect(stderr).toContain("zferry trust --add FILE puts the publisher's public key there");
    expect(stderr.startsWith("zferry: ")).toBe(json.length === 0);
  });
});

describe("wrong usage", () => {
  test("a name that is not UTF-8 is not taken for another", () => {
    const name = Buffer.concat([Buffer.from(folder.file("b")), Buffer.from([0xff])]);
    writeFileSync(name, "");
    const script = `exec "$1" "$2" verify "$(printf 'b\\377')"`;
    const args = ["-c", script, "sh", process.execPath, CLI];
    const { status, stderr } = spawnSync("sh", args, { cwd: folder.path, encoding: "utf8" });
    expect([status, stderr]).toEqual([2, "bundle: b\ufffd: is not UTF-8\n  give the file a name in UTF-8\n"]);
  });

  test("without a command shows the help", async () => {
    const { status, stdout, stderr } = await runHere();
    expect([status, stdout.length]).toEqual([2, 0]);
    expect(stderr).toMatch(
      /^Usage: bundle .*^bundle: a command is missing\n {2}bundle --help shows how\n$/ms,
    );
  });

  test.each<[string, string, string]>([
    ["nonsense", "unknown command 'nonsense'", "bundle --help shows how"],
    ["verfy", "unknown command 'verfy' (Did you mean verify?)", "bundle --help shows how"],
    ["--nonsense", "unknown option '--nonsense'", "bundle --help shows how"],
    ["verify", "missing required argument 'file'", "bundle verify --help shows how"],
    [
      "verify a b",
      "too many arguments for 'verify'. Expected 1 argument but got 2.",
      "bundle verify --help shows how",
    ],
    ["verify --nonsense a", "unknown option '--nonsense'", "bundle verify --help shows how"],
    ["verify a --key", "option '-k, --key <file>' argument missing", "bundle verify --help shows how"],
    ["keygen", "required option '-o, --output <name>' not specified", "bundle keygen --help shows how"],
    [
      "snapshot ../R2",
      '"../R2" is not a release name',
      "1 to 64 of A-Z a-z 0-9 . _ -, starting with a letter or digit, without .. and not ending in .lock",
    ],
    ["activate", "missing required argument 'name'", "bundle activate --help shows how"],
    ["create", "--target is missing", "bundle create --help shows how"],
  ])("%s", async (words, message, hint) => {
    expect(told(await runHere(...words.split(" ")))).toEqual({ status: 2, message, hint });
  });
});

describe("--json", () => {
  test.each([
    ["usage", ["verify", "--json"]],
    ["usage", ["--json", "nonsense"]],
    ["usage", ["create", "--nonsense", "--json"]],
    ["io-failed", ["--json", "verify", "none", "--key", PUBLIC]],
    ["not-configured", ["verify", EXAMPLE, "--config", "none", "--json"]],
    ["not-configured", ["status", "--config", "none", "--json"]],
    ["not-configured", ["install", EXAMPLE, "--config", "none", "--json"]],
  ])("prints nothing but the error %s: %j", async (code, args) => {
    const result = await runHere(...args);
    expect(result.stdout.length).toBe(0);
    expect(errorOf(result).code).toBe(code);
  });
});

describe("a site without configuration", () => {
  test.each([["status"], ["install", EXAMPLE], ["environments"], ["activate", "R2"]])(
    "%s says how to get one",
    async (...args) => {
      expect(told(await runHere(...args, "--config", "none.toml"))).toEqual({
        status: 17,
        message: "site configuration none.toml: there is no such file",
        hint: "write one (formats/configuration.md has an example), or name another with --config",
      });
    },
  );

  test.skipIf(existsSync(SITE_CONFIG_PATH))("looks for it in /etc", async () => {
    expect(told(await runHere("status")).message).toBe(
      "site configuration /etc/zferry/site.toml: there is no such file",
    );
  });

  test.each([
    ["product", 'product = "Demo"\n[streams]\nusr = "p/usr"\n'],
    ["trust.threshold", 'product = "demo"\n[streams]\nusr = "p/usr"\n[trust]\nthreshold = 0\n'],
    ["colour", 'product = "demo"\ncolour = 1\n[streams]\nusr = "p/usr"\n'],
  ])("names the field %s that is wrong", async (field, text) => {
    writeFileSync(folder.file("site.toml"), text);
    const { status, message } = told(await runHere("status", "--config", "site.toml"));
    expect([status, message]).toEqual([10, expect.stringContaining(field)]);
  });

  test("names what is wrong with one", async () => {
    writeFileSync(folder.file("site.toml"), 'product = "demo"\n[streams]\nusr = "p/usr"\nthreshold 2\n');
    const { status, message } = told(await runHere("status", "--config", "site.toml"));
    expect([status, message]).toEqual([
      10,
      expect.stringMatching(/^site\.toml: line 4, column [0-9]+: Invalid TOML/),
    ]);
  });
});

describe("bundle install", () => {
  test("tells its steps, but not with --quiet", async () => {
    mkdirSync(folder.file("keys"));
    copyFileSync(PUBLIC, folder.file("keys/release.pub"));
    writeFileSync(
      folder.file("site.toml"),
      `product = "demo"\n[streams]\nusr = "p/usr"\n[trust]\nkeys = "${folder.file("keys")}"\n`,
    );
    writeFileSync(folder.file("short.bundle"), readFileSync(EXAMPLE).subarray(0, 3_000));
    const install = ["install", "short.bundle", "--config", "site.toml"];
    const { status, stderr } = await runHere(...install);
    expect([status, stderr]).toEqual([12, expect.stringMatching(/^verifying short\.bundle\nbundle: /)]);
    expect(told(await runHere(...install, "--quiet")).status).toBe(12);
  });
});

describe("bundle status", () => {
  const configure = (): string => {
    const state = folder.file("state");
    writeFileSync(
      folder.file("site.toml"),
      `product = "gentoo"\nstate = "${state}"\n[streams]\nusr = "rpool/SYSTEM/USR/gentoo"\n`,
    );
    return state;
  };

  test("of a site that zferry installed nothing on", async () => {
    configure();
    const { status, stdout } = await runHere("status", "--config", "site.toml");
    expect([status, stdout.toString()]).toEqual([
      0,
      "product: gentoo\nmode: in-place, by default\ninstalled: no release by zferry yet\nunder way: nothing\n",
    ]);
  });

  test("of a site with a release", async () => {
    const state = configure();
    mkdirSync(state);
    const [example = ""] = blocksOf(readPage("state.md"), "json state");
    writeFileSync(`${state}/state.json`, example);
    const { stdout } = await runHere("status", "--config", "site.toml");
    expect(stdout.toString().split("\n").slice(0, 4)).toEqual([
      "product: gentoo",
      "mode: in-place, by default",
      "installed: release R2 (2) at 2025-06-16 15:07:40 UTC, signed by 0E07B77755AB6E15",
      "  usr: rpool/SYSTEM/USR/gentoo@R2 (guid 1234605616436508552), base R1 (guid 99)",
    ]);
    const json = await runHere("status", "--config", "site.toml", "--json");
    expect(JSON.parse(json.stdout.toString())).toMatchObject({
      product: "gentoo",
      mode: { name: "in-place", from: "default" },
      installed: { release: { name: "R2" } },
      highestSequence: 2,
      underWay: null,
    });
  });

  test.each([
    ["journal-malformed", "state.json", "{"],
    ["journal-malformed", "journal.json", '{"version":1}'],
    ["format-unsupported", "state.json", '{"version":99}'],
    ["format-unsupported", "journal.json", '{"version":99}'],
  ])("says %s of a damaged or newer %s", async (code, name, text) => {
    const state = configure();
    mkdirSync(state);
    writeFileSync(`${state}/${name}`, text);
    const result = await runHere("status", "--config", "site.toml", "--json");
    expect(errorOf(result).code).toBe(code);
  });
});
