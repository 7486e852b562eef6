import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { defaultZfs, type Machine } from "./guest.js";
import {
  distribution as runDistribution,
  makeRelease as makeReleaseOf,
  openSystem,
  SITE_CONFIG,
  SITE_USR,
} from "./system.js";

describe("three releases from a build host to a site", () => {
  let machine: Machine;

  beforeAll(async () => {
    machine = await openSystem();
  });
  afterAll(() => machine?.close());

  const distribution = (command: string) => runDistribution(machine, command);
  const makeRelease = (number: number) => makeReleaseOf(machine, number);
  const fingerprint = async (folder: string): Promise<string> =>
    (await distribution(`fingerprint ${folder}`)).stdout;
  const lines = async (script: string): Promise<string> => (await machine.run(script)).stdout.trim();
  /** Runs what must fail, and gives its status and what it said. */
  const refused = async (script: string): Promise<{ status: number; stderr: string }> => {
    const { status, stderr } = await machine.run(script, { check: false });
    return { status, stderr };
  };
  const guidOf = (snapshot: string): Promise<string> => lines(`zfs get -H -p -o value guid ${snapshot}`);

  /** Everything of the site that an install may change. */
  const siteState = async (): Promise<string> =>
    [
      await fingerprint("/site/usr"),
      await lines(
        `cd /site; find . -path ./.git -prune -o -path ./usr -prune -o -printf '%P %y %m %U:%G %l\\n' | sort;` +
          `git rev-parse HEAD; git status --porcelain; git for-each-ref;` +
          `zfs list -H -t all -o name -r rpool; zfs get -H -o value receive_resume_token ${SITE_USR};` +
          `zfs list -H -t snapshot -o name,userrefs -r rpool; cat /var/lib/zferry/state.json /var/lib/zferry/journal.json || true`,
      ),
    ].join("\n");

  /** Both halves are what the release and the site make of them. */
  const expectInstalled = async (number: number): Promise<void> => {
    expect(await fingerprint("/site/usr")).toBe(await fingerprint(`/build/usr/.zfs/snapshot/R${number}`));
    expect(await guidOf(`${SITE_USR}@R${number}`)).toBe(await guidOf(`tank/BUILD/gentoo/usr@R${number}`));
    expect(await lines("cd /site; git status --porcelain")).toBe("");
    expect(await lines("git -C /site rev-parse refs/zferry/release^{tree}")).toBe(
      await lines(`git -C /build rev-parse R${number}^{tree}`),
    );
    expect(await lines("zfs get -H -o value receive_resume_token " + SITE_USR)).toBe("-");
    expect(await lines("find /site -name '.zferry-*'; ls /var/lib/zferry")).toBe("lock\nstate.json");
    // The site's own changes.
    expect(
      await lines(
        "cat /site/etc/conf.d/keymaps /site/etc/hosts; grep Option02 /site/etc/sshd_config; grep operator /site/etc/group",
      ),
    ).toBe('keymap="de"\n10.1.2.3 plc\nOption02 of-this-site\noperator:x:1000:');
  };

  it("is refused when the build host's / has changes that are not committed", async () => {
    await distribution("change 2");
    const { status, stderr } = await refused("bundle snapshot R2");
    expect(stderr).toContain("not committed");
    expect(status).toBe(17);
    expect(await lines("zfs list -H -t snapshot -o name -r tank | grep R2 || true; git -C /build tag")).toBe(
      "R1",
    );
  });

  it("makes a release: all snapshots in one transaction, held, and a tag", async () => {
    await machine.run('bundle snapshot R2 -m "release 2"');
    const groups = await lines("zfs list -H -t snapshot -o createtxg -r tank | sort | uniq -c");
    expect(groups.split("\n").map((line) => line.trim().split(" ")[0])).toEqual(["2", "2"]);
    const destroyed = await refused("zfs destroy tank/BUILD/gentoo/usr@R2");
    expect(destroyed.status).not.toBe(0);
    expect(
      await lines(
        "git -C /build for-each-ref --format='%(contents:trailers:key=Zferry-Sequence,valueonly)' refs/tags/R2",
      ),
    ).toBe("2");
    expect((await refused("bundle snapshot R2")).status).toBe(17);
  });

  it("packs it into one bundle, which is whole and from us", async () => {
    await machine.run("bundle create --base R1 --target R2 -o /tmp/R2.bundle");
    const verified = await lines("bundle verify /tmp/R2.bundle --key /root/release.pub");
    expect(verified).toContain(await guidOf("tank/BUILD/gentoo/usr@R1"));
    expect(verified).toContain(await guidOf("tank/BUILD/gentoo/usr@R2"));
    expect(verified).toMatch(/^OK .*gentoo release R2 \(2\).*signed by [0-9A-F]{16}/);
    const inspected = await lines("bundle inspect /tmp/R2.bundle");
    expect(inspected).toContain("A etc/newd/secret");
    expect(inspected).toContain("D etc/oldd.conf");
    expect(inspected).toContain("M etc/sshd_config");
  });

  it("makes the same bytes again, also from a repacked repository", async () => {
    await machine.run(
      "git -C /build gc --quiet --aggressive; bundle create --base R1 --target R2 -o /tmp/again.bundle",
    );
    await machine.run("cmp /tmp/R2.bundle /tmp/again.bundle; rm /tmp/again.bundle");
  });

  it("changes nothing in a dry run", async () => {
    const before = await siteState();
    expect(await lines("bundle install --dry-run /tmp/R2.bundle")).toContain("would be installed");
    expect(await siteState()).toBe(before);
  });

  it("installs the first release", async () => {
    expect(await lines("bundle install /tmp/R2.bundle")).toContain("installed gentoo release R2 (2)");
    await expectInstalled(2);
    expect(
      await lines(
        "grep -c 'Option28 of-release-2' /site/etc/sshd_config; stat -c '%a %u:%g' /site/etc/newd/secret /site/etc/newd",
      ),
    ).toBe("1\n600 77:77\n750 0:77");
    expect(
      await lines(
        "getfattr --only-values -n user.origin /site/etc/newd/secret; ls /site/etc/oldd.conf 2>/dev/null || true",
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
    await makeRelease(3);
    const file = await makeRelease(4);
    const before = await siteState();
    const { status, stderr } = await refused(`bundle install ${file}`);
    expect(stderr).toContain(await guidOf("tank/BUILD/gentoo/usr@R3"));
    expect(stderr).toContain(await guidOf(`${SITE_USR}@R2`));
    expect(status).toBe(13);
    expect(await siteState()).toBe(before);
  });

  it("refuses a base that was modified, naming both guids", async () => {
    await machine.run(`zfs set readonly=off ${SITE_USR}; echo changed >/site/usr/bin/ls; zpool sync rpool`);
    const { status, stderr } = await refused("bundle install /tmp/R3.bundle");
    expect(stderr).toContain("modified");
    expect(stderr).toContain(await guidOf(`${SITE_USR}@R2`));
    expect(stderr).toContain(await guidOf("tank/BUILD/gentoo/usr@R3"));
    expect(status).toBe(13);
    await machine.run(`zfs rollback ${SITE_USR}@R2; zfs inherit readonly ${SITE_USR}`);
  });

  it("refuses while a process runs from the dataset", async () => {
    // A program that lies on the dataset can only be put there as a release would: into another dataset.
    const own = "rpool/SYSTEM/USR/busy";
    await machine.run(
      `zfs send ${SITE_USR}@R2 | zfs receive -u ${own}; zfs set mountpoint=/busy readonly=off ${own}; mountpoint -q /busy || zfs mount ${own}; cp /usr/bin/sleep /busy/bin/sleep; zfs snapshot ${own}@more`,
    );
    await machine.run(`sed 's,${SITE_USR},${own},' /etc/zferry/site.toml >/tmp/busy.toml`);
    await machine.run("(/busy/bin/sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >/tmp/sleep.pid)");
    await machine.run(
      `zfs send -i @R2 ${own}@more >/tmp/more; zfs rollback -r ${own}@R2 2>/dev/null || true`,
    );
    const stream =
      "bundle create --stream usr=/tmp/more --product gentoo --release more --sequence 9 --key /root/release.key -o /tmp/more.bundle";
    await machine.run(stream);
    const { status, stderr } = await refused("bundle install --config /tmp/busy.toml /tmp/more.bundle");
    await machine.run(`kill $(cat /tmp/sleep.pid)`);
    expect(stderr).toMatch(/run from rpool\/SYSTEM\/USR\/busy: sleep/);
    expect(status).toBe(17);
  });

  it("stops at a conflict before anything is changed, naming the paths", async () => {
    await machine.run(
      `cd /site; sed -i 's/^Option15 .*/Option15 of-the-site/' etc/sshd_config; git commit -qam 'a change where the release has one'`,
    );
    const before = await siteState();
    const { status, stderr } = await refused("bundle install /tmp/R3.bundle");
    expect(stderr).toContain("etc/sshd_config");
    expect(status).toBe(15);
    expect(await siteState()).toBe(before);
    await machine.run("cd /site; git revert --no-edit HEAD");
  });

  it("refuses changes of the site that are not committed", async () => {
    await machine.run("echo more >>/site/etc/hosts");
    const before = await siteState();
    const { status, stderr } = await refused("bundle install /tmp/R3.bundle");
    expect(stderr).toContain("etc/hosts");
    expect(status).toBe(17);
    expect(await siteState()).toBe(before);
    await machine.run("cd /site; git checkout -q etc/hosts");
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

  it("goes on after it was killed while it received", async () => {
    await machine.run(
      "bundle install /tmp/R3.bundle >/dev/null 2>&1 & pid=$!; until pgrep -f '[z]fs receive' >/dev/null; do sleep 0.02; done; kill -9 $pid; pkill -9 -f '[z]fs receive' || true; wait $pid || true",
    );
    expect(await lines("bundle status")).toContain("under way: release R3");
    expect((await refused("bundle install /tmp/R2.bundle")).status).toBe(17);
    // Also when the bundle expired in the meantime; what is not under way is then refused.
    await machine.run("date -s '60 days'");
    expect(await lines("bundle install /tmp/R3.bundle")).toContain("installed gentoo release R3 (3)");
    expect((await refused("bundle install /tmp/R4.bundle")).status).toBe(11);
    await machine.run("date -s '60 days ago'");
    await expectInstalled(3);
    expect(
      await lines(
        "readlink /site/etc/localtime; stat -c %a /site/etc/init.d/net; getfacl -cn /site/etc/conf.d/hwclock | grep user:77",
      ),
    ).toBe("../usr/share/zoneinfo/CET\n644\nuser:77:r--");
  });

  it("installs the third release, and lets the bases before it go", async () => {
    expect(await lines("bundle install /tmp/R4.bundle")).toContain("installed gentoo release R4 (4)");
    await expectInstalled(4);
    expect(
      await lines(
        "cat /site/etc/newd/secret /site/etc/localtime; stat -c '%a %u:%g' /site/etc/newd/secret; readlink /site/etc/conf.d/hwclock",
      ),
    ).toBe('token = "changed"\nTZif\n640 0:0\nkeymaps');
    expect(await lines(`zfs holds -H ${SITE_USR}@R1 ${SITE_USR}@R2 ${SITE_USR}@R3 | cut -f 1,2`)).toBe(
      `${SITE_USR}@R3\tzferry:base`,
    );
    expect((await refused("bundle install /tmp/R3.bundle")).status).not.toBe(1);
  });

  it("starts a new site with a full bundle", async () => {
    await machine.run("bundle create --target R4 -o /tmp/full.bundle");
    await machine.run(
      `zfs create -p rpool/NEW; zfs create -o mountpoint=/new -o xattr=sa -o acltype=posixacl rpool/NEW/root; cd /new; git init -q .; git -c user.name=a -c user.email=a@b commit -q --allow-empty -m empty; printf '/usr\\n' >.git/info/exclude`,
    );
    const config = SITE_CONFIG.replace(SITE_USR, "rpool/NEW/usr").replace('"/site"', '"/new"');
    await machine.write("/tmp/new.toml", `state = "/var/lib/zferry-new"\n${config}`);
    await machine.run("bundle install --config /tmp/new.toml /tmp/full.bundle");
    expect(await guidOf("rpool/NEW/usr@R4")).toBe(await guidOf("tank/BUILD/gentoo/usr@R4"));
    await machine.run("zfs mount rpool/NEW/usr");
    expect(await fingerprint("/rpool/NEW/usr")).toBe(await fingerprint("/build/usr/.zfs/snapshot/R4"));
    expect(await lines("git -C /new rev-parse HEAD^{tree}")).toBe(
      await lines("git -C /build rev-parse R4^{tree}"),
    );
  });

  // 2.1 has no such streams.
  if (defaultZfs() === "2.3") {
    it("refuses in place a stream that makes ZFS panic", async () => {
      const stream = (name: string) =>
        `zstd -dc ${machine.checkout}/fixtures/streams/2.3-microzap-${name}.zst`;
      await machine.run(
        `${stream("full")} | zfs receive -u rpool/microzap; ${stream("incr")} | bundle create --stream usr=- --product gentoo --release microzap --sequence 1 --key /root/release.key -o /tmp/microzap.bundle`,
      );
      const config = SITE_CONFIG.replace(SITE_USR, "rpool/microzap");
      await machine.write("/tmp/microzap.toml", `state = "/var/lib/zferry-microzap"\n${config}`);
      const { status, stderr } = await refused(
        "bundle install --config /tmp/microzap.toml /tmp/microzap.bundle",
      );
      expect(stderr).toContain("large_microzap");
      expect(status).toBe(17);
    });
  }

  it("sends a verified stream for zfs receive", async () => {
    await machine.run(
      `zfs send tank/BUILD/gentoo/usr@R1 | zfs receive -u rpool/by-stream; bundle send /tmp/R2.bundle --key /root/release.pub --stream usr | zfs receive -u rpool/by-stream`,
    );
    expect(await guidOf("rpool/by-stream@R2")).toBe(await guidOf("tank/BUILD/gentoo/usr@R2"));
  });
});
