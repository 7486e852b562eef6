import { describe, expect, test } from "vitest";
import { readIndex } from "../../fixtures/streams/recorded.js";
import { parseResumeToken } from "../../src/stream/resume-token.js";
import { refusal } from "../bundle/support.js";
import { listOf, number, pair, tokenOf } from "./token.js";

const recorded = readIndex().filter(({ rest }) => rest !== undefined);
const TOKEN = recorded.find(({ name }) => name === "2.3-files-incr-resuming")?.rest?.token ?? "";

const PAIRS = [
  number("toguid", 2n),
  number("object", 3n),
  number("offset", 4n),
  number("bytes", 5n),
  pair("toname", 9, Buffer.from("tank/usr@R2\0")),
];

describe("a token", () => {
  test.each(recorded)("of ZFS: $name", ({ rest, toguid, fromguid, toname }) => {
    const token = parseResumeToken(rest?.token ?? "");
    expect([token.toguid, token.fromguid, token.toname]).toEqual([BigInt(toguid), BigInt(fromguid), toname]);
  });

  test("has the point from which on the stream is missing", () => {
    expect(parseResumeToken(TOKEN)).toEqual({
      object: 129n,
      offset: 65_536n,
      bytes: 92_544n,
      toguid: 4515305451092137110n,
      fromguid: 11020132649624477341n,
      toname: "tank/files@r2",
    });
  });

  test("of a full stream has no fromguid, and may have flags", () => {
    const token = parseResumeToken(tokenOf(listOf(...PAIRS, pair("largeblockok", 1, Buffer.of()))));
    expect(token).toMatchObject({ fromguid: 0n, toguid: 2n, object: 3n, offset: 4n, bytes: 5n });
  });

  const oversized = Buffer.alloc(70_000);
  test.each<[string, string]>([
    ["nothing", ""],
    ["a dash, as zfs prints for none", "-"],
    ["another version", TOKEN.replace(/^1-/, "2-")],
    ["upper case", TOKEN.toUpperCase()],
    ["a newline after it", `${TOKEN}\n`],
    ["half a byte less", TOKEN.slice(0, -1)],
    ["a byte less", TOKEN.slice(0, -2)],
    ["another checksum", TOKEN.replace(/^1-./, "1-0")],
    ["another length", TOKEN.replace(/^(1-[^-]*-)[^-]*/, "$1e1")],
    ["a length over the limit", tokenOf(oversized)],
    ["more than its length", tokenOf(listOf(...PAIRS), 12)],
    ["less than its length", tokenOf(listOf(...PAIRS), 400)],
    ["a byte after the data", `${tokenOf(listOf(...PAIRS))}00`],
    ["bytes after the list", tokenOf(Buffer.concat([listOf(...PAIRS), Buffer.alloc(8)]))],
    ["no list", tokenOf(Buffer.from("no list at all"))],
    ["a list without an end", tokenOf(listOf(...PAIRS).subarray(0, -4))],
    ["a list in XDR", tokenOf(Buffer.concat([Buffer.from([1]), listOf(...PAIRS).subarray(1)]))],
    ["a name twice", tokenOf(listOf(...PAIRS, number("object", 9n)))],
    ["a pair that is longer than the list", tokenOf(listOf(number("object", 1n).fill(0x7f, 0, 3)))],
    ["a pair shorter than its head", tokenOf(listOf(Buffer.from([8, 0, 0, 0, 0, 0, 0, 0])))],
    [
      "a string without an end",
      tokenOf(listOf(...PAIRS.slice(0, 4), pair("toname", 9, Buffer.alloc(8, "x")))),
    ],
    ...["toguid", "object", "offset", "bytes", "toname"].map((_, index): [string, string] => [
      `without pair ${index}`,
      tokenOf(listOf(...PAIRS.filter((_pair, at) => at !== index))),
    ]),
    [
      "an object that is a string",
      tokenOf(listOf(...PAIRS.filter((_, at) => at !== 1), pair("object", 9, Buffer.from("3\0")))),
    ],
  ])("with %s is refused", async (_what, text) => {
    const { code, hint } = await refusal(() => parseResumeToken(text));
    expect([code, hint]).toEqual(["token-malformed", expect.stringContaining("receive_resume_token")]);
  });

  test("with any digit changed is refused, or says the same", () => {
    for (let at = 2; at < TOKEN.length; at += 1) {
      if (TOKEN[at] === "-") continue;
      const changed = `${TOKEN.slice(0, at)}${TOKEN[at] === "5" ? "6" : "5"}${TOKEN.slice(at + 1)}`;
      try {
        expect(parseResumeToken(changed)).toEqual(parseResumeToken(TOKEN));
      } catch (error) {
        expect(error).toMatchObject({ code: "token-malformed" });
      }
    }
  });
});
