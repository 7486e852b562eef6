import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MNT } from "./guest.js";
import { rarely, shareOf } from "./rounds.js";
import { FILE, Stopping } from "./stopped-site.js";
import { makeRelease, openSystem, RPOOL, script, SITE_USR } from "./system.js";

/*
 * An install that is rolled back, confirmed, or made once more. Every round begins with the same site at R1, or with R2 installed.
 */

const ROOT = `${RPOOL}/ROOT/site`;
const SITE = `${MNT}/site`;

let site: Stopping;
/** The site at R1, the same with {@link CHANGE}, and with R2 installed. */
let before: string;
let changed: string;
let installed: string;

const lines = (text: string): Promise<string> => site.lines(text);

/** Everything of the site but times and history: both halves, holds, partial receives, what lies beside. */
const STATE = `
  zfs list -H -p -o name,guid,userrefs -t snapshot -r ${SITE_USR}
  zfs get -H -o value receive_resume_token ${SITE_USR}
  ls -A /var/lib/zferry 2>/dev/null | grep -vx -e lock -e state.json -e install.log | sed 's/^plan-.*/a plan/' || true
  cd ${SITE}
  git status --porcelain; git for-each-ref --format='%(refname) %(tree)' refs/zferry; git rev-parse HEAD^{tree}
  find . -path ./.git -prune -o -path ./usr -prune -o -printf '%P %y %m %U:%G %l\\n' | sort
  find . -path ./.git -prune -o -path ./usr -prune -o -type f -print0 | sort -z | xargs -0 sha256sum
  getfattr -R -h -d -m user -e hex etc 2>/dev/null | grep -v '^#' | sort || true`;
const USR = (): string => `${script(site.machine, `fingerprint ${SITE}/usr`)} | sha256sum`;
const siteState = (): Promise<string> => lines(`${STATE}\n${USR()}`);

/** Brings the site to where R2 is installed. */
const INSTALLED = `
  cd /
  zfs inherit readonly ${SITE_USR}; zfs rollback -r ${SITE_USR}@R1
  zfs receive -u ${SITE_USR}@R2 </tmp/R2.stream
  zfs hold zferry:base ${SITE_USR}@R1 2>/dev/null || true
  zfs rollback ${ROOT}@installed
  rm -rf /var/lib/zferry; cp -a /tmp/state-installed /var/lib/zferry`;

/** What the site does to its /: committed, and what git does not keep. */
const CHANGE = `
  cd ${SITE}; sed -i 's/^Option05 .*/Option05 of-this-site/' etc/sshd_config; echo hello >etc/motd
  git add -A; git commit -qm 'of this site'
  chmod 600 etc/hosts; setfattr -n user.site -v 1 etc/conf.d/keymaps`;

beforeAll(async () => {
  site = new Stopping(await openSystem());
  await makeRelease(site.machine, 2);
  await lines(`zfs snapshot ${ROOT}@fresh`);
  before = await siteState();
  await lines(CHANGE);
  changed = await siteState();
  await lines(`zfs rollback ${ROOT}@fresh`);
  expect(await lines(`bundle install ${FILE}`)).toContain("installed gentoo release R2 (2)");
  installed = await siteState();
  await lines(`
    zfs snapshot ${ROOT}@installed; cp -a /var/lib/zferry /tmp/state-installed
    zfs send -i @R1 ${SITE_USR}@R2 >/tmp/R2.stream`);
});
afterAll(() => site?.machine.close());

