import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MNT, openMachine, type Machine } from "./guest.js";
import { rarely, shareOf } from "./rounds.js";
import { Stopping } from "./stopped-site.js";

/*
 * What was changed in the environment before is merged: formats/environments.md, Merging what was changed before. The site is not the
 * system that runs: / is rpool/ROOT/two, which was made of rpool/ROOT/one by hand.
 */

const SITE = `${MNT}/site`;
const ROOT = "rpool/ROOT";
const CONFIG = `product = "gentoo"
[streams]
usr = "rpool/usr"
[root]
path = "${SITE}"
[install]
mode = "boot-environment"
[boot-environment]
container = "${ROOT}"
`;
const LINES = "one\\ntwo\\nthree\\nfour\\nfive\\n";

const SET_UP = `
  mkdir -p ${SITE}
  git config --system user.name admin; git config --system user.email admin@example.org
  zfs create -o canmount=off ${ROOT}; zfs create rpool/usr
  zfs create -o canmount=noauto -o mountpoint=/ ${ROOT}/one; mount -t zfs -o zfsutil ${ROOT}/one ${SITE}
  cd ${SITE}; chmod 755 .; mkdir etc; printf '${LINES}' >etc/config; echo gone >etc/gone; echo same >etc/modes; chmod 640 etc/modes
  git init -q .; chmod 700 .git; git add -A; git commit -qm one
  zfs snapshot ${ROOT}/one@made; zfs clone -o canmount=noauto -o mountpoint=/ ${ROOT}/one@made ${ROOT}/two
  sed -i s/five/FIVE/ etc/config; git commit -qam five
  echo new >etc/new; git add etc/new; rm etc/gone; chmod 600 etc/modes; setfattr -n user.a -v 1 etc/modes; echo other >etc/untracked
  cd /; umount ${SITE}; mount -t zfs -o zfsutil ${ROOT}/two ${SITE}
  cd ${SITE}; sed -i s/one/ONE/ etc/config; git commit -qam two
  zfs snapshot ${ROOT}/two@fresh; zpool sync`;

/** Brings the new one back to what it was before the merge. */
const RESET = `
  cd /; umount ${SITE}; zfs rollback ${ROOT}/two@fresh; zfs inherit zferry:merge ${ROOT}/two
  rm -rf /var/lib/zferry; rmdir /run/zferry-* 2>/dev/null || true; mount -t zfs -o zfsutil ${ROOT}/two ${SITE}`;
/** Boots another one. */
const boot = (name: string): string => `
  cd /; umount ${SITE}; mount -t zfs -o zfsutil ${ROOT}/${name} ${SITE}`;
/** All of the new one but times, and what must not change besides. */
const STATE = `
  cd ${SITE}; git status --porcelain; git for-each-ref --format='%(refname) %(tree)'; git log --format='%s%n%b'
  find . -path ./.git -prune -o -printf '%P %y %m %U:%G %l\\n' | sort; getfattr -R -d etc; find etc -type f | sort | xargs sha256sum
  find . -name '.zferry-*'; ls -A /var/lib/zferry | grep -vx lock || true
  zfs get -H -o value zferry:merge ${ROOT}/two
  zpool sync; zfs get -H -p -o value written ${ROOT}/one
  zfs list -H -t all -o name,userrefs -r ${ROOT}`;

let machine: Machine;
let stopping: Stopping;
let before: string;
let written: string;

const lines = (text: string): Promise<string> => stopping.lines(text);
const state = (): Promise<string> => lines(STATE);

beforeAll(async () => {
  machine = await openMachine();
  stopping = new Stopping(machine);
  await machine.createPool("rpool");
  await machine.write("/etc/zferry/site.toml", CONFIG);
  await lines(SET_UP);
  await lines(`${RESET}; mkdir -p -m 700 /var/lib/zferry`);
  before = await state();
});
afterAll(() => machine?.close());

