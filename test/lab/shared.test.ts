import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { EnvironmentSite, FILE, NEW, OPT, RESET, ROOT, SITE, siteConfig, USR } from "./environment-site.js";
import { MNT } from "./guest.js";
import { rarely, shareOf } from "./rounds.js";
import { RPOOL } from "./system.js";

// What all environments share: formats/environments.md, File systems that all share.

const EFI = `${SITE}/boot/efi`;
const mount = `mount -o loop,fmask=0022,dmask=0022 /root/efi.img ${EFI}`;
const shared = siteConfig().replace("accept", 'shared = ["/boot/efi"]\naccept');
const contents = `cd ${EFI}; find . | sort; find . -type f -print0 | sort -z | xargs -0 sha256sum; cd /`;
const MADE_OF = ["E2", "E3"].flatMap((name) => [ROOT, USR, OPT].map((parent) => `${parent}/${name}`));
const reset = `
  cd /; umount ${EFI}; rm -rf /var/lib/zferry
  for name in ${[...MADE_OF, ...NEW].join(" ")}; do
    zfs receive -A $name 2>/dev/null || true; zfs destroy -r $name 2>/dev/null || true
  done
  for name in ${USR} ${OPT}; do zfs release zferry:base $name/gentoo@R1 2>/dev/null || true; done
  zfs destroy ${ROOT}/site@zferry-E2,zferry-E3,zferry-R2 2>/dev/null || true
  zfs rollback ${ROOT}/site@efi; zpool set bootfs=${ROOT}/site ${RPOOL}
  rmdir /run/zferry-* 2>/dev/null || true; cp /root/efi.fresh /root/efi.img; ${mount}`;
/** As a power cut would leave it: what FAT numbers its files with is gone. */
const again = `umount ${EFI}; ${mount}`;
/** Where the build host has files for it. */
const BUILT = `${MNT}/build/boot/efi/EFI/new`;
const bundle = (name: string): string => `/tmp/efi/${name}.bundle`;

let place: EnvironmentSite;
let fresh: string;
let changed: string;

const lines = (text: string): Promise<string> => place.lines(text);
const refusal = (command: string) => place.refusal(command);
const useConfig = (text: string): Promise<void> => place.useConfig(text);
/** The system without it, to the last byte. */
const withoutIt = async (): Promise<string> => {
  await lines(`umount ${EFI}`);
  const found = await place.running();
  await lines(mount);
  return found;
};

beforeAll(async () => {
  place = await EnvironmentSite.open();
  await lines(`${RESET}; modprobe -a loop vfat; mkfs.vfat -C /root/efi.img 4096; mkdir -p ${EFI}; ${mount}
    mkdir -p ${EFI}/EFI/BOOT; echo own >${EFI}/EFI/BOOT/own.efi
    cd ${SITE}; git add -A; git commit -qm 'the EFI partition'; cd /; umount ${EFI}
    cp /root/efi.img /root/efi.fresh; zfs snapshot ${ROOT}/site@efi; ${mount}
    mkdir -p /tmp/efi ${BUILT}; cd ${BUILT}; echo one >app.efi; echo two >two.efi; chmod 755 *
    bundle snapshot E2 -m E2; bundle create --base R1 --target E2 -o ${bundle("E2")}`);
  fresh = await lines(contents);
  expect(fresh).toContain("./EFI/BOOT/own.efi");
}, 600_000);
afterAll(() => place?.machine.close());

