import { describe, expect, test } from "vitest";
import {
  baseFor,
  encodeRequest,
  parseRequest,
  requireReceivable,
  startOfRequest,
  type Candidate,
  type SiteRequest,
} from "../../src/carry/request.js";
import { encodeReceipt, isLater, makeReceipt, parseReceipt } from "../../src/carry/receipt.js";
import { MAX_STATEMENT_BYTES } from "../../src/carry/statement.js";
import { canonicalJson } from "../../src/canonical-json.js";
import type { ErrorCode } from "../../src/errors.js";
import { emptyState, type Installation, type SiteState } from "../../src/install/state.js";
import { parseSignature, verifySignature } from "../../src/trust/minisign.js";
import { KEY, PUBLIC_KEY, refusal } from "../bundle/support.js";

// formats/request.md, formats/receipt.md

const identity = (letter: string): string => letter.repeat(64);
const treeOf = (release: number): string => String(release).repeat(40);
const release = (number: number): { name: string; sequence: number; identity: string } => ({
  name: `R${number}`,
  sequence: number,
  identity: identity(String(number)),
});

const request = (changed: Partial<SiteRequest> = {}): SiteRequest => ({
  format: 1,
  kind: "request",
  site: "plant",
  made: 1_750_000_000,
  zferry: "0.1.0",
  product: "demo",
  installed: release(2),
  highestSequence: 2,
  streams: [
    { role: "opt", guids: ["202", "201"], poolFeatures: ["large_blocks"], freeBytes: 5 },
    { role: "usr", guids: ["102"], poolFeatures: ["embedded_data", "large_blocks"], freeBytes: 5 },
  ],
  root: { tree: treeOf(2) },
  keys: { threshold: 1, counter: 0, trusted: ["0E07B77755AB6E15"] },
  ...changed,
});

const [OPT, USR] = request().streams as [SiteRequest["streams"][number], SiteRequest["streams"][number]];

describe("a request", () => {
  test("is read as it was written, and the key's signature is of its first line", async () => {
    const bytes = encodeRequest(request(), KEY);
    const { value, message, signature } = parseRequest(bytes, "x");
    expect(value).toEqual(request());
    expect(Buffer.from(message).toString()).toBe(`${canonicalJson(request())}\n`);
    expect(signature).toBeDefined();
    const rest = bytes.subarray(message.length);
    const { trustedComment } = await verifySignature(PUBLIC_KEY, parseSignature(rest, "x"), message);
    expect(trustedComment).toBe("zferry request of site plant");
  });

  test("need not be signed", () => {
    const bytes = encodeRequest(request(), undefined);
    expect(parseRequest(bytes, "x")).toMatchObject({ value: request(), signature: undefined });
  });

  const text = canonicalJson(request());
  const line = (value: unknown): string => `${canonicalJson(value)}\n`;
  test.each<[string, ErrorCode, string | Uint8Array]>([
    ["is empty", "statement-malformed", ""],
    ["has a line without end", "statement-malformed", text],
    ["is not canonical", "statement-malformed", `${text.replace(",", ", ")}\n`],
    ["has a member twice", "statement-malformed", `${text.replace("{", '{"format":1,')}\n`],
    ["is no table", "statement-malformed", "[]\n"],
    ["has an unknown member", "statement-malformed", line({ ...request(), more: 1 })],
    ["has a member too few", "statement-malformed", line({ ...request(), made: undefined })],
    ["is of another format", "format-unsupported", line({ ...request(), format: 2 })],
    ["is a receipt", "statement-malformed", line({ ...request(), kind: "receipt" })],
    ["has a name that is a path", "statement-malformed", line(request({ site: "../plant" }))],
    [
      "has a guid over 64 bits",
      "statement-malformed",
      line(
        request({
          streams: [{ role: "usr", guids: ["18446744073709551616"], poolFeatures: [], freeBytes: 0 }],
        }),
      ),
    ],
    [
      "has roles that are not sorted",
      "statement-malformed",
      line(request({ streams: request().streams.toReversed() })),
    ],
    [
      "has features that are not sorted",
      "statement-malformed",
      line(request({ streams: [{ role: "usr", guids: [], poolFeatures: ["b", "a"], freeBytes: 0 }] })),
    ],
    ["has a role twice", "statement-malformed", line(request({ streams: [OPT, OPT] }))],
    ["is too long", "statement-malformed", new Uint8Array(MAX_STATEMENT_BYTES + 1).fill(0x20)],
    ["is not UTF-8", "statement-malformed", Buffer.from([0xff, 0x0a])],
    ["is followed by something else than a signature", "signature-malformed", `${text}\nmore\n`],
  ])("that %s is refused", async (_, code, content) => {
    const bytes = typeof content === "string" ? Buffer.from(content) : content;
    expect((await refusal(() => parseRequest(bytes, "x"))).code).toBe(code);
  });

  test("is where a chain starts", () => {
    expect(startOfRequest(request())).toEqual({
      product: "demo",
      installed: release(2),
      highestSequence: 2,
      accepted: new Set([identity("2")]),
      streams: new Map([
        ["opt", ["202", "201"]],
        ["usr", ["102"]],
      ]),
      tree: treeOf(2),
    });
    const empty = startOfRequest(request({ installed: null, highestSequence: 0, root: null }));
    expect(empty).toMatchObject({ installed: undefined, accepted: new Set(), tree: null });
  });
});

