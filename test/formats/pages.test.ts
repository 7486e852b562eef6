import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { Readable } from "node:stream";
import { extract } from "tar-stream";
import { describe, expect, test } from "vitest";
import * as v from "valibot";
import { POOL_FEATURES } from "../../src/bundle/streams.js";
import { parseHeader, LIMITS, SUMS_NAME } from "../../src/bundle/layout.js";
import { manifestSchema, parseManifest } from "../../src/bundle/manifest.js";
import { parseReceipt, receiptSchema } from "../../src/carry/receipt.js";
import { parseRequest, requestSchema } from "../../src/carry/request.js";
import { VOLUME_LIMITS } from "../../src/bundle/volumes.js";
import { canonicalJson } from "../../src/canonical-json.js";
import { seenSchema } from "../../src/carry/seen.js";
import { INDEX_LIMITS, indexSchema, verifyIndex } from "../../src/carry/index-format.js";
import { buildSchema, parseConfig, siteSchema } from "../../src/config.js";
import { EXIT_STATUS, ZferryError } from "../../src/errors.js";
import { hookFiles } from "../../src/install/boot-hooks.js";
import { bootUnit } from "../../src/install/boot-units.js";
import { stateSchema } from "../../src/install/state.js";
import { trialUnit } from "../../src/install/trial-units.js";
import { errorAsJson } from "../../src/report.js";
import { FEATURES } from "../../src/stream/records.js";
import { BY_NAME } from "../../src/root/secrets.js";
import { HTTP_LIMITS } from "../../src/system/http.js";
import { INIT_SYSTEMS } from "../../src/system/init-system.js";
import { PUBLIC_KEY } from "../bundle/support.js";
import { jsonSchema } from "./json-schema.js";
import { blocksOf, readPage, rowsOf } from "./page.js";

const example = readFileSync(new URL("../../fixtures/bundle/example.bundle", import.meta.url));

async function membersOf(archive: Buffer): Promise<Map<string, Buffer>> {
  const members = new Map<string, Buffer>();
  for await (const entry of Readable.from([archive]).pipe(extract())) {
    const pieces: Buffer[] = [];
    for await (const piece of entry) pieces.push(piece as Buffer);
    members.set(entry.header.name, Buffer.concat(pieces));
  }
  return members;
}

/** Bytes as `xxd` shows them: offset, hexadecimal digits, text. */
const hexOf = (block: string): { offset: number; bytes: string }[] =>
  block
    .trim()
    .split("\n")
    .map((line) => /^([0-9a-f]{8}): ([0-9a-f ]+?) {2}/.exec(line) as RegExpExecArray)
    .map(([, offset = "", bytes = ""]) => ({
      offset: parseInt(offset, 16),
      bytes: bytes.replaceAll(" ", ""),
    }));

describe("bundle.md", () => {
  const page = readPage("bundle.md");

  test("quotes the example's members, list of hashes and identity", async () => {
    const members = await membersOf(example);
    const [listing, , sums] = blocksOf(page, "");
    expect(
      listing
        ?.trim()
        .split("\n")
        .map((line) => line.split(/\s+/).filter((_, at) => at === 2 || at === 5)),
    ).toEqual([...members].map(([name, content]) => [String(content.length), name]));
    expect(sums).toBe(members.get(SUMS_NAME)?.toString());
    const identity = createHash("sha256")
      .update(members.get(SUMS_NAME) ?? "")
      .digest("hex");
    expect(page).toContain(`\`${identity}\``);
  });

  test("quotes the example's first header and a frame, byte for byte", async () => {
    const [, header = "", , frame = ""] = blocksOf(page, "");
    for (const { offset, bytes } of hexOf(header)) {
      expect(example.toString("hex", offset, offset + 16)).toBe(bytes);
    }
    expect(parseHeader(example.subarray(0, 512), 0).name).toBe(SUMS_NAME);
    const objects = (await membersOf(example)).get("root/objects.pack.zst");
    expect(
      hexOf(frame)
        .map(({ bytes }) => bytes)
        .join(""),
    ).toBe(objects?.toString("hex"));
  });

  test("has the limits of the code", () => {
    const rows = rowsOf(page).filter(([name = ""]) => name in LIMITS);
    expect(
      Object.fromEntries(rows.map(([name, value = ""]) => [name, Number(value.replaceAll(",", ""))])),
    ).toEqual(LIMITS);
  });
});

