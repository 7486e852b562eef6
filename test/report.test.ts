import { describe, expect, test } from "vitest";
import { ZferryError } from "../src/errors.js";
import {
  asZferryError,
  errorAsJson,
  formatBytes,
  formatTable,
  formatTime,
  listFirst,
  printable,
  printableJson,
} from "../src/report.js";

test.each([
  ["plain text, ü, 日本, 😀", "plain text, ü, 日本, 😀"],
  ["\u001b[31m\u0007\r\n\t\0", "\\u{1b}[31m\\u{7}\\u{d}\\u{a}\\u{9}\\u{0}"],
  ["a\u202eb\u2066c\u200bd\ufeffe", "a\\u{202e}b\\u{2066}c\\u{200b}d\\u{feff}e"],
  ["a\u2028b\u2029c\u0085d\u009be", "a\\u{2028}b\\u{2029}c\\u{85}d\\u{9b}e"],
  ["\ud800", "\\u{d800}"],
  ["\u{e0041}", "\\u{e0041}"],
])("printable %j", (text, expected) => {
  expect(printable(text)).toBe(expected);
  const json = printableJson(JSON.stringify({ text }));
  expect(json).not.toMatch(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/u);
  expect(JSON.parse(json)).toEqual({ text });
});

test.each([
  [0, "0 B"],
  [1023, "1023 B"],
  [1024, "1.0 KiB"],
  [1536, "1.5 KiB"],
  [1_048_575, "1.0 MiB"],
  [8 << 20, "8.0 MiB"],
  [2 ** 50, "1024.0 TiB"],
])("formatBytes %i", (bytes, expected) => {
  expect(formatBytes(bytes)).toBe(expected);
});

test("listFirst tells how many it leaves out", () => {
  const items = Array.from({ length: 21 }, (_, index) => `${index}`);
  expect(listFirst(["a", "b"])).toBe("a, b");
  expect(listFirst(["a", "b", "c"], "; ", 2)).toBe("a; b and 1 more");
  expect(listFirst(items)).toBe(`${items.slice(0, 20).join(", ")} and 1 more`);
  expect(listFirst(items.slice(1))).not.toContain("more");
});

test.each([
  [0, "1970-01-01 00:00:00 UTC"],
  [1_795_389_513, "2026-11-22 23:18:33 UTC"],
  [0o77777777777, "2242-03-16 12:56:31 UTC"],
])("formatTime %i", (seconds, expected) => {
  expect(formatTime(seconds)).toBe(expected);
});

describe("asZferryError", () => {
  test("leaves zferry's own errors as they are", () => {
    const error = new ZferryError("usage", "wrong");
    expect(asZferryError(error)).toBe(error);
  });

  test.each([
    ["ENOSPC", "no-space"],
    ["EDQUOT", "no-space"],
    ["EACCES", "io-failed"],
    ["E2BIG", "io-failed"],
    ["ERR_INVALID_ARG_TYPE", "unexpected"],
    [undefined, "unexpected"],
  ])("makes of %s %s", (code, expected) => {
    const error = Object.assign(new Error("why"), code === undefined ? {} : { code });
    expect(asZferryError(error)).toMatchObject({ code: expected, message: "why", cause: error });
  });

  test("takes whatever is thrown", () => {
    expect(asZferryError("text")).toMatchObject({ code: "unexpected", message: "text" });
    expect(asZferryError(undefined)).toMatchObject({ code: "unexpected", message: "undefined" });
  });
});

test("errorAsJson leaves out a hint that is not there", () => {
  expect(errorAsJson(new ZferryError("interrupted", "interrupted"))).toEqual({
    error: { code: "interrupted", status: 130, message: "interrupted", details: {} },
  });
});

test("rows become columns, without blanks at their ends and without what commands a terminal", () => {
  const rows = [
    ["NAME", "AT", ""],
    ["a\u001b", "longer", ""],
    ["b", "-", "c"],
  ];
  expect(formatTable(rows)).toBe("NAME     AT\na\\u{1b}  longer\nb        -       c\n");
});
