import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { commandLineAdvice } from "../../src/install/trial-setup.js";
import { findHook, hookFiles, HOOK_MARK, INITRAMFS, type Initramfs } from "../../src/install/boot-hooks.js";
import type { Loader } from "../../src/install/environment-rules.js";

// The hook on real pools, in a real boot, is test/lab/trial.test.ts. Here are the faults that ZFS does not make on demand.

let folder: string;
const at = (name: string): string => join(folder, name);
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "zferry-hook-"));
  for (const name of ["bin", "own"]) mkdirSync(at(name));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const SHELLS: readonly (readonly string[])[] = [["dash"], ["busybox", "sh"]].filter(([program = ""]) => {
  const isThere = spawnSync(program, ["-c", "true"]).error === undefined;
  if (!isThere && process.env["ZFERRY_REQUIRE_TOOLS"] === "1") throw new Error(`${program} is not there`);
  return isThere;
});

/** zfs and zpool, by turns: what they are told to fail at is in `fail`, what the pool has in other files. */
const STUB = String.raw`#!/bin/sh
call="${"${0##*/}"} $*"
echo "$call" >>FOLDER/calls
case $call in "zpool import "*) [ ! -e FOLDER/anyway ] || : >FOLDER/imported ;; esac
while IFS= read -r failing; do case $call in $failing*) exit 1 ;; esac; done <FOLDER/fail
case $call in
	"zpool list -H -o name rpool") [ -e FOLDER/imported ] || exit 1 ;;
	"zpool import") [ "$(grep -c '^zpool import$' FOLDER/calls)" -ge "$(cat FOLDER/whole)" ] && state=ONLINE || state=DEGRADED
		printf '   pool: other\n  state: ONLINE\n\n   pool: rpool\n     id: 7\n  state: %s\n config:\n' $state ;;
	"zpool import "*) : >FOLDER/imported ;;
	"zpool export "*) rm FOLDER/imported ;;
	"zpool get "*) cat FOLDER/bootfs ;;
	"zpool set bootfs="*) value=${"${call#*=}"}; echo "${"${value% rpool}"}" >FOLDER/bootfs ;;
	"zfs get -H -p -s local "*) cat "FOLDER/own/$8" 2>/dev/null ;;
	"zfs get -H -p -t filesystem "*) cat FOLDER/guids ;;
esac
exit 0
`;

/** Functions, since busybox would run its own programs of these names, and really reboot. */
const AROUND = String.raw`
reboot() { echo "reboot $*" >>FOLDER/calls; }
date() { echo 7; }
for name in sleep sync modprobe udevadm; do eval "$name() { :; }"; done
`;

interface Facts {
  readonly kind?: Initramfs;
  readonly loader?: Loader;
  readonly cmdline?: string;
  /** Of the environment `two`, which is `bootfs`: without `zferry:`. */
  readonly own?: Readonly<Record<string, string>>;
  /** Beginnings of commands, with patterns, that fail. */
  readonly fail?: readonly string[];
  readonly imported?: boolean;
  /** What is told to fail does its work. */
  readonly importsAnyway?: boolean;
  readonly guids?: string;
  /** What the initramfs has as the seconds of rootdelay=. */
  readonly rootdelay?: string;
  /** How often the pool is looked for until all its disks are there. */
  readonly whole?: number;
}

const TRIAL = { trial: "2", boots: "0", previous: "11" };
const SPENT = { ...TRIAL, boots: "2" };

