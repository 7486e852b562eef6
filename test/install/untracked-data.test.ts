import { mkdirSync, mkdtempSync, rmSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ACCEPTED, findUntrackedData } from "../../src/install/untracked-data.js";
import { rawPath, type RawPath } from "../../src/raw-path.js";
import { parsePattern } from "../../src/root/path-pattern.js";
import { blocksOf, readPage } from "../formats/page.js";

const raw = (path: string): RawPath => rawPath(Buffer.from(path));

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "zferry-untracked-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** Files of so many bytes, changed at that second. */
function make(files: Record<string, number>, seconds = 1_700_000_000): void {
  for (const [path, bytes] of Object.entries(files)) {
    const place = join(folder, path);
    mkdirSync(dirname(place), { recursive: true });
    writeFileSync(place, Buffer.alloc(bytes));
    utimesSync(place, seconds, seconds);
  }
}

const find = (tracked: readonly string[], accepted: readonly string[] = [], limit?: number) =>
  findUntrackedData(folder, tracked.map(raw), accepted.map(parsePattern), limit);

const names = (found: ReturnType<typeof find>): string[] =>
  found.map(({ folder: path, isLoose }) => `${path}${isLoose ? " (loose)" : ""}`).sort();

describe("what git does not track", () => {
  test("is grouped to the highest folder that has nothing else", () => {
    make({
      "etc/hosts": 1,
      "var/lib/app/keep": 1,
      "var/lib/app/db": 5,
      "var/lib/pg/base/1": 30,
      "home/a/x": 7,
    });
    make({ "home/b/y": 8 }, 1_800_000_000);
    const found = find(["etc/hosts", "var/lib/app/keep"]);
    expect(names(found)).toEqual(["home", "var/lib/app (loose)", "var/lib/pg"]);
    expect(found.find((each) => each.folder === "home")).toEqual({
      folder: "home",
      isLoose: false,
      files: 2,
      bytes: 15,
      newest: 1_800_000_000,
      isPart: false,
    });
  });

  test("does not count where it is accepted, and what lies beside that is named apart", () => {
    make({ "var/cache/x/y": 1, "var/log/messages": 1, "var/spool/a": 1, "srv/a.pid": 1, "srv/b": 1 });
    expect(names(find([], ["/var/cache/", "*.pid"]))).toEqual(["srv", "var/log", "var/spool"]);
    expect(find([], ["/var", "/srv/*"])).toEqual([]);
  });

  test("is no folder without files, no link, and nothing of another file system", () => {
    mkdirSync(join(folder, "srv/empty"), { recursive: true });
    symlinkSync("/etc", join(folder, "srv/link"));
    expect(find([])).toEqual([]);
  });

  test("has names of any bytes", () => {
    const name = Buffer.from([0x73, 0xff]);
    writeFileSync(Buffer.concat([Buffer.from(`${folder}/`), name]), "");
    expect(find([]).map((each) => each.files)).toEqual([1]);
    expect(findUntrackedData(folder, [rawPath(name)], [])).toEqual([]);
  });

  test("is told though there is too much to look at", () => {
    make(Object.fromEntries(Array.from({ length: 50 }, (_, n) => [`home/${n}`, 1])));
    make({ "var/lib/pg/1": 1, "etc/hosts": 1 });
    const found = find(["etc/hosts"], [], 10);
    expect(names(found)).toContain("home");
    expect(found.every(({ files, isPart }) => files < 12 && isPart)).toBe(true);
  });
});

test("environments.md has what is accepted everywhere", () => {
  const [block = ""] = blocksOf(readPage("environments.md"), "text accepted");
  expect(block.trim().split(/\s+/)).toEqual(ACCEPTED);
});
