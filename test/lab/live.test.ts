import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { BUILD, BUILD_CONFIG, openBooted, type BootedGuest } from "./booted.js";
import { rarely } from "./rounds.js";

// A site that is updated while it runs from what is replaced. It has little memory, and what it has is taken back.
const USR = "rpool/SYSTEM/USR/one";
const LOG = "/var/lib/zferry/install.log";
/** What needs nothing of /usr. */
const BUSYBOX = "/opt/lab/busybox";

/** With `mode`, or without it and with --live. */
const SITE_CONFIG = `product = "gentoo"
[streams]
usr = "${USR}"
[root]
path = "/"
`;

const IN_PLACE = '[install]\nmode = "in-place"\n';

/** Of /mnt/build: programs, libraries and zferry as an update leaves them, each a new file that ends otherwise. */
const REWRITE = `
  cd /mnt/build/usr
  for folder in bin sbin lib/x86_64-linux-gnu lib/zferry; do
    cp -a $folder $folder.new
    find $folder.new -type f \\( -perm -100 -o -name '*.so*' \\) ! -name '*.js' >/tmp/programs
    while IFS= read -r file; do printf '\\n# release 2\\n' >>"$file"; done </tmp/programs
    rm -r $folder
    mv $folder.new $folder
  done
  echo 'release 2' >share/release`;

/** Runs two bystanders, and tells how they ended. Takes memory back, so that what was read from files is read again. */
const PRESSURE = `
  { node -e 'setInterval(() => {}, 50)' </dev/null; echo "node $?"; } 2>/dev/null &
  { bash -c 'while :; do read -t 0.1 <>/root/fifo; done' </dev/null; echo "bash $?"; } 2>/dev/null &
  # The first process would die sooner or later, and then the kernel panics.
  echo 1 >/sys/fs/cgroup/init.scope/cgroup.freeze
  until grep -q 'receiving usr' ${LOG} 2>/dev/null; do usleep 500000; done
  until [ -e /root/enough ]; do
    echo 1 >/proc/sys/vm/drop_caches
    echo 16M 2>/dev/null >/sys/fs/cgroup/system.slice/lab.service/memory.reclaim
    sleep 1
  done`;

/**
 * Kills the terminal while the stream is received, and tells of each process that is in private mounts then: how many
 * maps of the dataset it has, and what it sees below. At last the pages that zferry had to read again.
 */
const WATCH = `
  until grep -q 'receiving usr' ${LOG} 2>/dev/null; do usleep 200000; done
  kill -KILL "$(pidof script)"
  for process in /proc/[0-9]*; do
    grep -q ' ${USR}@R1 ' $process/mountinfo 2>/dev/null || continue
    name=$(basename "$(readlink $process/exe)")
    echo "$name: $(grep -c " $1 " $process/maps), $(cat $process/root/usr/local/own)"
    [ "$name" != node ] || zferry=$process
  done
  until grep -qE '^(result: |bundle: )' ${LOG}; do
    faults=$(cut -d ' ' -f 12 $zferry/stat 2>/dev/null) && last=$faults
    usleep 200000
  done
  echo "faults: $last"
  sleep 3
  touch /root/enough`;

let machine: BootedGuest;
beforeAll(async () => {
  machine = await openBooted({ memory: 640 });
  await machine.giveZferry();
});
afterAll(() => machine?.close());

