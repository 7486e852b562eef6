import { afterAll, beforeAll, expect } from "vitest";
import { MNT, type Machine } from "./guest.js";
import { rarely } from "./rounds.js";
import { makeRelease, openSystem, SITE_CONFIG } from "./system.js";

// A / as Gentoo has it, with portage's files and OpenRC's runlevels: a release that updates the world meets a site's changes.

let machine: Machine;

const lines = async (text: string): Promise<string> =>
  (await machine.run(text, { timeout: 600_000 })).stdout.trim();

/** Changes the build host, and makes a release and its bundle. */
const release = (number: number, change: string): Promise<string> =>
  lines(`
    cd ${MNT}/build
    ${change}
    bundle snapshot R${number} -m "release ${number}"
    bundle create --base R${number - 1} --target R${number} -o /tmp/R${number}.bundle`);

/** Paths in which the site's last commit differs from the release's links and contents. */
const differing = async (number: number): Promise<string[]> =>
  (
    await lines(
      `cd ${MNT}/site; git diff --no-renames --name-status $(git -C ${MNT}/build rev-parse R${number}^{tree}) HEAD -- | sort`,
    )
  ).split("\n");

const gentoo = (command: string): string => `${machine.checkout}/test/lab/gentoo.sh ${command}`;
const UNION = `${SITE_CONFIG}\n[[root.merge]]\npath = "/var/lib/portage/world"\npolicy = "union"\n`;

beforeAll(async () => {
  machine = await openSystem();
  await machine.run(`bundle install ${await makeRelease(machine, 2)}`);
  await release(3, gentoo("first"));
  await release(4, gentoo("update"));
  await machine.write("/tmp/union.toml", UNION);
});

afterAll(() => machine?.close());

rarely("is merged with what the site made of it", async () => {
  await machine.run("bundle install /tmp/R3.bundle", { timeout: 600_000 });
  expect(await lines(`cd ${MNT}/site; stat -c '%a %u:%g' var/lib/portage etc/portage/package.use`)).toBe(
    "2775 0:250\n755 0:250",
  );
  await machine.run(`
      cd ${MNT}/site
      sed -i 's/^MAKEOPTS=.*/MAKEOPTS="-j1"/' etc/portage/make.conf; echo 'sys-apps/package2 minimal' >etc/portage/package.use/site
      rm etc/runlevels/default/netmount; ln -s /etc/init.d/plc etc/runlevels/default/plc
      printf '#!/sbin/openrc-run\\n' >etc/init.d/plc; chmod 755 etc/init.d/plc
      sed -i 's/^# hostname/# of this site/' etc/conf.d/hostname; echo 'site/plc' >>var/lib/portage/world
      git add -A; git commit -qm 'of this site'
      echo 'what etc-update did not merge yet' >etc/conf.d/._cfg0000_hostname`);
  const { stderr, status } = await machine.run("bundle plan /tmp/R4.bundle", { check: false });
  expect(stderr).toContain("both changed var/lib/portage/world (contents)\n");
  expect(status).toBe(15);
  await machine.run("bundle install --config /tmp/union.toml /tmp/R4.bundle", { timeout: 600_000 });
  expect(
    await lines(`
        cd ${MNT}/site; git status --porcelain; head -1 etc/portage/make.conf; grep MAKEOPTS etc/portage/make.conf
        sort var/lib/portage/world; head -1 etc/conf.d/hostname; tail -1 etc/conf.d/hostname
        readlink etc/portage/make.profile | grep -o 'split-usr$'; ls etc/runlevels/default etc/env.d; ls var/db/pkg/sys-libs | grep -c -- '-1[.]1$'
        stat -c '%a %u:%g' var/lib/portage`),
  ).toBe(
    '?? etc/conf.d/._cfg0000_hostname\nCOMMON_FLAGS="-O3 -pipe"\nMAKEOPTS="-j1"\n' +
      "app-shells/package1\nsite/plc\nsys-apps/package2\nsys-libs/package3\n# of this site\n# yet more\n" +
      "split-usr\netc/env.d:\n04gcc-x86_64\n\netc/runlevels/default:\ncronie\nplc\nsysklogd\n3\n2775 0:250",
  );
  const different = await differing(4);
  for (const own of ["M\tetc/portage/make.conf", "A\tetc/init.d/plc", "D\tetc/runlevels/default/netmount"])
    expect(different).toContain(own);
  // The database of packages is the release's.
  expect(different.filter((line) => line.includes("var/db"))).toEqual([]);
});
