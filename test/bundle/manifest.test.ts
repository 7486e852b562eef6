import { describe, expect, test } from "vitest";
import { canonicalJson } from "../../src/canonical-json.js";
import { LIMITS } from "../../src/bundle/layout.js";
import { encodeManifest, parseManifest, type Manifest } from "../../src/bundle/manifest.js";
import { refusal } from "./support.js";

const manifest: Manifest = {
  format: 1,
  product: "demo",
  release: { name: "R2", sequence: 2 },
  created: 1_750_000_000,
  expires: 1_757_776_000,
  notes: "two\nlines",
  streams: [
    {
      role: "data",
      dataset: "tank/data",
      target: { snapshot: "R2", guid: "18446744073709551615" },
      features: [],
      rawBytes: 10,
      chunks: [{ rawBytes: 10, storedBytes: 19, largestObject: "0" }],
    },
    {
      role: "usr",
      dataset: "tank/BUILD/gentoo/usr",
      base: { snapshot: "R1", guid: "98" },
      target: { snapshot: "R2", guid: "99" },
      features: ["embed_data", "lz4"],
      rawBytes: 300,
      chunks: [
        { rawBytes: 100, storedBytes: 50, largestObject: "7" },
        { rawBytes: 200, storedBytes: 60, largestObject: "18446744073709551615" },
      ],
    },
  ],
  root: {
    base: { commit: "1".repeat(40), tree: "2".repeat(40) },
    target: { commit: "3".repeat(40), tree: "4".repeat(40) },
    counts: { added: 1, modified: 2, deleted: 3 },
    patch: { rawBytes: 0, storedBytes: 9 },
    objects: { rawBytes: 32, storedBytes: 41 },
    metadata: { rawBytes: 50, storedBytes: 40 },
  },
  requires: { poolFeatures: ["embedded_data", "lz4_compress"], freeBytes: 310 },
};

const remove = Symbol("remove");

/** The manifest's bytes with one field changed; the path is as in `streams.0.role`. */
function changed(path: string, value: unknown): Buffer {
  const copy = structuredClone(manifest);
  const keys = path.split(".");
  const last = keys.pop() as string;
  const holder = keys.reduce<unknown>((at, key) => (at as Record<string, unknown>)[key], copy) as Record<
    string,
    unknown
  >;
  if (value === remove) delete holder[last];
  else holder[last] = value;
  return Buffer.from(canonicalJson(copy));
}