describe("a site that runs from the /usr that is replaced", () => {
  const lines = async (script: string): Promise<string> => (await machine.run(script)).stdout.trim();
  /** A script that runs on while /usr is replaced. */
  const outlasting = (script: string) =>
    machine.run(`exec ${BUSYBOX} sh ${script}`, { check: false, timeout: 600_000 });

  it("is set up, and gets a release that replaces every program", async () => {
    await machine.write("/etc/zferry/build.toml", BUILD_CONFIG);
    await machine.write("/etc/zferry/site.toml", SITE_CONFIG);
    await machine.write("/.gitignore", "/*\n!/.gitignore\n!/etc\n/etc/zferry\n");
    await machine.run(`
      bundle keygen --no-password -o /etc/zferry/release
      install -D -m 644 /etc/zferry/release.pub /etc/zferry/keys/release.pub
      git config --system user.name admin; git config --system user.email admin@example.org
      zfs create -o mountpoint=/mnt/build ${BUILD}
      zfs snapshot ${USR}@given
      cd /mnt/build; cp -a /etc /.gitignore .; git init -q .; git add --all; git commit -qm delivered
      cd /; git init -q .; chmod 700 .git; git add --all; git commit -qm delivered`);
    await machine.run(`zfs send ${USR}@given | zfs receive -o mountpoint=/mnt/build/usr ${BUILD}/usr`);
    await machine.run(
      `bundle snapshot R1; zfs send -i @given ${BUILD}/usr@R1 | zfs receive -u ${USR}; ${REWRITE}`,
    );
    await machine.run(`
      cd /mnt/build; echo 'release 2' >etc/release; git add --all; git commit -qm 'release 2'
      bundle snapshot R2; bundle create --base R1 --target R2 -o /root/R2.bundle`);
  });

  rarely("is no boot environment as long as the state would be cloned with it", async () => {
    const { status, stderr } = await machine.run("bundle install /root/R2.bundle", { check: false });
    expect(stderr).toContain("each boot environment would have its own");
    expect(stderr).toContain("bundle setup makes one");
    expect(status).toBe(17);
    expect(await lines("bundle status")).toContain("mode: boot-environment, by default");
  });

  it("is refused in place without --live, which it names with the danger", async () => {
    await machine.write("/root/in-place.toml", `${SITE_CONFIG}${IN_PLACE}`);
    const { status, stderr } = await machine.run(
      "bundle install --config /root/in-place.toml /root/R2.bundle",
      { check: false },
    );
    expect(stderr).toContain(`run from ${USR}: systemd (1, `);
    expect(stderr).toMatch(/likely die: .* with --live/);
    expect(status).toBe(17);
  });

  rarely("tells what else may use the dataset", async () => {
    await machine.write("/var/lib/nfs/etab", "/\t*(ro,crossmnt)\n/host\t*(ro)\n");
    await machine.run(`
      losetup -r /dev/loop0 /usr/bin/git
      mkdir /tmp/above; mount -t overlay -o lowerdir=/usr/share:/etc overlay /tmp/above
      (unshare --mount ${BUSYBOX} sleep 1000 </usr/bin/git >/dev/null 2>&1 & echo $! >/root/container)`);
    const { stdout, stderr } = await machine.run("bundle plan --live /root/R2.bundle");
    expect(stdout).toContain("mode: in-place, with --live");
    await machine.run(
      "rm /var/lib/nfs/etab; losetup -d /dev/loop0; umount /tmp/above; kill $(cat /root/container)",
    );
    expect(stderr).toMatch(/^danger: what runs from .*: systemd \(1\), .*busybox \(\d+\)/m);
    expect(stderr).toContain(
      `danger: ${USR} is read elsewhere: export of / by NFS, /dev/loop0, which is /usr/bin/git, an overlay on /tmp/above of /usr\n`,
    );
  });

  it("is installed with --live, though memory is short, and its terminal and shell are killed", async () => {
    await machine.write("/root/pressure", PRESSURE);
    await machine.write("/root/watch", WATCH);
    await machine.run("mkfifo /root/fifo; mount -t tmpfs tmpfs /usr/local; echo own >/usr/local/own");
    // As the kernel writes it in maps.
    const device = await lines(
      "mountpoint -d /usr | { IFS=: read -r major minor; printf %02x:%02x $major $minor; }",
    );
    const bystanders = outlasting("/root/pressure");
    const session = machine.run(
      `exec script -qfc "bash -lc 'bundle install --live /root/R2.bundle'" /root/typescript </dev/null`,
      { check: false, timeout: 600_000 },
    );
    const seen = (await outlasting(`/root/watch ${device}`)).stdout.trim().split("\n").sort();
    const [, faults] = /^faults: (\d+)$/.exec(seen.shift() ?? "") ?? [];
    // zfs itself may begin a moment later.
    expect(seen.filter((line) => line !== "zfs: 0, own")).toEqual(["node: 0, own"]);
    expect(Number(faults)).toBeGreaterThan(1000);
    expect((await session).status).toBe(137);
    // Of SIGBUS, each.
    expect((await bystanders).stdout.trim().split("\n").sort()).toEqual(["bash 135", "node 135"]);
  });

  const expectInstalled = async (): Promise<void> => {
    expect(await lines("bundle status")).toContain("installed: release R2 (2)");
    expect(
      await lines(`
        zfs get -H -p -o value guid ${USR}@R2; zfs get -H -o value receive_resume_token,written ${USR}
        cat /usr/share/release /etc/release; git -C / status --porcelain; ls /var/lib/zferry | sed 's/^plan-.*/a plan/'
        find /run -maxdepth 1 -name 'zferry*'; grep -l '${USR}@' /proc/*/mountinfo 2>/dev/null || true`),
    ).toBe(
      `${await lines(`zfs get -H -p -o value guid ${BUILD}/usr@R2`)}\n-\n0\nrelease 2\nrelease 2\n` +
        "install.log\nlock\na plan\nstate.json",
    );
  };

  it("leaves a release that is whole, a log, and no mount", async () => {
    await expectInstalled();
    expect(await lines(`stat -c '%a %u' ${LOG}; cat ${LOG}`)).toMatch(
      /^600 0\nverifying [^]*danger: what runs from [^]*: systemd \(1\), [^]*receiving usr [^]*\nresult: installed release R2$/,
    );
    // What the terminal showed ends where it was killed.
    expect(await lines("cat /root/typescript")).toMatch(/running from .*@R1; the log is [^]*receiving usr/);
  });

  it("boots from the new /usr", async () => {
    await machine.reboot();
    await expectInstalled();
  });

  rarely("hands on output, errors, status and signals of what runs apart", async () => {
    const again = await machine.run("cd /root; bundle install --live --json R2.bundle");
    expect(JSON.parse(again.stdout)).toMatchObject({ outcome: "present" });
    expect(again.stderr).toBe("");
    const short = await machine.run(
      "head -c 300000 /root/R2.bundle >/root/short.bundle; bundle install --live /root/short.bundle",
      { check: false },
    );
    expect(short.stderr.match(/^bundle: /gm)).toHaveLength(1);
    expect(short.stderr).toContain("/root/short.bundle");
    expect(short.status).toBe(12);
    const ended = await machine.run(
      `rm ${LOG}; bundle install --live /root/R2.bundle & until grep -q verifying ${LOG} 2>/dev/null; do sleep 0.1; done; kill -TERM $!; wait $!`,
      { check: false },
    );
    expect(ended.stderr).toContain("bundle: interrupted");
    expect(ended.status).toBe(130);
  });

  it("finishes at boot what the power cut between the halves, before anything else starts", async () => {
    await machine.write("/etc/zferry/site.toml", `${SITE_CONFIG}${IN_PLACE}`);
    await machine.run("bundle setup");
    // What is under way goes on in place without it.
    await machine.write("/etc/zferry/site.toml", SITE_CONFIG);
    await machine.run(`
      cd /mnt/build; echo 'release 3' >usr/share/release; echo 'release 3' >etc/release; git add --all; git commit -qm 'release 3'
      bundle snapshot R3; bundle create --base R2 --target R3 -o /root/R3.bundle`);
    await machine.run(
      `STOP_AT='journal: writing' STOP_BY=STOP STOP_LOG=/root/steps NODE_OPTIONS='--import /zferry/test/lab/stop-at.mjs' \
        setsid bundle install --live /root/R3.bundle </dev/null >/dev/null 2>&1 &
      until grep -qs 'journal: writing' /root/steps; do sleep 0.2; done
      cat /usr/share/release /etc/release`,
      { timeout: 300_000 },
    );
    await machine.cut();
    await machine.start();
    expect(await lines("cat /usr/share/release /etc/release; git -C / status --porcelain")).toBe(
      "release 3\nrelease 3\n?? etc/systemd/system/multi-user.target.wants/zferry-resume.service\n?? etc/systemd/system/zferry-resume.service",
    );
    expect(await lines("bundle status")).toMatch(/^installed: release R3 \(3\)[^]*^under way: nothing/m);
    expect(
      await lines(
        "systemctl show -P Result zferry-resume; journalctl -b -u zferry-resume -o cat | grep '^installed'",
      ),
    ).toBe("success\ninstalled gentoo release R3 (3)");
    // Each is in microseconds since the kernel started.
    const [ended = 0, others = 0] = (
      await lines(
        "systemctl show -P ExecMainExitTimestampMonotonic zferry-resume; systemctl show -P ActiveEnterTimestampMonotonic sysinit.target",
      )
    )
      .split("\n")
      .map(Number);
    expect(ended).toBeGreaterThan(0);
    expect(others).toBeGreaterThan(ended);
  });
});
