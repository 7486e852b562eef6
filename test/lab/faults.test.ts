import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { MNT, usesLocalZfs, type Machine, type RunResult } from "./guest.js";
import { rarely } from "./rounds.js";
import {
  BUILD_USR,
  makeRelease,
  openSystem,
  RPOOL,
  script,
  SITE_CONFIG,
  SITE_USR,
  contentOffset,
} from "./system.js";

/*
 * Bad media, full disks and pools that fail, each made for real while a release is received: the command says what to do,
 * nothing is lost, and once it is mended the same command comes to the right end, or `bundle abort` takes all of it back.
 */

const R3 = "/tmp/R3.bundle";
const STICK = "/mnt/stick/R3.bundle";

/** A `zfs` that holds a receive back after as many bytes as /tmp/gate/closed says, until that file is gone. */
const GATE = `#!/bin/bash
[[ $1 == receive && $2 == -s && -e /tmp/gate/closed ]] || exec /usr/sbin/zfs "$@"
exec /usr/sbin/zfs "$@" < <(
  head -c "$(</tmp/gate/closed)"
  touch /tmp/gate/reached
  while [[ -e /tmp/gate/closed ]]; do sleep 0.1; done
  exec cat
)
`;

let machine: Machine;
const lines = async (commands: string): Promise<string> => (await machine.run(commands)).stdout.trim();
const attempt = (command: string): Promise<RunResult> => machine.run(command, { check: false });
const fingerprint = (folder: string): string => script(machine, `fingerprint ${folder}`);

/** Everything of the site that an install may change. */
const siteState = (): Promise<string> =>
  lines(
    `${fingerprint(`${MNT}/site/usr`)}; cd ${MNT}/site;` +
      `find . -path ./.git -prune -o -path ./usr -prune -o -printf '%P %y %m %U:%G %l\\n' | sort;` +
      `git rev-parse HEAD; git status --porcelain; git for-each-ref;` +
      `zfs list -H -t all -o name,userrefs -r ${RPOOL}/SYSTEM ${RPOOL}/ROOT; zfs get -H -o value receive_resume_token ${SITE_USR};` +
      `cat /var/lib/zferry/state.json /var/lib/zferry/journal.json || true`,
  );

/** Both halves are those of R3, and nothing of the way there is left. */
const expectInstalled = async (): Promise<void> => {
  expect(
    await lines(
      `diff <(${fingerprint(`${MNT}/site/usr`)}) <(${fingerprint(`${MNT}/build/usr/.zfs/snapshot/R3`)}) && echo same usr;` +
        `cd ${MNT}/site; git status --porcelain; zfs get -H -o value receive_resume_token ${SITE_USR};` +
        `find . -name '.zferry-*'; ls -A /var/lib/zferry | sed 's/^plan-.*/a plan/'; git for-each-ref refs/zferry/pending;` +
        `zfs holds -H ${SITE_USR}@R1 ${SITE_USR}@R2 ${SITE_USR}@R3 | cut -f 1,2;` +
        "cat etc/conf.d/keymaps etc/hosts; grep -h Option02 etc/sshd_config",
    ),
  ).toBe(
    `same usr\n-\nlock\na plan\nstate.json\n${SITE_USR}@R2\tzferry:base\nkeymap="de"\n10.1.2.3 plc\nOption02 of-this-site`,
  );
  expect(await lines(`git -C ${MNT}/site rev-parse refs/zferry/release^{tree}`)).toBe(
    await lines(`git -C ${MNT}/build rev-parse R3^{tree}`),
  );
};

/** Runs an install, and `fault` when about `bytes` of the stream are received and the rest waits. */
const duringReceive = (fault: string, command = `bundle install ${R3}`, bytes = 12_000_000) =>
  machine.run(
    `export PATH=/tmp/gate/bin:$PATH; rm -f /tmp/gate/reached; echo ${bytes} >/tmp/gate/closed
    ${command} & pid=$!
    until [[ -e /tmp/gate/reached ]]; do kill -0 $pid; sleep 0.1; done
    ${fault}
    rm /tmp/gate/closed; wait $pid`,
    { check: false, timeout: 400_000 },
  );