describe("an install, a change of the site, a rollback, and the install again", () => {
  it("tells what it would do, and changes nothing", async () => {
    await lines(`${INSTALLED}\n${CHANGE}`);
    expect(await lines("bundle status")).toContain("can be rolled back: bundle rollback");
    const here = await siteState();
    const plan = await lines("bundle rollback --plan");
    expect(plan).toContain("gentoo release R2 (2) would be rolled back; nothing was changed");
    expect(plan).toContain(`usr: ${SITE_USR}, back to ${SITE_USR}@R1`);
    expect(plan).not.toContain("lost");
    expect(await siteState()).toBe(here);
  });

  it("takes both halves back, and keeps the change", async () => {
    expect(await lines("bundle rollback")).toMatch(/^rolled back gentoo release R2 \(2\)/);
    expect(await siteState()).toBe(changed);
    expect(await lines(`git -C ${SITE} log -3 --format=%s`)).toBe("Roll back R2\nof this site\nInstall R2");
    expect(await lines("bundle status")).toContain("installed: no release by zferry any more");
    expect(await lines("bundle history")).toMatch(/R2 +2 +\d{4}-.* +[0-9A-F]{16} +rolled back at \d{4}-/);
    const { status, stderr } = await site.attempt("bundle rollback");
    expect([status, stderr]).toEqual([
      17,
      expect.stringMatching(/nothing can be rolled back: release R2 \(2\) was, at /),
    ]);
    expect(await lines("bundle confirm")).toContain("nothing to confirm");
    expect(await siteState()).toBe(changed);
  });

  it("goes forward again with the same bundle, and is what it was", async () => {
    await lines(`${INSTALLED}\n${CHANGE}`);
    const forward = await siteState();
    await lines("bundle rollback");
    expect(await lines(`bundle install ${FILE}`)).toContain("installed gentoo release R2 (2)");
    expect(await siteState()).toBe(forward);
    const history = JSON.parse(await lines("bundle history --json")) as {
      installations: { result: string }[];
    };
    expect(history.installations.map(({ result }) => result)).toEqual(["installed", "rolled-back"]);
  });

  rarely("leaves no hold where it is given up then", async () => {
    await lines("bundle rollback");
    await lines(`${site.killed(`install ${FILE}`, "journal: writing")}\nbundle abort`);
    expect(await siteState()).toBe(changed);
  });
});

