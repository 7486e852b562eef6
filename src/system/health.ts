import { readdirSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { guarded } from "./files.js";
import { runningInitSystem } from "./init-system.js";
import { run } from "./process.js";

/** Seconds since the kernel started. */
export const readUptime = (): number =>
  Number.parseFloat(guarded("/proc/uptime", () => readFileSync("/proc/uptime", "utf8")));

/** The services that failed, crashed, or do not run though they should; none where no init system that is known runs. */
export async function failedServices(): Promise<string[]> {
  const init = runningInitSystem();
  if (init === "systemd") {
    const { stdout } = await run("systemctl", ["list-units", "--failed", "--plain", "--no-legend"]);
    return firstWords(stdout);
  }
  if (init === "openrc") {
    const levels = new Set(["sysinit", "boot", readRunlevel()]);
    const { stdout } = await run("rc-status", ["--nocolor", "--format", "ini", ...levels]);
    return [
      ...new Set([...missingServices(stdout.toString("utf8")), ...namesIn("/run/openrc/failed")]),
    ].sort();
  }
  return [];
}

/**
 * The services of runlevels that do not run, though they should. OpenRC forgets what failed to start when it has started a runlevel.
 * @param status what `rc-status --format ini` says of these runlevels
 */
export const missingServices = (status: string): string[] =>
  [...status.matchAll(/^(\S+) = *(?:stopped|crashed|failed|unsupervised)\s*$/gm)].map(
    ([, name = ""]) => name,
  );

const readRunlevel = (): string =>
  guarded("/run/openrc", () => readFileSync("/run/openrc/softlevel", "utf8")).trim();

const firstWords = (output: Buffer): string[] =>
  output
    .toString("utf8")
    .split("\n")
    .map((line) => line.trim().split(/\s+/)[0] ?? "")
    .filter((name) => name !== "");

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

/** Whether the init system has started all that a boot starts. */
export async function isUp(): Promise<boolean> {
  const init = runningInitSystem();
  if (init === "systemd") {
    const { stdout } = await run("systemctl", ["is-system-running"]);
    return ["running", "degraded"].includes(stdout.toString("latin1").trim());
  }
  if (init === "openrc") {
    return (
      !["", "sysinit", "boot"].includes(readRunlevel()) && !namesIn("/run/openrc").includes("rc.starting")
    );
  }
  return true;
}

const REBOOT_MS = 300_000;

/**
 * Reboots the machine as an administrator would; by force where that does not come to its end.
 * @param signal aborted when the machine, on its way down, ends us
 */
export async function reboot(signal: AbortSignal): Promise<void> {
  await run("reboot", []);
  try {
    await sleep(REBOOT_MS, undefined, { signal });
  } catch {
    return;
  }
  await run("sync", []);
  await run("reboot", ["-f"]);
}
