import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { run, runFor } from "../../src/system/process.js";

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

describe("a program that is run to its end", () => {
  const inShell = (script: string, options?: Parameters<typeof run>[2]) => run("sh", ["-c", script], options);

  test("has its status or signal, its output as bytes, and the end of its errors", async () => {
    expect(await inShell("printf '\\377\\000\\n'; echo why >&2; exit 3")).toEqual({
      ...{ status: 3, signal: null, stderr: "why" },
      stdout: Buffer.from([0xff, 0, 10]),
    });
    expect(await inShell("kill -TERM $$")).toMatchObject({ status: null, signal: "SIGTERM" });
    expect((await inShell("yes | head -c 1000000 >&2; echo end >&2")).stderr).toMatch(/^.{10,17000}\nend$/s);
  });

  test("reads what it is given: nothing, bytes, a file; and need not read it", async () => {
    expect((await inShell("cat")).stdout.length).toBe(0);
    const bytes = Buffer.alloc(3_000_000, 7);
    expect((await inShell("cat", { input: bytes })).stdout.equals(bytes)).toBe(true);
    const path = join(folder, "input");
    writeFileSync(path, bytes);
    expect((await inShell("cat", { input: { path, bytes: bytes.length } })).stdout.equals(bytes)).toBe(true);
    expect(await inShell("exit 4", { input: bytes })).toMatchObject({ status: 4, stdout: Buffer.of() });
  });

  test("has the environment with what is added and taken away, in nobody's language, and its folder", async () => {
    const env = { ADDED: "yes", HOME: undefined };
    const { stdout } = await inShell("echo $ADDED ${HOME-none} $LC_ALL ${PATH:+path}; pwd", {
      env,
      cwd: folder,
    });
    expect(stdout.toString()).toBe(`yes none C path\n${folder}\n`);
  });

  test("that prints more than it may, or cannot be run, is an error", async () => {
    await expect(inShell("yes", { maxOutputBytes: 1000 })).rejects.toMatchObject({
      code: "io-failed",
      message: "sh printed more than 1000 bytes",
    });
    await expect(run(join(folder, "missing"), [])).rejects.toMatchObject({ code: "not-configured" });
    writeFileSync(join(folder, "text"), "no program\n");
    await expect(run(join(folder, "text"), [])).rejects.toMatchObject({ code: "io-failed" });
    await expect(run("true", ["x".repeat(1 << 22)])).rejects.toMatchObject({ code: "io-failed" });
    await expect(run("cat", [], { input: { path: join(folder, "none"), bytes: 0 } })).rejects.toMatchObject({
      code: "io-failed",
    });
  });
});

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