describe("what came into /usr since the install", () => {
  it("is listed, and lost only where somebody agrees", async () => {
    await lines(`${INSTALLED}
      zfs set readonly=off ${SITE_USR}; zfs snapshot ${SITE_USR}@mine
      head -c 300000 /dev/urandom >${SITE}/usr/own; zpool sync ${RPOOL}`);
    const here = await siteState();
    const plan = JSON.parse(await lines("bundle rollback --plan --json")) as {
      streams: { lost: { snapshots: { snapshot: string }[]; written: number } }[];
    };
    expect(plan.streams[0]?.lost.snapshots.map(({ snapshot }) => snapshot)).toEqual(["mine"]);
    expect(plan.streams[0]?.lost.written).toBeGreaterThan(300_000);
    const refused = await site.attempt("bundle rollback </dev/null");
    expect([refused.status, refused.stderr]).toEqual([
      17,
      expect.stringMatching(/would lose of .*: .*@mine, \d+\.\d KiB written since\n.*--discard/),
    ]);
    const denied = await site.attempt(`
      rm -f /tmp/answer /tmp/screen; mkfifo /tmp/answer; exec 9<>/tmp/answer
      script -qefc 'bundle rollback' /dev/null <&9 >/tmp/screen & asked=$!
      until grep -q 'yes or no' /tmp/screen; do kill -0 $asked; sleep 0.1; done
      echo no >&9; wait $asked || status=$?; cat /tmp/screen; exit $status`);
    expect([denied.status, denied.stdout]).toEqual([17, expect.stringContaining("would be lost: ")]);
    expect(await siteState()).toBe(here);
    expect(await lines(`zfs inherit readonly ${SITE_USR}; bundle rollback --discard`)).toContain(
      `lost: ${SITE_USR}@mine`,
    );
    expect(await siteState()).toBe(before);
  });

  rarely("is not lost while a clone or a hold has it, whoever agrees", async () => {
    await lines(`${INSTALLED}\nzfs snapshot ${SITE_USR}@mine`);
    const here = await siteState();
    const clone = await site.attempt(
      `zfs clone ${SITE_USR}@mine ${RPOOL}/clone; bundle rollback --discard || status=$?; zfs destroy ${RPOOL}/clone; exit $status`,
    );
    expect([clone.status, clone.stderr]).toEqual([17, expect.stringContaining(`${RPOOL}/clone`)]);
    const held = await site.attempt(
      `zfs hold mine ${SITE_USR}@mine; bundle rollback --discard || status=$?; zfs release mine ${SITE_USR}@mine; exit $status`,
    );
    expect([held.status, held.stderr]).toEqual([17, expect.stringContaining(`holds on ${SITE_USR}@mine`)]);
    expect(await siteState()).toBe(here);
  });

  rarely("has the bookmarks listed that zfs destroys with it, and no others", async () => {
    await lines(`${INSTALLED}
      zfs bookmark ${SITE_USR}@R1 ${SITE_USR}#base; zfs bookmark ${SITE_USR}@R2 ${SITE_USR}#sent`);
    const refused = await site.attempt("bundle rollback </dev/null");
    expect([refused.status, refused.stderr]).toEqual([
      17,
      expect.stringContaining(`would lose of ${SITE_USR}: ${SITE_USR}#sent\n`),
    ]);
    const agreed = site.killed("rollback --discard", "zfs rollback");
    expect(await lines(`${agreed}; zfs list -H -o name -t bookmark ${SITE_USR}`)).toBe(
      `${SITE_USR}#base\n${SITE_USR}#sent`,
    );
    await lines("bundle rollback </dev/null");
    expect(await lines(`zfs list -H -o name -t bookmark ${SITE_USR}`)).toBe(`${SITE_USR}#base`);
    await lines(`zfs destroy ${SITE_USR}#base`);
    expect(await siteState()).toBe(before);
  });

  rarely("is agreed to once, also where the rollback is killed before it is lost", async () => {
    await lines(`${INSTALLED}
      zfs set readonly=off ${SITE_USR}; echo own >${SITE}/usr/own; zpool sync ${RPOOL}; zfs inherit readonly ${SITE_USR}
      ${site.killed("rollback --discard", "zfs rollback")}
      zfs snapshot ${SITE_USR}@later`);
    const other = await site.attempt("bundle install </dev/null");
    expect([other.status, other.stderr]).toEqual([17, expect.stringMatching(/would lose of .*@later\n/)]);
    // What a file system writes by itself is not asked for, and a file is.
    const more = await site.attempt(`zfs destroy ${SITE_USR}@later; zfs set readonly=off ${SITE_USR}
      head -c 3000000 /dev/urandom >${SITE}/usr/more; zpool sync ${RPOOL}; zfs inherit readonly ${SITE_USR}
      bundle install </dev/null`);
    expect([more.status, more.stderr]).toEqual([
      17,
      expect.stringMatching(/would lose of .*: .* MiB written since\n/),
    ]);
    await lines(`zfs set readonly=off ${SITE_USR}; rm ${SITE}/usr/more; zpool sync ${RPOOL}; zfs inherit readonly ${SITE_USR}
      bundle install </dev/null`);
    expect(await siteState()).toBe(before);
  });
});

