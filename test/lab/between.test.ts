import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MNT } from "./guest.js";
import { rarely } from "./rounds.js";
import { FILE, RESET, StoppedSite } from "./stopped-site.js";
import { BUILD_USR, makeRelease, RPOOL, SITE_USR } from "./system.js";

// What people do while an install is under way, or was stopped: they begin another, or change what it was made for.

let site: StoppedSite;
beforeAll(async () => {
  site = await StoppedSite.open();
});
afterAll(() => site?.machine.close());

it("refuses a second install while one is under way", async () => {
  await site.lines(RESET);
  const { stderr, status } = await site.machine.run(
    `${site.stopped(`install ${FILE}`, site.steps.indexOf("zfs receive") + 1, "STOP")} >/tmp/first.out 2>&1 & first=$!
    until [[ $(ps -o stat= -p $first) == T* ]]; do sleep 0.1; done
    status=0; bundle install ${FILE} || status=$?
    kill -CONT $first; wait $first; exit $status`,
    { check: false },
  );
  expect([status, stderr]).toEqual([
    17,
    expect.stringMatching(/lock is locked by bundle install \(process [0-9]+\)\n/),
  ]);
  expect(await site.state()).toBe(site.installed);
});

rarely("refuses another bundle, also by the name of the first, while one is under way", async () => {
  const next = await makeRelease(site.machine, 3);
  await site.lines(`
    ${RESET}
    ${site.killed(`install ${FILE}`, site.steps.indexOf("journal: writing") + 1)}
    mv ${FILE} ${FILE}.away; mv ${next} ${FILE}`);
  const other = await site.machine.run("bundle install", { check: false });
  await site.lines(`mv ${FILE} ${next}`);
  // Everything is received, so the bundle is not needed, whatever lies there now.
  expect([other.status, other.stdout]).toEqual([
    0,
    expect.stringContaining("installed gentoo release R2 (2)"),
  ]);
  expect(await site.state()).toBe(site.installed);

  await site.lines(`${RESET}; mv ${FILE}.away ${FILE}
    ${site.killed(`install ${FILE}`, site.steps.indexOf("zfs receive") + 1)}`);
  const refused = await site.machine.run(`bundle install ${next}`, { check: false });
  expect([refused.status, refused.stderr]).toEqual([
    17,
    expect.stringMatching(
      /release R2 \(2\) is being installed, \/tmp\/R3.bundle is another bundle: gentoo release R3 \(3\)[^]*bundle abort/,
    ),
  ]);
  await site.lines(`mv ${FILE} ${FILE}.away`);
  const gone = await site.machine.run("bundle install </dev/null", { check: false });
  expect([gone.status, gone.stderr]).toEqual([
    16,
    expect.stringMatching(/its bundle is not at \/tmp\/R2\.bundle\n {2}insert the medium with release R2/),
  ]);
  expect(await site.lines(`bundle install ${FILE}.away; mv ${FILE}.away ${FILE}`)).toContain("installed");
  expect(await site.state()).toBe(site.installed);
  expect(await site.lines(`zfs get -H -p -o value guid ${SITE_USR}@R2`)).toBe(
    await site.lines(`zfs get -H -p -o value guid ${BUILD_USR}@R2`),
  );
});

