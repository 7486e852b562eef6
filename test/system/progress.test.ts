import { describe, expect, test } from "vitest";
import { progressOn } from "../../src/system/progress.js";

const MIB = 1 << 20;

/** A display with a clock that the test turns. */
function display(terminal: boolean, columns = 80) {
  const written: string[] = [];
  let clock = 5_000;
  const progress = progressOn({
    terminal,
    columns: () => columns,
    write: (text) => written.push(text),
    now: () => clock,
  });
  return { written, progress, pass: (ms: number) => void (clock += ms) };
}

describe("on a terminal", () => {
  test("one line tells bytes, share, rate and time left", () => {
    const { written, progress, pass } = display(true);
    progress.update("verifying", 0, 100 * MIB);
    pass(1000);
    progress.update("verifying", 10 * MIB, 100 * MIB);
    expect(written).toEqual(["\r\u001b[Kverifying: 10.0 MiB of 100.0 MiB (10 %), 10.0 MiB/s, 9 s left"]);
    progress.end();
    expect(written.at(-1)).toBe("\r\u001b[K");
  });

  test("files are told beside bytes, or instead of them", () => {
    const { written, progress, pass } = display(true, 100);
    const narrow = display(true, 60);
    const at = (done: number) => ({ files: { done, total: 400 } });
    progress.update("preparing /", 0, 100 * MIB, at(0));
    pass(1000);
    progress.update("preparing /", 10 * MIB, 100 * MIB, at(40));
    narrow.progress.update("preparing /", 0, 100 * MIB, at(0));
    narrow.pass(1000);
    narrow.progress.update("preparing /", 10 * MIB, 100 * MIB, at(40));
    expect(narrow.written).toEqual(["\r\u001b[Kpreparing /: 40 of 400 files (10 %), 9 s left"]);
    progress.update("writing the files of /", 0, 400, { unit: "files" });
    pass(1000);
    progress.update("writing the files of /", 100, 400, { unit: "files" });
    expect(written.filter((text) => text.length > 10)).toEqual([
      "\r\u001b[Kpreparing /: 40 of 400 files, 10.0 MiB of 100.0 MiB (10 %), 10.0 MiB/s, 9 s left",
      "\r\u001b[Kwriting the files of /: 100 of 400 (25 %), 100 files/s, 3 s left",
    ]);
  });

  test("a stall or a jump moves the rate smoothly", () => {
    const { written, progress, pass } = display(true);
    progress.update("sending usr", 0, 1000 * MIB);
    for (let second = 1; second <= 10; second += 1) {
      pass(1000);
      progress.update("sending usr", second * 10 * MIB, 1000 * MIB);
    }
    pass(1000);
    progress.update("sending usr", 100 * MIB, 1000 * MIB);
    const [, rate] = /, ([0-9.]+) MiB\/s/.exec(written.at(-1) ?? "") ?? [];
    expect(Number(rate)).toBeGreaterThan(7);
    expect(Number(rate)).toBeLessThan(10);
  });

  test("is not drawn more often than can be read", () => {
    const { written, progress, pass } = display(true);
    for (let done = 0; done < 1000; done += 1) {
      progress.update("verifying", done, 1000);
      pass(1);
    }
    expect(written.length).toBeLessThan(6);
  });

  test("is shortened by whole parts where the line is narrow", () => {
    const { written, progress, pass } = display(true, 40);
    progress.update("verifying", 0, 100 * MIB);
    pass(1000);
    progress.update("verifying", 10 * MIB, 100 * MIB);
    expect(written).toEqual(["\r\u001b[Kverifying: 10 %, 9 s left"]);
  });

  test("never wraps, and shows no control characters", () => {
    const { written, progress, pass } = display(true, 20);
    progress.update("a\u001b[31m name that is long", 0, 10);
    pass(1000);
    progress.update("a\u001b[31m name that is long", 5, 10);
    expect(written).toEqual(["\r\u001b[K50 %"]);
  });
});

describe("elsewhere", () => {
  test("a line every ten seconds, and nothing for what is short", () => {
    const { written, progress, pass } = display(false);
    progress.update("packing usr", 0, undefined);
    for (let second = 1; second < 35; second += 1) {
      pass(1000);
      progress.update("packing usr", second * MIB, undefined);
    }
    progress.end();
    expect(written).toEqual([
      "packing usr: 10.0 MiB, 1.0 MiB/s\n",
      "packing usr: 20.0 MiB, 1.0 MiB/s\n",
      "packing usr: 30.0 MiB, 1.0 MiB/s\n",
    ]);
  });

  test("an estimate that was too low is dropped, and no time left is told of what stands still", () => {
    const { written, progress, pass } = display(false);
    progress.update("packing usr", 0, 10 * MIB);
    pass(10_000);
    progress.update("packing usr", 0, 10 * MIB);
    pass(10_000);
    progress.update("packing usr", 20 * MIB, 10 * MIB);
    expect(written).toEqual([
      "packing usr: 0 B of 10.0 MiB (0 %), 0 B/s\n",
      expect.stringMatching(/^packing usr: 20\.0 MiB, [0-9.]+ MiB\/s\n$/),
    ]);
  });
});