describe("an EFI partition, which all environments share,", () => {
  rarely("is only read where nothing of it changes", async () => {
    await useConfig(siteConfig());
    expect(await lines(`bundle install ${FILE}`)).toContain("installed gentoo release R2 (2)");
    expect(await lines(contents)).toBe(fresh);
    // It is there when the new one has booted.
    const seen = `mount -t zfs -o zfsutil ${ROOT}/R2 /media; mount --bind ${EFI} /media/boot/efi
      cd /media; git status --porcelain; git ls-files boot/efi; cd /; umount -R /media`;
    expect(await lines(seen)).toBe("boot/efi/EFI/BOOT/own.efi");
  });

  rarely("is not changed without leave, which the plan tells how to give", async () => {
    await lines(reset);
    const [error] = await refusal(`bundle plan ${bundle("E2")}`);
    expect(error).toMatchObject({
      code: "dataset-unsuitable",
      hint: expect.stringContaining('shared = ["/boot/efi"] under [boot-environment]') as string,
    });
    expect(error?.message).toMatch(
      /on \/boot\/efi, which is \/dev\/loop\d+ \(vfat\): boot\/efi\/EFI\/new\/app\.efi, .*two\.efi/,
    );
    await useConfig(siteConfig().replace("accept", 'shared = ["/boot"]\naccept'));
    expect((await refusal(`bundle plan ${bundle("E2")}`))[0]).toMatchObject({
      code: "not-configured",
      message: "nothing is mounted on /boot, which all boot environments share",
    });
    await useConfig(siteConfig().replace("accept", 'shared = ["/usr"]\naccept'));
    expect((await refusal(`bundle plan ${bundle("E2")}`))[0]?.message).toContain("what a stream replaces");
  });

  rarely("is not changed to what FAT cannot keep", async () => {
    await useConfig(shared);
    await lines(`cd ${BUILT}; chmod 644 *; bundle snapshot E1 -m E1; chmod 755 *
      bundle create --base R1 --target E1 -o /tmp/E1.bundle`);
    const [error] = await refusal("bundle plan /tmp/E1.bundle");
    expect(error?.code).toBe("worktree-dirty");
    expect(error?.message).toContain("boot/efi/EFI/new/app.efi (permissions 644, there 755)");
    expect(await lines(contents)).toBe(fresh);
  });

  it("is changed at once where that is allowed, which is told, and not turned back", async () => {
    await useConfig(shared);
    const plan = await lines(`bundle plan ${bundle("E2")}`);
    expect(plan).toMatch(
      /shared by all boot environments, the running one too, and changed at once: \d+\n +boot\/efi\//,
    );
    expect(await lines(contents)).toBe(fresh);
    const here = await withoutIt();
    expect(await lines(`bundle install ${bundle("E2")}`)).toContain("changed at once: ");
    changed = await lines(contents);
    expect(changed).toContain("./EFI/new/app.efi");
    expect(changed).not.toContain(".zferry-");
    expect(await withoutIt()).toBe(here);
    const rollback = await lines("bundle rollback");
    expect(rollback).toMatch(/not turned back, since all environments share them: \d+\n +boot\/efi\//);
    expect(await lines(contents)).toBe(changed);
  });

  rarely("is gone on with, or as it was, after a kill before any step and another mount", async () => {
    await lines(reset);
    const steps = await place.stepsOf(`install ${bundle("E2")}`);
    const at = (phase: string): number => steps.indexOf(`journal: ${phase}`) + 1;
    const moments: [number, string][] = [
      [at("receiving"), "abort"],
      [at("receiving"), "install"],
      [at("writing") + 2, "install"],
      [at("finishing"), "abort"],
      [at("activating"), "install"],
      [at("recording"), "abort"],
    ];
    for (const [, [step, ends]] of shareOf(moments, 1, 4)) {
      const where = `killed before ${step}, ${steps[step - 1]}, then ${ends}`;
      await lines(`${reset}; ${place.killed(`install ${bundle("E2")}`, step)}; ${again}
        ${ends === "abort" ? "bundle abort" : `bundle install ${bundle("E2")}`}`);
      expect(`${where}\n${await lines(contents)}`).toBe(`${where}\n${ends === "abort" ? fresh : changed}`);
    }
  });

  rarely(
    "is as it was when several bundles are given up, and what a second one made of it stays",
    async () => {
      await lines(`${reset}; cd ${BUILT}; echo three >app.efi; rm two.efi
        bundle snapshot E3 -m E3; bundle create --base E2 --target E3 -o ${bundle("E3")}`);
      const steps = await place.stepsOf("install /tmp/efi");
      const last = await lines(contents);
      expect(last).toContain("./EFI/new/app.efi");
      expect(last).not.toContain("two.efi");
      const second = steps.lastIndexOf("journal: finishing") + 1;
      await lines(`${reset}; ${place.killed("install /tmp/efi", second)}; ${again}`);
      expect(await lines(contents)).toBe(last);
      expect(await lines("bundle abort")).toContain("gave up");
      expect(await lines(contents)).toBe(fresh);
    },
  );
});
