import { spawnSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname } from "node:path";
import { beforeEach, describe, expect, test } from "vitest";
import { CLI, errorOf, inFolder, run, told } from "./support.js";

const folder = inFolder();
const UNIT = "etc/systemd/system/zferry-resume.service";
const UNIT_LINK = "etc/systemd/system/multi-user.target.wants/zferry-resume.service";
const SCRIPT = "etc/init.d/zferry-resume";
const SCRIPT_LINK = "etc/runlevels/default/zferry-resume";
/** As the unit names it, whatever links lead to it. */
const PROGRAM = realpathSync(CLI);

const setup = (...args: string[]) => run(["setup", "--root", folder.path, ...args], { cwd: folder.path });
const systemd = (...args: string[]) => setup("--init", "systemd", ...args);
const openrc = (...args: string[]) => setup("--init", "openrc", ...args);
const text = (path: string): string => readFileSync(folder.file(path), "utf8");
const put = (path: string, content = ""): void => {
  mkdirSync(dirname(folder.file(path)), { recursive: true });
  writeFileSync(folder.file(path), content);
};
const configure = (path: string, state = ""): void =>
  put(path, `product = "demo"\n${state}[streams]\nusr = "p/usr"\n[root]\n`);
const filesOf = (stdout: Buffer): unknown => {
  const { files } = JSON.parse(stdout.toString()) as { files: { path: string; outcome: string }[] };
  return files.map(({ path, outcome }) => [path.slice(folder.path.length + 1), outcome]);
};

beforeEach(() => {
  configure("etc/zferry/site.toml");
  put(process.execPath.slice(1));
  put(PROGRAM.slice(1));
});

