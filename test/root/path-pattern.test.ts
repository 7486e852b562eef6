import { describe, expect, it } from "vitest";
import { rawPath } from "../../src/raw-path.js";
import { findPattern, parsePattern, patternFault } from "../../src/root/path-pattern.js";

const matches = (pattern: string, path: string | Buffer): boolean =>
  findPattern([parsePattern(pattern)], rawPath(Buffer.from(path))) !== undefined;

describe("a pattern", () => {
  it.each<[string, string[], string[]]>([
    // pattern, what it means, what it does not
    ["etc/shadow", ["etc/shadow"], ["etc/shadow-", "etc/shado", "a/etc/shadow", "etc", "shadow"]],
    ["/etc/shadow", ["etc/shadow"], ["etc/shadow-", "a/etc/shadow"]],
    ["shadow", ["shadow", "etc/shadow", "a/b/shadow", "etc/shadow/x"], ["shadow-", "etc/gshadow"]],
    ["/shadow", ["shadow"], ["etc/shadow"]],
    ["*.key", ["a.key", "etc/a.key", ".key", "etc/x.key/y"], ["a.keys", "akey"]],
    ["/etc/*.key", ["etc/a.key", "etc/.key"], ["etc/a/b.key", "b.key"]],
    ["/etc/a*b*c", ["etc/abc", "etc/aXbXbXc", "etc/abcbc"], ["etc/ab", "etc/acb", "etc/a/b/c"]],
    ["etc/?", ["etc/a", "etc/a/b"], ["etc/ab", "etc"]],
    ["private/", ["private/x", "etc/private/a/b"], ["private", "etc/private"]],
    ["/etc/ssl/", ["etc/ssl/x"], ["etc/ssl", "a/etc/ssl/x"]],
    ["/etc/ssl/**", ["etc/ssl/x", "etc/ssl/a/b"], ["etc/ssl"]],
    ["/etc/ssl", ["etc/ssl", "etc/ssl/x"], ["etc/sslx"]],
    ["**/x", ["x", "a/x", "a/b/x", "a/x/y"], ["ax"]],
    ["/var/**/x", ["var/x", "var/a/x", "var/a/b/x", "var/a/x/b"], ["x", "var", "var/ax"]],
    ["/a/**/b/**/c", ["a/b/c", "a/x/b/b/y/c", "a/b/x/b/c"], ["a/c/b", "a/b"]],
    ["**", ["x", "a/b"], []],
    ["a**b", ["ab", "axxb"], ["a/b"]],
    ["\\*x", ["*x"], ["ax"]],
    ["\\[x]", ["[x]"], ["x"]],
    ["#x", ["#x"], ["x"]],
    ["über", ["über"], ["uber"]],
  ])("%s", (pattern, meant, others) => {
    expect(meant.filter((path) => !matches(pattern, path))).toEqual([]);
    expect(others.filter((path) => matches(pattern, path))).toEqual([]);
  });

  it("means bytes, also those that are no UTF-8", () => {
    expect(matches("etc/caf?", Buffer.from("etc/caf\xe9", "latin1"))).toBe(true);
    expect(matches("etc/caf*", Buffer.from("etc/caf\xe9", "latin1"))).toBe(true);
    expect(matches("etc/caf?", "etc/café")).toBe(false);
    expect(matches("etc/caf??", "etc/café")).toBe(true);
  });

  it("takes no time with many stars", () => {
    expect(matches(`/${"*a".repeat(100)}b`, "a".repeat(255))).toBe(false);
    expect(matches(`/${"**/a/".repeat(500)}b`, "a/".repeat(2000) + "c")).toBe(false);
  });

  it("is found among several", () => {
    const patterns = ["/etc/a", "*.key", "**"].map(parsePattern);
    expect(findPattern(patterns, rawPath(Buffer.from("x.key")))?.text).toBe("*.key");
  });
});

describe("what is no pattern", () => {
  it.each([
    ["", "is empty"],
    ["a\0b", "has a NUL byte"],
    ["!a", "starts with !, and there are no exceptions here"],
    ["[ab]", "has [, and there are no classes here: \\[ means the letter"],
    ["a\\", "ends with \\, which stands before a letter"],
    ["/", "has an empty component"],
    ["a//b", "has an empty component"],
    ["a/../b", 'has the component ".."'],
    ["./a", 'has the component "."'],
    ["é".repeat(2048), "is longer than 4095 bytes"],
  ])("%j", (text, fault) => {
    expect(patternFault(text)).toBe(fault);
    expect(() => parsePattern(text)).toThrow(RangeError);
  });
});