const KEPT =
  /MiB of 5\d\.\d MiB of usr are received; to go on: bundle install.*; to give it up: bundle abort/;

const expectKept = async (): Promise<void> => {
  const status = await lines("bundle status");
  expect(status).toMatch(
    /under way: release R3 \(3\), begun at .*, receiving\n {2}usr: .*, \d+\.\d MiB of 5\d\.\d MiB \(\d+ %\) received/,
  );
  expect(status).toContain("goes on with: bundle install");
};

/** The site at R2, as it was before the first test. */
let before: string;

beforeAll(async () => {
  machine = await openSystem();
  await makeRelease(machine, 2);
  // More chunks than are read ahead.
  await machine.run(`head -c 25165824 /dev/urandom >${MNT}/build/usr/lib/more.img`);
  await makeRelease(machine, 3);
  await machine.write("/tmp/gate/bin/zfs", GATE, "755");
  await machine.run(
    // The clock of the estimate, and the refs of before, must be those of each test's beginning.
    `bundle install /tmp/R2.bundle; zfs set snapdir=hidden ${SITE_USR}; mkdir /tmp/before; git -C ${MNT}/site rev-parse HEAD refs/zferry/release >/tmp/before/refs; cp /var/lib/zferry/state.json /tmp/before`,
  );
  before = await siteState();
});
afterAll(() => machine?.close());

// Whatever a test made of the site.
afterEach(() =>
  machine.run(
    `rm -f /tmp/gate/closed; [[ ! -e /var/lib/zferry/journal.json ]] || bundle abort
    if zfs list ${SITE_USR}@R3 >/dev/null 2>&1; then
      zfs release zferry:base ${SITE_USR}@R2; zfs rollback -r ${SITE_USR}@R2; zfs hold zferry:base ${SITE_USR}@R1
      { read -r head; read -r release; } </tmp/before/refs; cd ${MNT}/site; git reset -q --hard $head; git update-ref refs/zferry/release $release
      cp /tmp/before/state.json /var/lib/zferry/state.json
    fi`,
  ),
);

