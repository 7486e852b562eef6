import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { encodeIndex, entryOf, INDEX_LIMITS, verifyIndex } from "../../src/carry/index-format.js";
import { Bundle } from "../../src/bundle/reader.js";
import { encodeSignature, generateKeyPair, sign } from "../../src/trust/minisign.js";
import { flipped, KEY, pack, PUBLIC_KEY, refusal, rootInput, sourceOf } from "../bundle/support.js";
import { DAY, entry, index, NOW, signed, signedJson } from "./mirrors.js";

const verify = (bytes: Uint8Array, keys = [PUBLIC_KEY]) => verifyIndex(bytes, keys, "index.signed");
const good = index([entry(1), entry(2)]);
const stranger = generateKeyPair();

describe("an index", () => {
  test("is read as it was written", async () => {
    const { index: read, signer } = await verify(encodeIndex(good, KEY));
    expect(read).toEqual(good);
    expect(signer).toBe(PUBLIC_KEY);
  });

  test("says of a bundle what its manifest says", async () => {
    const bundle = await Bundle.readUnverified(
      sourceOf(await pack({ root: rootInput(), notes: `${"n".repeat(498)}\u{1f600}more`, expiresDays: 2 })),
    );
    const found = entryOf(bundle, "a.bundle");
    const { manifest } = bundle;
    expect(found).toMatchObject({
      identity: bundle.identity,
      size: bundle.size,
      expires: manifest.expires,
      root: { base: manifest.root?.base?.tree, target: manifest.root?.target.tree },
      signers: [KEY.keyId],
    });
    // Cut before a character, not within it.
    expect(found.notes).toBe(`${"n".repeat(498)}…`);
    await verify(encodeIndex(index([found]), KEY));
  });

  test("is verified by stock minisign, as the specification says", ({ skip }) => {
    if (spawnSync("minisign", ["-v"]).error && process.env["ZFERRY_REQUIRE_TOOLS"] !== "1")
      skip("no minisign");
    const folder = mkdtempSync(join(tmpdir(), "zferry-index-"));
    try {
      writeFileSync(join(folder, "index.signed"), encodeIndex(good, KEY));
      const key = fileURLToPath(new URL("../../fixtures/keys/plain.pub", import.meta.url));
      const script =
        "head -n 4 index.signed >index.json.minisig && tail -n +5 index.signed >index.json && " +
        `minisign -Vm index.json -x index.json.minisig -p ${key}`;
      const { status, stdout } = spawnSync("sh", ["-c", script], { cwd: folder, encoding: "utf8" });
      expect([status, stdout]).toEqual([0, expect.stringContaining("counter 1750100000")]);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  test("of more bundles than a reader takes is not written", async () => {
    const many = Array.from({ length: INDEX_LIMITS.indexBundles + 1 }, (_, at) => entry(at + 1));
    expect((await refusal(() => encodeIndex(index(many), KEY))).code).toBe("usage");
  });
});

describe("is refused:", () => {
  const [first, second] = [entry(1), entry(2)];
  const withFirst = (changed: object) => ({ ...good, bundles: [{ ...first, ...changed }, second] });
  const stream = first.streams[0] as (typeof first.streams)[0];
  test.each<[string, unknown, string]>([
    ["a path with ..", withFirst({ path: "../x.bundle" }), "bundles.0.path"],
    ["a path with .. inside", withFirst({ path: "a..b.bundle" }), "bundles.0.path"],
    ["an absolute path", withFirst({ path: "/etc/x.bundle" }), "bundles.0.path"],
    ["a path in a folder", withFirst({ path: "a/x.bundle" }), "bundles.0.path"],
    ["an address as a path", withFirst({ path: "http://evil.example/x.bundle" }), "bundles.0.path"],
    ["a path with a query", withFirst({ path: "x.bundle?a.bundle" }), "bundles.0.path"],
    ["a hidden path", withFirst({ path: ".x.bundle" }), "bundles.0.path"],
    ["another kind of file", withFirst({ path: "index.html" }), "bundles.0.path"],
    ["a path twice", withFirst({ path: second.path }), "bundles.1: has the path"],
    [
      "a bundle twice",
      withFirst({ identity: second.identity, release: second.release }),
      "bundles.1: is there twice",
    ],
    ["no order", { ...good, bundles: [second, first] }, "bundles.1: is not sorted"],
    ["a size of nothing", withFirst({ size: 0 }), "bundles.0.size"],
    ["a size that no number holds", withFirst({ size: 2 ** 60 }), "bundles.0.size: is over"],
    ["a counter that no number holds", { ...good, counter: 2 ** 60 }, "counter: is over"],
    ["a time after the year 2242", { ...good, created: 8_589_934_592 }, "created"],
    [
      "a guid over 64 bits",
      withFirst({ streams: [{ ...stream, target: { guid: "18446744073709551616", snapshot: "R1" } }] }),
      "bundles.0.streams.0.target.guid",
    ],
    ["roles out of order", withFirst({ streams: [stream, stream] }), "bundles.0: the roles"],
    ["a bundle that nobody signed", withFirst({ signers: [] }), "bundles.0.signers"],
    ["an unknown field", { ...good, url: "x" }, "unknown field"],
    ["an expiry before it was made", { ...good, expires: NOW }, "expires"],
    ["an expiry in two years", { ...good, expires: NOW + 367 * DAY }, "expires: is more than 366 days"],
    ["a list", [], "is no table"],
  ])("%s", async (_, value, where) => {
    const { code, message } = await refusal(() => verify(signedJson(value)));
    expect([code, message]).toEqual(["index-malformed", expect.stringContaining(where)]);
  });

  test.each<[string, Uint8Array, string]>([
    ["nothing", Buffer.alloc(0), "index-malformed"],
    ["three lines", Buffer.from("a\nb\nc\n"), "index-malformed"],
    ["four lines that are no signature", Buffer.from("a\nb\nc\nd\n{}"), "signature-malformed"],
    ["no JSON", signed("{"), "index-malformed"],
    ["JSON with white space", signed(JSON.stringify(good, null, 1)), "index-malformed"],
    [
      "a byte after the JSON",
      Buffer.concat([encodeIndex(good, KEY), Buffer.from("\n")]),
      "signature-invalid",
    ],
    ["more bytes than it may have", Buffer.alloc(INDEX_LIMITS.indexBytes + 1), "index-malformed"],
    [
      "more values than it may have",
      signed(`[${"[],".repeat(INDEX_LIMITS.indexMarks)}[]]`),
      "index-malformed",
    ],
    ["more bundles than it may have", signedJson(index(Array(10_001).fill(0) as never[])), "index-malformed"],
    ["another format", signedJson({ ...good, format: 2 }), "format-unsupported"],
    ["a foreign key", encodeIndex(good, stranger.secretKey), "signature-missing"],
    ["a flipped bit", flipped(encodeIndex(good, KEY), 400), "signature-invalid"],
  ])("%s", async (_, bytes, code) => {
    expect((await refusal(() => verify(bytes))).code).toBe(code);
  });

  test("a signature of a foreign key under a trusted id", async () => {
    const json = encodeIndex(good, KEY).subarray(
      encodeSignature(sign(KEY, Buffer.alloc(0), { trustedComment: `zferry mirror of demo, counter ${NOW}` }))
        .length,
    );
    const forged = sign({ ...stranger.secretKey, keyId: KEY.keyId }, json, { trustedComment: "x" });
    const bytes = Buffer.concat([encodeSignature(forged), json]);
    expect((await refusal(() => verify(bytes))).code).toBe("signature-invalid");
  });

  test("the list of hashes of a bundle, which the same key signed", async () => {
    const { sums } = await Bundle.readUnverified(sourceOf(await pack()));
    expect((await refusal(() => verify(signed(sums)))).code).toBe("index-malformed");
  });
});
