import { describe, expect, test } from "vitest";
import { canonicalJson, parseCanonicalJson } from "../src/canonical-json.js";

const parse = (text: string | Uint8Array, maxMarks = 1000) => parseCanonicalJson(Buffer.from(text), maxMarks);

describe("canonical JSON", () => {
  // RFC 8785, 3.2.2 and 3.2.3
  test("is that of the RFC's examples", () => {
    expect(
      canonicalJson({
        numbers: [333333333.33333329, 1e30, 4.5, 2e-3, 0.000000000000000000000000001],
        string: '\u20ac$\u000f\nA\'B"\\\\"/',
        literals: [null, true, false],
      }),
    ).toBe(
      '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}',
    );
    expect(
      canonicalJson({
        "\u20ac": "Euro Sign",
        "\r": "Carriage Return",
        "\ufb33": "Hebrew Letter Dalet With Dagesh",
        "1": "One",
        "\u{1f600}": "Emoji: Grinning Face",
        "\u0080": "Control",
        "\u00f6": "Latin Small Letter O With Diaeresis",
      }),
    ).toBe(
      '{"\\r":"Carriage Return","1":"One","\u0080":"Control","ö":"Latin Small Letter O With Diaeresis",' +
        '"€":"Euro Sign","😀":"Emoji: Grinning Face","\ufb33":"Hebrew Letter Dalet With Dagesh"}',
    );
  });

  test("leaves undefined members out", () => {
    expect(canonicalJson({ a: undefined, b: 1 })).toBe('{"b":1}');
  });

  test.each(['{"a":1,"b":[true,null,"x",-1.5]}', '""', "[]", "{}", '{"__proto__":1}', '"\x7f"'])(
    "reads what is canonical: %s",
    (text) => {
      expect(canonicalJson(parse(text))).toBe(text);
    },
  );

  test.each<[string, string | Uint8Array]>([
    ["white space", '{"a": 1}'],
    ["a newline at the end", '{"a":1}\n'],
    ["a byte order mark", '\ufeff{"a":1}'],
    ["keys that are not sorted", '{"b":1,"a":2}'],
    ["a key twice", '{"a":1,"a":1}'],
    ["an exponent", '{"a":1e2}'],
    ["a fraction of zero", '{"a":1.0}'],
    ["a negative zero", '{"a":-0}'],
    ["a number beyond exactness", '{"a":9007199254740993}'],
    ["a number beyond all", '{"a":1e999}'],
    ["an escape that is not needed", '{"a":"\\u0041"}'],
    ["an escaped slash", '{"a":"\\/"}'],
    ["half a surrogate pair", '{"a":"\\ud800"}'],
    ["half a surrogate pair as a key", '{"\\ud800":1}'],
    ["what is not UTF-8", Buffer.from([0x22, 0xff, 0x22])],
    ["what is not JSON", "{a:1}"],
    ["nothing", ""],
    ["nesting without end", "[".repeat(100_000) + "]".repeat(100_000)],
    ["33 levels", "[".repeat(33) + "]".repeat(33)],
  ])("refuses %s", (_what, text) => {
    expect(() => parse(text)).toThrow(Error);
  });

  test("says where it is not canonical", () => {
    expect(() => parse('{"a":1,"b":1.0}')).toThrow("not in canonical form (RFC 8785) from character 12 on");
  });

  test("refuses more values than agreed before it parses them", () => {
    expect(parse('{"a":["[,",{}]}', 4)).toEqual({ a: ["[,", {}] });
    expect(() => parse('{"a":["[,",{}]}', 3)).toThrow("more than 3 values");
    // Not even JSON: this was found out first.
    expect(() => parse("[[[[!", 3)).toThrow("more than 3 values");
  });
});
