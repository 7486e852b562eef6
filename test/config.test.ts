import { describe, expect, test } from "vitest";
import { buildSchema, parseConfig, siteSchema } from "../src/config.js";
import { ZferryError } from "../src/errors.js";

const SITE = 'product = "gentoo"\n[streams]\nusr = "rpool/SYSTEM/USR/gentoo"\n';
const BUILD = `${SITE}[root]\ndataset = "tank/BUILD/gentoo"\n`;

function fault(schema: typeof siteSchema | typeof buildSchema, text: string): string {
  try {
    parseConfig(schema, text, "x.toml");
  } catch (error) {
    if (error instanceof ZferryError && error.code === "config-malformed") return error.message;
    throw error;
  }
  throw new Error("was not refused");
}

describe("a site's configuration", () => {
  test("needs a product and a stream only", () => {
    expect(parseConfig(siteSchema, SITE, "x")).toEqual({
      product: "gentoo",
      trust: { keys: "/etc/zferry/keys", threshold: 1 },
      streams: { usr: "rpool/SYSTEM/USR/gentoo" },
      install: { after: [] },
      "boot-environment": {
        loader: "bootfs",
        command: [],
        changes: "name",
        keep: 3,
        accept: [],
        keep_free: 0,
        shared: [],
        boots: 2,
        checks: [],
        deadline: 600,
      },
      state: "/var/lib/zferry",
    });
  });

  test.each<[string, string]>([
    ["x.toml: product: is missing", '[streams]\nusr = "p/usr"\n'],
    ["x.toml: product: is not a product name", SITE.replace("gentoo", "Gentoo")],
    ["x.toml: streams: is missing", 'product = "gentoo"\n'],
    ["x.toml: streams: names no dataset", 'product = "gentoo"\n[streams]\n'],
    ["x.toml: streams: names a dataset twice", `${SITE}opt = "rpool/SYSTEM/USR/gentoo"\n`],
    ["x.toml: product: is no string", SITE.replace('"gentoo"', "1")],
    ["x.toml: streams.usr: is not a dataset name", SITE.replace("rpool/", "rpool//")],
    ["x.toml: streams.usr: is not a dataset name", SITE.replace("SYSTEM", "..")],
    ["x.toml: streams.USR: is not a role", SITE.replace("usr =", "USR =")],
    ['x.toml: has the unknown field "nonsense"', `nonsense = 1\n${SITE}`],
    ['x.toml: trust: has the unknown field "treshold"', `${SITE}[trust]\ntreshold = 2\n`],
    ["x.toml: trust.threshold: is under 1", `${SITE}[trust]\nthreshold = 0\n`],
    ["x.toml: trust.keys: is not an absolute path", `${SITE}[trust]\nkeys = "keys"\n`],
    ["x.toml: root.merge.0.path: is empty", `${SITE}[[root.merge]]\npath = ""\npolicy = "ours"\n`],
    [
      "x.toml: install: has after, which only mode boot-environment runs",
      `${SITE}[install]\nmode = "in-place"\nafter = [["/bin/true"]]\n`,
    ],
    [
      "x.toml: install.after.0: is not an absolute path",
      `${SITE}[install]\nmode = "boot-environment"\nafter = [["true"]]\n`,
    ],
    [
      "x.toml: install.after.0: is under 1 entries",
      `${SITE}[install]\nmode = "boot-environment"\nafter = [[]]\n`,
    ],
    [
      'x.toml: boot-environment.loader: is not "bootfs" or "zectl" or "command"',
      `${SITE}[boot-environment]\nloader = "grub"\n`,
    ],
    [
      "x.toml: boot-environment: needs command with loader command, and with no other",
      `${SITE}[boot-environment]\nloader = "command"\n`,
    ],
    [
      "x.toml: boot-environment: needs command with loader command, and with no other",
      `${SITE}[boot-environment]\ncommand = ["/bin/true"]\n`,
    ],
    [
      "x.toml: boot-environment: has a command that is not an absolute path",
      `${SITE}[boot-environment]\nloader = "command"\ncommand = ["true"]\n`,
    ],
    [
      "x.toml: boot-environment.container: is not a dataset name",
      `${SITE}[boot-environment]\ncontainer = "rpool//ROOT"\n`,
    ],
    [
      'x.toml: root.merge.0.policy: is not "ours" or "theirs" or "union" or "command"',
      `${SITE}[[root.merge]]\npath = "x"\npolicy = "mine"\n`,
    ],
    [
      "x.toml: root.merge.0: needs command with policy command, and with no other",
      `${SITE}[[root.merge]]\npath = "x"\npolicy = "command"\n`,
    ],
    [
      "x.toml: root.merge.0: has a command that is not an absolute path",
      `${SITE}[[root.merge]]\npath = "x"\npolicy = "command"\ncommand = ["merge"]\n`,
    ],
    ...["boot/efi", "/", "/boot/", "/boot//efi", "/boot/../efi", "/."].map((path): [string, string] => [
      "x.toml: boot-environment.shared.0: is no absolute path of a mount point",
      `${SITE}[boot-environment]\nshared = ["${path}"]\n`,
    ]),
    ["x.toml: boot-environment.keep_free: is under 0", `${SITE}[boot-environment]\nkeep_free = -1\n`],
    ["x.toml: boot-environment.keep_free: is no number", `${SITE}[boot-environment]\nkeep_free = "20 GiB"\n`],
    ["x.toml: state: is not an absolute path", `state = "state"\n${SITE}`],
  ])("%s", (expected, text) => {
    expect(fault(siteSchema, text)).toBe(expected);
  });
});

describe("a build host's configuration", () => {
  test("needs the dataset of / as well", () => {
    expect(parseConfig(buildSchema, BUILD, "x")).toEqual({
      product: "gentoo",
      streams: { usr: "rpool/SYSTEM/USR/gentoo" },
      root: { path: "/", dataset: "tank/BUILD/gentoo" },
      send: { large_blocks: false, embedded: false, compressed: false, raw: false },
      create: { level: 9, chunk_mib: 8 },
      secrets: { deny: [], allow: [] },
      sites: { keys: "/etc/zferry/sites", receipts: "/var/lib/zferry/sites" },
    });
    expect(fault(buildSchema, SITE)).toBe("x.toml: root: is missing");
  });

  test.each<[string, string]>([
    ["x.toml: create.level: is over 22", "[create]\nlevel = 23\n"],
    ["x.toml: create.chunk_mib: is over 32", "[create]\nchunk_mib = 33\n"],
    ["x.toml: create.level: is no whole number", "[create]\nlevel = 1.5\n"],
    ["x.toml: send.raw: is no boolean", "[send]\nraw = 1\n"],
    ["x.toml: secrets.deny.1: has an empty component", '[secrets]\ndeny = ["/srv", "a//b"]\n'],
    ["x.toml: secrets.allow.0: is empty", '[secrets]\nallow = [""]\n'],
    ["x.toml: create.key: is not an absolute path", '[create]\nkey = "release.key"\n'],
  ])("%s", (expected, text) => {
    expect(fault(buildSchema, BUILD + text)).toBe(expected);
  });
});

test("what is no TOML is refused with its place, in one line", () => {
  expect(fault(siteSchema, 'product = "a"\nproduct = "b"\n')).toMatch(
    /^x\.toml: line 2, column [0-9]+: [^\n]+$/,
  );
  expect(fault(siteSchema, "sequence = 99999999999999999999\n")).toMatch(
    /^x\.toml: line 1, column [0-9]+: [^\n]+$/,
  );
});
