import { spawn } from "node:child_process";
import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { followProcess, openOutputs, type Ended } from "../../src/system/relay.js";

describe("a process that writes to files", () => {
  let folder: string;
  const log = (): string => join(folder, "log");
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "zferry-relay-"));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  async function follow(script: string): Promise<{ ended: Ended; told: string[] }> {
    const outputs = openOutputs(log());
    const child = spawn("sh", ["-c", script], { stdio: ["ignore", outputs.output, outputs.errors] });
    const told: string[] = [];
    try {
      const ended = await followProcess(child, outputs, {
        errors: (bytes) => void told.push(Buffer.from(bytes).toString()),
        output: async (bytes) => void told.push(Buffer.from(bytes).toString()),
      });
      return { ended, told };
    } finally {
      outputs.close();
    }
  }

  it("is told as it goes, its output last, and its log is kept", async () => {
    writeFileSync(log(), "of the one before\n", { mode: 0o644 });
    const { ended, told } = await follow("echo result; echo one >&2; sleep 1; echo two >&2; exit 3");
    expect(told).toEqual(["one\n", "two\n", "result\n"]);
    expect(ended).toEqual({ status: 3 });
    expect(readFileSync(log(), "utf8")).toBe("one\ntwo\n");
    expect(statSync(log()).mode & 0o777).toBe(0o600);
    expect(readdirSync(folder)).toEqual(["log"]);
  });

  it("is told a result once, from its output", async () => {
    const script =
      "printf 'half' >&2; sleep 0.5; echo ' a line' >&2; echo done; echo result: done >&2; printf end >&2";
    expect((await follow(script)).told.join("")).toBe("half a line\nenddone\n");
    expect(readFileSync(log(), "utf8")).toBe("half a line\nresult: done\nend");
  });

  it("gets the signals that are meant for it, and tells by which it ended", async () => {
    const following = follow(
      "trap 'echo stopped >&2; exit 4' TERM; echo up >&2; while :; do sleep 0.1; done",
    );
    await expect.poll(() => readFileSync(log(), "utf8")).toBe("up\n");
    process.kill(process.pid, "SIGTERM");
    expect((await following).ended).toEqual({ status: 4 });
    expect((await follow("kill -KILL $$")).ended).toEqual({ signal: "SIGKILL" });
  });

  it("is left to itself when the terminal hangs up", async () => {
    const following = follow("exec sleep 1; echo late >&2");
    process.kill(process.pid, "SIGHUP");
    expect((await following).ended).toBeUndefined();
  });

  it("has no log that is a link", () => {
    symlinkSync("elsewhere", log());
    expect(() => openOutputs(log())).toThrow(/cannot open .*log: it is a symbolic link/);
  });
});
