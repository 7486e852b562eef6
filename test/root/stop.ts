import * as fs from "node:fs";
import { syncBuiltinESMExports, createRequire } from "node:module";
import { afterEach } from "vitest";

/**
 * Everything that changes something: each call is a step, before which the machine can stop. From then on nothing
 * changes any more, whatever the code does to clean up.
 */
const CHANGING = [
  "mkdirSync",
  "openSync",
  "writeSync",
  "fchmodSync",
  "fchownSync",
  "lchownSync",
  "symlinkSync",
  "linkSync",
  "renameSync",
  "unlinkSync",
  "rmdirSync",
  "rmSync",
  "copyFileSync",
  "writeFileSync",
  "fsyncSync",
] as const;

const builtin = createRequire(import.meta.url);
const realFs = builtin("node:fs") as Record<string, (...args: unknown[]) => unknown>;
const realProcess = builtin("node:child_process") as Record<string, (...args: unknown[]) => unknown>;
const originals: Record<string, unknown> = {
  ...Object.fromEntries(CHANGING.map((name) => [name, realFs[name]])),
  spawn: realProcess["spawn"],
};

class Stopped extends Error {}

/**
 * Lets `steps` calls happen, and none after them. Returns how many there were.
 * @param before called before each; it changes nothing
 */
export async function stopAfter(
  steps: number,
  use: () => Promise<void>,
  before: () => void = () => undefined,
): Promise<{ steps: number; stopped: boolean }> {
  let count = 0;
  let stopped = false;
  const step = (name: string) => {
    const original = originals[name] as (...args: unknown[]) => unknown;
    return function (this: unknown, ...args: unknown[]): unknown {
      const isReading =
        name === "openSync" && (Number(args[1]) & (fs.constants.O_WRONLY | fs.constants.O_CREAT)) === 0;
      if (!isReading) {
        if (count >= steps) stopped = true;
        if (stopped) throw new Stopped();
        before();
        count += 1;
      }
      return original.apply(this, args);
    };
  };
  for (const name of CHANGING) realFs[name] = step(name);
  realProcess["spawn"] = step("spawn");
  syncBuiltinESMExports();
  try {
    await use();
  } catch (error) {
    if (!stopped) throw error;
  } finally {
    restore();
  }
  return { steps: count, stopped };
}

function restore(): void {
  for (const name of CHANGING) realFs[name] = originals[name] as never;
  realProcess["spawn"] = originals["spawn"] as never;
  syncBuiltinESMExports();
}
afterEach(restore);