describe("the medium", () => {
  /** Of the bundle, in the block of the stick that fails with /tmp/stick.bad. */
  let offset: number;

  // ext4 on a device in which any range can be made to fail.
  beforeAll(async () => {
    await machine.run(
      `modprobe -a dm-mod ext4; truncate -s 200M /tmp/stick.img; loop=$(losetup -f --show /tmp/stick.img)
      echo "0 $(blockdev --getsz $loop) linear $loop 0" >/tmp/stick.good
      dmsetup create stick /tmp/stick.good; dmsetup mknodes
      mkfs.ext4 -q -b 4096 /dev/mapper/stick; mkdir -p /mnt/stick; mount /dev/mapper/stick /mnt/stick; cp ${R3} ${STICK}; sync`,
    );
    offset = contentOffset(await machine.read(R3), "streams/usr/00000005.zst") + 1_000_000;
    await spoil();
  });

  const table = (file: string): string =>
    `dmsetup suspend stick; dmsetup load stick ${file}; dmsetup resume stick; echo 3 >/proc/sys/vm/drop_caches`;

  const spoil = () =>
    machine.run(
      `physical=$(filefrag -b4096 -e ${STICK} | awk -v block=${Math.floor(offset / 4096)} '$1 ~ /^[0-9]+:$/ { gsub(/\\./, " "); gsub(/:/, " "); if (block >= $2 && block <= $3) print $4 + block - $2 }')
      read -r _ size _ loop _ </tmp/stick.good; at=$((physical * 8))
      printf '%s\\n' "0 $at linear $loop 0" "$at 8 error" "$((at + 8)) $((size - at - 8)) linear $loop $((at + 8))" >/tmp/stick.bad`,
    );

  rarely("fails while it is verified: byte range and member, nothing begun", async () => {
    await machine.run(table("/tmp/stick.bad"));
    const { status, stderr } = await attempt(`bundle install ${STICK}`);
    expect(stderr).toMatch(
      /bundle: \/mnt\/stick\/R3\.bundle: cannot read bytes \d+ to \d+: the medium fails \(EIO\), in streams\/usr\/00000005\.zst\n {2}run the same command again, if need be with the medium in another port; or name another copy\n/,
    );
    expect(status).toBe(16);
    const [, from, to] = (/bytes (\d+) to (\d+)/.exec(stderr) ?? []).map(Number);
    expect(from).toBeLessThanOrEqual(offset);
    expect(to).toBeGreaterThan(offset);
    await machine.run(table("/tmp/stick.good"));
    expect(await siteState()).toBe(before);
  });

  it("fails while it is received, can be read again, and goes on", async () => {
    const { status, stderr } = await duringReceive(
      table("/tmp/stick.bad"),
      `bundle install ${STICK}`,
      1_000_000,
    );
    expect(stderr).toMatch(
      /cannot read bytes \d+ to \d+: the medium fails \(EIO\), in streams\/usr\/00000005\.zst\n/,
    );
    expect(stderr).toMatch(KEPT);
    expect(stderr).toContain("or from another copy: bundle install FILE");
    expect(status).toBe(16);
    await expectKept();
    // It still fails there, and what is received stays.
    expect((await attempt("bundle install")).status).toBe(16);
    await expectKept();
    await machine.run(table("/tmp/stick.good"));
    const { stderr: steps } = await machine.run("bundle install");
    expect(steps).toMatch(/receiving usr into .*, from byte \d{8} on/);
    await expectInstalled();
  });

  rarely("fails for good, another one was put in its place, and a copy elsewhere leads on", async () => {
    await duringReceive(table("/tmp/stick.bad"), `bundle install ${STICK}`, 1_000_000);
    await machine.run(`mv ${STICK} /mnt/stick/bad; cp /tmp/R2.bundle ${STICK}`);
    const { status, stderr } = await attempt("bundle install");
    expect(stderr).toContain(
      `release R3 (3) is being installed, ${STICK} is another bundle: gentoo release R2 (2)\n` +
        "  finish it first, with the bundle of R3: bundle install FILE; or give it up: bundle abort",
    );
    expect(status).toBe(17);
    await machine.run(`rm ${STICK}`);
    const absent = await attempt("bundle install");
    expect(absent.stderr).toContain(`its bundle is not at ${STICK}`);
    expect(absent.stderr).toContain("insert the medium with release R3");
    expect(absent.status).toBe(16);
    await expectKept();
    await machine.run(
      `mkdir -p /tmp/copies; cp ${R3} /tmp/copies/other-name; bundle install /tmp/copies/other-name`,
    );
    await expectInstalled();
    await machine.run(`mv /mnt/stick/bad ${STICK}; ${table("/tmp/stick.good")}`);
  });
});