/** Runs the hook once in each shell, as the initramfs would. */
function boot(facts: Facts) {
  const seen = SHELLS.map((shell) => {
    const { kind = "initramfs-tools", loader = "bootfs", cmdline = "root=zfs:AUTO", own = {} } = facts;
    for (const name of ["calls", "imported", "mark"]) rmSync(at(name), { force: true });
    if (facts.imported) writeFileSync(at("imported"), "");
    if (facts.importsAnyway) writeFileSync(at("anyway"), "");
    writeFileSync(at("calls"), "");
    writeFileSync(at("whole"), String(facts.whole ?? 1));
    writeFileSync(at("fail"), [...(facts.fail ?? []), ""].join("\n"));
    writeFileSync(at("cmdline"), `quiet ${cmdline}\n`);
    writeFileSync(at("bootfs"), "rpool/ROOT/two\n");
    writeFileSync(at("guids"), facts.guids ?? "rpool/ROOT\t1\nrpool/ROOT/one\t11\nrpool/ROOT/two\t12\n");
    rmSync(at("own"), { recursive: true });
    mkdirSync(at("own"));
    for (const [name, value] of Object.entries(own)) writeFileSync(at(`own/zferry:${name}`), `${value}\n`);
    for (const name of ["zfs", "zpool"])
      writeFileSync(at(`bin/${name}`), STUB.replaceAll("FOLDER", folder), { mode: 0o755 });
    const [file] = hookFiles(kind, { container: "rpool/ROOT", loader });
    const text = (file?.text ?? "")
      .replaceAll(HOOK_MARK, at("mark"))
      .replaceAll("/proc/cmdline", at("cmdline"))
      .replaceAll(/\/(sys|dev|proc|etc)\/[a-z_/-]+/g, (path) =>
        path === "/dev/null" ? path : at(`none${path}`),
      );
    writeFileSync(at("hook"), text);
    // As a file of its own, or read by the shell that goes on after it.
    const how = `${AROUND.replaceAll("FOLDER", folder)}. ${at("hook")}${kind === "dracut" ? '; echo "went on: $?"' : ""}`;
    const { status, stdout, stderr } = spawnSync(shell[0] ?? "", [...shell.slice(1), "-c", how], {
      env: { PATH: `${at("bin")}:/usr/bin:/bin`, ROOTDELAY: facts.rootdelay ?? "" },
      encoding: "utf8",
    });
    const calls = readFileSync(at("calls"), "utf8")
      .split("\n")
      .filter((line) => /^(zfs (set|inherit)|zpool (set|import|export|sync)|reboot)/.test(line));
    const mark = existsSync(at("mark")) ? readFileSync(at("mark"), "utf8").trim() : undefined;
    return { status, output: stderr.trim(), shell: stdout.trim(), calls, mark };
  });
  const [first, ...others] = seen;
  for (const other of others) expect(other).toEqual(first);
  expect(first).toMatchObject({ status: 0, shell: facts.kind === "dracut" ? "went on: 0" : "" });
  return first as (typeof seen)[number];
}

const [IMPORT, EXPORT] = ["zpool import -N -o cachefile=none rpool", "zpool export rpool"];
const COUNT = (count: number): string => `zfs set zferry:boots=${count} rpool/ROOT/two`;
const FAILED = "zfs set zferry:failed=7 boot 2 of 2 was not confirmed rpool/ROOT/two";
const BACK = [FAILED, "zpool set bootfs=rpool/ROOT/one rpool", "zfs inherit zferry:trial rpool/ROOT/two"];

test("there are shells to run it in", () => {
  expect(SHELLS.length).toBeGreaterThan(0);
});

describe("what is counted", () => {
  test.each<[string, Facts, string[], string]>([
    ["a boot of what bootfs names", { own: TRIAL }, [IMPORT, COUNT(1), EXPORT], "boot 1 of 2"],
    ["its last one", { own: { ...TRIAL, boots: "1" } }, [IMPORT, COUNT(2), EXPORT], "boot 2 of 2"],
    [
      "a boot of what the command line names",
      { own: TRIAL, cmdline: "root=zfs:rpool/ROOT/two" },
      [IMPORT, COUNT(1), EXPORT],
      "boot 1",
    ],
    [
      "as GRUB has it",
      { own: TRIAL, cmdline: "root=ZFS=rpool/ROOT/two" },
      [IMPORT, COUNT(1), EXPORT],
      "boot 1",
    ],
    ["without a word for the root", { own: TRIAL, cmdline: "" }, [IMPORT, COUNT(1), EXPORT], "boot 1"],
    [
      "in a pool that is imported already, which stays so",
      { own: TRIAL, imported: true },
      [COUNT(1), "zpool sync rpool"],
      "boot 1",
    ],
    [
      "where the count is no number",
      { own: { ...TRIAL, boots: "07" } },
      [IMPORT, COUNT(1), EXPORT],
      "boot 1 of 2",
    ],
    [
      "where there is no count",
      { own: { trial: "2", previous: "11" } },
      [IMPORT, COUNT(1), EXPORT],
      "boot 1 of 2",
    ],
  ])("%s", (_, facts, calls, output) => {
    const seen = boot(facts);
    expect(seen.calls).toEqual(calls);
    expect(seen.output).toContain(output);
    expect(seen.mark).toBe("rpool/ROOT/two");
  });

  test.each<[string, Facts, string[]]>([
    ["an environment that is not on trial", {}, [IMPORT, EXPORT]],
    ["one that was being confirmed", { own: { ...SPENT, confirmed: "yes" } }, [IMPORT, EXPORT]],
    ["a root elsewhere", { own: TRIAL, cmdline: "root=/dev/sda1" }, []],
    ["a root in another container", { own: TRIAL, cmdline: "root=zfs:rpool/OTHER/two" }, []],
    ["a snapshot", { own: TRIAL, cmdline: "root=zfs:rpool/ROOT/two@x" }, [IMPORT, EXPORT]],
  ])("%s is not", (_, facts, calls) => {
    expect(boot(facts)).toMatchObject({ calls, output: "", mark: "" });
  });

  test("it is asked for nothing but what comes first", () => {
    const [file] = hookFiles("initramfs-tools", { container: "rpool/ROOT", loader: "bootfs" });
    writeFileSync(at("hook"), file?.text ?? "", { mode: 0o755 });
    expect(execFileSync(at("hook"), ["prereqs"], { encoding: "utf8" })).toBe("resume\n");
  });
});

