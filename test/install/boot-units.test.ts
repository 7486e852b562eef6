import { execFileSync, spawnSync } from "node:child_process";
import { chmodSync, copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { bootUnit, isOurs, type BootCommand } from "../../src/install/boot-units.js";
import { INIT_SYSTEMS } from "../../src/system/init-system.js";

/** Every character that systemd or a shell reads in a way of its own. */
const WEIRD = "we\"ird 100% $HOME `id` \\x41\\ é 's";
/** systemd refuses quotes and backslashes in the name of a program. */
const WEIRD_PROGRAM = "no de 100% $HOME é";

let folder: string;
let command: BootCommand;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "zferry-units-"));
  const at = join(folder, WEIRD);
  mkdirSync(join(at, "state"), { recursive: true });
  mkdirSync(join(folder, WEIRD_PROGRAM));
  const node = join(folder, WEIRD_PROGRAM, "node");
  copyFileSync("/bin/echo", node);
  chmodSync(node, 0o755);
  command = {
    program: [node, join(at, "cli.js")],
    leadsTo: [],
    config: join(at, "site.toml"),
    state: join(at, "state"),
    root: "/",
  };
});
afterEach(() => rmSync(folder, { recursive: true }));

test.each(INIT_SYSTEMS)("a text for %s is known as ours", (init) => {
  expect(isOurs(bootUnit(init, command).text)).toBe(true);
  expect(isOurs("[Unit]\nDescription=mine\n")).toBe(false);
});

test.each(INIT_SYSTEMS)("a path with a line break has no place in a text for %s", (init) => {
  for (const changed of [{ state: "/a\nb" }, { config: "/a\u202eb" }, { program: ["/node", "/a\u007f"] }]) {
    expect(() => bootUnit(init, { ...command, ...changed })).toThrow(
      expect.objectContaining({ code: "usage" }),
    );
  }
});

test.each(["\\", '"', "'"])("systemd starts no program with %s in its path", (character) => {
  const program = [`/no${character}de`, "/cli.js"];
  expect(() => bootUnit("systemd", { ...command, program })).toThrow(/^systemd starts no program/);
  expect(bootUnit("openrc", { ...command, program }).text).toContain("cli.js install --at-boot");
});

const missing = spawnSync("systemd-analyze", ["--version"]).error !== undefined;
const why = "systemd-analyze is not installed here (apt-get install systemd)";
if (missing && process.env["ZFERRY_REQUIRE_TOOLS"] === "1")
  throw new Error(`these tests are required, but ${why}`);
if (missing) console.warn(`left out: the unit as systemd reads it, because ${why}`);

describe.skipIf(missing)("the unit, as systemd reads it", () => {
  // Before and After as OpenZFS has them.
  const zfsMount = `[Unit]
DefaultDependencies=no
After=zfs-import.target systemd-remount-fs.service
Before=local-fs.target systemd-random-seed.service
[Service]
Type=oneshot
ExecStart=/bin/true
`;

  /** What systemd says of the boot, with the unit as it is changed. */
  function boot(change: (text: string) => string): string {
    const {
      text,
      links: [link],
    } = bootUnit("systemd", command);
    const units = join(folder, "units");
    mkdirSync(join(units, "multi-user.target.wants"), { recursive: true });
    mkdirSync(join(units, "local-fs.target.wants"));
    writeFileSync(join(units, "zferry-resume.service"), change(text));
    writeFileSync(join(units, "zfs-mount.service"), zfsMount);
    writeFileSync(join(units, "zfs-import.target"), "[Unit]\nDefaultDependencies=no\n");
    execFileSync("ln", [
      "-s",
      link?.target ?? "",
      join(units, "multi-user.target.wants/zferry-resume.service"),
    ]);
    execFileSync("ln", ["-s", "../zfs-mount.service", join(units, "multi-user.target.wants/")]);
    // It is what brings in local-fs-pre.target, before which systemd makes its users.
    execFileSync("ln", [
      "-s",
      "/lib/systemd/system/systemd-remount-fs.service",
      join(units, "local-fs.target.wants/"),
    ]);
    const { stdout, stderr } = spawnSync(
      "systemd-analyze",
      ["verify", "zferry-resume.service", "multi-user.target"],
      { env: { ...process.env, SYSTEMD_UNIT_PATH: `${units}:` }, encoding: "utf8" },
    );
    return stdout + stderr;
  }

  test("is without a fault, and in no circle with a whole boot", () => {
    expect(boot((text) => text)).not.toMatch(/zferry|cycle/);
  });

  test("would be in one before systemd makes its users: the check finds that", () => {
    const before = "Before=systemd-sysusers.service sysinit.target";
    expect(boot((text) => text.replace("Before=sysinit.target", before))).toContain("Found ordering cycle");
  });

  test("a program that is not there is found", () => {
    rmSync(command.program[0] as string);
    expect(boot((text) => text)).toContain(`${command.program[0]} is not executable`);
  });
});

describe("the script for OpenRC", () => {
  /** Runs its functions as openrc-run would, with stand-ins for what that gives them. */
  function openrc(what: string): { status: number | null; output: string } {
    writeFileSync(join(folder, "script"), bootUnit("openrc", command).text);
    const shell = `
      ebegin() { echo "ebegin $*"; }
      eend() { echo "eend $*"; return $1; }
      before() { echo "before $# $*"; }
      keyword() { echo "keyword $*"; }
      . "$1"
      ${what}`;
    const { status, stdout, stderr } = spawnSync("sh", ["-uc", shell, "sh", join(folder, "script")], {
      cwd: join(folder, WEIRD_PROGRAM),
      encoding: "utf8",
    });
    return { status, output: stdout + stderr };
  }

  test("does nothing where nothing is under way", () => {
    expect(openrc("start")).toEqual({ status: 0, output: "" });
  });

  test.each(["journal.json", "mounted-from"])(
    "runs zferry with the paths as they are where there is %s, and tells how it ended",
    (name) => {
      writeFileSync(join(command.state, name), "");
      const { status, output } = openrc("start");
      expect(status).toBe(0);
      expect(output.split("\n").slice(1, 3)).toEqual([
        `${command.program[1]} install --at-boot --config ${command.config}`,
        expect.stringMatching(/^eend 0 /),
      ]);
    },
  );

  test("fails as zferry fails, and has a PATH with all that zferry starts", () => {
    writeFileSync(join(command.state, "journal.json"), "");
    const [node = "", cli = ""] = command.program;
    writeFileSync(node, `#!/bin/sh\nexec /bin/sh "$@"\n`);
    writeFileSync(cli, 'echo "PATH $PATH"\nexit 17\n');
    const { status, output } = openrc("start");
    expect([status, output.split("\n")[1]]).toEqual([
      17,
      "PATH /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ]);
    expect(output).toContain("eend 17 it is not finished");
  });

  test("comes before all others of its runlevel, without a time limit", () => {
    // openrc reads this in /etc/init.d, where the star is the name of every service.
    expect(openrc("depend").output).toBe("before 1 node\nkeyword -timeout\n");
  });
});