describe("no space", () => {
  afterEach(() => machine.run(`zfs set quota=none ${SITE_USR}; rm -f ${MNT}/${RPOOL}/junk`));

  it("by a quota, which plan and install find before anything is changed", async () => {
    await machine.run(`zfs set quota=20M ${SITE_USR}`);
    for (const verb of ["plan", "install"]) {
      const { status, stderr } = await attempt(`bundle ${verb} ${R3}`);
      expect(stderr).toMatch(
        /stream usr may take 5\d\.\d MiB, \S+ has 1\d\.\d MiB left\n {2}free space in the pool, or raise the quota\n/,
      );
      expect(status).toBe(16);
    }
    expect(await siteState()).toBe(before);
  });

  rarely("by a quota that came while it was received", async () => {
    const { status, stderr } = await duringReceive(
      // What was just received is counted a little later.
      `until zpool sync ${RPOOL}; zfs set quota=$(($(zfs get -H -p -o value used ${SITE_USR}) + 4000000)) ${SITE_USR} 2>/dev/null; do sleep 0.2; done`,
    );
    expect(stderr).toMatch(/quota exceeded|out of space/);
    expect(stderr).toContain("free space in the pool, or raise the quota; ");
    expect(stderr).toMatch(KEPT);
    expect(status).toBe(16);
    await expectKept();
    // There is no room for the rest either.
    const again = await attempt("bundle install");
    expect(again.stderr).toMatch(/stream usr may take \d+\.\d MiB, /);
    expect(again.status).toBe(16);
    await machine.run(`zfs set quota=none ${SITE_USR}; bundle install`);
    await expectInstalled();
  });

  it("in the pool, filled while it was received; given up, the site is what it was", async () => {
    const { status, stderr } = await duringReceive(
      // The last bytes are for the receive: a writer waits long for each of them.
      `head -c $(($(zfs get -H -p -o value available ${RPOOL}) - 15000000)) /dev/urandom >${MNT}/${RPOOL}/junk; zpool sync ${RPOOL}`,
    );
    expect(stderr).toMatch(/out of space|no space left/);
    expect(stderr).toMatch(KEPT);
    expect(status).toBe(16);
    await expectKept();
    await machine.run("bundle abort");
    expect(await siteState()).toBe(before);
  });

  // Each size is that of a file system of its own for the state folder.
  const inSmallState = async (size: string, use: () => Promise<void>): Promise<void> => {
    await machine.run(
      `mkdir -p /mnt/state; mount -t tmpfs -o size=${size},mode=700 tmpfs /mnt/state; cp /var/lib/zferry/state.json /mnt/state/
      printf '%s\\n%s' 'state = "/mnt/state"' '${SITE_CONFIG}' >/tmp/small.toml`,
    );
    try {
      await use();
    } finally {
      await machine.run("umount /mnt/state");
    }
  };
  const SMALL = "--config /tmp/small.toml";

  rarely("for the journal, from the beginning", () =>
    inSmallState("64k", async () => {
      for (const verb of ["plan", "install"]) {
        const { status, stderr } = await attempt(`bundle ${verb} ${SMALL} ${R3}`);
        expect(stderr).toMatch(/\/mnt\/state.*(no space left|No space left|\d KiB left)/);
        expect(stderr).toContain("free space");
        expect(status).toBe(16);
      }
      expect(await lines("ls -A /mnt/state")).toBe("lock\nstate.json");
      expect(await siteState()).toBe(before);
    }),
  );

  rarely("for the journal, once it is received: it goes on when there is", () =>
    inSmallState("4M", async () => {
      const { status, stderr } = await duringReceive(
        "head -c 8M /dev/zero >/mnt/state/junk 2>/dev/null || true",
        `bundle install ${SMALL} ${R3}`,
      );
      expect(stderr).toMatch(
        /cannot write \/mnt\/state\/journal\.json: no space left\n {2}free space there; usr is received; to go on: bundle install/,
      );
      expect(status).toBe(16);
      expect(await lines(`bundle status ${SMALL}`)).toMatch(/usr: .*, received\n/);
      // What the merge took is free by now.
      const full = await attempt(
        `head -c 8M /dev/zero >>/mnt/state/junk 2>/dev/null || true; bundle abort ${SMALL}`,
      );
      expect(full.stderr).toContain("free space");
      expect(full.status).toBe(16);
      await machine.run(`rm /mnt/state/junk; bundle abort ${SMALL}`);
      expect(await siteState()).toBe(before);
    }),
  );

  rarely("in a state folder that is read-only", () =>
    inSmallState("4M", async () => {
      await machine.run("mount -o remount,ro /mnt/state");
      for (const command of [`plan ${SMALL} ${R3}`, `install ${SMALL} ${R3}`]) {
        const { status, stderr } = await attempt(`bundle ${command}`);
        expect(stderr).toMatch(
          /cannot \w+ \/mnt\/state\S*: the file system is read-only\n {2}mount it for writing/,
        );
        expect(status).toBe(16);
      }
      await machine.run("mount -o remount,rw /mnt/state");
      expect(await siteState()).toBe(before);
    }),
  );

  rarely("in /, another file system than the pool", async () => {
    await machine.run(
      `truncate -s 12M /tmp/root.img; mkfs.ext4 -q /tmp/root.img; mkdir -p /mnt/small; mount -o loop /tmp/root.img /mnt/small
      (cd ${MNT}/site && tar -c --exclude=./usr --xattrs --acls .) | tar -C /mnt/small -x --xattrs --acls -p
      head -c 50M /dev/urandom >/mnt/small/etc/junk 2>/dev/null || true
      sed 's,${MNT}/site,/mnt/small,' /etc/zferry/site.toml >/tmp/small.toml; printf '/etc/junk\\n/lost+found\\n/usr\\n' >/mnt/small/.git/info/exclude`,
    );
    try {
      for (const verb of ["plan", "install"]) {
        const { status, stderr } = await attempt(`bundle ${verb} ${SMALL} ${R3}`);
        expect(stderr).toMatch(
          /the release needs \d+ bytes for files in \/mnt\/small\S*, 0 are free\n {2}free space on the file system of/,
        );
        expect(status).toBe(16);
      }
      expect(await siteState()).toBe(before);
    } finally {
      await machine.run("umount /mnt/small");
    }
  });
});

