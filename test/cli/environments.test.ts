import { execFileSync } from "node:child_process";
import { closeSync, mkdirSync, openSync, readdirSync, writeFileSync } from "node:fs";
import { describe, expect, test, vi } from "vitest";
import { openState, type Installation, type SiteState } from "../../src/install/state.js";
import { ownMounts } from "../../src/system/mounts.js";
import { lockDescriptor } from "../../src/system/lock.js";
import { CLI, errorOf, hasMounts, inFolder, run, told } from "./support.js";

// What ZFS does is in test/lab/environments.test.ts.
if (ownMounts().get("/")?.type === "zfs")
  throw new Error("these tests are for a machine whose / is not on ZFS");

const folder = inFolder();
const configure = (more = ""): string => {
  const state = folder.file("state");
  writeFileSync(
    folder.file("site.toml"),
    `product = "gentoo"\nstate = "${state}"\n[streams]\nusr = "p/usr"\n${more}`,
  );
  return state;
};
/** What lies in the state folder where the newest installation made an environment named two. */
const newestIsTwo = (more: Pick<Installation, "confirmedAt"> = {}): SiteState => ({
  version: 3,
  product: "gentoo",
  highestSequence: 2,
  installations: [
    {
      release: { name: "R2", sequence: 2, identity: "b".repeat(64) },
      ...{ created: 1_750_000_000, startedAt: 1_750_000_000, finishedAt: 1_750_000_000 },
      ...{ signers: [], streams: [], commit: null, plan: null },
      environment: { dataset: "p/ROOT/two", guid: "12", previous: "p/ROOT/one" },
      ...more,
    },
  ],
});
const runHere = (...args: string[]) => run([...args, "--config", "site.toml"], { cwd: folder.path });

/** As with ZFS, by default without any dataset. */
async function withPrograms<T>(programs: Record<string, string>, use: () => Promise<T>): Promise<T> {
  mkdirSync(folder.file("bin"), { recursive: true });
  const all = {
    zpool: "echo ONLINE",
    zfs: "echo 'cannot open: dataset does not exist' >&2; exit 1",
    ...programs,
  };
  for (const [name, text] of Object.entries(all))
    writeFileSync(folder.file(`bin/${name}`), `#!/bin/sh\n${text}\n`, { mode: 0o755 });
  vi.stubEnv("PATH", `${folder.file("bin")}:${process.env["PATH"] ?? ""}`);
  try {
    return await use();
  } finally {
    vi.unstubAllEnvs();
  }
}

describe("a system that is not on ZFS", () => {
  test.each([["environments"], ["activate", "one"]])("%s says so", async (...args) => {
    configure();
    expect(told(await runHere(...args))).toEqual({
      status: 17,
      message: "/ is not on ZFS: this system has no boot environments",
      hint: "where they lie elsewhere, as seen from a rescue system: container under [boot-environment]",
    });
    expect(errorOf(await runHere(...args, "--json")).code).toBe("not-configured");
  });

  test("has none on trial: what runs at boot does nothing", async () => {
    configure();
    const { status, stdout, stderr } = await runHere("confirm", "--or-go-back");
    expect([status, stdout.toString(), stderr]).toEqual([
      0,
      "no boot environment that runs is on trial; nothing to do\n",
      "",
    ]);
    expect(readdirSync(folder.path)).toEqual(["site.toml"]);
  });

  test("environments leaves no state folder", async () => {
    configure();
    await runHere("environments");
    expect(readdirSync(folder.path)).toEqual(["site.toml"]);
  });
});

describe("while an install is under way", () => {
  test("nothing is activated", async () => {
    const state = configure();
    mkdirSync(state);
    await openState(state).writeJournal({
      operation: "install",
      release: { name: "R5", sequence: 5, identity: "b".repeat(64) },
      startedAt: 1_800_000_000,
      phase: "receiving",
      undoing: false,
      streams: [],
      present: [],
      site: { product: "gentoo", root: null },
      origin: null,
      environment: null,
      root: null,
    });
    const result = await runHere("activate", "one", "--json");
    expect([result.status, errorOf(result).code]).toEqual([17, "install-pending"]);
    expect(readdirSync(state)).toContain("journal.json");
    expect(errorOf(await runHere("environments", "--json")).code).toBe("not-configured");
  });

  test("nor while it runs", async () => {
    const state = configure();
    mkdirSync(state);
    const lock = openSync(`${state}/lock`, "w");
    lockDescriptor(lock, "lock", { message: "", hint: "" });
    const result = await runHere("activate", "one", "--json");
    expect([result.status, errorOf(result).code]).toEqual([17, "site-busy"]);
    closeSync(lock);
    expect(errorOf(await runHere("environments", "--json")).code).toBe("not-configured");
  });
});

describe("an install that was begun anew, with its stream received,", () => {
  const ZFS = `case "$*" in
  list*"-t snapshot"*) printf 'p/usr@R1\\t11\\n'; [ -e back ] || printf 'p/usr@R2\\t12\\n' ;;
  get*) for name in $(echo "$6" | tr , ' '); do
    case $name in written* | userrefs) echo "$name\t0" ;; *) echo "$name\t-" ;; esac
  done ;;
  "rollback -r p/usr@R1") : >back ;;
esac`;

  test.each(["holding", "preparing"] as const)("is given up whole, in %s", async (phase) => {
    const state = configure();
    mkdirSync(state);
    await openState(state).writeJournal({
      operation: "install",
      release: { name: "R2", sequence: 2, identity: "b".repeat(64) },
      startedAt: 1_800_000_000,
      phase,
      undoing: false,
      streams: [
        {
          role: "usr",
          dataset: "p/usr",
          base: { snapshot: "R1", guid: "11" },
          target: { snapshot: "R2", guid: "12" },
        },
      ],
      present: [],
      site: { product: "gentoo", root: null },
      origin: { file: "/R2.bundle", created: 1_750_000_000, signers: [], keys: null },
      environment: null,
      root: null,
    });
    const { status, stdout, stderr } = await withPrograms({ zfs: ZFS }, () => runHere("abort"));
    expect([status, stdout.toString(), stderr]).toEqual([
      0,
      "gave up gentoo release R2 (2); the site is as it was before\n",
      "taking p/usr back to what it was\n",
    ]);
    expect(readdirSync(folder.path)).toContain("back");
    expect(await openState(state).readJournal()).toBeUndefined();
  });
});

