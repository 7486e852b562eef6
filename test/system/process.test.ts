import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { runFor } from "../../src/system/process.js";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "zferry-process-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

const sh = (ms: number, script: string) => runFor(ms, "sh", ["-c", script]);
const pidIn = (name: string): number => Number(readFileSync(join(folder, name), "utf8"));
const isRunning = (pid: number): boolean => {
  try {
    // What nobody has waited for yet is a zombie.
    return !/^State:\tZ/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
};

describe("a program of the site's, which has a limited time", () => {
  test("is judged by its status, and quoted", async () => {
    const result = await sh(60_000, "echo out; echo why >&2; exit 3");
    expect(result).toEqual({ status: 3, signal: null, stdout: Buffer.of(), stderr: "why" });
    expect((await sh(60_000, "yes | head -c 1000000 >&2; echo end >&2")).stderr).toMatch(/y\nend$/);
    await expect(runFor(60_000, join(folder, "missing"), [])).rejects.toMatchObject({
      code: "not-configured",
    });
  });

  test("is ended with all that it started", async () => {
    const result = await sh(300, `sleep 1000 & echo $! >${folder}/pid; echo begun >&2; wait; true`);
    expect(result).toMatchObject({ status: null, signal: "SIGTERM", stderr: "begun" });
    await expect.poll(() => isRunning(pidIn("pid"))).toBe(false);
    // Also what does not heed that.
    const deaf = `trap '' TERM; sleep 1000 & echo $! >${folder}/pid; trap - TERM; wait`;
    expect((await sh(300, deaf)).signal).toBe("SIGTERM");
    await expect.poll(() => isRunning(pidIn("pid"))).toBe(false);
  });

  test("may leave something running that has its output", async () => {
    const result = await sh(60_000, `sleep 1000 & echo $! >${folder}/pid; echo begun >&2; exit 0`);
    try {
      expect(result).toMatchObject({ status: 0, stderr: "begun" });
      expect(isRunning(pidIn("pid"))).toBe(true);
    } finally {
      process.kill(pidIn("pid"));
    }
  });
});
