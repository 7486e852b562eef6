import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openMachine, poolName, type Machine } from "./guest.js";
import { rarely, shareOf } from "./rounds.js";
import { Stopping } from "./stopped-site.js";

/*
 * Old boot environments are removed: formats/environments.md, Keeping and removing. They are made by hand here, as installs make them,
 * so that one takes a moment: `base`, then R1 to R4, each of the one before; USR/R4 was renamed since. Snapshots have
 * the same names in all.
 */

const POOL = poolName("envs");
const [ROOT, USR] = [`${POOL}/ROOT`, `${POOL}/USR`];

const CONFIG = `product = "gentoo"
[streams]
usr = "${USR}/base"
[boot-environment]
container = "${ROOT}"
keep = 2
`;

const make = (release: string, before: string): string => `
  zfs snapshot ${ROOT}/${before}@zferry-${release}
  zfs clone -o canmount=noauto -o mountpoint=/ -o zferry:release=${release} -o zferry:identity=${"ab".repeat(32)} \\
    ${ROOT}/${before}@zferry-${release} ${ROOT}/${release}
  zfs clone -o mountpoint=legacy -o readonly=on -o zferry:identity=${"ab".repeat(32)} \\
    ${USR}/${before}@same ${USR}/${release}
  zfs snapshot ${USR}/${release}@same
  mount -t zfs -o zfsutil ${ROOT}/${release} /media; cd /media
  sed -i s,USR/${before},USR/${release}, etc/fstab; head -c 300000 /dev/urandom >file; cd /; umount /media
  zfs snapshot ${ROOT}/${release}@daily ${USR}/${release}@daily`;

const MAKE = `
  zfs create -o mountpoint=none ${ROOT}; zfs create -o mountpoint=none ${USR}
  zfs create -o canmount=noauto -o mountpoint=/ ${ROOT}/base; zfs create -o mountpoint=legacy ${USR}/base
  mount -t zfs -o zfsutil ${ROOT}/base /media; mkdir /media/etc
  echo '${USR}/base /usr zfs ro 0 0' >/media/etc/fstab; umount /media
  zfs snapshot ${USR}/base@same ${ROOT}/base@daily
  ${make("R1", "base")}; sleep 1.1; ${make("R2", "R1")}; sleep 1.1
  ${make("R3", "R2")}; sleep 1.1; ${make("R4", "R3")}
  zfs rename ${USR}/R4 ${USR}/four
  mount -t zfs -o zfsutil ${ROOT}/R4 /media; sed -i s,USR/R4,USR/four, /media/etc/fstab; umount /media
  zpool set bootfs=${ROOT}/R4 ${POOL}`;

/** All that there is, but numbers. */
const ALL = `
  zpool get -H -o value bootfs ${POOL}
  zfs list -H -t all -o name,origin,userrefs -s name -r ${ROOT} ${USR}
  zfs get -H -r -s local -o name,property,value all ${ROOT} ${USR} | sort`;
/** What is left of it when R1 and R2 are gone: what R3 and four were made of, of base, is theirs. */
const LEFT = `${ROOT}/R4
${ROOT}\t-\t-
${ROOT}/R3\t${ROOT}/base@zferry-R1\t-
${ROOT}/R3@daily\t-\t0
${ROOT}/R3@zferry-R4\t-\t0
${ROOT}/R4\t${ROOT}/R3@zferry-R4\t-
${ROOT}/R4@daily\t-\t0
${ROOT}/base\t-\t-
${ROOT}/base@daily\t-\t0
${ROOT}/base@zferry-R1\t-\t0
${USR}\t-\t-
${USR}/R3\t${USR}/base@same\t-
${USR}/R3@daily\t-\t0
${USR}/R3@same\t-\t0
${USR}/base\t-\t-
${USR}/base@same\t-\t0
${USR}/four\t${USR}/R3@same\t-
${USR}/four@daily\t-\t0
${USR}/four@same\t-\t0`;
const FILES = `for each in R3 R4; do
  mount -t zfs -o zfsutil,ro ${ROOT}/$each /media; sha256sum /media/file; umount /media; done`;