describe("volumes.md", () => {
  test("has the limits of the code", () => {
    const rows = rowsOf(readPage("volumes.md")).filter(([name = ""]) => name in VOLUME_LIMITS);
    expect(
      Object.fromEntries(rows.map(([name, value = ""]) => [name, Number(value.replaceAll(",", ""))])),
    ).toEqual(VOLUME_LIMITS);
  });
});

describe("manifest.md", () => {
  test("has the manifest of the example", async () => {
    const [block = ""] = blocksOf(readPage("manifest.md"), "json example");
    const stored = (await membersOf(example)).get("manifest.json");
    expect(canonicalJson(JSON.parse(block))).toBe(stored?.toString());
    expect(() => parseManifest(stored as Buffer)).not.toThrow();
  });

  test("has the pool feature of each feature flag", () => {
    const rows = rowsOf(readPage("manifest.md")).filter(([flag = ""]) => flag in FEATURES);
    expect(Object.fromEntries(rows)).toEqual(POOL_FEATURES);
  });
});

describe("JSON schemas", () => {
  test.each([
    ["manifest.schema.json", manifestSchema],
    ["site.schema.json", siteSchema],
    ["build.schema.json", buildSchema],
    ["request.schema.json", requestSchema],
    ["receipt.schema.json", receiptSchema],
    ["mirror.schema.json", indexSchema],
    ["mirrors.schema.json", seenSchema],
  ])("%s is what the code checks", (name, schema) => {
    expect(JSON.parse(readPage(name))).toEqual(jsonSchema(schema));
  });
});

describe.each([
  ["request", parseRequest],
  ["receipt", parseReceipt],
] as const)("%s.md", (kind, parse) => {
  test("has an example that can be read", () => {
    const [block = ""] = blocksOf(readPage(`${kind}.md`), `json ${kind}`);
    const value: unknown = JSON.parse(block);
    const bytes = Buffer.from(`${canonicalJson(value)}\n`);
    expect(parse(bytes, "example")).toEqual({ value, message: bytes, signature: undefined });
  });
});

describe("configuration.md", () => {
  const page = readPage("configuration.md");

  test("has a site's configuration with every default", () => {
    const [block = ""] = blocksOf(page, "toml site");
    const parsed = parseConfig(siteSchema, block, "site.toml");
    const smallest = 'product = "gentoo"\n[streams]\nusr = "rpool/SYSTEM/USR/gentoo"\n[root]\n';
    expect(parsed).toEqual(parseConfig(siteSchema, smallest, "site.toml"));
  });

  test("has a build host's configuration with every key", () => {
    const [block = ""] = blocksOf(page, "toml build");
    const parsed = parseConfig(buildSchema, block, "build.toml");
    const keys = (["root", "send", "create", "secrets", "sites"] as const).flatMap((part) =>
      Object.keys(parsed[part]).map((key) => `${part}.${key}`),
    );
    const listed = rowsOf(page).map(([key]) => key);
    expect(listed).toEqual(expect.arrayContaining(keys));
    // Every key that the code knows has its place in the example.
    const { properties } = JSON.parse(readPage("build.schema.json")) as {
      properties: Record<"root" | "send" | "create" | "secrets" | "sites", { properties: object }>;
    };
    const known = (["root", "send", "create", "secrets", "sites"] as const).flatMap((part) =>
      Object.keys(properties[part].properties).map((key) => `${part}.${key}`),
    );
    expect(keys.sort()).toEqual(known.sort());
  });
});

describe("mirror.md", () => {
  const page = readPage("mirror.md");

  test("has an index that is one, signed by the key of the tests", async () => {
    const [block = ""] = blocksOf(page, "json example");
    const [lines = ""] = blocksOf(page, "signature");
    const bytes = Buffer.from(lines + canonicalJson(JSON.parse(block)));
    const { index } = await verifyIndex(bytes, [PUBLIC_KEY], "index.signed");
    expect(index.bundles.map(({ release }) => release.name)).toEqual(["R2"]);
  });

  test("has an example of what a client remembers", () => {
    const [block = ""] = blocksOf(page, "json mirrors");
    expect(v.parse(seenSchema, JSON.parse(block))).toEqual(JSON.parse(block));
  });

  test("has the limits of the code", () => {
    const limits = { ...INDEX_LIMITS, ...HTTP_LIMITS };
    const rows = rowsOf(page).filter(([name = ""]) => name in limits);
    expect(
      Object.fromEntries(rows.map(([name, value = ""]) => [name, Number(value.replaceAll(",", ""))])),
    ).toEqual(limits);
  });
});

