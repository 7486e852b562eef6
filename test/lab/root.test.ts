import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MNT, type Machine } from "./guest.js";
import { rarely } from "./rounds.js";
import { makeRelease, openSystem, SITE_CONFIG, SITE_USR } from "./system.js";

// What a site's administrator meets when a release and the site's own changes of / come together: on ZFS, on ext4, and with
// Debian's own /etc.

const R2 = "/tmp/R2.bundle";
const EXT4 = "/mnt/ext4";

let machine: Machine;

const lines = async (text: string): Promise<string> =>
  (await machine.run(text, { timeout: 600_000 })).stdout.trim();
const attempt = (command: string) => machine.run(command, { check: false, timeout: 600_000 });

beforeAll(async () => {
  machine = await openSystem();
  await makeRelease(machine, 2);
  await machine.run(
    `modprobe ext4; truncate -s 64M /tmp/ext4.img; mkfs.ext4 -q /tmp/ext4.img; mkdir -p ${EXT4}; mount -o loop /tmp/ext4.img ${EXT4}
    (cd ${MNT}/site && tar -c --exclude=./usr --xattrs --acls .) | tar -C ${EXT4} -x --xattrs --acls -p
    printf '/lost+found\\n' >${EXT4}/.git/info/exclude`,
  );
  await machine.write(
    "/tmp/ext4.toml",
    `state = "/var/lib/zferry-ext4"\n${SITE_CONFIG.replace(`${MNT}/site`, EXT4)}`,
  );
});
afterAll(() => machine?.close());