describe("what was changed in the environment before", () => {
  it("is merged, and named where git does not track it", async () => {
    expect(await lines("bundle confirm --merge")).toBe(
      `no release is installed that could be rolled back; nothing to confirm
merged what was changed in one: 4 files change
      M etc/config
      D etc/gone
      M etc/modes (attributes)
      A etc/new
changed in one after this one was made from it, and not here: 1
  etc/untracked`,
    );
    written = await state();
    expect(
      await lines(
        `cd ${SITE}; cat etc/config etc/new; stat -c %a etc/modes; getfattr -n user.a etc/modes; ls etc`,
      ),
    ).toBe(`ONE\ntwo\nthree\nfour\nFIVE\nnew\n600\n# file: etc/modes\nuser.a="1"\n\nconfig\nmodes\nnew`);
    expect(written).toContain(
      `Merge changes of one into two\nMade in ${ROOT}/one after ${ROOT}/one@made, up to its commit `,
    );
    expect(
      await lines(
        `cd ${SITE}; git status --porcelain; git fsck 2>&1; ls -d /run/zferry-* 2>/dev/null || true`,
      ),
    ).toBe("");
  });

  rarely("is merged once", async () => {
    // What becomes of it here is not turned back.
    await lines(`cd ${SITE}; git rm -q etc/new; git commit -qm 'not wanted'`);
    expect(await lines("bundle confirm --merge")).toContain(
      "what was changed in one is here already; nothing to merge",
    );
    expect(await lines(`ls ${SITE}/etc`)).toBe("config\nmodes");
    await lines(RESET);
    expect(JSON.parse(await lines("bundle confirm --merge --json"))).toMatchObject({
      outcome: "present",
      merge: { outcome: "merged", environment: "one", root: { changes: 4 }, left: ["etc/untracked"] },
    });
    expect(await state()).toBe(written);
  });

  rarely("is found where it is a clone of this one, as zectl has it, not taken for another's", async () => {
    await lines(`${RESET}; zfs promote ${ROOT}/two`);
    const none = "the running environment was made from no other that is there; nothing to merge";
    expect(await lines("bundle confirm --merge")).toContain(none);
    await lines(`zfs set zferry:previous=$(zfs get -H -p -o value guid ${ROOT}/one) ${ROOT}/two`);
    expect(await lines("bundle confirm --merge")).toContain("merged what was changed in one: 4 files change");
    // Of a release it is the one that the install made it of, and not what a removal put in that place.
    await lines(
      `${RESET}; zfs inherit zferry:previous ${ROOT}/two; zfs promote ${ROOT}/one; zfs set zferry:release=R2 ${ROOT}/two`,
    );
    expect(await lines("bundle confirm --merge")).toContain(none);
    await lines(`zfs inherit zferry:release ${ROOT}/two`);
  });

  rarely("is still to come at boot when something else comes first", async () => {
    await lines(`${RESET}; mkdir -p -m 700 /var/lib/zferry; zfs set zferry:merge=wanted ${ROOT}/two`);
    const { status, stderr } = await stopping.attempt(
      "flock /var/lib/zferry/lock bundle confirm --or-go-back",
    );
    expect(status).toBe(0);
    expect(stderr).toContain("warning: what was changed in the environment before is not merged: ");
    expect(await lines(`zfs get -H -o value zferry:merge ${ROOT}/two`)).toBe("wanted");
    await lines("bundle confirm --or-go-back");
    expect(await state()).toBe(written);
  });

  it("changes nothing with a conflict, and is tried again", async () => {
    await lines(`${RESET}; cd ${SITE}; sed -i s/five/5/ etc/config; git commit -qam 5`);
    const unmerged = await state();
    const { status, stderr } = await stopping.attempt("bundle confirm --merge");
    expect([status, stderr]).toEqual([
      15,
      expect.stringContaining("changed here and in the environment one: etc/config (contents)") as string,
    ]);
    expect(await state()).toBe(unmerged);
    await machine.write(
      "/etc/zferry/site.toml",
      CONFIG.replace("[install]", '[[root.merge]]\npath = "/etc/config"\npolicy = "ours"\n[install]'),
    );
    expect(await lines("bundle confirm --merge")).toContain(
      "conflict of contents in etc/config: settled by policy ours",
    );
    expect(await lines(`cat ${SITE}/etc/new; tail -n 1 ${SITE}/etc/config`)).toBe("new\n5");
    await machine.write("/etc/zferry/site.toml", CONFIG);
  });

  rarely("is refused where / has changes that are not committed, or commits them", async () => {
    await lines(`${RESET}; echo mine >${SITE}/etc/gone.too; cd ${SITE}; git add etc/gone.too`);
    expect((await stopping.attempt("bundle confirm --merge")).status).toBe(17);
    expect(await lines("bundle confirm --merge --commit-drift")).toContain("own changes, committed first: 1");
    expect(await lines(`cd ${SITE}; git status --porcelain; git log -2 --format=%s`)).toBe(
      "Merge changes of one into two\nChanges of this system before those of one",
    );
  });

  rarely("is nothing for one that was made from no other, or is changed in place", async () => {
    await lines(`${RESET}; ${boot("one")}`);
    expect(await lines("bundle confirm --merge")).toContain(
      "made from no other that is there; nothing to merge",
    );
    await lines(boot("two"));
    await machine.write("/etc/zferry/site.toml", CONFIG.replace("boot-environment", "in-place"));
    expect((await stopping.attempt("bundle confirm --merge")).status).toBe(2);
    await machine.write("/etc/zferry/site.toml", CONFIG);
    expect(await state()).toBe(before);
  });
});

