import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ZferryError } from "../../src/errors.js";
import { asZferryError } from "../../src/report.js";
import { mapSystemError, writeFileDurably } from "../../src/system/files.js";

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "zferry-files-"));
});
afterEach(() => rmSync(root, { recursive: true }));

describe("writeFileDurably", () => {
  it("replaces a file whole, with its mode", () => {
    const path = join(root, "file");
    writeFileDurably(path, "one", 0o644);
    writeFileDurably(path, "two", 0o600);
    expect(readFileSync(path, "utf8")).toBe("two");
    expect(statSync(path).mode & 0o7777).toBe(0o600);
    expect(readdirSync(root)).toEqual(["file"]);
  });

  it("leaves nothing after a failure", () => {
    mkdirSync(join(root, "file"));
    expect(() => writeFileDurably(join(root, "file"), "one", 0o644)).toThrow(
      expect.objectContaining({ code: "io-failed" }),
    );
    expect(readdirSync(root)).toEqual(["file"]);
    expect(() => writeFileDurably(join(root, "no/file"), "one", 0o644)).toThrow(
      /no\/file: there is no such file or folder$/,
    );
  });
});

it("names a full disk and a full quota, and leaves other errors as they are", () => {
  const system = (code: string) => Object.assign(new Error(code), { code, syscall: "write" });
  expect(mapSystemError(system("ENOSPC"), "x")).toMatchObject({
    code: "no-space",
    message: "cannot write x: no space left",
  });
  expect(mapSystemError(system("EDQUOT"), "x")).toMatchObject({ code: "no-space" });
  // Node has no name for it: what it says is what it said of a real one.
  const unnamed = Object.assign(new Error("Unknown system error -122: Unknown system error -122, write"), {
    code: "Unknown system error -122",
    errno: -122,
    syscall: "write",
  });
  const quota = { code: "no-space", details: { reason: "EDQUOT" } };
  expect(mapSystemError(unnamed, "x")).toMatchObject({ ...quota, message: "cannot write x: no space left" });
  expect(asZferryError(unnamed)).toMatchObject(quota);
  expect(mapSystemError(system("EROFS"), "x")).toMatchObject({
    code: "io-failed",
    message: "cannot write x: the file system is read-only",
  });
  const other = new ZferryError("usage", "x");
  expect(mapSystemError(other, "x")).toBe(other);
});