describe("disks that come late are waited for", () => {
  const LOOK = "zpool import";
  test.each<[string, Facts, string[]]>([
    ["no longer than until the pool is whole", { rootdelay: "9", whole: 3 }, [LOOK, LOOK, LOOK]],
    ["no longer than the site wants", { rootdelay: "2", whole: 9 }, [LOOK, LOOK]],
    ["not where the site does not", { whole: 9 }, []],
    ["not for what is no number", { rootdelay: "07", whole: 9 }, []],
  ])("%s", (_, facts, looks) => {
    expect(boot({ own: TRIAL, ...facts }).calls).toEqual([...looks, IMPORT, COUNT(1), EXPORT]);
  });
});

describe("when the boots are spent", () => {
  test("the one before boots, at once where bootfs decides", () => {
    const { calls, output } = boot({ own: SPENT });
    expect(calls).toEqual([IMPORT, ...BACK, EXPORT]);
    expect(output).toBe("zferry: the boots of rpool/ROOT/two are spent: going back to rpool/ROOT/one");
  });

  test("the machine reboots where the command line names what failed", () => {
    expect(boot({ own: SPENT, cmdline: "root=zfs:rpool/ROOT/two" }).calls).toEqual([
      IMPORT,
      ...BACK,
      EXPORT,
      "reboot -f",
    ]);
  });

  test("dracut, which may have read bootfs already, reboots", () => {
    const { calls } = boot({ own: SPENT, kind: "dracut", imported: true });
    expect(calls).toEqual([...BACK, "zpool sync rpool", "reboot -f"]);
  });

  test.each<[string, Facts, string[], string]>([
    [
      "nothing is known of the one before",
      { own: { trial: "2", boots: "2" } },
      [],
      "is not there: it is booted again",
    ],
    [
      "the one before is gone",
      { own: SPENT, guids: "rpool/ROOT/two\t12\n" },
      [],
      "is not there: it is booted again",
    ],
    ["it names itself", { own: { ...SPENT, previous: "12" } }, [], "is not there: it is booted again"],
    ["it names the container", { own: { ...SPENT, previous: "1" } }, [], "is not there: it is booted again"],
    [
      "the pool cannot be written",
      { own: SPENT, fail: ["zfs set", "zpool set"] },
      BACK.slice(0, 2),
      "cannot be made bootfs of rpool: it is booted again",
    ],
    [
      "bootfs is not what was set",
      { own: SPENT, fail: ["zpool get"], cmdline: "root=zfs:rpool/ROOT/two" },
      BACK.slice(0, 2),
      "cannot be made bootfs",
    ],
    [
      "the loader is zectl",
      { own: SPENT, loader: "zectl" },
      [FAILED],
      "choose rpool/ROOT/one in the boot menu, loader zectl is not switched from here",
    ],
    [
      "the loader is a command",
      { own: SPENT, loader: "command" },
      [FAILED],
      "choose rpool/ROOT/one in the boot menu",
    ],
  ])("and %s, it says so and the boot goes on", (_, facts, calls, output) => {
    const seen = boot(facts);
    expect(seen.calls).toEqual([IMPORT, ...calls, EXPORT]);
    expect(seen.output).toContain(output);
  });
});