describe.each([
  ["ZFS", `${MNT}/site`, "", "/var/lib/zferry"],
  ["ext4", EXT4, "--config /tmp/ext4.toml", "/var/lib/zferry-ext4"],
])("a / on %s with changes of its own", (system, root, config, state) => {
  const own = "--commit-drift --replace-untracked";
  /** All of `/` but times, and what git says of it. */
  const siteState = (): Promise<string> =>
    lines(`
      zfs list -H -p -o name,guid,userrefs -t snapshot -r ${SITE_USR}
      cd ${root}; git status --porcelain; git rev-parse HEAD; git for-each-ref
      find . -path ./.git -prune -o -path ./usr -prune -o -path ./lost+found -prune -o -printf '%P %y %m %U:%G %l\\n' | sort
      find . -path ./.git -prune -o -path ./usr -prune -o -type f -print0 | sort -z | xargs -0 sha256sum
      getfattr -R -h -d -m user -e hex etc 2>/dev/null | grep -v '^#' | sort`);
  let before: string;
  const test = system === "ZFS" ? it : rarely;

  if (system === "ext4") {
    beforeAll(async () => {
      // The same /usr as the / before began with.
      await machine.run(`zfs release zferry:base ${SITE_USR}@R1; zfs rollback -r ${SITE_USR}@R1`);
    });
  }

  test("is told of its uncommitted changes, of a conflict and of what is in the way, with nothing changed", async () => {
    await machine.run(`
      cd ${root}; sed -i 's/^Option28 .*/Option28 of-this-site/' etc/sshd_config; git commit -qam 'option 28'
      echo 'dumpkeys=yes' >>etc/conf.d/keymaps
      mkdir etc/newd; echo mine >etc/newd/secret; chmod 640 etc/newd/secret; setfattr -n user.mine -v 1 etc/newd/secret`);
    before = await siteState();
    for (const verb of ["plan", "install"]) {
      const dirty = await attempt(`bundle ${verb} ${config} ${R2}`);
      expect(dirty.stderr).toContain("files differ from the site's last commit: etc/conf.d/keymaps");
      expect(dirty.stderr).toContain("--commit-drift");
      expect(dirty.status).toBe(17);
      const conflict = await attempt(`bundle ${verb} ${config} --commit-drift ${R2}`);
      expect(conflict.stderr).toContain("etc/sshd_config (contents)");
      expect(conflict.stderr).toContain("bundle resolve");
      expect(conflict.status).toBe(15);
    }
    expect(await siteState()).toBe(before);
  });

  test("settles the conflict apart from the system", async () => {
    const file = `${state}/resolve/etc/sshd_config`;
    const open = await lines(`bundle resolve ${config} ${own} ${R2}`);
    expect(open).toContain(
      `0 of 2 conflicts of gentoo release R2 (2) settled; those left are in ${state}/resolve:`,
    );
    expect(open).toContain("etc/sshd_config (contents): edit");
    expect(await lines(`cat ${file}`)).toContain(
      "<<<<<<< this site\nOption28 of-this-site\n||||||| before\nOption28 value\n=======\nOption28 of-release-2\n>>>>>>> release",
    );
    await machine.run(
      `sed -i '/^<<<<<<< /d; /^||||||| /,/^>>>>>>> /d; s/^Option28 .*/Option28 of-both/' ${file}`,
    );
    // The site made the folder itself.
    expect(await lines(`bundle resolve ${config} ${own} ${R2}`)).toMatch(
      /1 of 2 conflicts of [^]*etc\/newd \([a-z]+: .+ here, .+ in the release.*\): choose a side/,
    );
    expect(await lines(`bundle resolve ${config} ${own} --theirs /etc/newd ${R2}`)).toContain(
      "no conflict of gentoo release R2 (2) is left, 2 settled",
    );
    expect(await siteState()).toBe(before);
  });

  const onExt4 = (name: string, use: () => Promise<void>): void => {
    if (system === "ext4") rarely(name, use);
  };
  onExt4("is told what chattr keeps", async () => {
    await machine.run(`chattr +i ${root}/etc/group`);
    const { stderr, status } = await attempt(`bundle plan ${config} ${own} ${R2}`);
    await machine.run(`chattr -i ${root}/etc/group`);
    expect(stderr).toContain("etc/group");
    expect(stderr).toContain("chattr -i");
    expect(status).toBe(17);
  });

  test("gives the install up after it was killed behind the last file: all is as it was", async () => {
    const { status } = await attempt(
      `STOP_AT='journal: recording' node --import ${machine.checkout}/test/lab/stop-at.mjs /opt/zferry/lib/cli.js install ${config} ${own} ${R2}`,
    );
    expect(status).toBe(137);
    expect(await lines(`cat ${root}/etc/newd/secret`)).toBe('token = "change me"');
    await machine.run(`bundle abort ${config}`);
    expect(await siteState()).toBe(before);
  });

  test("is installed, and keeps everything of its own", async () => {
    const plan = JSON.parse(await lines(`bundle plan --json ${config} ${own} ${R2}`)) as {
      root: { drift: { paths: string[] }; replaced: { paths: string[] }; settled: { path: string }[] };
    };
    expect(plan.root.drift.paths).toEqual(["etc/conf.d/keymaps"]);
    expect(plan.root.replaced.paths).toEqual(["etc/newd/secret"]);
    expect([...new Set(plan.root.settled.map(({ path }) => path))].sort()).toEqual([
      "etc/newd",
      "etc/sshd_config",
    ]);
    await machine.run(`bundle install ${config} ${own} ${R2}`);
    expect(
      await lines(`
        cd ${root}; git status --porcelain; grep Option28 etc/sshd_config; tail -1 etc/conf.d/keymaps
        git log --format=%s -1 HEAD^1; git show refs/zferry/replaced/R2:etc/newd/secret
        stat -c '%a %U:%G' etc/newd/secret 2>/dev/null | sed 's/UNKNOWN/newd/g'; getfattr --only-values -n user.origin etc/newd/secret`),
    ).toBe("Option28 of-both\ndumpkeys=yes\nChanges of this site before R2\nmine\n600 newd:newd\nrelease-2");
    const drift = JSON.parse(await lines(`bundle drift --json ${config}`)) as Record<
      "committed" | "uncommitted",
      { path: string }[]
    >;
    expect(drift.committed.map(({ path }) => path)).toEqual(
      expect.arrayContaining(["etc/conf.d/keymaps", "etc/group", "etc/hosts", "etc/sshd_config"]),
    );
    expect(drift.uncommitted).toEqual([]);
  });
});