describe("a manifest", () => {
  test("is read as it was written", () => {
    expect(parseManifest(encodeManifest(manifest))).toEqual(manifest);
  });

  test.each(["root", "notes", "expires", "streams.1.base", "streams.1.base.snapshot", "root.base"])(
    "may lack %s",
    (path) => {
      parseManifest(changed(path, remove));
    },
  );

  test.each<[string, unknown]>([
    ["release.name", "2026.10-rc1_b"],
    ["release.name", "r".repeat(64)],
    ["release.sequence", Number.MAX_SAFE_INTEGER],
    ["created", LIMITS.time],
    ["streams.1.dataset", "tank/a b/c.d:e_f-g/..."],
    ["streams.1.target.snapshot", "2026.10:a b"],
  ])("may have %s %s", (path, value) => {
    parseManifest(changed(path, value));
  });

  test.each<[string, unknown]>([
    ["extra", 1],
    ["release.extra", 1],
    ["streams.1.extra", 1],
    ["streams.1.chunks.0.sha256", "0".repeat(64)],
    ["root.extra", 1],
    ["requires.extra", 1],
    ["product", remove],
    ["release", remove],
    ["created", remove],
    ["streams", remove],
    ["requires", remove],
    ["root.objects", remove],
    ["product", ""],
    ["product", "Demo"],
    ["product", "1demo"],
    ["product", "p".repeat(33)],
    ["product", "demo\n"],
    ["release.name", ""],
    ["release.name", ".R2"],
    ["release.name", "-R2"],
    ["release.name", "a..b"],
    ["release.name", "a/b"],
    ["release.name", "R2.lock"],
    ["release.name", "R 2"],
    ["release.name", "R2\n"],
    ["release.name", "r".repeat(65)],
    ["release.sequence", 0],
    ["release.sequence", -1],
    ["release.sequence", 1.5],
    ["release.sequence", "2"],
    ["release.sequence", 2 ** 53],
    ["created", -1],
    ["created", LIMITS.time + 1],
    ["expires", LIMITS.time + 1],
    ["expires", null],
    ["notes", ""],
    ["notes", "n".repeat(65_537)],
    ["streams", []],
    ["streams.0.role", "Data"],
    ["streams.0.role", "../data"],
    ["streams.0.role", "usr"],
    ["streams.0.role", "zzz"],
    ["streams.0.dataset", "tank/../data"],
    ["streams.0.dataset", "tank/."],
    ["streams.0.dataset", "tank//data"],
    ["streams.0.dataset", "/tank"],
    ["streams.0.dataset", "tank/"],
    ["streams.0.dataset", "-tank"],
    ["streams.0.dataset", "tank@x"],
    ["streams.0.dataset", `t${"a".repeat(255)}`],
    ["streams.0.target.snapshot", ""],
    ["streams.0.target.snapshot", "a/b"],
    ["streams.0.target.snapshot", "a@b"],
    ["streams.0.target.snapshot", remove],
    ["streams.0.target.guid", "0"],
    ["streams.0.target.guid", ""],
    ["streams.0.target.guid", "x"],
    ["streams.0.target.guid", "-1"],
    ["streams.0.target.guid", "1.0"],
    ["streams.0.target.guid", "01"],
    ["streams.0.target.guid", "0x1"],
    ["streams.0.target.guid", "18446744073709551616"],
    ["streams.0.target.guid", "99999999999999999999"],
    ["streams.0.target.guid", "184467440737095516150"],
    ["streams.0.target.guid", 99],
    ["streams.1.base.guid", "0"],
    ["streams.1.base.guid", "99"],
    ["streams.1.base.guid", remove],
    ["streams.1.base", null],
    ["streams.1.features", ["lz4", "embed_data"]],
    ["streams.1.features", ["lz4", "lz4"]],
    ["streams.1.features", ["LZ4"]],
    ["streams.1.rawBytes", 301],
    ["streams.1.rawBytes", 299],
    ["streams.1.chunks", []],
    ["streams.1.chunks.0.rawBytes", 0],
    ["streams.1.chunks.0.rawBytes", LIMITS.chunkRawBytes + 1],
    ["streams.1.chunks.0.storedBytes", 0],
    ["streams.1.chunks.0.storedBytes", LIMITS.chunkStoredBytes + 1],
    ["streams.1.chunks.0.largestObject", "18446744073709551616"],
    ["streams.1.chunks.0.largestObject", 7],
    ["root", null],
    ["root.target.commit", "3".repeat(39)],
    ["root.target.commit", "G".repeat(40)],
    ["root.target.tree", remove],
    ["root.counts.added", -1],
    ["root.patch.rawBytes", LIMITS.rootMemberRawBytes + 1],
    ["root.patch.storedBytes", LIMITS.rootMemberStoredBytes + 1],
    ["requires.poolFeatures", ["lz4_compress", "embedded_data"]],
    ["requires.poolFeatures", ["feature@lz4_compress"]],
    ["requires.freeBytes", -1],
    ["format", "1"],
    ["format", remove],
  ])("with %s %s is refused", async (path, value) => {
    const { code, details } = await refusal(() => parseManifest(changed(path, value)));
    expect([code, details]).toEqual(["manifest-malformed", { member: "manifest.json" }]);
  });

  test("with too many streams is refused", async () => {
    const [stream] = manifest.streams;
    const streams = Array.from({ length: LIMITS.streams + 1 }, (_, i) => ({
      ...stream,
      role: `r${String(i).padStart(3, "0")}`,
    }));
    parseManifest(changed("streams", streams.slice(1)));
    expect((await refusal(() => parseManifest(changed("streams", streams)))).code).toBe("manifest-malformed");
  });

  test("with a field that JavaScript has in every object is refused", async () => {
    const text = Buffer.from(encodeManifest(manifest)).toString().replace("{", '{"__proto__":1,');
    const { message } = await refusal(() => parseManifest(Buffer.from(text)));
    expect(message).toBe('manifest.json: has the unknown field "__proto__"');
  });

  test("names the field that is wrong", async () => {
    const { message } = await refusal(() => parseManifest(changed("streams.0.target.guid", "x")));
    expect(message).toBe("manifest.json: streams.0.target.guid: is not a decimal number");
  });

  test.each(["[]", "null", "1", '"x"', "{}", "", '{"format":1}', "{"])(
    "that is %s is refused",
    async (text) => {
      expect((await refusal(() => parseManifest(Buffer.from(text)))).code).toBe("manifest-malformed");
    },
  );

  test("that is not canonical is refused", async () => {
    const text = Buffer.from(encodeManifest(manifest)).toString();
    for (const other of [
      ` ${text}`,
      text.replace('"sequence":2', '"sequence":2.0'),
      JSON.stringify(manifest),
    ]) {
      expect((await refusal(() => parseManifest(Buffer.from(other)))).message).toMatch(/canonical form/);
    }
  });

  test("of another format is refused with both numbers, whatever else it says", async () => {
    for (const other of [changed("format", 2), Buffer.from('{"format":2,"what":"ever"}')]) {
      const { code, message, details } = await refusal(() => parseManifest(other));
      expect([code, message, details]).toEqual([
        "format-unsupported",
        "the bundle has format 2, this zferry reads format 1",
        { found: 2 },
      ]);
    }
  });
});
