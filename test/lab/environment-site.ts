import { randomBytes } from "node:crypto";
import { MNT, openMachine } from "./guest.js";
import { Stopping } from "./stopped-site.js";
import { distribution, RPOOL, script, TANK } from "./system.js";

/*
 * A site for installs as a boot environment: formats/environments.md. It is not the system that runs: / is rpool/ROOT/site, /usr and
 * /opt are datasets of their own, as its /etc/fstab has them, and so is /data, below that of /, which is never cloned.
 */

/** OpenZFS 2.1.11 crashes now and then, in its own code, when it mounts what is encrypted: not in a run of everything. */
export const IS_ENCRYPTED = process.env["ZFERRY_TEST_ALL"] === "1";

export const FILE = "/tmp/R2.bundle";
export const SITE = `${MNT}/site`;
export const ROOT = `${RPOOL}/ROOT`;
export const [USR, OPT] = [`${RPOOL}/SYSTEM/USR`, `${RPOOL}/SYSTEM/OPT`];
export const NEW = [`${ROOT}/R2`, `${USR}/R2`, `${OPT}/R2`];

const BUILD_CONFIG = `product = "gentoo"
[streams]
usr = "${TANK}/BUILD/gentoo/usr"
opt = "${TANK}/BUILD/opt"
[root]
path = "${MNT}/build"
dataset = "${TANK}/BUILD/gentoo"
[create]
key = "/etc/zferry/release.key"
level = 3
`;
// What it leaves running is ended, what others have it only reads, and what it has in memory is gone.
const COMMANDS = `ls /usr/bin/sshd /opt/app /data/log /proc/self/status >/tools/seen; ! echo >>/data/log
  for each in /run /tmp /var/tmp; do echo >$each/left; done; /tools/busybox sleep 9999 &`;
const AFTER = JSON.stringify(["/tools/busybox", "sh", "-ec", COMMANDS]);
export const siteConfig = (after = AFTER): string => `product = "gentoo"
[streams]
usr = "${USR}/gentoo"
opt = "${OPT}/gentoo"
[root]
path = "${SITE}"
[install]
mode = "boot-environment"
after = [${after}]
[boot-environment]
container = "${ROOT}"
accept = ["/tools"]
`;
export const FSTAB = `# of this site
${ROOT}/site/data /data zfs zfsutil 0 0
${USR}/gentoo\t/usr  zfs ro,nodev 0 0
LABEL=none /srv ext4 nofail 0 0
${OPT}/gentoo /opt zfs ro 0 0
`;

const SET_UP = `
  zfs create -p -o mountpoint=${MNT}/build-opt ${TANK}/BUILD/opt
  echo one >${MNT}/build-opt/app
  printf '#!/bin/sh\\n' >${MNT}/build/usr/bin/init; chmod 755 ${MNT}/build/usr/bin/init
  bundle keygen --no-password -o /etc/zferry/release
  install -D -m 644 /etc/zferry/release.pub /etc/zferry/keys/release.pub
  bundle snapshot R1`;
const MAKE_SITE = `
  zfs create -p -o readonly=on ${OPT}; zfs send ${TANK}/BUILD/opt@R1 | zfs receive -u -o mountpoint=legacy ${OPT}/gentoo
  cd /; zfs unmount ${USR}/gentoo; zfs unmount ${ROOT}/site
  zfs set mountpoint=legacy ${USR}/gentoo; zfs set canmount=noauto ${ROOT}/site; zfs set mountpoint=/ ${ROOT}/site
  zfs set org.example:own='a value' compression=lz4 zferry:release=old ${ROOT}/site
  mount -t zfs -o zfsutil ${ROOT}/site ${SITE}
  cd ${SITE}; mkdir -p opt boot tools proc sys dev run tmp var/tmp; ln -s usr/bin sbin
  cp "$(command -v busybox)" tools/busybox
  touch boot/vmlinuz-6.1 boot/initrd.img-6.1
  cp /tmp/fstab etc/fstab
  printf '/opt\\n/tools\\n/data\\n' >>.git/info/exclude
  git add -A; git commit -qm 'what boots'
  mount -t zfs -o ro ${USR}/gentoo usr; mount -t zfs -o ro ${OPT}/gentoo opt
  mkdir data; zfs create -o canmount=noauto ${ROOT}/site/data; mount -t zfs -o zfsutil ${ROOT}/site/data data; echo log >data/log
  zpool set bootfs=${ROOT}/site ${RPOOL}; zfs snapshot ${ROOT}/site@fresh
  echo two >${MNT}/build-opt/app`;

/** What of a pool can be switched, made or held. */
export const POOL = `
  zpool get -H -o value bootfs ${RPOOL}
  zfs list -H -p -t all -o name,userrefs -s name -r ${RPOOL}`;
/** Brings the site back to R1. */
export const RESET = `
  cd /; rm -rf /var/lib/zferry
  for name in ${[...NEW.map((name) => name.replace(/2$/, "3")), ...NEW].join(" ")}; do
    zfs receive -A $name 2>/dev/null || true
    zfs destroy -r $name 2>/dev/null || true
  done
  for name in ${USR} ${OPT}; do zfs release zferry:base $name/gentoo@R1 2>/dev/null || true; done
  zfs destroy ${ROOT}/site@zferry-R2,zferry-R3 2>/dev/null || true
  zfs rollback ${ROOT}/site@fresh
  rmdir /run/zferry-* 2>/dev/null || true
  zpool set bootfs=${ROOT}/site ${RPOOL}`;

/** A command's error, and what it tells besides. */
interface Told {
  readonly code: string;
  readonly message: string;
  readonly hint?: string;
  readonly also?: readonly Told[];
}

/** The site at R1, and the bundle of R2. */
export class EnvironmentSite extends Stopping {
  static async open(): Promise<EnvironmentSite> {
    const site = new EnvironmentSite(await openMachine());
    try {
      await site.setUp();
      return site;
    } catch (error) {
      await site.machine.close();
      throw error;
    }
  }

  private async setUp(): Promise<void> {
    const { machine } = this;
    await machine.createPool("tank");
    await machine.write("/tmp/key", randomBytes(32));
    const encryption = ["encryption=on", "keyformat=raw", "keylocation=file:///tmp/key"];
    const args = encryption.flatMap((each) => ["-O", each]);
    await machine.createPool("rpool", IS_ENCRYPTED ? { args } : {});
    await machine.write("/etc/zferry/build.toml", BUILD_CONFIG);
    await this.useConfig(siteConfig());
    await machine.write("/tmp/fstab", FSTAB);
    await distribution(machine, "build-host");
    await this.lines(SET_UP);
    await distribution(machine, "site");
    await this.lines(MAKE_SITE);
    await distribution(machine, "change 2");
    await this.lines(
      `bundle snapshot R2 -m two; bundle create --base R1 --target R2 --expires-days 30 -o ${FILE}`,
    );
  }

  useConfig(text: string): Promise<void> {
    return this.machine.write("/etc/zferry/site.toml", text);
  }

  /** What a command is refused for; none where it is not. */
  async refusal(command: string): Promise<readonly Told[]> {
    const { status, stderr } = await this.attempt(`${command} --json`);
    if (status === 0) return [];
    const { error } = JSON.parse(stderr) as { error: Told };
    return [error, ...(error.also ?? [])];
  }

  /** The system that is cloned, to the last byte, with its repository. */
  running(): Promise<string> {
    return this.lines(`${script(this.machine, `fingerprint ${SITE}`)} | sha256sum`);
  }
}
