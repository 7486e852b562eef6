import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { encodeMetadata, metadataSchema, parseMetadata, type RootMetadata } from "../../src/root/metadata.js";
import { canonicalJson } from "../../src/canonical-json.js";
import { jsonSchema } from "../formats/json-schema.js";
import { ACCOUNTS, BuildHost, file } from "./hosts.js";

const page = readFileSync("formats/root.md", "utf8");
/** The text of the n-th fenced block in a language. */
const block = (language: string, index = 0): string =>
  [...page.matchAll(new RegExp(`^\`\`\`${language}\n(.*?)^\`\`\`$`, "gms"))][index]?.[1] ?? "";

it("the page's example is what zferry makes", async () => {
  const host = new BuildHost();
  host.release("r1", { ...ACCOUNTS, "etc/motd": file("Hello.\n", 0o644) });
  host.release("r2", { "etc/motd": file("Hello again.\n", 0o640, 'chgrp 80 "$1"') });
  const { patch, objects, metadata } = await host.part("r1", "r2");
  expect(patch.toString("utf8")).toBe(block("diff"));
  expect(objects.toString("hex")).toBe(block("hex").replace(/\s/g, ""));
  expect(metadata.toString("utf8")).toBe(canonicalJson(JSON.parse(block("json"))));
  expect(encodeMetadata(parseMetadata(metadata))).toEqual(metadata);
});

it("the schema file is the one that metadata is read with", () => {
  expect(JSON.parse(readFileSync("formats/root-metadata.schema.json", "utf8"))).toEqual(
    jsonSchema(metadataSchema),
  );
});

const attributes = {
  owner: { name: "root", id: 0 },
  group: { name: null, id: 7 },
  permissions: "0644",
  xattrs: {},
};
const entry = { mode: "100644", blob: "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", ...attributes } as const;
const folder = { path: "etc", before: null, after: { ...attributes, permissions: "0755" } };
const valid = {
  format: 1,
  changes: [{ path: "etc/a", before: null, after: entry }],
  directories: [folder],
} satisfies RootMetadata;

const read = (value: unknown) => parseMetadata(Buffer.from(canonicalJson(value)));
const after = (changes: object) => ({
  ...valid,
  changes: [{ ...valid.changes[0], after: { ...entry, ...changes } }],
});

it("a valid one is read", () => expect(read(valid)).toEqual(valid));

it.each<[string, unknown]>([
  ["an unknown field", { ...valid, extra: 1 }],
  ["an unknown field of a file", after({ extra: 1 })],
  ["no change at a path", { ...valid, changes: [{ path: "etc/a", before: entry, after: entry }] }],
  ["neither before nor after", { ...valid, changes: [{ path: "etc/a", before: null, after: null }] }],
  ["a submodule", after({ mode: "160000" })],
  ["an old git mode", after({ mode: "100664" })],
  ["an id in capitals", after({ blob: entry.blob.toUpperCase() })],
  ["an executable without the bit", after({ mode: "100755" })],
  ["the bit without an executable", after({ permissions: "0755" })],
  ["permissions of five digits", after({ permissions: "00644" })],
  ["a link that is not 0777", after({ mode: "120000" })],
  ["a link with attributes", after({ mode: "120000", permissions: "0777", xattrs: { "user.a": "" } })],
  ["an attribute that is not carried", after({ xattrs: { "security.selinux": "" } })],
  ["a default ACL on a file", after({ xattrs: { "system.posix_acl_default": "" } })],
  ["base64 with loose bits", after({ xattrs: { "user.a": "YR==" } })],
  [
    "an attribute's value that is too long",
    after({ xattrs: { "user.a": Buffer.alloc(65_537).toString("base64") } }),
  ],
  ["a negative number", after({ owner: { name: null, id: -1 } })],
  ["the number that means none", after({ owner: { name: null, id: 2 ** 32 - 1 } })],
  ["a name with a colon", after({ owner: { name: "a:b", id: 1 } })],
  ["a folder that is not described", { ...valid, directories: [] }],
  ["a path twice", { ...valid, changes: [valid.changes[0], valid.changes[0]] }],
  ["paths not in order", { ...valid, changes: [{ ...valid.changes[0], path: "etc/b" }, valid.changes[0]] }],
  [
    "a file below a file",
    {
      ...valid,
      changes: [valid.changes[0], { ...valid.changes[0], path: "etc/a/b" }],
      directories: [folder, { ...folder, path: "etc/a" }],
    },
  ],
  [
    "base64 for a path that is text",
    {
      ...valid,
      changes: [{ ...valid.changes[0], path: { base64: Buffer.from("etc/a").toString("base64") } }],
    },
  ],
])("refuses %s", (_, value) => {
  expect(() => read(value)).toThrow(expect.objectContaining({ code: "metadata-malformed" }));
});

it("refuses other bytes for the same values", () => {
  const text = canonicalJson(valid);
  for (const bytes of [
    JSON.stringify(valid, null, 1),
    ` ${text}`,
    `${text}\n`,
    `\ufeff${text}`,
    text.replace('"format":1', '"format":1,"format":1'),
    text.slice(1),
    "",
  ]) {
    expect(() => parseMetadata(Buffer.from(bytes))).toThrow(
      expect.objectContaining({ code: "metadata-malformed" }),
    );
  }
  for (const path of ["etc/\xff", "etc/\\ud800"]) {
    expect(() => parseMetadata(Buffer.from(text.replace("etc/a", path), "latin1"))).toThrow(/malformed/);
  }
});

it("refuses another version, naming both", () => {
  expect(() => read({ format: 2 })).toThrow(
    expect.objectContaining({ code: "format-unsupported", details: { found: 2, supported: 1 } }),
  );
});
