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

/** Names of one file, all new. */
const linked = (...names: readonly (readonly [path: string, changes: object])[]) => ({
  ...valid,
  changes: names.map(([path, changes]) => ({ path, before: null, after: { ...entry, ...changes } })),
});
const [first, second] = [{ link: "etc/a" }, { link: "etc/c" }];
const symlink = { mode: "120000", permissions: "0777" };
const same = { before: { ...entry, ...first }, after: { ...entry, ...first } };

it("names of files are read", () => {
  const two = linked(["etc/a", first], ["etc/b", first], ["etc/c", second], ["etc/d", second]);
  expect(read(two)).toEqual(two);
  // The file is the same, and has one name more.
  const more = {
    ...valid,
    changes: [
      { path: "etc/a", ...same },
      { path: "etc/b", ...same },
      { path: "etc/c", before: null, after: same.after },
    ],
  };
  expect(read(more)).toEqual(more);
});

it("as many names as a file may have are read at once, and one more is refused", () => {
  const many = (count: number) =>
    linked(
      ...Array.from({ length: count }, (_, index): [string, object] => [
        `etc/${String(index).padStart(6, "0")}`,
        { link: "etc/000000" },
      ]),
    );
  expect(read(many(65_000)).changes).toHaveLength(65_000);
  expect(() => read(many(65_001))).toThrow(/has 65001 names in the target, the limit is 65000/);
});

it.each<[string, unknown]>([
  ["a linked file with one name", linked(["etc/a", first])],
  ["names with other contents", linked(["etc/a", first], ["etc/b", { ...first, blob: "1".repeat(40) }])],
  ["names with other attributes", linked(["etc/a", first], ["etc/b", { ...first, permissions: "0600" }])],
  [
    "names that are symbolic links",
    linked(["etc/a", { ...symlink, ...first }], ["etc/b", { ...symlink, ...first }]),
  ],
  ["a name of a symbolic link", linked(["etc/a", symlink], ["etc/b", first])],
  ["a name of a file that is not linked", linked(["etc/a", {}], ["etc/b", first])],
  ["a name of a folder", linked(["etc/b", { link: "etc" }], ["etc/c", { link: "etc" }])],
  ["a name of what the metadata does not have", linked(["etc/b", first], ["etc/c", first])],
  ["names by the last of them", linked(["etc/a", { link: "etc/b" }], ["etc/b", { link: "etc/b" }])],
  ["names of names", linked(["etc/a", first], ["etc/b", first], ["etc/c", { link: "etc/b" }])],
  [
    "a path as a name of two files",
    linked(["etc/a", first], ["etc/b", first], ["etc/c", { link: ["etc/a", "etc/b"] }]),
  ],
  [
    "base64 for a link that is text",
    linked(["etc/a", first], ["etc/b", { link: { base64: Buffer.from("etc/a").toString("base64") } }]),
  ],
  [
    "no change at names of one file",
    {
      ...valid,
      changes: [
        { path: "etc/a", ...same },
        { path: "etc/b", ...same },
      ],
    },
  ],
  [
    "a directory with a link",
    { ...valid, directories: [{ ...folder, after: { ...folder.after, link: "etc" } }] },
  ],
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