describe("the dataset", () => {
  rarely("got a snapshot of somebody else while it was received", async () => {
    const { status, stderr } = await duringReceive(`zfs snapshot ${SITE_USR}@autosnap_hourly`);
    expect(stderr).toContain(
      `${SITE_USR}@autosnap_hourly is newer than ${SITE_USR}@R2, which the release is received over\n` +
        `  zfs destroy ${SITE_USR}@autosnap_hourly; keep what takes snapshots from doing so`,
    );
    expect(stderr).toMatch(KEPT);
    expect(status).toBe(13);
    await expectKept();
    await machine.run(`zfs destroy ${SITE_USR}@autosnap_hourly`);
    const { stderr: steps } = await machine.run("bundle install");
    expect(steps).toMatch(/receiving usr into .*, from byte \d+ on/);
    await expectInstalled();
  });

  rarely("is being received into by somebody else", async () => {
    const { status, stderr } = await attempt(
      `mkfifo /tmp/other; zfs receive -s -u ${SITE_USR}@other </tmp/other 2>/dev/null & receiver=$!; exec 9>/tmp/other
      zfs send -i @R2 ${BUILD_USR}@R3 | head -c 3000000 >&9 || true; sleep 3
      bundle install ${R3} 9>&- && status=0 || status=$?
      exec 9>&-; wait $receiver || true; exit $status`,
    );
    expect(stderr).toContain(`dataset ${SITE_USR} `);
    expect(stderr).toMatch(
      /busy|has a partial receive that is not zferry's\n {2}let it end, or discard it: zfs receive -A/,
    );
    expect(status).toBe(17);
    await machine.run(`zfs receive -A ${SITE_USR}; rm /tmp/other`);
    expect(await siteState()).toBe(before);
  });

  rarely("is encrypted, and its key is not loaded", async () => {
    const secret = `${RPOOL}/secret`;
    await machine.run(
      `head -c 32 /dev/urandom >/tmp/key; zfs create -o encryption=on -o keyformat=raw -o keylocation=file:///tmp/key ${secret}
      zfs send ${SITE_USR}@R2 | zfs receive -u ${secret}/usr; zfs unload-key -r ${secret} 2>/dev/null || { zfs unmount ${secret}; zfs unload-key ${secret}; }
      sed 's,${SITE_USR},${secret}/usr,' /etc/zferry/site.toml >/tmp/secret.toml`,
    );
    for (const verb of ["plan", "install"]) {
      const { status, stderr } = await attempt(`bundle ${verb} --config /tmp/secret.toml ${R3}`);
      expect(stderr).toContain(
        `the encryption key of ${secret}/usr is not loaded\n  zfs load-key ${secret}\n`,
      );
      expect(status).toBe(17);
    }
    await machine.run(
      `zfs load-key ${secret}; bundle plan --config /tmp/secret.toml ${R3}; zfs destroy -r ${secret}`,
    );
    expect(await siteState()).toBe(before);
  });
});