describe("bundle setup", () => {
  test("for systemd: a unit, and the link that enables it", async () => {
    const { status, stdout } = await systemd();
    expect([status, stdout.toString()]).toEqual([
      0,
      `set up systemd: a boot finishes an install that was interrupted\n  wrote ${folder.file(UNIT)}\n  wrote ${folder.file(UNIT_LINK)}\n`,
    ]);
    expect(text(UNIT)).toContain(`\nExecStart=:${process.execPath} ${PROGRAM} install --at-boot\n`);
    expect(text(UNIT)).toContain(
      "\nConditionPathExists=|/var/lib/zferry/journal.json\nConditionPathExists=|/var/lib/zferry/mounted-from\n",
    );
    expect(statSync(folder.file(UNIT)).mode & 0o7777).toBe(0o644);
    expect(statSync(folder.file(UNIT_LINK)).ino).toBe(statSync(folder.file(UNIT)).ino);
    expect(readdirSync(dirname(folder.file(UNIT))).sort()).toEqual([
      "multi-user.target.wants",
      "zferry-resume.service",
    ]);
  });

  test("for OpenRC: a script that can be run, and its link in the runlevel", async () => {
    const { status, stdout } = await openrc("--json");
    expect([status, JSON.parse(stdout.toString())]).toEqual([
      0,
      {
        init: "openrc",
        files: [
          { path: folder.file(SCRIPT), outcome: "written" },
          { path: folder.file(SCRIPT_LINK), outcome: "written" },
        ],
      },
    ]);
    expect(text(SCRIPT)).toMatch(/^#!\/sbin\/openrc-run\n/);
    expect(text(SCRIPT)).toContain(`${process.execPath} ${PROGRAM} install --at-boot </dev/null\n`);
    expect(statSync(folder.file(SCRIPT)).mode & 0o7777).toBe(0o755);
    expect(readlinkSync(folder.file(SCRIPT_LINK))).toBe("/etc/init.d/zferry-resume");
  });

  test("a second time says that there is nothing to do, and does nothing", async () => {
    await systemd();
    const before = statSync(folder.file(UNIT)).ino;
    const { status, stdout } = await systemd();
    expect([status, stdout.toString()]).toEqual([0, "systemd is set up already; nothing to do\n"]);
    expect(filesOf((await systemd("--json")).stdout)).toEqual([
      [UNIT, "present"],
      [UNIT_LINK, "present"],
    ]);
    expect(statSync(folder.file(UNIT)).ino).toBe(before);
  });

  test("makes again only what is not as it should be", async () => {
    await openrc();
    unlinkSync(folder.file(SCRIPT_LINK));
    expect(filesOf((await openrc("--json")).stdout)).toEqual([
      [SCRIPT, "present"],
      [SCRIPT_LINK, "written"],
    ]);
    chmodSync(folder.file(SCRIPT), 0o644);
    expect(filesOf((await openrc("--json")).stdout)).toEqual([
      [SCRIPT, "written"],
      [SCRIPT_LINK, "present"],
    ]);
    expect(statSync(folder.file(SCRIPT)).mode & 0o7777).toBe(0o755);
  });

  test("takes a link for its own that systemctl enable made", async () => {
    await systemd();
    unlinkSync(folder.file(UNIT_LINK));
    symlinkSync(`/${UNIT}`, folder.file(UNIT_LINK));
    expect((await systemd()).stdout.toString()).toContain("nothing to do");
  });

  test("replaces an older one of its own", async () => {
    await systemd();
    const now = text(UNIT);
    put(UNIT, now.replace("KillMode=mixed", "KillMode=process"));
    expect(filesOf((await systemd("--json")).stdout)).toEqual([
      [UNIT, "written"],
      [UNIT_LINK, "present"],
    ]);
    expect(text(UNIT)).toBe(now);
  });

  test("passes the configuration on, and waits for the journal of its state folder", async () => {
    configure("etc/other site.toml", 'state = "/srv/100% state"\n');
    expect((await systemd("--config", "/etc/other site.toml")).status).toBe(0);
    expect(text(UNIT)).toContain(` install --at-boot --config "/etc/other site.toml"\n`);
    expect(text(UNIT)).toContain("\nConditionPathExists=|/srv/100%% state/journal.json\n");
    expect(text(UNIT)).toContain(
      `\nRequiresMountsFor="/srv/100%% state" ${process.execPath} ${PROGRAM} / "/etc/other site.toml"\n`,
    );
    expect((await openrc("--config", "/etc/other site.toml")).status).toBe(0);
    expect(text(SCRIPT)).toContain(` install --at-boot --config '/etc/other site.toml' </dev/null\n`);
    expect(text(SCRIPT)).toContain(
      "[ -e '/srv/100% state/journal.json' ] || [ -e '/srv/100% state/mounted-from' ] || return 0\n",
    );
  });

  test.skipIf(process.geteuid?.() !== 0)("is written again where it is somebody else's", async () => {
    await systemd();
    chownSync(folder.file(UNIT), 5, 5);
    expect(filesOf((await systemd("--json")).stdout)).toEqual([
      [UNIT, "written"],
      [UNIT_LINK, "present"],
    ]);
    expect(statSync(folder.file(UNIT)).uid).toBe(0);
  });

  test("warns of a system in which the program is not there", async () => {
    rmSync(folder.file(PROGRAM));
    expect((await systemd()).stderr).toBe(
      `there is no ${folder.file(PROGRAM)}, by which zferry is started at boot\n`,
    );
    put(PROGRAM.slice(1));
    expect((await systemd()).stderr).toBe("");
  });
});

describe("for a site with boot environments", () => {
  const TRIAL = "etc/systemd/system/zferry-trial.service";
  const TRIAL_LINK = "etc/systemd/system/sysinit.target.wants/zferry-trial.service";
  const HOOK = "etc/initramfs-tools/scripts/local-premount/zferry";
  const DRACUT = ["etc/dracut.conf.d/zferry-hook.sh", "etc/dracut.conf.d/zferry.conf"];
  const useMode = (mode: string, more = 'container = "p/ROOT"\n'): void =>
    put(
      "etc/zferry/site.toml",
      `product = "demo"\n[streams]\nusr = "p/usr"\n[root]\n[install]\nmode = "${mode}"\n[boot-environment]\n${more}`,
    );
  beforeEach(() => {
    useMode("boot-environment");
    mkdirSync(folder.file("etc/initramfs-tools"));
  });

  test("there is also what looks after one on trial, and the command that makes the initramfs", async () => {
    const { status, stdout } = await systemd("--json");
    expect([status, filesOf(stdout)]).toEqual([
      0,
      [UNIT, UNIT_LINK, TRIAL, TRIAL_LINK, HOOK].map((path) => [path, "written"]),
    ]);
    const advice = "to have the hook in the initramfs of this system: update-initramfs -u -k all";
    expect(JSON.parse(stdout.toString())).toMatchObject({ advice: [advice] });
    expect((await systemd()).stderr).toBe(`${advice}\n`);
    expect(text(TRIAL)).toContain(`\nExecStart=:${process.execPath} ${PROGRAM} confirm --or-go-back\n`);
    expect(text(HOOK)).toContain("\ncontainer=p/ROOT\npool=p\nloader=bootfs\n");
    expect(statSync(folder.file(HOOK)).mode & 0o7777).toBe(0o755);
    expect((await systemd()).stdout.toString()).toBe("systemd is set up already; nothing to do\n");
  });

  test("for OpenRC and dracut, with another loader", async () => {
    rmSync(folder.file("etc/initramfs-tools"), { recursive: true });
    mkdirSync(folder.file("etc/dracut.conf.d"));
    useMode("boot-environment", 'container = "p/ROOT"\nloader = "zectl"\n');
    const { stdout } = await openrc("--json");
    const { stderr } = await openrc();
    const levels = ["boot", "default"].map((level) => `etc/runlevels/${level}/zferry-trial`);
    const script = ["etc/init.d/zferry-trial", ...levels];
    expect(filesOf(stdout)).toEqual(
      [SCRIPT, SCRIPT_LINK, ...script, ...DRACUT].map((path) => [path, "written"]),
    );
    expect(stderr).toContain("dracut --regenerate-all --force\n");
    expect(stderr).toContain("cannot switch what loader zectl boots\n");
    expect(text(DRACUT[0] ?? "")).toContain("\nloader=zectl\nreboots=yes\n");
    expect(text(DRACUT[1] ?? "")).toContain(`include_src+=(/${DRACUT[0]})`);
  });

  test("it tells what there is no hook for", async () => {
    rmSync(folder.file("etc/initramfs-tools"), { recursive: true });
    expect((await systemd()).stderr).toContain("neither initramfs-tools nor dracut is there");
    useMode("boot-environment", "");
    expect((await systemd()).stderr).toContain(
      "is no ZFS dataset: the hook for the initramfs needs container",
    );
  });

  test("--print shows all of it, and --remove takes it away", async () => {
    const printed = (await systemd("--print")).stdout.toString();
    expect(existsSync(folder.file(HOOK))).toBe(false);
    await systemd();
    for (const path of [UNIT, TRIAL, HOOK])
      expect(printed).toContain(`# ${folder.file(path)}\n${text(path)}`);
    expect(printed).toContain(`# ${folder.file(TRIAL_LINK)} -> ../zferry-trial.service\n`);
    const removed = [UNIT_LINK, UNIT, TRIAL_LINK, TRIAL, HOOK];
    expect((await setup("--remove")).stdout.toString()).toBe(
      removed.map((path) => `removed ${folder.file(path)}\n`).join(""),
    );
  });

  test("one that is updated in place again has nothing of it any more", async () => {
    await systemd();
    useMode("in-place");
    const { stdout } = await systemd();
    const gone = [TRIAL_LINK, TRIAL, HOOK];
    expect(stdout.toString()).toBe(
      `set up systemd: a boot finishes an install that was interrupted\n${gone.map((path) => `  removed ${folder.file(path)}\n`).join("")}`,
    );
    for (const path of gone) expect(existsSync(folder.file(path))).toBe(false);
  });

  test("a file that zferry did not write is left alone, and nothing else is changed", async () => {
    put(HOOK, "#!/bin/sh\n");
    expect(errorOf(await systemd("--json"))).toMatchObject({
      code: "output-exists",
      details: { file: folder.file(HOOK) },
    });
    expect(existsSync(folder.file(UNIT))).toBe(false);
    expect(text(HOOK)).toBe("#!/bin/sh\n");
  });
});

describe("the init system", () => {
  test.each([
    ["systemd", "usr/lib/systemd/systemd"],
    ["systemd", "lib/systemd/systemd"],
    ["openrc", "sbin/openrc-run"],
    ["openrc", "usr/sbin/openrc-run"],
    ["openrc", "usr/bin/openrc-run"],
  ])("is %s where %s is", async (init, program) => {
    put(program);
    expect(JSON.parse((await setup("--json")).stdout.toString())).toMatchObject({ init });
  });

  test("is not that of the machine itself, which a link leads to", async () => {
    put("sbin/openrc-run");
    rmSync(folder.file("usr"), { recursive: true, force: true });
    symlinkSync("/usr", folder.file("usr"));
    symlinkSync("/usr/lib", folder.file("lib"));
    expect(JSON.parse((await setup("--json")).stdout.toString())).toMatchObject({ init: "openrc" });
  });

  test("must be named where both are, or none", async () => {
    const hint = "say which is meant: --init systemd or --init openrc";
    expect(told(await setup())).toEqual({
      status: 17,
      message: `${folder.path} has neither systemd nor OpenRC`,
      hint,
    });
    put("usr/lib/systemd/systemd");
    put("sbin/openrc-run");
    expect(told(await setup())).toEqual({
      status: 17,
      message: `${folder.path} has both systemd and OpenRC, and neither is running`,
      hint,
    });
    expect(existsSync(folder.file("etc/systemd"))).toBe(false);
  });
});

describe("bundle setup --print", () => {
  test("shows what would be written, and writes nothing", async () => {
    const { status, stdout } = await systemd("--print");
    expect([status, readdirSync(folder.file("etc"))]).toEqual([0, ["zferry"]]);
    const json = await openrc("--print", "--json");
    expect(readdirSync(folder.file("etc"))).toEqual(["zferry"]);
    await systemd();
    await openrc();
    expect(stdout.toString()).toBe(
      `# ${folder.file(UNIT)}\n${text(UNIT)}\n# ${folder.file(UNIT_LINK)} -> ../zferry-resume.service\n`,
    );
    expect(JSON.parse(json.stdout.toString())).toEqual({
      init: "openrc",
      files: [
        { path: folder.file(SCRIPT), outcome: "printed", mode: "755", text: text(SCRIPT) },
        { path: folder.file(SCRIPT_LINK), outcome: "printed", target: "/etc/init.d/zferry-resume" },
      ],
    });
  });
});

describe("bundle setup --remove", () => {
  test("takes away what is there of both, without a configuration", async () => {
    await systemd();
    await openrc();
    rmSync(folder.file("etc/zferry"), { recursive: true });
    put("etc/init.d/sshd", "#!/sbin/openrc-run\n");
    unlinkSync(folder.file(SCRIPT));
    const { status, stdout } = await setup("--remove");
    expect([status, stdout.toString()]).toEqual([
      0,
      [UNIT_LINK, UNIT, SCRIPT_LINK].map((path) => `removed ${folder.file(path)}\n`).join(""),
    ]);
    expect(readdirSync(folder.file("etc/init.d"))).toEqual(["sshd"]);
    expect((await setup("--remove")).stdout.toString()).toBe(
      "nothing of bundle setup is there; nothing to do\n",
    );
  });

  test("leaves the other init system's where one is named", async () => {
    await systemd();
    await openrc();
    const { stdout } = await openrc("--remove", "--json");
    expect(JSON.parse(stdout.toString())).toMatchObject({ init: "openrc" });
    expect(filesOf(stdout)).toEqual([
      [SCRIPT_LINK, "removed"],
      [SCRIPT, "removed"],
    ]);
    expect(existsSync(folder.file(UNIT_LINK))).toBe(true);
  });

  test("removes nothing where one thing is not zferry's", async () => {
    await systemd();
    put(SCRIPT, "#!/sbin/openrc-run\n");
    expect(errorOf(await setup("--remove", "--json"))).toMatchObject({
      code: "output-exists",
      details: { file: folder.file(SCRIPT) },
    });
    expect(existsSync(folder.file(UNIT))).toBe(true);
  });
});

describe("refused, with nothing changed:", () => {
  test("a file that zferry did not write", async () => {
    put(UNIT, "[Service]\nExecStart=/bin/true\n");
    expect(told(await systemd())).toEqual({
      status: 17,
      message: `${folder.file(UNIT)}: there is a file that zferry did not write`,
      hint: "move it away, if nothing needs it",
    });
    expect(text(UNIT)).toBe("[Service]\nExecStart=/bin/true\n");
    expect(existsSync(folder.file(UNIT_LINK))).toBe(false);
  });

  test.each<[string, string, string]>([
    ["a unit that is masked", UNIT, "/dev/null"],
    ["a link to another unit", UNIT_LINK, "../other.service"],
  ])("%s", async (_, path, target) => {
    mkdirSync(dirname(folder.file(path)), { recursive: true });
    symlinkSync(target, folder.file(path));
    expect(errorOf(await systemd("--json"))).toMatchObject({
      code: "output-exists",
      details: { file: folder.file(path) },
    });
    expect(readlinkSync(folder.file(path))).toBe(target);
    expect(
      lstatSync(folder.file(path === UNIT ? UNIT_LINK : UNIT), { throwIfNoEntry: false }),
    ).toBeUndefined();
  });

  test("a folder on the way that is a link, which may lead into another system", async () => {
    mkdirSync(folder.file("elsewhere"));
    symlinkSync(folder.file("elsewhere"), folder.file("etc/systemd"));
    const { code, message } = errorOf(await systemd("--json"));
    expect([code, message]).toEqual([
      "output-exists",
      `${folder.file(UNIT)}: a folder on the way to it is a link, or no folder`,
    ]);
    expect(readdirSync(folder.file("elsewhere"))).toEqual([]);
  });

  test("a folder on the way that is a file", async () => {
    put("etc/systemd/system/multi-user.target.wants");
    expect(errorOf(await systemd("--json")).code).toBe("output-exists");
    expect(existsSync(folder.file(UNIT))).toBe(false);
  });

  test("a configuration that is a link, which may lead to another system's", async () => {
    rmSync(folder.file("etc/zferry/site.toml"));
    configure("other.toml");
    symlinkSync(folder.file("other.toml"), folder.file("etc/zferry/site.toml"));
    expect(errorOf(await systemd("--json"))).toMatchObject({
      code: "not-configured",
      details: { file: folder.file("etc/zferry/site.toml") },
    });
    expect(existsSync(folder.file(UNIT))).toBe(false);
    expect((await systemd("--config", "/other.toml")).status).toBe(0);
  });

  test("a site without configuration, or with a wrong one", async () => {
    put("etc/zferry/site.toml", "product = 1\n");
    expect(told(await systemd()).status).toBe(10);
    rmSync(folder.file("etc/zferry/site.toml"));
    expect(told(await systemd())).toMatchObject({
      status: 17,
      message: `site configuration ${folder.file("etc/zferry/site.toml")}: there is no such file`,
    });
  });

  test.each<[string[], number, string]>([
    [["--init", "upstart"], 2, '--init "upstart": is not systemd or openrc'],
    [["--print", "--remove"], 2, "--print and --remove contradict each other"],
    [["--init", "systemd", "--config", "site.toml"], 2, '--config "site.toml": is not an absolute path'],
  ])("%j", async (args, status, message) => {
    expect(told(await setup(...args))).toMatchObject({ status, message });
  });

  test("a root that is not there", async () => {
    expect(told(await run(["setup", "--root", ""]))).toMatchObject({
      status: 2,
      message: "--root names no folder",
    });
    expect(told(await run(["setup", "--root", folder.file("none"), "--init", "openrc"]))).toMatchObject({
      status: 16,
      message: `cannot open ${folder.file("none")}: there is no such file or folder`,
    });
  });

  test("a file that cannot be written: there is no part of it, and no link", () => {
    const args = ["setup", "--root", folder.path, "--init", "systemd"];
    const script = 'ulimit -f 0; exec "$@"';
    const { status, stderr } = spawnSync("sh", ["-c", script, "sh", process.execPath, CLI, ...args], {
      encoding: "utf8",
    });
    expect([status, stderr]).toEqual([
      16,
      `bundle: cannot write ${folder.file(UNIT)}: the file would be larger than it may be (EFBIG)\n` +
        "  the file system, or ulimit -f, allows none so large; a bundle can be written elsewhere, and bundle copy makes volumes of it\n",
    ]);
    expect(readdirSync(dirname(folder.file(UNIT)))).toEqual([]);
  });

  test("a state folder that no line of a unit can name", async () => {
    configure("etc/zferry/site.toml", 'state = "/var/lib/a\\nb"\n');
    expect(errorOf(await systemd("--json")).code).toBe("usage");
    expect(readdirSync(folder.file("etc"))).toEqual(["zferry"]);
  });
});
