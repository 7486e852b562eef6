import { readFileSync } from "node:fs";
import { beforeAll, expect, it } from "vitest";
import { MNT, type Machine, type RunOptions } from "./guest.js";
import { distribution, RPOOL, TANK } from "./system.js";

/** The blocks of the page of one kind, in a row: what a reader would type. */
const page = readFileSync(new URL("../../formats/by-hand.md", import.meta.url), "utf8");
const blocks = (kind: string): string =>
  [...page.matchAll(new RegExp(`^\`\`\`sh ${kind}\\n(.*?)^\`\`\``, "gms"))].map(([, text]) => text).join("");

/** Tests of the page, with the bundle of release R2 and a site of its own. */
export function installByHand(open: () => Machine, r2: string): void {
  const variables = (bundle: string): string =>
    `BUNDLE=${bundle} KEY=/etc/zferry/keys/release.pub DATASET=${RPOOL}/hand/USR/gentoo SITE=${MNT}/hand WORK=${MNT}/work/by-hand\n`;
  // Whatever these blocks do, zferry does none of it.
  const env = { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" };
  const run = (script: string, options: RunOptions = {}) => open().run(script, { env, ...options });

  beforeAll(async () => {
    await distribution(open(), "site hand");
    // A folder where a user may work, on a file system that keeps extended attributes.
    await run(
      `zfs create -o mountpoint=${MNT}/work -o xattr=sa -o acltype=posixacl ${TANK}/work; chmod 1777 ${MNT}/work; cp ${r2} /tmp/by-hand.bundle; ! command -v bundle zferry`,
    );
  });

  /** The first part of the page, as an ordinary user. */
  const check = async (bundle: string) => {
    await open().write("/tmp/check", variables(bundle) + blocks("check"));
    return run(
      `rm -rf ${MNT}/work/by-hand; chmod 644 ${bundle}; setpriv --reuid=1000 --regid=1000 --clear-groups bash -euo pipefail /tmp/check`,
      { check: false },
    );
  };

  it("fails for a bundle with an unsigned chunk added", async () => {
    await run(
      `cd /tmp; cp by-hand.bundle added.bundle; mkdir -p added/streams/usr; cp /tmp/by-hand.bundle added/streams/usr/00000099.zst; cp by-hand.bundle plain.tar; tar -rf plain.tar -C added streams/usr/00000099.zst; mv plain.tar added.bundle`,
    );
    const { status, stdout, stderr } = await check("/tmp/added.bundle");
    expect(stdout + stderr).toContain(`cmp: EOF on ${MNT}/work/by-hand/listed`);
    expect(status).not.toBe(0);
  });

  it("fails for a bundle whose stream was changed", async () => {
    await run(
      "cd /tmp; cp by-hand.bundle changed.bundle; printf X | dd of=changed.bundle bs=1 seek=$(($(stat -c %s by-hand.bundle) - 5000)) conv=notrunc status=none",
    );
    const { status, stdout } = await check("/tmp/changed.bundle");
    expect(stdout).toContain("streams/usr/00000000.zst: FAILED");
    expect(status).not.toBe(0);
  });

  it("fails for a bundle with another list of hashes", async () => {
    await run(
      "cd /tmp; cp by-hand.bundle relisted.bundle; printf Z | dd of=relisted.bundle bs=1 seek=512 conv=notrunc status=none",
    );
    expect((await check("/tmp/relisted.bundle")).status).not.toBe(0);
  });

  it("takes a site from base to target", async () => {
    const checked = await check("/tmp/by-hand.bundle");
    expect(checked.stderr).toBe("");
    expect(checked.status).toBe(0);
    const rest = ["stream", "root", "metadata-example", "root-copy"].map(blocks).join("");
    const restored =
      "chown 0:0 etc/passwd etc/group etc/sshd_config; chmod 644 etc/passwd etc/group etc/sshd_config\n";
    const script = rest.replace(blocks("metadata-example"), blocks("metadata-example") + restored);
    await run(variables("/tmp/by-hand.bundle") + script);

    const { stdout } = await run(
      `diff <(${open().checkout}/test/lab/distribution.sh fingerprint ${MNT}/hand/usr) <(${open().checkout}/test/lab/distribution.sh fingerprint ${MNT}/build/usr/.zfs/snapshot/R2) && echo same usr
cd ${MNT}/hand; git status --porcelain; grep -E 'Option(02|28)' etc/sshd_config; stat -c '%a %u:%g %n' etc/newd etc/newd/secret etc/passwd
getfattr --only-values -n user.origin etc/newd/secret; echo; ls etc/oldd.conf 2>/dev/null || echo no oldd`,
    );
    expect(stdout).toBe(`same usr
Option02 of-this-site
Option28 of-release-2
750 0:77 etc/newd
600 77:77 etc/newd/secret
644 0:0 etc/passwd
release-2
no oldd
`);
  });
}