describe("the base of a bundle for a request", () => {
  const candidate = (number: number): Candidate => ({
    name: `R${number}`,
    sequence: number,
    guids: new Map([
      ["usr", String(100 + number)],
      ["opt", String(200 + number)],
    ]),
    tree: treeOf(number),
  });
  const releases = [1, 2, 3, 4].map(candidate);
  const newest = releases[3] as Candidate;
  const base = (of: SiteRequest, target = newest, roles = ["usr", "opt"]): string | undefined =>
    baseFor(of, "demo", roles, releases, target)?.name;

  test("is the newest release that the site has", () => {
    expect(base(request())).toBe("R2");
    const both = request({
      streams: [{ ...USR, guids: ["101", "102", "103"] }],
      root: { tree: null },
    });
    expect(base(both, newest, ["usr"])).toBe("R3");
  });

  test("is none for a site that has nothing: a full bundle", () => {
    const streams = request().streams.map((stream) => ({ ...stream, guids: [] }));
    expect(
      base(request({ streams, installed: null, highestSequence: 0, root: { tree: null } })),
    ).toBeUndefined();
  });

  test.each<[string, ErrorCode, () => unknown]>([
    ["another product", "product-mismatch", () => base(request({ product: "other" }))],
    [
      "a site without a dataset for a stream",
      "not-configured",
      () => base(request(), newest, ["usr", "data"]),
    ],
    ["a site without [root]", "not-configured", () => base(request({ root: null }))],
    ["a target that it has", "sequence-mismatch", () => base(request(), releases[1])],
    ["a target that it had a newer one of", "sequence-mismatch", () => base(request({ highestSequence: 4 }))],
    [
      "a site that another host made",
      "base-missing",
      () => base(request({ streams: request().streams.map((stream) => ({ ...stream, guids: ["7"] })) })),
    ],
    [
      "halves of two releases",
      "base-missing",
      () =>
        base(
          request({
            streams: [{ ...OPT, guids: ["201"] }, USR],
          }),
        ),
    ],
    ["a / of another release", "base-missing", () => base(request({ root: { tree: treeOf(9) } }))],
  ])("is refused for %s", async (_, code, work) => {
    expect((await refusal(work)).code).toBe(code);
  });

  test("is of no use for a pool without the features", async () => {
    expect(() => requireReceivable(request(), "usr", ["embedded_data"])).not.toThrow();
    const { code, details } = await refusal(() =>
      requireReceivable(request(), "opt", ["embedded_data", "large_blocks"]),
    );
    expect([code, details["missing"]]).toEqual(["dataset-unsuitable", ["embedded_data"]]);
  });
});

describe("a receipt", () => {
  const installation = (number: number, changed: Partial<Installation> = {}): Installation => ({
    release: release(number),
    created: number,
    startedAt: number * 10,
    finishedAt: number * 10 + 5,
    signers: [],
    streams: [],
    commit: null,
    ...changed,
  });
  const state = (...installations: Installation[]): SiteState => ({
    ...emptyState("demo"),
    highestSequence: installations.length,
    installations,
  });
  const who = { site: "plant", product: "demo", made: 1_000, zferry: "0.1.0" };

  test("says what became of each installation, newest first, and of what is under way", () => {
    const had = state(
      installation(1, { confirmedAt: 20 }),
      installation(2),
      installation(3, { rolledBack: { startedAt: 40, finishedAt: 41 } }),
    );
    const receipt = makeReceipt(had, undefined, who);
    expect(receipt).toMatchObject({ events: 5, highestSequence: 3, installed: release(2), underWay: null });
    expect(
      receipt.installations.map(({ release: { name }, result, resultAt }) => [name, result, resultAt]),
    ).toEqual([
      ["R3", "rolled-back", 41],
      ["R2", "installed", 25],
      ["R1", "confirmed", 20],
    ]);
    expect(parseReceipt(encodeReceipt(receipt, KEY), "x").value).toEqual(receipt);
  });

  test("of a site that installed nothing says so", () => {
    const receipt = makeReceipt(undefined, undefined, who);
    expect(receipt).toMatchObject({ events: 0, installed: null, installations: [] });
    expect(parseReceipt(encodeReceipt(receipt, undefined), "x").value).toEqual(receipt);
  });

  test("has the last 100 installations", () => {
    const many = Array.from({ length: 130 }, () => installation(1));
    const receipt = makeReceipt(state(...many), undefined, who);
    expect([receipt.events, receipt.installations.length]).toEqual([130, 100]);
  });

  test("is later by what happened, and only then by the clock", () => {
    const one = makeReceipt(state(installation(1)), undefined, who);
    const two = makeReceipt(state(installation(1), installation(2)), undefined, { ...who, made: 5 });
    expect([isLater(two, one), isLater(one, two), isLater(one, one)]).toEqual([true, false, false]);
    expect(isLater({ ...one, made: 1_001 }, one)).toBe(true);
  });
});