/** What Debian's packages have in /etc, as a tar archive. */
function etcOf(packages: readonly string[]): Buffer {
  const folder = mkdtempSync(join(tmpdir(), "zferry-etc-"));
  const sh = (command: string): void =>
    void execFileSync("/bin/sh", ["-euc", command], { cwd: folder, stdio: "pipe" });
  try {
    sh(
      `apt-get download ${packages.join(" ")} || { apt-get update && apt-get download ${packages.join(" ")}; }`,
    );
    for (const name of readdirSync(folder))
      sh(`dpkg-deb --fsys-tarfile ${name} >x.tar; tar -x -f x.tar ./etc; rm x.tar`);
    sh("tar -c -f etc.tar etc");
    return readFileSync(join(folder, "etc.tar"));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

describe("Debian's own /etc, of one set of packages and then of another", () => {
  const FIRST = [
    "cron-daemon-common",
    "logrotate",
    "rsyslog",
    "openssh-client",
    "sudo",
    "nginx-common",
    "bash",
  ];
  const SECOND = [
    "cron-daemon-common",
    "logrotate",
    "openssh-client",
    "sudo",
    "apache2",
    "postfix",
    "samba-common",
    "bash",
  ];
  const release = async (number: number, packages: readonly string[], more: string): Promise<void> => {
    await machine.write("/tmp/etc.tar", etcOf(packages));
    await machine.run(`
      cd ${MNT}/build; [ ! -e /tmp/names ] || { xargs -d '\\n' rm -f </tmp/names; find etc -mindepth 1 -type d -empty -delete; }
      tar -t -f /tmp/etc.tar | grep -v '/$' >/tmp/names; tar -x -p -f /tmp/etc.tar
      ${more}
      bundle snapshot R${number} -m "release ${number}"; bundle create --base R${number - 1} --target R${number} -o /tmp/R${number}.bundle`);
  };
  /** Paths, in which the site differs from the release, links and contents. */
  const differing = (number: number): Promise<string> =>
    lines(
      `cd ${MNT}/site; git diff --no-renames --name-status $(git -C ${MNT}/build rev-parse R${number}^{tree}) HEAD -- | sort`,
    );

  beforeAll(async () => {
    await machine.run(`bundle install ${R2}`);
    await release(3, FIRST, "true");
    // As a package's next version changes its files.
    await release(
      4,
      SECOND,
      `sed -i '1i# version 4' etc/ssh/ssh_config; sed -i 's/^weekly/daily/' etc/logrotate.conf; chmod 640 etc/crontab; mkdir -p etc/zz.d; chmod 700 etc/zz.d`,
    );
  });

  it("is merged with what the site made of it", async () => {
    await machine.run("bundle install /tmp/R3.bundle");
    expect(await lines(`stat -c %a ${MNT}/site/etc/sudoers.d/README`)).toBe("440");
    await machine.run(`
      cd ${MNT}/site; before=$(git rev-parse HEAD)
      printf 'Host plc\\n    User root\\n' >>etc/ssh/ssh_config; sed -i 's/^rotate .*/rotate 52/' etc/logrotate.conf
      git mv etc/bash.bashrc etc/bash.bashrc.local; echo '# ours' >>etc/rsyslog.conf; chgrp 10 etc/crontab; git commit -qam 'of this site'`);
    const { stderr, status } = await attempt("bundle plan /tmp/R4.bundle");
    expect(stderr).toContain("etc/rsyslog.conf (modify/delete)");
    expect(status).toBe(15);
    await machine.write(
      "/tmp/policy.toml",
      `${SITE_CONFIG}\n[[root.merge]]\npath = "/etc/rsyslog.conf"\npolicy = "ours"\n`,
    );
    const plan = await lines("bundle plan --config /tmp/policy.toml /tmp/R4.bundle");
    expect(plan).toMatch(/conflict of contents in etc\/rsyslog\.conf: settled by /);
    await machine.run("bundle install --config /tmp/policy.toml /tmp/R4.bundle");
    expect(
      await lines(
        `cd ${MNT}/site; git status --porcelain; head -1 etc/ssh/ssh_config; tail -1 etc/ssh/ssh_config; grep -E '^(rotate|daily)' etc/logrotate.conf
        stat -c '%a %g %n' etc/crontab etc/zz.d etc/sudoers.d/README; ls -d etc/nginx etc/rsyslog.conf 2>&1 || true`,
      ),
    ).toBe(
      "# version 4\n    User root\ndaily\nrotate 52\n640 10 etc/crontab\n700 0 etc/zz.d\n440 0 etc/sudoers.d/README\n" +
        "ls: cannot access 'etc/nginx': No such file or directory\netc/rsyslog.conf",
    );
    expect((await differing(4)).split("\n")).toEqual(
      expect.arrayContaining(["M\tetc/logrotate.conf", "M\tetc/ssh/ssh_config", "A\tetc/rsyslog.conf"]),
    );
  });
});