describe("exit-status.md", () => {
  const page = readPage("exit-status.md");

  test("has every code with its status, and no other", () => {
    const rows = rowsOf(page).filter(
      ([code = "", status = ""]) => /^[a-z]/.test(code) && /^[0-9]+$/.test(status),
    );
    expect(Object.fromEntries(rows.map(([code, status]) => [code, Number(status)]))).toEqual(EXIT_STATUS);
  });

  test("shows an error as --json prints it", () => {
    const [block = ""] = blocksOf(page, "json error");
    const error = new ZferryError("output-exists", "R2.bundle: there is such a file already", {
      details: { file: "R2.bundle" },
      hint: "remove it, or write to another name with -o",
    });
    expect(JSON.parse(block)).toEqual(errorAsJson(error));
  });
});

describe("root.md", () => {
  test("lists the paths that never travel, and no other", () => {
    const [, section = ""] = /\n## What never travels\n(.*?)\nBy content/s.exec(readPage("root.md")) ?? [];
    const rows = section.split("\n").filter((line) => line.startsWith("|"));
    const listed = [...rows.join("").matchAll(/`([^`]+)`/g)].map(([, path]) => path);
    expect(listed.sort()).toEqual(BY_NAME.map(({ text }) => text).sort());
  });
});

test("build-host.gitignore has what root.md names, and no other", () => {
  const [, section = ""] = /\n## What never travels\n(.*?)\n## patch/s.exec(readPage("root.md")) ?? [];
  const [, paths = "", more = ""] = /^(.*?)### What belongs into(.*)$/s.exec(section) ?? [];
  const [, also = ""] = /And with each: (.*?)Tracked stay/s.exec(more) ?? [];
  const quoted = (text: string): string[] => [...text.matchAll(/`([^`]+)`/g)].map(([, path = ""]) => path);
  const column = (text: string, number: number): string[] =>
    text.split("\n").flatMap((line) => quoted(line.startsWith("|") ? (line.split("|")[number] ?? "") : ""));
  const file = readFileSync(new URL("../../formats/build-host.gitignore", import.meta.url), "utf8");
  const lines = file.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  expect(new Set(lines)).toEqual(new Set([...column(paths, 2), ...column(more, 3), ...quoted(also)]));
  expect(lines.length).toBeGreaterThan(80);
});

describe("boot.md", () => {
  const page = readPage("boot.md");
  const command = {
    program: ["/opt/zferry/bin/node", "/opt/zferry/lib/cli.js"],
    leadsTo: ["/opt/zferry-1.0.0-linux-x64/bin/node", "/opt/zferry-1.0.0-linux-x64/lib/cli.js"],
    config: undefined,
    state: "/var/lib/zferry",
    root: "/",
  };
  const kinds = { systemd: "ini systemd", openrc: "sh openrc" };

  test.each(INIT_SYSTEMS)("has the texts and the places for %s", (init) => {
    const [resume, trial] = [bootUnit(init, command), trialUnit(init, command)];
    expect(blocksOf(page, kinds[init])).toEqual([resume.text]);
    expect(blocksOf(page, `${kinds[init]}-trial`)).toEqual([trial.text]);
    const listed = rowsOf(page).filter(([name]) => name?.toLowerCase() === init);
    expect(listed.map((row) => row.slice(1))).toEqual(
      [resume, trial].map(({ path, mode, links }) => [
        path,
        mode.toString(8),
        links.map((link) => link.path).join(", "),
      ]),
    );
  });

  test("has the hooks for an initramfs, and their places", () => {
    const options = { container: "rpool/ROOT", loader: "bootfs" } as const;
    const [hook] = hookFiles("initramfs-tools", options);
    const [script, configuration] = hookFiles("dracut", options);
    expect(blocksOf(page, "sh hook")).toEqual([hook?.text]);
    expect(blocksOf(page, "sh dracut")).toEqual([configuration?.text]);
    const lines = (hook?.text ?? "").replace("reboots=\n", "reboots=yes\n").split("\n");
    expect(script?.text).toBe(lines.toSpliced(2, 1).join("\n"));
    for (const file of [hook, script]) expect(page).toContain(`\`${file?.path}\``);
  });
});

describe("state.md", () => {
  test("has a state that is one", () => {
    const [block = ""] = blocksOf(readPage("state.md"), "json state");
    expect(v.safeParse(stateSchema, JSON.parse(block)).issues).toBeUndefined();
  });
});

describe("README.md of formats", () => {
  test("lists every file", () => {
    const listed = readPage("README.md");
    const files = readdirSync(new URL("../../formats/", import.meta.url)).filter(
      (name) => name !== "README.md",
    );
    for (const file of files) expect(listed).toContain(file);
  });
});
