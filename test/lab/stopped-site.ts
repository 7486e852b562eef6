import { MNT, type Machine } from "./guest.js";
import { makeRelease, openSystem, RPOOL, script, SITE_USR } from "./system.js";

/** The bundle of R2. */
export const FILE = "/tmp/R2.bundle";
const ROOT = `${RPOOL}/ROOT/site`;

/** Everything of the site but times: both halves, holds, partial receives, what lies beside, the state. */
const STATE = `
  zfs list -H -p -o name,guid,userrefs -t snapshot -r ${SITE_USR}
  zfs get -H -o value receive_resume_token ${SITE_USR}
  ls -A /var/lib/zferry 2>/dev/null | grep -vx lock | sed 's/^plan-.*/a plan/' || true
  grep -A 3 -h '"release"' /var/lib/zferry/state.json 2>/dev/null || true
  cd ${MNT}/site
  git status --porcelain; git for-each-ref --format='%(refname) %(tree)'; git rev-parse HEAD^{tree}
  find . -path ./.git -prune -o -path ./usr -prune -o -printf '%P %y %m %U:%G %l\\n' | sort
  find . -path ./.git -prune -o -path ./usr -prune -o -type f -print0 | sort -z | xargs -0 sha256sum`;

/** Brings the site back to R1. */
export const RESET = `
  cd /
  zfs get -H -o value receive_resume_token ${SITE_USR} | grep -qx -- - || zfs receive -A ${SITE_USR}
  zfs rollback -r ${SITE_USR}@R1
  zfs release zferry:base ${SITE_USR}@R1 2>/dev/null || true
  zfs rollback ${ROOT}@fresh
  rm -rf /var/lib/zferry`;

/** Commands in a machine, which may be stopped before any of their steps: see stop-at.mjs. */
export class Stopping {
  readonly machine: Machine;

  constructor(machine: Machine) {
    this.machine = machine;
  }

  async lines(text: string): Promise<string> {
    return (await this.machine.run(text, { timeout: 600_000 })).stdout.trim();
  }

  /** The same, which may fail. */
  async attempt(text: string): Promise<{ status: number; stdout: string; stderr: string }> {
    const { status, stdout, stderr } = await this.machine.run(text, { check: false, timeout: 600_000 });
    return { status, stdout, stderr };
  }

  /** The command with a stop before a step, or with none: its number from 1, its name, or `NAME:2` for the second of that name. */
  stopped(command: string, step: number | string = 0, by = "KILL"): string {
    return `STOP_AT='${step}' STOP_BY=${by} STOP_LOG=/tmp/steps node --import ${this.machine.checkout}/test/lab/stop-at.mjs /opt/zferry/lib/cli.js ${command}`;
  }

  /** The same, where anything but a kill before the step is a failure. */
  killed(command: string, step: number | string): string {
    return `if ${this.stopped(command, step)} >/dev/null 2>&1; then exit 1; fi`;
  }

  /** Runs it, and gives what it tells and the names of its steps. */
  async logged(command: string): Promise<{ told: string; steps: string[] }> {
    const told = await this.lines(`rm -f /tmp/steps; ${this.stopped(command)}`);
    const log = await this.lines("cat /tmp/steps");
    return { told, steps: log.split("\n").map((line) => line.replace(/^\d+ /, "")) };
  }

  async stepsOf(command: string): Promise<string[]> {
    return (await this.logged(command)).steps;
  }
}

/** A system with the bundle of R2, whose site is at R1, or is brought back to it. */
export class StoppedSite extends Stopping {
  /** Those of a smooth install. */
  steps: readonly string[] = [];
  /** What `state` gives at R1, and after a smooth install of R2. */
  before = "";
  installed = "";

  /** Opens one, with R2 installed. */
  static async open(): Promise<StoppedSite> {
    const site = new StoppedSite(await openSystem());
    try {
      await makeRelease(site.machine, 2);
      await site.lines(`zfs snapshot ${ROOT}@fresh`);
      site.before = await site.state();
      site.steps = await site.stepsOf(`install ${FILE}`);
      site.installed = await site.state();
      return site;
    } catch (error) {
      await site.machine.close();
      throw error;
    }
  }

  state(): Promise<string> {
    return this.lines(`${STATE}\n${script(this.machine, `fingerprint ${MNT}/site/usr`)} | sha256sum`);
  }
}