let machine: Machine;
let stopping: Stopping;
let file: string;
let before: string;

const lines = (text: string): Promise<string> => stopping.lines(text);
/** As it was made. */
const reset = (): Promise<string> =>
  lines(`zpool export ${POOL} 2>/dev/null || true; rm -rf /var/lib/zferry
    cp --sparse=always ${file}.made ${file}; zpool import -N -d $(dirname ${file}) -o cachefile=none ${POOL}`);
const staying = async (): Promise<Record<string, string>> => {
  const told = JSON.parse(await lines("bundle environments --prune --plan --json")) as {
    staying: { name: string; why: string }[];
  };
  return Object.fromEntries(told.staying.map(({ name, why }) => [name, why]));
};

beforeAll(async () => {
  machine = await openMachine();
  stopping = new Stopping(machine);
  await machine.createPool("envs");
  await machine.write("/etc/zferry/site.toml", CONFIG);
  await lines(MAKE);
  file =
    (await lines(`zpool list -H -v -P ${POOL} | tail -1`)).split("\t").find((each) => each.startsWith("/")) ??
    "";
  await lines(`zpool export ${POOL}; cp --sparse=always ${file} ${file}.made`);
  await reset();
  before = await lines(ALL);
});
afterAll(() => machine?.close());

describe("old environments", () => {
  it("are told, and nothing is changed", async () => {
    expect(await lines("bundle environments 2>&1 >/dev/null")).toBe(
      "bundle environments --prune would remove R1, R2",
    );
    const plan = await lines("bundle environments --prune --plan");
    expect(plan).toMatch(
      /^2 boot environments of \S+ would be removed, at least \S+ \S+ would be freed; nothing/,
    );
    expect(plan).toContain(`  R2: ${ROOT}/R2, ${USR}/R2`);
    expect((await stopping.attempt("bundle environments --plan")).status).toBe(2);
    expect(await lines(ALL)).toBe(before);
  });

  it("are removed with their datasets, and those made of them stay as they are", async () => {
    const files = await lines(FILES);
    expect(await lines("bundle environments --prune 2>/dev/null")).toMatch(
      /^removed 2 boot environments of \S+, [0-9.]+ KiB freed/,
    );
    const all = await lines(ALL);
    expect(all.split("\n").slice(0, LEFT.split("\n").length).join("\n")).toBe(LEFT);
    expect(await lines(FILES)).toBe(files);
    expect(await lines("bundle environments --prune")).toBe(
      `no boot environment of ${ROOT} is to be removed: keep is 2`,
    );
    expect(await lines(ALL)).toBe(all);
  });

  rarely("are no streams that lie beside them, and leave a copy what that mounts", async () => {
    await reset();
    await lines(`for each in R1 R2 R3; do
        zfs rename ${USR}/$each ${ROOT}/$each-usr; zfs set zferry:release=$each ${ROOT}/$each-usr
        mount -t zfs -o zfsutil ${ROOT}/$each /media; sed -i s,USR/$each,ROOT/$each-usr, /media/etc/fstab; umount /media
      done
      zfs snapshot ${ROOT}/R1@copied
      zfs send ${ROOT}/R1@copied | zfs receive -u -o canmount=noauto -o mountpoint=/mnt/copy ${ROOT}/copy`);
    expect(await lines("bundle environments --json")).not.toMatch(/"name":"[^"]*-usr"/);
    const plan = await lines("bundle environments --prune --plan 2>/dev/null");
    expect(plan.split("\n").filter((line) => line.includes(ROOT) && line.startsWith("  "))).toEqual([
      expect.stringMatching(`^  R1: ${ROOT}/R1$`),
      expect.stringMatching(`^  R2: ${ROOT}/R2, ${ROOT}/R2-usr$`),
    ]);
  });

  rarely("leave no snapshot of theirs where each was promoted at its activation, as zectl does", async () => {
    await reset();
    await lines(`
      for each in base R1 R2 R3 R4; do zfs destroy ${ROOT}/$each@daily; done
      for each in R1 R2 R3 R4; do zfs promote ${ROOT}/$each; done
      bundle environments --prune`);
    expect(await lines(`zfs list -H -t all -o name,origin -s name -r ${ROOT}`)).toBe(`${ROOT}\t-
${ROOT}/R3\t${ROOT}/R4@zferry-R4
${ROOT}/R4\t-
${ROOT}/R4@zferry-R1\t-
${ROOT}/R4@zferry-R4\t-
${ROOT}/base\t${ROOT}/R4@zferry-R1`);
  });

  rarely("leave the snapshots that a promotion gave them of another environment", async () => {
    await reset();
    const guid = await lines(`zfs get -H -p -o value guid ${ROOT}/base@daily`);
    await lines(`zfs destroy ${ROOT}/R1@daily; zfs promote ${ROOT}/R1`);
    await lines("bundle environments --prune");
    expect(await lines(`zfs list -H -t all -o name,origin -s name -r ${ROOT}`)).toBe(`${ROOT}\t-
${ROOT}/R3\t-
${ROOT}/R3@daily\t-
${ROOT}/R3@daily-${guid}\t-
${ROOT}/R3@zferry-R1\t-
${ROOT}/R3@zferry-R4\t-
${ROOT}/R4\t${ROOT}/R3@zferry-R4
${ROOT}/R4@daily\t-
${ROOT}/base\t${ROOT}/R3@zferry-R1`);
  });

  rarely("stay where anything stands against it, and say what", async () => {
    await reset();
    await lines(`zfs hold keep ${USR}/R1@daily`);
    expect(await staying()).toEqual({ R1: `${USR}/R1@daily is held` });
    await lines(
      `zfs release keep ${USR}/R1@daily; zfs clone ${ROOT}/R2@daily ${POOL}/mine; zfs create ${USR}/R1/below`,
    );
    expect(await staying()).toEqual({
      R1: `${USR}/R1/below lies below it, which zferry did not make for it`,
      R2: `${POOL}/mine was made of ${ROOT}/R2@daily, and belongs to no environment`,
    });
    await lines(`zfs destroy ${USR}/R1/below; zfs destroy ${POOL}/mine; zpool set bootfs=${ROOT}/R1 ${POOL}
      mount -t zfs -o ro ${USR}/R2 /media`);
    expect(await staying()).toEqual({ R1: "it boots next", R2: `${USR}/R2 is mounted on /media` });
    await lines(`umount /media; zpool set bootfs=${ROOT}/R4 ${POOL}
      sed -i s,USR/base,USR/R2, /etc/zferry/site.toml`);
    expect(await staying()).toEqual({ R2: `[streams] names ${USR}/R2` });
    await machine.write("/etc/zferry/site.toml", CONFIG);
    // What an environment has that cannot be read is not known.
    await lines(`
      (unshare --mount sh -c 'mount -t zfs -o zfsutil ${ROOT}/R4 /mnt; exec sleep 1000' >/dev/null 2>&1 & echo $! >/root/holder)
      until grep -q '${ROOT}/R4 ' /proc/$(cat /root/holder)/mounts; do sleep 0.1; done`);
    for (const why of Object.values(await staying()))
      expect(why).toContain("which datasets R4 has is not known: mount");
    await lines("kill $(cat /root/holder)");
  });

  it("leave what another environment has, too", async () => {
    await reset();
    // A release without a stream has the dataset of the one before.
    await lines(`mount -t zfs -o zfsutil ${ROOT}/R3 /media; sed -i s,USR/R3,USR/R2, /media/etc/fstab; umount /media
      zfs inherit zferry:identity ${USR}/R1
      bundle environments --prune`);
    expect(await lines(`zfs list -H -o name -r ${USR} ${ROOT} | grep -v -e USR/R3 -e four`)).toBe(
      [ROOT, `${ROOT}/R3`, `${ROOT}/R4`, `${ROOT}/base`, USR, `${USR}/R1`, `${USR}/R2`, `${USR}/base`].join(
        "\n",
      ),
    );
  });

  rarely("go as far as space needs it, also those that are kept, and none that is protected", async () => {
    const free = async (): Promise<number> =>
      Number(await lines(`zpool sync ${POOL}; zfs get -H -p -o value available ${POOL}`));
    const asking = (keep: number, keepFree: number): Promise<void> =>
      machine.write(
        "/etc/zferry/site.toml",
        CONFIG.replace("keep = 2", `keep = ${keep}\nkeep_free = ${keepFree}`),
      );
    const planned = async (): Promise<{ removed: { name: string; for: string }[] }> =>
      JSON.parse(await lines("bundle environments --prune --plan --json")) as Awaited<
        ReturnType<typeof planned>
      >;
    await reset();
    const has = await free();
    await asking(3, has);
    expect((await planned()).removed.map(({ name }) => name)).toEqual(["R1"]);
    await lines("bundle environments --prune");
    const without = await free();
    expect(without).toBeGreaterThan(has);
    // More than R1 alone frees, and less than R2 with it.
    await reset();
    await asking(3, without + 100_000);
    const plan = await planned();
    expect(plan.removed.slice(0, 2).map(({ name, ...each }) => [name, each.for])).toEqual([
      ["R1", "keep"],
      ["R2", "keep_free"],
    ]);
    expect(await lines("bundle environments --prune --plan")).toContain("; if that is needed for keep_free");
    expect(await lines(ALL)).toBe(before);
    expect(await lines("bundle environments --prune")).toContain(
      `  R2: ${ROOT}/R2, ${USR}/R2; for keep_free`,
    );
    expect(await lines(`zfs list -H -o name -r ${ROOT}`)).toBe(
      [ROOT, `${ROOT}/R3`, `${ROOT}/R4`, `${ROOT}/base`].join("\n"),
    );
    expect(await free()).toBeGreaterThan(without + 100_000);

    // What boots next stays, whatever is asked for, and that is told once.
    await asking(3, 1e15);
    const told = await stopping.attempt("bundle environments --prune");
    expect(told.stdout).toContain("removed 1 boot environment");
    expect(told.stdout).toContain("R4 stays: it boots next");
    expect(told.stderr.match(/warning: keep_free is /g)).toHaveLength(1);
    expect(told.stderr).toContain("no other boot environment can be removed");
    expect(await lines(`zfs list -H -o name -r ${ROOT}`)).toBe(
      [ROOT, `${ROOT}/R4`, `${ROOT}/base`].join("\n"),
    );
    const again = await stopping.attempt("bundle environments --prune --json");
    expect(JSON.parse(again.stdout)).toMatchObject({ outcome: "present", keepFree: 1e15 });
    expect((JSON.parse(again.stdout) as { warnings: string[] }).warnings).toHaveLength(1);
  });

  rarely("that go for the space go on after a kill before any step", async () => {
    await machine.write(
      "/etc/zferry/site.toml",
      CONFIG.replace("keep = 2", "keep = 4\nkeep_free = 1000000000000000"),
    );
    await reset();
    const steps = await stopping.stepsOf("environments --prune");
    const end = await lines(ALL);
    expect(end).not.toContain(`${ROOT}/R3`);
    for (const [index, step] of shareOf(steps, 2, 32)) {
      await reset();
      await lines(`${stopping.killed("environments --prune", index + 1)}; bundle environments --prune`);
      const where = `killed before ${index + 1}, ${step}`;
      expect(`${where}\n${await lines(ALL)}`).toBe(`${where}\n${end}`);
    }
  });

  it("are removed by the repeated command after a kill before any step", async () => {
    await machine.write("/etc/zferry/site.toml", CONFIG.replace("keep = 2", "keep = 3"));
    await reset();
    const steps = await stopping.stepsOf("environments --prune");
    const end = await lines(ALL);
    for (const step of ["zfs set", "zfs rename", "zfs promote", "zfs destroy"]) expect(steps).toContain(step);
    for (const [index, step] of shareOf(steps, 1, 32)) {
      await reset();
      await lines(`${stopping.killed("environments --prune", index + 1)}; bundle environments --prune`);
      const where = `killed before ${index + 1}, ${step}`;
      expect(`${where}\n${await lines(ALL)}`).toBe(`${where}\n${end}`);
    }
  });
});