// Devices that fail under a pool of this machine's own would be in the way of whoever works on it.
describe.skipIf(usesLocalZfs())("the pool", () => {
  const USR = "depot/other/USR/gentoo";
  const OTHER = "--config /tmp/other.toml";
  const tables = (what: string): string =>
    `for name in one two; do dmsetup suspend --noflush $name; ${what} | dmsetup load $name; dmsetup resume $name; done`;
  const FAIL = tables('echo "0 $(blockdev --getsz /dev/mapper/$name) error"');
  const MEND = tables("cat /tmp/$name.good");

  beforeAll(() =>
    machine.run(
      `modprobe dm-mod; for name in one two; do truncate -s 300M /tmp/$name.img; loop=$(losetup -f --show /tmp/$name.img); echo "0 $(blockdev --getsz $loop) linear $loop 0" >/tmp/$name.good; dmsetup create $name /tmp/$name.good; done
      dmsetup mknodes; zpool create -o cachefile=none -O mountpoint=${MNT}/depot depot mirror /dev/mapper/one /dev/mapper/two
      RPOOL=depot MNT=${MNT} ${machine.checkout}/test/lab/distribution.sh site other
      printf 'state = "/var/lib/zferry-other"\\n' >/tmp/other.toml; sed 's,${SITE_USR},${USR},; s,${MNT}/site,${MNT}/other,' /etc/zferry/site.toml >>/tmp/other.toml
      bundle install ${OTHER} /tmp/R2.bundle`,
    ),
  );

  rarely("is degraded: it is told, and it works", async () => {
    await machine.run("zpool offline depot two");
    const warning = "pool depot is DEGRADED: one more disk that fails may take all; see zpool status depot";
    const planned = await machine.run(`bundle plan ${OTHER} ${R3}`);
    expect(planned.stderr).toContain(`warning: ${warning}\n`);
    const { stdout } = await machine.run(`bundle plan --json ${OTHER} ${R3}`);
    expect(JSON.parse(stdout)).toMatchObject({
      outcome: "planned",
      warnings: [warning],
      streams: [{ space: { needed: expect.any(Number) as number, available: expect.any(Number) as number } }],
      time: { assumed: true },
    });
    // The rest is for the next test, which begins it itself where this one is left out: it stops here.
    const { status, stderr } = await duringReceive(
      "kill -INT $pid; sleep 1",
      `bundle install ${OTHER} ${R3}`,
    );
    expect(stderr).toContain(`warning: ${warning}\n`);
    expect(status).toBe(130);
    await machine.run("zpool online depot two; zpool wait -t resilver depot");
  });

  it("does not answer any more: it says so, and goes on when it does", async () => {
    const { status, stderr } = await duringReceive(FAIL, `bundle install ${OTHER} ${R3}`, 8_000_000);
    expect(stderr).toContain("pool depot is SUSPENDED: its disks do not answer\n");
    expect(stderr).toContain(
      "see zpool status depot; when its disks are back: zpool clear depot; what is received stays; to go on: bundle install",
    );
    expect(status).toBe(17);
    // Nothing hangs.
    for (const command of [`install ${OTHER}`, `abort ${OTHER}`, `plan ${OTHER} ${R3}`]) {
      const again = await attempt(`bundle ${command}`);
      expect(again.stderr).toMatch(
        /pool depot is SUSPENDED|pool I\/O is currently suspended\n {2}see zpool status/,
      );
      expect(again.status).toBe(17);
    }
    expect(await lines(`bundle status ${OTHER}`)).toMatch(/usr: depot\S+, .*I\/O is currently suspended\n/);
    await machine.run(`${MEND}; zpool clear depot`);
    await machine.run(`bundle install ${OTHER}`, { timeout: 200_000 });
    expect(
      await lines(
        `diff <(${fingerprint(`${MNT}/other/usr`)}) <(${fingerprint(`${MNT}/build/usr/.zfs/snapshot/R3`)}) && echo same; ls -A /var/lib/zferry-other | sed 's/^plan-.*/a plan/'; zpool scrub -w depot; zpool list -H -o health depot`,
      ),
    ).toBe("same\nlock\na plan\nstate.json\nONLINE");
  });
});