describe("a rollback that is killed before any step", () => {
  it("is brought to its end by bundle rollback, or install; or given up while nothing is rolled back", async () => {
    await lines(INSTALLED);
    const steps = await site.stepsOf("rollback");
    expect(await siteState()).toBe(before);
    for (const step of [
      "journal: preparing",
      "journal: rolling-back",
      "zfs rollback",
      "journal: writing",
      "git update-ref",
      "journal: recording",
      "state",
      "zfs release",
      "remove journal",
    ]) {
      expect(steps).toContain(step);
    }
    for (const [index, step] of shareOf(steps, 0, 16)) {
      const where = `killed before ${index + 1}, ${step}`;
      await lines(`${INSTALLED}\n${site.killed("rollback", index + 1)}`);
      const isBack = index > steps.indexOf("zfs rollback");
      const isBegun = index > steps.indexOf("journal: preparing");
      const isDone = index > steps.indexOf("state");
      if (index % 3 === 0) {
        const given = await site.attempt("bundle abort");
        expect([where, given.status]).toEqual([where, isBack && !isDone ? 17 : 0]);
        if (!isBack) {
          const once = await siteState();
          expect(`${where}\n${once}`).toBe(`${where}\n${installed}`);
          continue;
        }
      }
      if (index === steps.indexOf("zfs rollback") || index === steps.indexOf("journal: writing")) {
        expect(await lines("bundle status")).toContain("under way: rollback of release R2 (2)");
        const other = await site.attempt(`bundle install ${FILE}`);
        expect([where, other.status, other.stderr]).toEqual([
          where,
          17,
          expect.stringMatching(/is being rolled back, .*\n.*bundle rollback/),
        ]);
        expect((await site.attempt("bundle confirm")).status).toBe(17);
      }
      // As at boot, or as it was typed. Once the journal is gone it is done, and any command cleans up.
      const isOver = index > steps.indexOf("remove journal") || (isDone && index % 3 === 0);
      const ways = isOver ? ["confirm"] : isBegun ? ["install </dev/null", "rollback"] : ["rollback"];
      await lines(`bundle ${ways[index % ways.length] ?? ""}`);
      const once = await siteState();
      expect(`${where}\n${once}`).toBe(`${where}\n${before}`);
    }
  }, 3_600_000);

  rarely("goes on, as giving up does, where zfs was ended between a snapshot and the dataset", async () => {
    // zfs rollback -r destroys what is newer first.
    const ended = `zfs destroy ${SITE_USR}@R2; zfs get -H -o value zferry:returning ${SITE_USR} | grep -qx '[0-9]*'`;
    await lines(`${INSTALLED}\n${site.killed("rollback", "zfs rollback")}\n${ended}`);
    expect((await site.attempt("bundle abort")).status).toBe(17);
    await lines("bundle install </dev/null");
    expect(await siteState()).toBe(before);
    // Given up before that, nothing is left of it.
    await lines(`${INSTALLED}\n${site.killed("rollback", "zfs rollback")}\nbundle abort`);
    expect(await lines(`zfs get -H -o value zferry:returning ${SITE_USR}`)).toBe("-");
    await lines("bundle rollback");
    await lines(`${site.killed(`install ${FILE}`, "journal: writing")}
      ${site.killed("abort", "zfs rollback")}\n${ended}`);
    expect(await lines("bundle abort")).toContain("gave up gentoo release R2 (2)");
    expect(await siteState()).toBe(before);
    expect(await lines(`zfs get -H -o value zferry:returning ${SITE_USR}`)).toBe("-");
  });

  rarely(
    "says who has the base where a clone was promoted meanwhile, and goes on once it is back, or is given up",
    async () => {
      for (const end of ["rollback", "abort"]) {
        await lines(`${INSTALLED}\n${site.killed("rollback", "zfs rollback")}
        zfs clone -o mountpoint=none ${SITE_USR}@${end === "abort" ? "R2" : "R1"} ${RPOOL}/clone; zfs promote ${RPOOL}/clone`);
        const refused = await site.attempt("bundle rollback");
        expect([refused.status, refused.stderr]).toEqual([
          13,
          expect.stringMatching(
            `: it is ${RPOOL}/clone@R1 since ${RPOOL}/clone was promoted\n.*zfs promote ${SITE_USR}`,
          ),
        ]);
        if (end === "abort") expect(await lines("bundle abort")).toContain("gave up the rollback of");
        await lines(`zfs promote ${SITE_USR}`);
        if (end === "rollback") await lines("bundle rollback");
        await lines(`zfs destroy ${RPOOL}/clone`);
        expect(await siteState()).toBe(end === "abort" ? installed : before);
      }
    },
  );

  rarely("says that the dataset has another name, or is no more", async () => {
    await lines(
      `${INSTALLED}\n${site.killed("rollback", "zfs rollback")}\nzfs rename -u ${SITE_USR} ${SITE_USR}-old`,
    );
    for (const command of ["rollback", "abort"]) {
      const { status, stderr } = await site.attempt(`bundle ${command}`);
      expect([status, stderr]).toEqual([
        13,
        expect.stringMatching(
          `there is no dataset ${SITE_USR} any more, .*\n.*: zfs rename ${SITE_USR}-old ${SITE_USR}\n`,
        ),
      ]);
    }
    await lines(`zfs rename -u ${SITE_USR}-old ${SITE_USR}; bundle rollback`);
    expect(await siteState()).toBe(before);
  });

  rarely("runs from the base's snapshot with --live, and agrees with nobody", async () => {
    await lines(`${INSTALLED}\nzfs snapshot ${SITE_USR}@mine`);
    const refused = await site.attempt("bundle rollback --live");
    expect([refused.status, refused.stderr]).toEqual([17, expect.stringMatching(/would lose of .*@mine\n/)]);
    const { stdout, stderr } = await site.attempt("bundle rollback --live --discard");
    expect(stderr).toContain(`running from ${SITE_USR}@R1; the log is /var/lib/zferry/install.log`);
    expect(stdout).toMatch(/^rolled back gentoo release R2 \(2\)/);
    expect(await siteState()).toBe(before);
    expect(await lines(`grep -l '${SITE_USR}@' /proc/*/mountinfo 2>/dev/null || true`)).toBe("");
  });

  rarely("plans / anew where the site committed something meanwhile", async () => {
    await lines(`${INSTALLED}
      ${site.killed("rollback", "journal: writing")}
      cd ${SITE}; echo hello >etc/motd; git add etc/motd; git commit -qm motd
      bundle rollback`);
    expect(await lines(`cat ${SITE}/etc/motd; git -C ${SITE} status --porcelain; ${USR()}`)).toBe(
      `hello\n${before.split("\n").at(-1)}`,
    );
  });
});