describe("a merge that was cut off", () => {
  const cut = async (step: string): Promise<void> => {
    await lines(`${RESET}; ${stopping.killed("confirm --merge", step)}`);
  };

  rarely("is told, and nothing else is begun before its end", async () => {
    await cut("journal: recording");
    expect(await lines("bundle status")).toMatch(
      /under way: a merge of changes of one into two, begun at .*, writing the files of \/\n {2}goes on with: bundle confirm --merge; gives it up: bundle abort$/,
    );
    for (const command of ["environments --prune", "rollback", "activate one"]) {
      const { status, stderr } = await stopping.attempt(`bundle ${command}`);
      expect([command, status, stderr]).toEqual([
        command,
        17,
        expect.stringContaining("a merge of changes of one into two is under way") as string,
      ]);
    }
    expect(await lines("bundle history")).toBe("no release was installed by zferry yet");
    expect(await lines("bundle install")).toMatch(/^merged what was changed in one: 4 files change\n/);
    expect(await state()).toBe(written);
  });

  it("is given up, or goes on, while another environment runs", async () => {
    for (const [command, expected] of [
      ["bundle abort", before],
      ["bundle confirm --merge", written],
    ] as const) {
      await cut("journal: recording");
      await lines(`${boot("one")}; ${command}; ${boot("two")}`);
      expect(`${command}\n${await state()}`).toBe(`${command}\n${expected}`);
    }
  });

  rarely("is given up where its environment is not there any more", async () => {
    await cut("journal: recording");
    await lines(`${boot("one")}; zfs rename ${ROOT}/two ${ROOT}/other`);
    expect((await stopping.attempt("bundle install")).stderr).toContain("is not there any more");
    expect(await lines("bundle abort; bundle status")).toContain("under way: nothing");
    await lines(`zfs rename ${ROOT}/other ${ROOT}/two; ${boot("two")}`);
  });

  rarely("goes on after a second kill, while what the first one left was taken back", async () => {
    for (const [command, expected] of [
      ["bundle confirm --merge", written],
      ["bundle abort", before],
    ] as const) {
      await cut("journal: writing");
      await lines(stopping.killed("confirm --merge", "remove journal"));
      expect(await lines("cat /var/lib/zferry/journal.json")).toContain('"undoing":true');
      await lines(command);
      expect(`${command}\n${await state()}`).toBe(`${command}\n${expected}`);
    }
  });

  it("goes on, or is given up, after a kill before any step", async () => {
    await lines(RESET);
    const steps = await stopping.stepsOf("confirm --merge");
    for (const step of [
      "journal: preparing",
      "journal: writing",
      "journal: recording",
      "zfs set",
      "remove journal",
    ])
      expect(steps).toContain(step);
    expect(await state()).toBe(written);
    for (const [index, step] of shareOf(steps, 0, 32)) {
      const end = ["confirm --merge", "install", "abort"][index % 3] ?? "";
      const where = `killed before ${index + 1}, ${step}, then ${end}`;
      await lines(`${RESET}; ${stopping.killed("confirm --merge", index + 1)}; bundle ${end}`);
      const isBegun = index > steps.indexOf("journal: preparing");
      const isDone = index > steps.indexOf("remove journal");
      const isMade = end === "confirm --merge" || isDone || (end === "install" && isBegun);
      expect(`${where}\n${await state()}`).toBe(`${where}\n${isMade ? written : before}`);
    }
  }, 2_400_000);
});
