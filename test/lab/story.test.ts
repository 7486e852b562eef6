import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { installByHand } from "./by-hand.js";
import { defaultZfs, MNT, usesLocalZfs, type Machine } from "./guest.js";
import {
  BUILD_USR,
  distribution as runDistribution,
  makeRelease as makeReleaseOf,
  openSystem,
  RPOOL,
  script,
  SITE_CONFIG,
  SITE_USR,
  TANK,
  contentOffset,
} from "./system.js";

let machine: Machine;
beforeAll(async () => {
  machine = await openSystem();
});
afterAll(() => machine?.close());

describe("three releases from a build host to a site", () => {
  const distribution = (command: string) => runDistribution(machine, command);
  const makeRelease = (number: number) => makeReleaseOf(machine, number);
  const fingerprint = (folder: string): string => script(machine, `fingerprint ${folder}`);
  const lines = async (script: string): Promise<string> => (await machine.run(script)).stdout.trim();
  /** Runs what must fail, and gives its status and what it said. */
  const refused = async (script: string): Promise<{ status: number; stderr: string }> => {
    const { status, stderr } = await machine.run(script, { check: false });
    return { status, stderr };
  };
  const guidOf = (snapshot: string): Promise<string> => lines(`zfs get -H -p -o value guid ${snapshot}`);

  /** Everything of the site that an install may change. */
  const siteState = (): Promise<string> =>
    lines(
      `${fingerprint(`${MNT}/site/usr`)}; cd ${MNT}/site;` +
        `find . -path ./.git -prune -o -path ./usr -prune -o -printf '%P %y %m %U:%G %l\\n' | sort;` +
        `git rev-parse HEAD; git status --porcelain; git for-each-ref;` +
        `zfs list -H -t all -o name,userrefs -r ${RPOOL}; zfs get -H -o value receive_resume_token ${SITE_USR};` +
        `cat /var/lib/zferry/state.json /var/lib/zferry/journal.json || true`,
    );

  /** Both halves are what the release and the site make of them. */
  const expectInstalled = async (number: number): Promise<void> => {
    expect(
      await lines(
        `diff <(${fingerprint(`${MNT}/site/usr`)}) <(${fingerprint(`${MNT}/build/usr/.zfs/snapshot/R${number}`)}) && echo same usr;` +
          `cd ${MNT}/site; git status --porcelain; zfs get -H -o value receive_resume_token ${SITE_USR};` +
          `find . -name '.zferry-*'; ls /var/lib/zferry | sed 's/^plan-.*/a plan/';` +
          // The site's own changes.
          "cat etc/conf.d/keymaps etc/hosts; grep -h Option02 etc/sshd_config; grep -h operator etc/group",
      ),
    ).toBe(
      'same usr\n-\nlock\na plan\nstate.json\nkeymap="de"\n10.1.2.3 plc\nOption02 of-this-site\noperator:x:1000:',
    );
    const [guid, tree, ...built] = (
      await lines(
        `zfs get -H -p -o value guid ${SITE_USR}@R${number}; git -C ${MNT}/site rev-parse refs/zferry/release^{tree};` +
          `zfs get -H -p -o value guid ${BUILD_USR}@R${number}; git -C ${MNT}/build rev-parse R${number}^{tree}`,
      )
    ).split("\n");
    expect([guid, tree]).toEqual(built);
  };

  it("is refused when the build host's / has changes that are not committed", async () => {
    await distribution("change 2");
    const { status, stderr } = await refused("bundle snapshot R2");
    expect(stderr).toContain("not committed");
    expect(status).toBe(17);
    expect(
      await lines(`zfs list -H -t snapshot -o name -r ${TANK} | grep R2 || true; git -C ${MNT}/build tag`),
    ).toBe("R1");
  });

  it("makes a release: all snapshots in one transaction, held, and a tag", async () => {
    await machine.run('bundle snapshot R2 -m "release 2"');
    const groups = await lines(`zfs list -H -t snapshot -o createtxg -r ${TANK} | sort | uniq -c`);
    expect(groups.split("\n").map((line) => line.trim().split(" ")[0])).toEqual(["2", "2"]);
    const destroyed = await refused(`zfs destroy ${BUILD_USR}@R2`);
    expect(destroyed.status).not.toBe(0);
    expect(
      await lines(
        `git -C ${MNT}/build for-each-ref --format='%(contents:trailers:key=Zferry-Sequence,valueonly)' refs/tags/R2`,
      ),
    ).toBe("2");
    expect((await refused("bundle snapshot R2")).status).toBe(17);
  });

  it("packs it into one bundle, which is whole and from us", async () => {
    await machine.run("bundle create --base R1 --target R2 -o /tmp/R2.bundle");
    const verified = await lines("bundle verify /tmp/R2.bundle --key /etc/zferry/release.pub");
    expect(verified).toMatch(/^OK .*gentoo release R2 \(2\), usr from R1 to R2, .*signed by [0-9A-F]{16}/);
    const inspected = await lines("bundle inspect /tmp/R2.bundle");
    expect(inspected).toContain(`R1 (guid ${await guidOf(`${BUILD_USR}@R1`)})`);
    expect(inspected).toContain(`R2 (guid ${await guidOf(`${BUILD_USR}@R2`)})`);
    expect(inspected).toContain("A etc/newd/secret");
    expect(inspected).toContain("D etc/oldd.conf");
    expect(inspected).toContain("M etc/sshd_config");
  });

  it("makes the same bytes again, also from a repacked repository", async () => {
    await machine.run(
      `git -C ${MNT}/build gc --quiet --aggressive; bundle create --base R1 --target R2 -o /tmp/again.bundle`,
    );
    await machine.run("cmp /tmp/R2.bundle /tmp/again.bundle; rm /tmp/again.bundle");
  });

  it("changes nothing in a dry run", async () => {
    const before = await siteState();
    expect(await lines("bundle plan /tmp/R2.bundle")).toContain("would be installed");
    expect(await siteState()).toBe(before);
    // What the site remembers must not lie where the stream replaces it.
    await machine.write("/tmp/state.toml", `state = "${MNT}/site/usr/state"\n${SITE_CONFIG}`);
    const { status, stderr } = await refused("bundle plan --config /tmp/state.toml /tmp/R2.bundle");
    expect(stderr).toContain(`lies on ${SITE_USR}, which a stream replaces`);
    expect(status).toBe(17);
  });

  it("installs the first release", async () => {
    expect(await lines("bundle install /tmp/R2.bundle")).toContain("installed gentoo release R2 (2)");
    await expectInstalled(2);
    expect(
      await lines(
        `grep -c 'Option28 of-release-2' ${MNT}/site/etc/sshd_config; stat -c '%a %u:%g' ${MNT}/site/etc/newd/secret ${MNT}/site/etc/newd`,
      ),
    ).toBe("1\n600 77:77\n750 0:77");
    expect(
      await lines(
        `getfattr --only-values -n user.origin ${MNT}/site/etc/newd/secret; ls ${MNT}/site/etc/oldd.conf 2>/dev/null || true`,
      ),
    ).toBe("release-2");
    expect(await lines("bundle status")).toContain("installed: release R2 (2)");
  });

  it("has nothing to do the second time", async () => {
    const before = await siteState();
    expect(await lines("bundle install /tmp/R2.bundle")).toContain("nothing to do");
    expect(await siteState()).toBe(before);
  });

  it("refuses a release whose base is not there, naming both guids", async () => {
    // From here on each bundle carries a change of the keys.
    await machine.run(
      "bundle keygen --no-password -o /etc/zferry/next; printf '[keys]\\ncounter = 1\\nadd = [\"/etc/zferry/next.pub\"]\\n' >>/etc/zferry/build.toml",
    );
    await makeRelease(3);
    const file = await makeRelease(4);
    const before = await siteState();
    const { status, stderr } = await refused(`bundle install ${file}`);
    expect(stderr).toContain(await guidOf(`${BUILD_USR}@R3`));
    expect(stderr).toContain(await guidOf(`${SITE_USR}@R2`));
    expect(status).toBe(13);
    expect(await siteState()).toBe(before);
  });

  it("refuses a base that was modified, naming both guids", async () => {
    await machine.run(
      `zfs set readonly=off ${SITE_USR}; echo changed >${MNT}/site/usr/bin/ls; zpool sync ${RPOOL}`,
    );
    const { status, stderr } = await refused("bundle install /tmp/R3.bundle");
    expect(stderr).toContain("modified");
    expect(stderr).toContain(await guidOf(`${SITE_USR}@R2`));
    expect(stderr).toContain(await guidOf(`${BUILD_USR}@R3`));
    expect(status).toBe(13);
    await machine.run(`zfs rollback ${SITE_USR}@R2; zfs inherit readonly ${SITE_USR}`);
  });

  it("refuses while a process runs from the dataset", async () => {
    // A program that lies on the dataset can only be put there as a release would: into another dataset.
    const own = `${RPOOL}/SYSTEM/USR/busy`;
    await machine.run(
      `zfs send ${SITE_USR}@R2 | zfs receive -u ${own}; zfs set mountpoint=${MNT}/busy readonly=off ${own}; mountpoint -q ${MNT}/busy || zfs mount ${own}; cp /usr/bin/sleep ${MNT}/busy/bin/sleep; zfs snapshot ${own}@more`,
    );
    await machine.run(`sed 's,${SITE_USR},${own},' /etc/zferry/site.toml >/tmp/busy.toml`);
    await machine.run(`(${MNT}/busy/bin/sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >/tmp/sleep.pid)`);
    await machine.run(
      `zfs send -i @R2 ${own}@more >/tmp/more; zfs rollback -r ${own}@R2 2>/dev/null || true`,
    );
    const stream =
      "bundle create --stream usr=/tmp/more --product gentoo --release more --sequence 9 --key /etc/zferry/release.key -o /tmp/more.bundle";
    await machine.run(stream);
    const { status, stderr } = await refused("bundle install --config /tmp/busy.toml /tmp/more.bundle");
    await machine.run(`kill $(cat /tmp/sleep.pid)`);
    expect(stderr).toContain("run from " + own + ": sleep");
    expect(status).toBe(17);
  });

  it("stops at a conflict before anything is changed, naming the paths", async () => {
    await machine.run(
      `cd ${MNT}/site; sed -i 's/^Option15 .*/Option15 of-the-site/' etc/sshd_config; git commit -qam 'a change where the release has one'`,
    );
    const before = await siteState();
    const { status, stderr } = await refused("bundle install /tmp/R3.bundle");
    expect(stderr).toContain("etc/sshd_config");
    expect(status).toBe(15);
    expect(await siteState()).toBe(before);
    await machine.run(`cd ${MNT}/site; git revert --no-edit HEAD`);
  });

  it("refuses changes of the site that are not committed", async () => {
    await machine.run(`echo more >>${MNT}/site/etc/hosts`);
    const before = await siteState();
    const { status, stderr } = await refused("bundle install /tmp/R3.bundle");
    expect(stderr).toContain("etc/hosts");
    expect(status).toBe(17);
    expect(await siteState()).toBe(before);
    await machine.run(`cd ${MNT}/site; git checkout -q etc/hosts`);
  });

  it("refuses what is damaged or from somebody else, and changes nothing", async () => {
    const before = await siteState();
    await machine.run(
      `cp /tmp/R3.bundle /tmp/bad.bundle; printf X | dd of=/tmp/bad.bundle bs=1 seek=$(($(stat -c %s /tmp/bad.bundle) - 5000)) conv=notrunc status=none; rm -f /tmp/other.*; bundle keygen --no-password -o /tmp/other`,
    );
    expect((await refused("bundle install /tmp/bad.bundle")).status).toBe(12);
    expect(
      (await refused("head -c 300000 /tmp/R3.bundle >/tmp/short.bundle; bundle install /tmp/short.bundle"))
        .status,
    ).toBe(12);
    expect((await refused("bundle verify /tmp/R3.bundle --key /tmp/other.pub")).status).toBe(11);
    expect(await siteState()).toBe(before);
  });

  // Each file appears after the whole bundle was verified, and before the member is read once more.
  it.each([
    ["root/metadata.json.zst", "/var/lib/zferry/scratch"],
    ["streams/usr/00000000.zst", "/var/lib/zferry/journal.json"],
  ])("uses no byte of %s that changed after it was verified", async (member, appears) => {
    const before = await siteState();
    const at = contentOffset(await machine.read("/tmp/R3.bundle"), member) + 20;
    const { status, stderr } = await refused(
      `cp /tmp/R3.bundle /tmp/swapped.bundle; bundle install /tmp/swapped.bundle & pid=$!; until [[ -e ${appears} ]]; do sleep 0.02; done; printf 'XXXX' | dd of=/tmp/swapped.bundle bs=1 seek=${at} conv=notrunc status=none; wait $pid`,
    );
    expect(stderr).toContain(`${member} has SHA-256`);
    expect(status).toBe(12);
    expect(await siteState()).toBe(before);
  });

  it("goes on after it was killed while it received", async () => {
    await machine.run(
      "bundle install /tmp/R3.bundle >/dev/null 2>&1 & pid=$!; until pgrep -f '[z]fs receive' >/dev/null; do sleep 0.02; done; kill -9 $pid; pkill -9 -f '[z]fs receive' || true; wait $pid || true",
    );
    expect(await lines("bundle status")).toContain("under way: release R3");
    expect((await refused("bundle install /tmp/R2.bundle")).status).toBe(17);
    // Without a journal, the rest tells what was under way.
    const journal = "/var/lib/zferry/journal.json";
    await machine.run(`cp -p ${journal} /tmp/journal; echo >${journal}`);
    const token = await lines(`zfs get -H -o value receive_resume_token ${SITE_USR}`);
    for (const command of ["status", "abort"]) {
      const unread = await refused(`bundle ${command}`);
      expect(unread.stderr).toMatch(
        /plan-[0-9a-f]{64}\.json takes \/ from commit [0-9a-f]{40} to [0-9a-f]{40}/,
      );
      expect(unread.stderr.includes(` of the stream to ${BUILD_USR}@R3`)).toBe(token !== "-");
      expect(unread.status).toBe(10);
    }
    await machine.run(`cp -p /tmp/journal ${journal}`);
    // Also when the bundle expired in the meantime, by the site's time; what is not under way is then refused.
    await machine.run(
      `sed -i 's/"created": [0-9]*/"created": '$(($(date +%s) + 60 * 86400))/ /var/lib/zferry/state.json`,
    );
    expect(await lines("bundle install /tmp/R3.bundle")).toContain("installed gentoo release R3 (3)");
    expect((await refused("bundle install /tmp/R4.bundle")).status).toBe(11);
    await machine.run(
      `now=$(date +%s); sed -i "s/\\"created\\": [0-9]*/\\"created\\": $now/" /var/lib/zferry/state.json`,
    );
    await expectInstalled(3);
    expect(
      await lines(
        `readlink ${MNT}/site/etc/localtime; stat -c %a ${MNT}/site/etc/init.d/net; getfacl -cn ${MNT}/site/etc/conf.d/hwclock | grep user:77`,
      ),
    ).toBe("../usr/share/zoneinfo/CET\n644\nuser:77:r--");
  });

  it("installs the third release, and lets the bases before it go", async () => {
    const [release, next] = (
      await lines("sed -n 's/.* key //p' /etc/zferry/release.pub /etc/zferry/next.pub")
    ).split("\n");
    expect(await lines("bundle trust")).toContain(`${next} (added by a release)`);
    // The same release, signed by a key that it revokes itself.
    await machine.run(
      "sed -i 's/^counter = 1/counter = 2\\nrevoke = [\"\\/etc\\/zferry\\/release.pub\"]/' /etc/zferry/build.toml; bundle create --base R3 --target R4 -o /tmp/R4-revoking.bundle",
    );
    expect(await lines("bundle install /tmp/R4-revoking.bundle")).toContain(
      `keys: change 2 adds ${next}, revokes ${release}`,
    );
    expect(await lines("bundle trust")).toContain(`${release} is revoked`);
    expect((await refused("bundle verify /tmp/R2.bundle")).status).toBe(11);
    await expectInstalled(4);
    expect(
      await lines(
        `cat ${MNT}/site/etc/newd/secret ${MNT}/site/etc/localtime; stat -c '%a %u:%g' ${MNT}/site/etc/newd/secret; readlink ${MNT}/site/etc/conf.d/hwclock`,
      ),
    ).toBe('token = "changed"\nTZif\n640 0:0\nkeymaps');
    expect(await lines(`zfs holds -H ${SITE_USR}@R1 ${SITE_USR}@R2 ${SITE_USR}@R3 | cut -f 1,2`)).toBe(
      `${SITE_USR}@R3\tzferry:base`,
    );
    expect((await refused("bundle install /tmp/R3.bundle")).status).toBe(11);
  });

  it("starts a new site with a full bundle", async () => {
    await machine.run("bundle create --target R4 -o /tmp/full.bundle");
    await machine.run(
      `zfs create -p ${RPOOL}/NEW; zfs create -o mountpoint=${MNT}/new -o xattr=sa -o acltype=posixacl ${RPOOL}/NEW/root; cd ${MNT}/new; git init -q .; git -c user.name=a -c user.email=a@b commit -q --allow-empty -m empty; printf '/usr\\n' >.git/info/exclude`,
    );
    const config = SITE_CONFIG.replace(SITE_USR, `${RPOOL}/NEW/usr`).replace(`${MNT}/site`, `${MNT}/new`);
    await machine.write("/tmp/new.toml", `state = "/var/lib/zferry-new"\n${config}`);
    const { stderr } = await machine.run("bundle install --config /tmp/new.toml /tmp/full.bundle");
    expect(stderr).toContain(`${RPOOL}/NEW/usr will be writable`);
    expect(stderr).toContain(`zfs set readonly=on ${RPOOL}/NEW`);
    expect(await guidOf(`${RPOOL}/NEW/usr@R4`)).toBe(await guidOf(`${BUILD_USR}@R4`));
    await machine.run(`zfs mount ${RPOOL}/NEW/usr`);
    expect(
      await lines(
        `diff <(${fingerprint(`${MNT}/${RPOOL}/NEW/usr`)}) <(${fingerprint(`${MNT}/build/usr/.zfs/snapshot/R4`)}) && echo same`,
      ),
    ).toBe("same");
    expect(await lines(`git -C ${MNT}/new rev-parse HEAD^{tree}`)).toBe(
      await lines(`git -C ${MNT}/build rev-parse R4^{tree}`),
    );
  });

  it("warns of secrets that a release gets, and carries them only when told to, one by one", async () => {
    await machine.run(
      `cd ${MNT}/build; printf 'root:*:20000::::::\\n' >etc/shadow; mkdir etc/app; echo token >etc/app/token; age='AGE-SECRET-KEY-1'$(printf 'Q%.0s' {1..58}); echo "$age" >etc/app/settings`,
    );
    await machine.run(`printf '[secrets]\\ndeny = ["/etc/app/token"]\\n' >>/etc/zferry/build.toml`);
    const made = await machine.run("bundle snapshot R5 -m 'with secrets'");
    const found = [
      "etc/app/settings (an age secret key)",
      "etc/app/token (denied by the configuration)",
      "etc/shadow (passwords)",
    ];
    expect(made.stderr.trim().split("\n")).toEqual(
      found.map(
        (secret) => `warning: bundle create will refuse ${secret}: formats/root.md, What never travels`,
      ),
    );
    const create = "mkdir -p /tmp/out; cd /tmp/out; bundle create --base R4 --target R5 -o R5.bundle";
    const all = await refused(create);
    expect(all.stderr).toContain(`a bundle must not carry ${found.join(", ")}\n`);
    expect(all.status).toBe(17);
    const some = await refused(`${create} --allow-secret /etc/shadow --allow-secret /etc/app/token`);
    expect(some.stderr).toContain(`a bundle must not carry ${found[0]}\n`);
    expect(some.status).toBe(17);
    expect(await lines("ls -A /tmp/out")).toBe("");
    await machine.run(`echo 'allow = ["/etc/app/"]' >>/etc/zferry/build.toml`);
    await machine.run(`${create} --allow-secret /etc/shadow`);
    expect(await lines("bundle inspect /tmp/out/R5.bundle | grep '^ *A etc/'")).toBe(
      "A etc/app/settings\n  A etc/app/token\n  A etc/shadow",
    );
  });

  const panicking = async (): Promise<void> => {
    const stream = (name: string) => `zstd -dc ${machine.checkout}/fixtures/streams/2.3-microzap-${name}.zst`;
    await machine.run(
      `${stream("full")} | zfs receive -u ${RPOOL}/microzap; ${stream("incr")} | bundle create --stream usr=- --product gentoo --release microzap --sequence 1 --key /etc/zferry/release.key -o /tmp/microzap.bundle`,
    );
    const config = SITE_CONFIG.replace(SITE_USR, `${RPOOL}/microzap`);
    await machine.write("/tmp/microzap.toml", `state = "/var/lib/zferry-microzap"\n${config}`);
    const { status, stderr } = await refused(
      "bundle install --config /tmp/microzap.toml /tmp/microzap.bundle",
    );
    expect(stderr).toContain("large_microzap");
    expect(status).toBe(17);
  };
  // 2.1 has no such streams.
  if (!usesLocalZfs() && defaultZfs() === "2.3") {
    it("refuses in place a stream that makes ZFS panic", panicking);
  }

  it("sends a verified stream for zfs receive", async () => {
    await machine.run(
      `zfs send ${BUILD_USR}@R1 | zfs receive -u ${RPOOL}/by-stream; bundle send /tmp/R2.bundle --key /etc/zferry/release.pub --stream usr | zfs receive -u ${RPOOL}/by-stream`,
    );
    expect(await guidOf(`${RPOOL}/by-stream@R2`)).toBe(await guidOf(`${BUILD_USR}@R2`));
  });
});

describe("a release installed by hand, with stock tools alone", () =>
  installByHand(() => machine, "/tmp/R2.bundle"));