describe("bundle confirm", () => {
  it("lets the base go, for good, also where it was killed", async () => {
    for (const [, step] of shareOf(["state", "zfs release", "remove plan"], 0, 2)) {
      await lines(`${INSTALLED}\n${site.killed("confirm", step)}`);
      const again = await lines("bundle confirm");
      expect(again).toMatch(
        step === "state" ? /^confirmed gentoo release R2/ : /^.* R2 .*; nothing to confirm$/,
      );
      expect(await lines(`zfs holds -H ${SITE_USR}@R1; ls /var/lib/zferry`)).toBe("lock\nstate.json");
    }
    const { status, stderr } = await site.attempt("bundle rollback --discard");
    expect([status, stderr]).toEqual([17, expect.stringContaining("release R2 (2) was confirmed at ")]);
    expect(await lines("bundle history")).toMatch(/^R2 .* confirmed at \d{4}-/m);
    expect(await lines("bundle status")).not.toContain("bundle rollback");
  });
});

describe("a base whose dataset was renamed", () => {
  rarely("is let go all the same, and a held copy is left", async () => {
    const [renamed, copy] = [`${SITE_USR}-new`, `${RPOOL}/copy`];
    const confirmed = await site.attempt(`${INSTALLED}
      zfs send ${SITE_USR}@R1 | zfs receive -u ${copy}; zfs hold zferry:base ${copy}@R1
      zfs rename -u ${SITE_USR} ${renamed}; bundle confirm`);
    expect([confirmed.status, confirmed.stderr]).toEqual([0, expect.not.stringContaining("warning")]);
    expect(await lines(`zfs holds -H ${renamed}@R1 ${copy}@R1 | cut -f 1,2`)).toBe(`${copy}@R1\tzferry:base`);
  });

  rarely("is told where nothing says which one it is", async () => {
    const [renamed, copy] = [`${SITE_USR}-new`, `${RPOOL}/copy`];
    const confirmed = await site.attempt(`zfs rename -u ${renamed} ${SITE_USR}\n${INSTALLED}
      sed -i -E '/"rawBytes"/s/,$//; /"baseDataset"/d' /var/lib/zferry/state.json
      zfs rename -u ${SITE_USR} ${renamed}; bundle confirm`);
    expect([confirmed.status, confirmed.stderr]).toEqual([
      0,
      expect.stringContaining(`: zfs release zferry:base ${renamed}@R1\n`),
    ]);
    expect(confirmed.stderr).toContain(`: zfs release zferry:base ${copy}@R1\n`);
    await lines(`zfs release zferry:base ${copy}@R1; zfs destroy -r ${copy}
      zfs release zferry:base ${renamed}@R1; zfs rename -u ${renamed} ${SITE_USR}`);
  });
});

