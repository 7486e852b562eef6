import { closeSync, openSync, readFileSync, readSync } from "node:fs";

/**
 * Reads every page of this process's program and libraries into memory, where most likely they stay while there is enough of
 * it: so it can go on though their files are gone.
 */
export function makeResident(): void {
  const memory = openSync("/proc/self/mem", "r");
  const buffer = Buffer.alloc(1 << 20);
  try {
    for (const line of readFileSync("/proc/self/maps", "latin1").split("\n")) {
      const [, from = "", to = ""] = /^([0-9a-f]+)-([0-9a-f]+) r\S+ \S+ \S+ [1-9]/.exec(line) ?? [];
      const end = parseInt(to, 16);
      for (let at = parseInt(from, 16); at < end; at += buffer.length) {
        readSync(memory, buffer, 0, Math.min(buffer.length, end - at), at);
      }
    }
  } finally {
    closeSync(memory);
  }
}