describe("what people do in between", () => {
  const whileWriting = (): string =>
    `${RESET}\n${site.killed(`install ${FILE}`, site.steps.indexOf("journal: writing") + 2)}`;
  const allReceived = (): string =>
    `${RESET}\n${site.killed(`install ${FILE}`, site.steps.indexOf("journal: writing") + 1)}`;
  const bothDone = (): string =>
    `${RESET}\n${site.killed(`install ${FILE}`, site.steps.indexOf("state") + 1)}`;

  it("rolls /usr back by hand: it is received again", async () => {
    await site.lines(`${whileWriting()}\nzfs rollback -r ${SITE_USR}@R1\nbundle install`);
    expect(await site.state()).toBe(site.installed);
  });

  rarely("rolls /usr back by hand, and it cannot be received again: both ways stay open", async () => {
    // As a medium or a pool that fails: after as many bytes it takes no more.
    const taking = (bytes: number): string => `CUT=${bytes} PATH=/tmp/cut:$PATH bundle install ${FILE}`;
    await site.machine.write(
      "/tmp/cut/zfs",
      `#!/bin/bash
[[ $1 == receive && $2 == -s ]] || exec /usr/sbin/zfs "$@"
exec /usr/sbin/zfs "$@" < <(head -c $CUT)
`,
      "755",
    );
    const rounds: [half: string, bytes: number, ends: string][] = [
      [whileWriting(), 0, "abort"],
      [bothDone(), 150_000, "abort"],
      [bothDone(), 0, "install"],
    ];
    for (const [half, bytes, ends] of rounds) {
      const where = `${bytes} bytes, then ${ends}`;
      await site.lines(`${half}\nzfs rollback -r ${SITE_USR}@R1`);
      const { status, stderr } = await site.attempt(taking(bytes));
      expect([where, status === 0, stderr]).toEqual([
        where,
        false,
        expect.stringMatching(
          bytes === 0
            ? /\/ may be written in part; to go on: bundle install; to give it up: bundle abort/
            : /iB of usr are received; to go on: bundle install; to give it up: bundle abort/,
        ),
      ]);
      expect(await site.lines("bundle status")).toMatch(/under way: release R2 .*, writing the files of \//);
      await site.lines(`bundle ${ends}`);
      expect(`${where}\n${await site.state()}`).toBe(
        `${where}\n${ends === "abort" ? site.before : site.installed}`,
      );
    }
  });

  rarely("rolls both halves back by hand: neither is taken for installed", async () => {
    await site.lines(`${bothDone()}
      zfs rollback -r ${SITE_USR}@R1; zfs rollback ${RPOOL}/ROOT/site@fresh`);
    const { status, stderr } = await site.attempt(`bundle install ${FILE}`);
    const told = await site.lines("bundle status");
    // / has lost what was prepared in it.
    expect([status === 0, stderr]).toEqual([false, expect.stringContaining("to give it up: bundle abort")]);
    expect(told).toContain("under way: release R2 (2)");
    await site.lines("bundle abort");
    expect(await site.state()).toBe(site.before);
  });

  rarely("changes the configuration: neither gone on with nor given up until it is back", async () => {
    const config = "/etc/zferry/site.toml";
    await site.lines(`${whileWriting()}\ncp ${config} /tmp/site.toml`);
    for (const edit of [
      `s,${SITE_USR},${RPOOL}/other,`,
      's,"gentoo"$,"alpine",',
      `s,"${MNT}/site","${MNT}/build",`,
    ]) {
      await site.lines(`sed '${edit}' /tmp/site.toml >${config}; ! cmp -s ${config} /tmp/site.toml`);
      for (const command of ["install", "abort"]) {
        const { status, stderr } = await site.attempt(`bundle ${command}`);
        expect([edit, command, status, stderr]).toEqual([
          edit,
          command,
          17,
          expect.stringContaining("has changed: "),
        ]);
      }
    }
    await site.lines(`cp /tmp/site.toml ${config}; bundle abort`);
    expect(await site.state()).toBe(site.before);
  });

  it("commits a change: it is planned again, and the change stays; or given up, and it stays too", async () => {
    const change = `cd ${MNT}/site; echo hello >etc/motd; git add etc/motd; git commit -qm motd`;
    const own = `cd ${MNT}/site; cat etc/motd; git status --porcelain; git log -1 --format=%s; find . -name '.zferry-*'`;
    await site.lines(`${allReceived()}\n${change}\nbundle install`);
    expect(await site.lines(own)).toBe("hello\nInstall R2");
    await site.lines(`${allReceived()}\n${change}\nbundle abort`);
    expect(await site.lines(own)).toBe("hello\nmotd");
    // Half of it is written: the commit is in the way of both, and says so.
    await site.lines(`${bothDone()}\n${change}`);
    expect(await site.attempt("bundle abort")).toMatchObject({
      status: 17,
      stderr: expect.stringContaining("HEAD is") as string,
    });
    expect(await site.lines("bundle install")).toContain("installed");
  });

  rarely("keeps something of /usr: giving up names it, before anything is taken back", async () => {
    await site.lines(`${bothDone()}\nzfs clone ${SITE_USR}@R2 ${RPOOL}/clone`);
    const cloned = await site.attempt("bundle abort");
    expect([cloned.status, cloned.stderr]).toEqual([13, expect.stringContaining(`${RPOOL}/clone`)]);
    await site.lines(`bundle status | grep 'bundle install'; zfs destroy ${RPOOL}/clone`);
    const undoing = await site.stepsOf("abort");
    await site.lines(`${bothDone()}
      ${site.killed("abort", undoing.indexOf("zfs rollback") + 1)}
      zfs snapshot ${SITE_USR}@mine`);
    const kept = await site.attempt("bundle abort");
    expect([kept.status, kept.stderr]).toEqual([13, expect.stringContaining("@mine")]);
    await site.lines(`zfs destroy ${SITE_USR}@mine; bundle abort`);
    expect(await site.state()).toBe(site.before);
  });
});