describe("while changes of another environment are merged", () => {
  const begin = async (undoing = false): Promise<void> => {
    const state = configure(
      '[root]\n[install]\nmode = "boot-environment"\n[boot-environment]\ndeadline = 1\n',
    );
    mkdirSync(state);
    const ID = "a".repeat(40);
    await openState(state).writeJournal({
      operation: "merge",
      startedAt: 1_800_000_000,
      phase: "preparing",
      undoing,
      site: { product: "gentoo", root: "/" },
      into: "p/ROOT/two",
      from: "p/ROOT/one",
      difference: "c".repeat(64),
      root: {
        format: 1,
        head: ID,
        branch: null,
        mergeCommit: ID,
        releaseCommit: null,
        previousRelease: null,
        changes: [],
        directories: [],
      },
    });
  };

  const GIVEN_UP = "what was cut off of merging changes of one had changed nothing, and is given up\n";

  test("status says so, and no history has it", async () => {
    await begin();
    const status = (await runHere("status")).stdout.toString();
    expect(status).toMatch(
      /^under way: a merge of changes of one into two, begun at 2027-01-15 .*, preparing the files of \/$/m,
    );
    expect(status).toMatch(/^ {2}goes on with: bundle confirm --merge; gives it up: bundle abort$/m);
    const told = JSON.parse((await runHere("status", "--json")).stdout.toString()) as object;
    expect(told).toMatchObject({
      underWay: { operation: "merge", release: null, into: "p/ROOT/two", from: "p/ROOT/one", streams: [] },
    });
    expect((await runHere("history")).stdout.toString()).toBe("no release was installed by zferry yet\n");
    const history = JSON.parse((await runHere("history", "--json")).stdout.toString()) as object;
    expect(history).toMatchObject({ underWay: null });
  });

  test("status says that it is being given up", async () => {
    await begin(true);
    expect((await runHere("status")).stdout.toString()).toContain(
      "being given up (preparing)\n  goes on with: bundle abort\n",
    );
  });

  test.runIf(hasMounts)("it ends, though another environment is the newest", async () => {
    await begin();
    const { readState, writeState } = openState(folder.file("state"));
    await writeState(newestIsTwo({ confirmedAt: 1_750_000_000 }));
    const before = await readState();
    const { status, stdout } = await withPrograms({}, () => runHere("confirm"));
    expect([status, stdout.toString()]).toEqual([0, GIVEN_UP]);
    expect(await readState()).toEqual(before);
  });

  test.runIf(hasMounts)("what runs at boot leaves it until the system is up", async () => {
    await begin();
    const script = `mount -t tmpfs none /run; mkdir -p /run/systemd/system; exec "$@" confirm --or-go-back --config site.toml`;
    const args = ["-m", "sh", "-euc", script, "sh", process.execPath, CLI];
    const bootWhere = (state: string): Promise<string> =>
      withPrograms({ systemctl: `echo ${state}` }, async () =>
        execFileSync("unshare", args, { cwd: folder.path, encoding: "utf8" }),
      );
    expect(await bootWhere("starting")).toBe("no boot environment that runs is on trial; nothing to do\n");
    expect((await openState(folder.file("state")).readJournal())?.operation).toBe("merge");
    expect(await bootWhere("degraded")).toBe(GIVEN_UP);
  });

  test("nothing is activated", async () => {
    await begin();
    expect(told(await runHere("activate", "one"))).toEqual({
      status: 17,
      message:
        "a merge of changes of one into two is under way, and what boots next stays until that is done",
      hint: "finish it first: bundle confirm --merge; or give it up: bundle abort",
    });
  });
});

test.runIf(hasMounts)(
  "confirm --merge says what comes first while a newer environment waits to be booted",
  async () => {
    const state = configure('[root]\n[install]\nmode = "boot-environment"\n');
    mkdirSync(state);
    await openState(state).writeState(newestIsTwo());
    const confirm = (...args: string[]) => withPrograms({}, () => runHere("confirm", ...args));
    const message =
      "release R2 (2) was installed as the boot environment p/ROOT/two, which is not the running one";
    expect(told(await confirm("--merge"))).toEqual({
      status: 17,
      message,
      hint:
        "boot it, and run the same command there: it merges what was changed in the running one after two was made from it; " +
        "to merge into the running one first: bundle rollback, bundle confirm --merge, and bundle activate two",
    });
    expect(told(await confirm())).toEqual({
      status: 17,
      message,
      hint: "boot it first; bundle status says what boots next",
    });
  },
);

test("confirm has --merge for boot environments, and --commit-drift for --merge", async () => {
  configure();
  expect(told(await runHere("confirm", "--merge"))).toMatchObject({
    status: 2,
    message: '--merge is of no use with mode = "in-place": there is no environment before',
  });
  expect(told(await runHere("confirm", "--commit-drift"))).toMatchObject({ status: 2 });
  expect(readdirSync(folder.path)).toEqual(["site.toml"]);
});