describe("the boot goes on", () => {
  test("where the pool cannot be imported, after ten times", () => {
    const { calls, output, mark } = boot({ own: TRIAL, fail: ["zpool import"] });
    expect(calls).toEqual(Array(10).fill(IMPORT));
    expect(output).toContain("cannot import rpool");
    expect(mark).toBe("");
  });

  test("where the import is said to have failed, and the pool is there: it is exported again", () => {
    const { calls } = boot({ own: TRIAL, fail: ["zpool import"], importsAnyway: true });
    expect(calls).toEqual([IMPORT, COUNT(1), EXPORT]);
  });

  test("where the boot cannot be counted: the unit counts it", () => {
    const { output, mark } = boot({ own: TRIAL, fail: ["zfs set"] });
    expect(output).toContain("its boot cannot be counted");
    expect(mark).toBe("");
  });

  test("where the pool cannot be exported again, after ten times", () => {
    const { calls, output } = boot({ own: TRIAL, fail: ["zpool export"] });
    expect(calls).toEqual([IMPORT, COUNT(1), ...Array<string>(10).fill(EXPORT)]);
    expect(output).toContain("cannot export rpool again");
  });

  test.each(["0", "x", "100", "-1", "2 3", "00"])("where zferry:trial is %j", (trial) => {
    const { calls, output } = boot({ own: { ...TRIAL, trial } });
    expect(calls).toEqual([IMPORT, EXPORT]);
    expect(output).toContain("which is no number of boots");
  });

  test.each(INITRAMFS)("with %s where every command fails", (kind) => {
    expect(boot({ kind, own: SPENT, fail: ["zfs", "zpool", "udevadm", "modprobe"] }).calls).not.toContain(
      "reboot -f",
    );
  });
});

describe("what the kernel's command line lacks", () => {
  const ALL = "panic=30 rd.shell=0 rd.emergency=reboot";
  test.each<[Initramfs[], string, string]>([
    [["initramfs-tools"], "quiet", "panic=30"],
    [["initramfs-tools"], "quiet panic=0", "panic=30"],
    [[], "panic=x", "panic=30"],
    [["dracut"], "quiet", ALL],
    [["initramfs-tools", "dracut"], "panic=-1 rd.shell rd.emergency=halt", "rd.shell=0 rd.emergency=reboot"],
    [["dracut"], "panic=5 rd.shell=no\n", "rd.emergency=reboot"],
  ])("with %j, of %j", (kinds, commandLine, missing) => {
    const [first, ...others] = commandLineAdvice(kinds, "p/ROOT", commandLine);
    expect(first).toMatch(`command line has no ${missing}: `);
    expect(others[0]).toContain(` ${missing}" p/ROOT`);
  });

  test.each<[Initramfs[], string]>([
    [["initramfs-tools"], "panic=-1"],
    [["dracut"], `root=zfs:AUTO ${ALL}`],
  ])("is nothing with %j, of %j", (kinds, commandLine) => {
    expect(commandLineAdvice(kinds, "p/ROOT", commandLine)).toEqual([]);
  });
});

describe("whether a system has the hook", () => {
  const put = (path: string, seconds: number): void => {
    mkdirSync(dirname(at(path)), { recursive: true });
    writeFileSync(at(path), "");
    utimesSync(at(path), seconds, seconds);
  };

  test("is told by its files, and by what is older", () => {
    expect(findHook(folder)).toBe("absent");
    put("boot/vmlinuz-6.1", 100);
    put("boot/initrd.img-6.1", 100);
    expect(findHook(folder)).toBe("absent");
    put("etc/initramfs-tools/scripts/local-premount/zferry", 200);
    expect(findHook(folder)).toBe("stale");
    put("boot/initrd.img-6.1", 300);
    expect(findHook(folder)).toBe("there");
  });

  test("is taken for granted where there is no initramfs to be seen", () => {
    put("etc/dracut.conf.d/zferry-hook.sh", 200);
    expect(findHook(folder)).toBe("there");
  });
});
