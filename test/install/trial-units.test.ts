import { execFileSync, spawnSync } from "node:child_process";
import { chmodSync, copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { isOurs, type BootCommand } from "../../src/install/boot-units.js";
import { trialUnit } from "../../src/install/trial-units.js";
import { INIT_SYSTEMS } from "../../src/system/init-system.js";

let folder: string;
let command: BootCommand;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "zferry trial "));
  const node = join(folder, "no de 100% $HOME");
  copyFileSync("/bin/echo", node);
  chmodSync(node, 0o755);
  const config = join(folder, "it's.toml");
  command = { program: [node, join(folder, "cli.js")], leadsTo: [], config, state: "/state", root: "/" };
});
afterEach(() => rmSync(folder, { recursive: true }));

test.each(INIT_SYSTEMS)("a text for %s is known as ours, and takes no path with a line break", (init) => {
  expect(isOurs(trialUnit(init, command).text)).toBe(true);
  expect(() => trialUnit(init, { ...command, config: "/a\nb" })).toThrow(
    expect.objectContaining({ code: "usage" }),
  );
});

const missing = spawnSync("systemd-analyze", ["--version"]).error !== undefined;
if (missing && process.env["ZFERRY_REQUIRE_TOOLS"] === "1") throw new Error("systemd-analyze is not there");

describe.skipIf(missing)("the unit, as systemd reads it", () => {
  /** What systemd says of the boot, with the unit as it is changed. */
  function boot(change: (text: string) => string): string {
    const {
      text,
      links: [link],
    } = trialUnit("systemd", command);
    const units = join(folder, "units");
    mkdirSync(join(units, "sysinit.target.wants"), { recursive: true });
    writeFileSync(join(units, "zferry-trial.service"), change(text));
    execFileSync("ln", ["-s", link?.target ?? "", join(units, "sysinit.target.wants/zferry-trial.service")]);
    expect(readdirSync(units)).toHaveLength(2);
    const { stdout, stderr } = spawnSync(
      "systemd-analyze",
      ["verify", "zferry-trial.service", "multi-user.target"],
      { env: { ...process.env, SYSTEMD_UNIT_PATH: `${units}:` }, encoding: "utf8" },
    );
    return stdout + stderr;
  }

  test("is without a fault, and in no circle with a whole boot", () => {
    expect(boot((text) => text)).not.toMatch(/zferry-trial|cycle/);
  });

  test("would be in one if it waited for the end of the boot that wants it: the check finds that", () => {
    const waits = (text: string): string =>
      text.replace(/^After=.*/m, "After=multi-user.target\nBefore=sysinit.target");
    expect(boot(waits)).toContain("ordering cycle");
  });
});

describe("the script for OpenRC", () => {
  /** Runs its functions as openrc-run would, with stand-ins for what that gives them. */
  function openrc(what: string, status = 0): { status: number | null; output: string } {
    writeFileSync(join(folder, "script"), trialUnit("openrc", command).text);
    const shell = `
      ebegin() { echo "ebegin $*"; }
      eend() { echo "eend $*"; return $1; }
      after() { echo "after $*"; }
      keyword() { echo "keyword $*"; }
      start-stop-daemon() { echo "PATH $PATH"; for word; do echo "<$word>"; done; return ${status}; }
      . "$1"
      ${what}`;
    // With a socket as its input bash may take itself for one that rshd started, and reads its settings.
    const ended = spawnSync("bash", ["-uc", shell, "sh", join(folder, "script")], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
    });
    return { status: ended.status, output: ended.stdout + ended.stderr };
  }

  test("starts zferry in the background, with the paths as they are", () => {
    const { status, output } = openrc("start");
    expect(status).toBe(0);
    const words = output.split("\n").filter((line) => line.startsWith("<"));
    expect(words).toContain("<--background>");
    const [node = "", cli = ""] = command.program;
    expect(words.slice(words.indexOf("<--exec>") + 1)).toEqual(
      ["/bin/sh", "--", "-c", 'exec "$@" >/run/zferry-trial.log 2>&1', "sh"]
        .concat([node, cli, "confirm", "--or-go-back", "--config", command.config ?? ""])
        .map((word) => `<${word}>`),
    );
    expect(output).toContain("PATH /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
  });

  test("fails where it cannot be started, and not where there is nothing to stop", () => {
    expect(openrc("start", 1).status).toBe(1);
    expect(openrc("stop", 1).status).toBe(0);
  });

  test("waits for file systems alone", () => {
    expect(openrc("depend").output).toBe("after localmount zfs-mount\nkeyword -timeout\n");
  });
});
