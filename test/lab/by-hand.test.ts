import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Machine } from "./guest.js";
import { makeRelease, openSystem, SITE_USR } from "./system.js";

/** The blocks of the page of one kind, in a row: what a reader would type. */
const page = readFileSync(new URL("../../formats/by-hand.md", import.meta.url), "utf8");
const blocks = (kind: string): string =>
  [...page.matchAll(new RegExp(`^\`\`\`sh ${kind}\\n(.*?)^\`\`\``, "gms"))].map(([, text]) => text).join("");

describe("a release installed by hand, with stock tools alone", () => {
  let machine: Machine;
  const variables = (bundle: string): string =>
    `BUNDLE=${bundle} KEY=/etc/zferry/keys/release.pub DATASET=${SITE_USR} SITE=/site WORK=/work/by-hand\n`;

  beforeAll(async () => {
    machine = await openSystem();
    await makeRelease(machine, 2);
    // Whatever these blocks do, zferry does none of it.
    await machine.run("rm /usr/local/bin/bundle /usr/local/bin/zferry");
    // A folder where a user may work, on a file system that keeps extended attributes.
    await machine.run(
      "zfs create -o mountpoint=/work -o xattr=sa -o acltype=posixacl tank/work; chmod 1777 /work",
    );
  });
  afterAll(() => machine?.close());

  /** The first part of the page, as an ordinary user. */
  const check = async (bundle: string) => {
    await machine.write("/tmp/check", variables(bundle) + blocks("check"));
    return machine.run(
      `rm -rf /work/by-hand; chmod 644 ${bundle}; setpriv --reuid=1000 --regid=1000 --clear-groups bash -euo pipefail /tmp/check`,
      { check: false },
    );
  };

  it("fails for a bundle with an unsigned chunk added", async () => {
    await machine.run(
      `cd /tmp; cp R2.bundle added.bundle; mkdir -p added/streams/usr; cp /tmp/R2.bundle added/streams/usr/00000099.zst; cp R2.bundle plain.tar; tar -rf plain.tar -C added streams/usr/00000099.zst; mv plain.tar added.bundle`,
    );
    const { status, stdout, stderr } = await check("/tmp/added.bundle");
    expect(stdout + stderr).toContain("cmp: EOF on /work/by-hand/listed");
    expect(status).not.toBe(0);
  });

  it("fails for a bundle whose stream was changed", async () => {
    await machine.run(
      "cd /tmp; cp R2.bundle changed.bundle; printf X | dd of=changed.bundle bs=1 seek=$(($(stat -c %s R2.bundle) - 5000)) conv=notrunc status=none",
    );
    const { status, stdout } = await check("/tmp/changed.bundle");
    expect(stdout).toContain("streams/usr/00000000.zst: FAILED");
    expect(status).not.toBe(0);
  });

  it("fails for a bundle with another list of hashes", async () => {
    await machine.run(
      "cd /tmp; cp R2.bundle relisted.bundle; printf Z | dd of=relisted.bundle bs=1 seek=512 conv=notrunc status=none",
    );
    expect((await check("/tmp/relisted.bundle")).status).not.toBe(0);
  });

  it("takes a site from base to target", async () => {
    const checked = await check("/tmp/R2.bundle");
    expect(checked.stderr).toBe("");
    expect(checked.status).toBe(0);
    const rest = ["stream", "root", "metadata-example", "root-copy"].map(blocks).join("");
    const restored =
      "chown 0:0 etc/passwd etc/group etc/sshd_config; chmod 644 etc/passwd etc/group etc/sshd_config\n";
    const script = rest.replace(blocks("metadata-example"), blocks("metadata-example") + restored);
    await machine.run(variables("/tmp/R2.bundle") + script);

    const { stdout } = await machine.run(
      `diff <(/zferry/test/lab/distribution.sh fingerprint /site/usr) <(/zferry/test/lab/distribution.sh fingerprint /build/usr/.zfs/snapshot/R2) && echo same usr
cd /site; git status --porcelain; grep -E 'Option(02|28)' etc/sshd_config; stat -c '%a %u:%g %n' etc/newd etc/newd/secret etc/passwd
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
});