describe("a product with two datasets", () => {
  const [USR2, OPT2] = [`${RPOOL}/two/usr`, `${RPOOL}/two/opt`];
  const config = "--config /tmp/two.toml";
  const state = (): Promise<string> =>
    lines(
      `for d in ${USR2} ${OPT2}; do zfs list -H -p -o name,guid,userrefs -t snapshot -r $d; cat ${MNT}/$d/file; done; ls /var/lib/zferry-two 2>/dev/null | grep journal || true`,
    );
  let one: string;
  let two: string;

  beforeAll(async () => {
    await lines(`
      zfs create -p ${RPOOL}/from; zfs create ${RPOOL}/two
      for role in usr opt; do
        zfs create ${RPOOL}/from/$role; echo 1 >${MNT}/${RPOOL}/from/$role/file; zfs snapshot ${RPOOL}/from/$role@S1
        echo 2 >${MNT}/${RPOOL}/from/$role/file; zfs snapshot ${RPOOL}/from/$role@S2
        zfs send ${RPOOL}/from/$role@S1 | zfs receive ${RPOOL}/two/$role; zfs set readonly=on ${RPOOL}/two/$role
        zfs send -i @S1 ${RPOOL}/from/$role@S2 >/tmp/$role.stream
      done
      bundle create --stream usr=/tmp/usr.stream --stream opt=/tmp/opt.stream --product gentoo --release S2 --sequence 2 \
        --key /etc/zferry/release.key -o /tmp/S2.bundle`);
    await site.machine.write(
      "/tmp/two.toml",
      `product = "gentoo"\nstate = "/var/lib/zferry-two"\n[streams]\nusr = "${USR2}"\nopt = "${OPT2}"\n`,
    );
    one = await state();
    await lines(`bundle install ${config} /tmp/S2.bundle`);
    two = await state();
    expect(two).not.toBe(one);
  });

  it("has neither rolled back where one of them cannot be", async () => {
    const refused = await site.attempt(
      `zfs clone ${USR2}@S2 ${RPOOL}/clone; bundle rollback ${config} || status=$?; zfs destroy ${RPOOL}/clone; exit $status`,
    );
    expect([refused.status, refused.stderr]).toEqual([17, expect.stringContaining(`clones of ${USR2}@S2`)]);
    expect(await state()).toBe(two);
  });

  it("has both rolled back, also where it is killed between them", async () => {
    const steps = await site.stepsOf(`rollback ${config}`);
    expect(await state()).toBe(one);
    // Somebody's snapshots between base and target are no loss, and stay.
    await lines(`zfs snapshot ${USR2}@daily ${OPT2}@daily`);
    const daily = await state();
    await lines(`bundle install ${config} /tmp/S2.bundle`);
    const second = steps.lastIndexOf("zfs rollback");
    expect(second).toBeGreaterThan(steps.indexOf("zfs rollback"));
    await lines(site.killed(`rollback ${config}`, second + 1));
    expect(await lines(`cat ${MNT}/${USR2}/file ${MNT}/${OPT2}/file`)).toBe("2\n1");
    const given = await site.attempt(`bundle abort ${config}`);
    expect([given.status, given.stderr]).toEqual([
      17,
      expect.stringContaining("cannot be given up any more"),
    ]);
    await lines(`bundle rollback ${config}`);
    expect(await state()).toBe(daily);
  });
});
