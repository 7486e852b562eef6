import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { runAbort } from "../../src/commands/abort.js";
import { runRollback } from "../../src/commands/rollback.js";
import { runStatus } from "../../src/commands/status.js";
import type { StreamPlan } from "../../src/install/plan.js";
import { identifyStream } from "../../src/install/receive.js";
import { pending } from "../../src/install/pending.js";
import { confirmInstall } from "../../src/install/rollback.js";
import { openState, type Installation, type RollbackJournal } from "../../src/install/state.js";
import { readSiteConfig } from "../../src/system/settings.js";
import type { Environment } from "../../src/report.js";
import type * as processes from "../../src/system/process.js";
import { refusal } from "../bundle/support.js";
import { Pool } from "./pool.js";

// What ZFS does is in test/lab/undo.test.ts.

let pool: Pool;
vi.mock("../../src/system/process.js", async (original) => ({
  ...(await original<typeof processes>()),
  run: async (file: string, args: readonly string[]) => pool.run(file, args),
}));

const USR = "rpool/usr";
const HOLD = "zferry:base";
const INSTALLATION: Installation = {
  release: { name: "R2", sequence: 2, identity: "b".repeat(64) },
  created: 1,
  startedAt: 1_800_000_000,
  finishedAt: 1_800_000_060,
  signers: [],
  streams: [
    {
      role: "usr",
      dataset: USR,
      base: { snapshot: "R1", guid: "1" },
      target: { snapshot: "R2", guid: "2" },
    },
  ],
  commit: null,
  plan: null,
};
const { release, streams } = INSTALLATION;
const JOURNAL: RollbackJournal = {
  operation: "rollback",
  ...{ release, streams },
  startedAt: 1_800_000_500,
  phase: "rolling-back",
  undoing: false,
  present: [],
  site: { product: "demo", root: null },
  lost: [],
  root: null,
};

let folder: string;
let state: ReturnType<typeof openState>;
/** What a command says: data, and lines for people. */
let out: string;
let notes: string[];
/** Answers to what is asked. */
let answers: boolean[];

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "zferry-undo-"));
  writeFileSync(
    join(folder, "site.toml"),
    `product = "demo"\nstate = "${folder}"\n[streams]\nusr = "${USR}"\n[install]\nmode = "in-place"\n`,
  );
  state = openState(folder);
  [out, notes, answers] = ["", [], []];
  pool = new Pool();
  pool.create("rpool", "1000");
  pool.create(USR, "1001");
  pool.snapshot(USR, "R1", "1", HOLD);
  pool.snapshot(USR, "R2", "2");
  await record(INSTALLATION);
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const record = (installation: Installation): Promise<void> =>
  state.writeState({ version: 3, product: "demo", highestSequence: 2, installations: [installation] });

const configured = () => ({ config: join(folder, "site.toml") });
const environment = (json = false): Environment => ({
  write: async (data) => void (out += String(data)),
  note: (line) => void notes.push(line),
  relay: () => undefined,
  stdin: Readable.from([]),
  json,
  version: "0.0.0",
  quiet: json,
  terminal: false,
  interactive: false,
  now: () => new Date(1_800_001_000_000),
  signal: new AbortController().signal,
  moved: false,
  askPassphrase: async () => "",
  askToGoOn: async () => false,
  askToAgree: async () => answers.shift() ?? false,
  progress: { update: () => undefined, end: () => undefined },
});
const rollback = (options = {}, json = false): Promise<void> =>
  runRollback({ ...configured(), ...options }, environment(json));
const abort = (): Promise<void> => runAbort(configured(), environment());

describe("a dataset that changed in the middle of a rollback", () => {
  beforeEach(async () => {
    await state.writeJournal(JOURNAL);
    pool.datasets.get(USR)?.properties.set("zferry:returning", "1");
  });

  test("and whose base a promoted clone has, is told with what brings it back, and goes on then", async () => {
    pool.create("rpool/clone", "1002", `${USR}@R1`);
    pool.promote("rpool/clone");
    expect(await refusal(() => rollback())).toMatchObject({
      code: "base-missing",
      message: `${USR} has no snapshot with guid 1 to go back to: it is rpool/clone@R1 since rpool/clone was promoted`,
      hint: `to have it back: zfs promote ${USR}`,
    });
    pool.promote(USR);
    await rollback();
    expect(pool.datasets.get(USR)?.snapshots.map(({ name }) => name)).toEqual(["R1"]);
    expect(pool.holds()).toEqual([]);
  });

  test("and whose base is two promotions away", async () => {
    pool.create("rpool/clone", "1002", `${USR}@R2`);
    pool.create("rpool/other", "1003", `${USR}@R1`);
    pool.promote("rpool/clone");
    pool.promote("rpool/other");
    const hint = `to have it back: zfs promote ${USR}; zfs promote ${USR}`;
    expect(await refusal(() => rollback())).toMatchObject({ code: "base-missing", hint });
    pool.promote(USR);
    pool.promote(USR);
    expect(pool.datasets.get(USR)?.snapshots.map(({ name }) => name)).toEqual(["R1", "R2"]);
  });

  test("and whose target a promoted clone has, is not taken for rolled back: it can be given up", async () => {
    pool.create("rpool/clone", "1002", `${USR}@R2`);
    expect(await refusal(() => rollback())).toMatchObject({
      code: "rollback-impossible",
      hint: expect.not.stringContaining("zfs promote") as string,
    });
    pool.promote("rpool/clone");
    expect(await refusal(() => rollback())).toMatchObject({
      code: "base-missing",
      hint: `to have it back: zfs promote ${USR}`,
    });
    await abort();
    expect(out).toContain("gave up the rollback of demo release R2 (2)");
    expect(pool.datasets.get(USR)?.properties.size).toBe(0);
  });

  test("and whose target a promoted clone has, is not taken for given up with its install", async () => {
    const { startedAt, undoing, present, site, root } = JOURNAL;
    const install = { release, streams, startedAt, undoing, present, site, root };
    await state.writeState({ version: 3, product: "demo", highestSequence: 1, installations: [] });
    await state.writeJournal({
      ...install,
      ...{ operation: "install", phase: "receiving", origin: null, environment: null },
    });
    pool.datasets.get(USR)?.properties.clear();
    pool.create("rpool/clone", "1002", `${USR}@R2`);
    pool.promote("rpool/clone");
    expect(await refusal(abort)).toMatchObject({
      code: "base-missing",
      hint: `to have it back: zfs promote ${USR}`,
    });
    expect(pool.done).toEqual([]);
  });

  test("is no less rolled back for a target that another dataset has that it was made on", async () => {
    pool.create("rpool/one", "1002");
    pool.snapshot("rpool/one", "R0", "10");
    pool.snapshot("rpool/one", "R2", "2");
    const usr = pool.datasets.get(USR);
    if (usr !== undefined) usr.origin = "rpool/one@R0";
    usr?.snapshots.pop();
    expect(await refusal(abort)).toMatchObject({
      code: "install-pending",
      message: expect.stringContaining("cannot be given up any more: usr is rolled back") as string,
    });
  });

  test("that is gone is told, also where it would be given up", async () => {
    pool.datasets.delete(USR);
    const fault = {
      code: "base-missing",
      message: `there is no dataset ${USR} any more, which had the snapshot with guid 1`,
      hint: expect.stringContaining("zfs rename") as string,
    };
    expect(await refusal(() => rollback())).toMatchObject(fault);
    expect(await refusal(abort)).toMatchObject(fault);
    // From a copy of the base alone it goes on.
    pool.create(USR, "1004");
    pool.snapshot(USR, "R1", "1");
    await rollback();
    expect(out).toContain("rolled back demo release R2 (2)");
  });
});

describe("whether a rollback can be given up", () => {
  const UP = "; gives it up: bundle abort";
  const status = async (): Promise<string> => {
    out = "";
    await runStatus(configured(), environment());
    return /goes on with: (.*)/.exec(out)?.[1] ?? out;
  };
  const hintOfPending = async (): Promise<string | undefined> => {
    const site = await readSiteConfig(configured().config);
    return (
      await refusal(() =>
        confirmInstall(site, () => new Date(0), {
          begin: async () => undefined,
          warn: () => undefined,
          isToMerge: false,
        }),
      )
    ).hint;
  };

  test.each(["preparing", "rolling-back"] as const)(
    "is told as it is, by what is rolled back and not by the phase: %s",
    async (phase) => {
      await state.writeJournal({ ...JOURNAL, phase });
      expect(await status()).toBe(`bundle rollback${UP}`);
      expect(await hintOfPending()).toBe("finish it first: bundle rollback; or give it up: bundle abort");
      const taken = pool.datasets.get(USR)?.snapshots.pop();
      expect(await status()).toBe("bundle rollback");
      expect(await hintOfPending()).toBe("finish it first: bundle rollback");
      expect(await refusal(abort)).toMatchObject({
        code: "install-pending",
        hint: "finish it: bundle rollback",
      });
      if (taken !== undefined) pool.datasets.get(USR)?.snapshots.push(taken);
      await abort();
      expect(await state.readJournal()).toBeUndefined();
    },
  );

  test("is not told of what cannot be asked, or is not there", async () => {
    const begun = { ...JOURNAL, phase: "preparing" } as const;
    pool.health = "SUSPENDED";
    expect((await pending(begun, "and it waits")).hint).toBe("finish it first: bundle rollback");
    pool.health = "ONLINE";
    pool.datasets.delete(USR);
    await state.writeJournal(begun);
    expect(await status()).toBe("bundle rollback");
  });

  test("also where that was begun: what is rolled back all the same goes on", async () => {
    await state.writeJournal({ ...JOURNAL, undoing: true });
    expect(await status()).toBe("bundle abort");
    expect(await refusal(() => rollback())).toMatchObject({ hint: "finish that first: bundle abort" });
    pool.run("zfs", ["rollback", "-r", `${USR}@R1`]);
    expect(await status()).toBe("bundle rollback");
    expect(await hintOfPending()).toBe("finish it first: bundle rollback");
    expect(await refusal(abort)).toMatchObject({ hint: "finish it: bundle rollback" });
    await rollback();
    expect((await state.readState())?.installations[0]?.rolledBack).toBeDefined();
  });
});

describe("a rollback that is recorded, and left its hold and journal", () => {
  beforeEach(async () => {
    pool.run("zfs", ["rollback", "-r", `${USR}@R1`]);
    pool.done.length = 0;
    await record({
      ...INSTALLATION,
      rolledBack: { startedAt: JOURNAL.startedAt, finishedAt: 1_800_000_600 },
    });
    await state.writeJournal({ ...JOURNAL, phase: "recording" });
  });

  test("is planned as that, and nothing is changed", async () => {
    await rollback({ plan: true });
    expect(out).toBe(
      "demo release R2 (2) is rolled back, and only what that left is to be removed: bundle rollback\n",
    );
    out = "";
    await rollback({ plan: true }, true);
    expect(JSON.parse(out)).toMatchObject({ outcome: "planned", recorded: true, streams: [], root: null });
    expect(pool.done).toEqual([]);
    expect(await state.readJournal()).toBeDefined();
  });

  test("is cleaned up, and then nothing can be rolled back", async () => {
    await rollback();
    expect(out).toBe("rolled back demo release R2 (2)\n");
    expect(pool.holds()).toEqual([]);
    expect(await state.readJournal()).toBeUndefined();
    const left = await refusal(() => rollback({ plan: true }));
    expect(left).toMatchObject({ code: "rollback-impossible" });
  });
});

describe("the hold of a base", () => {
  const NEW = "rpool/new";
  const known = streams.map((stream) => ({ ...stream, baseDataset: "1001" }));
  /** What a confirmation warns of. */
  const confirm = async (): Promise<string[]> => {
    const told: string[] = [];
    const site = await readSiteConfig(configured().config);
    const begin = async (): Promise<void> => undefined;
    const confirmed = await confirmInstall(site, () => new Date(0), {
      begin,
      warn: (what) => told.push(what),
      isToMerge: false,
    });
    expect(confirmed?.isNew).toBe(true);
    return told;
  };

  test("is let go where the dataset was renamed, and that of a copy is left", async () => {
    await record({ ...INSTALLATION, streams: known });
    pool.rename(USR, NEW);
    pool.create("rpool/copy", "1002");
    pool.snapshot("rpool/copy", "R1", "1", HOLD);
    pool.create(USR, "1003");
    pool.snapshot(USR, "R1", "1", HOLD);
    expect(await confirm()).toEqual([]);
    expect(pool.holds()).toEqual([`rpool/copy@R1 ${HOLD}`, `${USR}@R1 ${HOLD}`]);
  });

  test("is let go at a clone that was promoted, by way of the new name", async () => {
    await record({ ...INSTALLATION, streams: known });
    pool.create("rpool/clone", "1002", `${USR}@R1`);
    pool.promote("rpool/clone");
    pool.rename(USR, NEW);
    expect(await confirm()).toEqual([]);
    expect(pool.holds()).toEqual([]);
  });

  test.each([
    ["an older zferry did not record", streams, () => pool.rename(USR, NEW)],
    [
      "is gone",
      known,
      () => {
        pool.create(NEW, "1002", `${USR}@R1`);
        pool.promote(NEW);
        pool.datasets.delete(USR);
      },
    ],
  ])("is told with what lets it go, where its dataset %s", async (_, recorded, change) => {
    await record({ ...INSTALLATION, streams: recorded });
    change();
    expect(await confirm()).toEqual([
      `dataset ${USR} is not there any more, and its base (guid 1) may be ${NEW}@R1, which is held; if no other site needs it: zfs release ${HOLD} ${NEW}@R1`,
    ]);
    expect(pool.holds()).toEqual([`${NEW}@R1 ${HOLD}`]);
  });

  test("is told where the pool is not there, and not where nothing is held any more", async () => {
    pool.datasets.delete(USR);
    expect(await confirm()).toEqual([]);
    await record(INSTALLATION);
    pool.datasets.clear();
    expect(await confirm()).toEqual([
      `pool rpool is not there, and ${USR}@R1 stays held in it; when it is back: zfs release ${HOLD} ${USR}@R1`,
    ]);
  });

  test("is told also by a rollback that is only to be cleaned up", async () => {
    await record({
      ...INSTALLATION,
      rolledBack: { startedAt: JOURNAL.startedAt, finishedAt: 1_800_000_600 },
    });
    await state.writeJournal({ ...JOURNAL, phase: "recording" });
    pool.rename(USR, NEW);
    await rollback();
    expect(notes).toContainEqual(expect.stringMatching(`^warning: .*: zfs release ${HOLD} ${NEW}@R1$`));
    expect(await state.readJournal()).toBeUndefined();
  });

  test("is of a dataset that an install records by its guid, and a rollback finds so", async () => {
    const plan = {
      stream: { role: "usr", target: { snapshot: "R2", guid: "2" }, rawBytes: 1 },
      dataset: USR,
      base: { dataset: USR, name: "R1", guid: "1" },
    } as unknown as StreamPlan;
    expect(await identifyStream(plan)).toMatchObject({ dataset: USR, baseDataset: "1001" });
    await record({ ...INSTALLATION, streams: known });
    pool.rename(USR, NEW);
    expect((await refusal(() => rollback())).hint).toBe(
      `it has another name since: zfs rename ${NEW} ${USR}`,
    );
  });
});

describe("bookmarks", () => {
  beforeEach(() => {
    pool.snapshot(USR, "daily", "3");
    pool.bookmark(USR, "R1", "base");
    pool.bookmark(USR, "R2", "sent");
    pool.bookmark(USR, "daily", "backup");
    pool.datasets.get(USR)?.snapshots.pop();
  });

  test("of what is newer than the base are listed among what would be lost", async () => {
    await rollback({ plan: true });
    expect(out).toContain(`would be lost: ${USR}#sent\n`);
    expect(out).toContain(`would be lost: ${USR}#backup\n`);
    expect(out).not.toContain("#base");
    out = "";
    await rollback({ plan: true }, true);
    expect(JSON.parse(out)).toMatchObject({
      streams: [
        {
          lost: {
            snapshots: [],
            bookmarks: [
              { bookmark: "sent", guid: "2" },
              { bookmark: "backup", guid: "3" },
            ],
            written: 0,
          },
        },
      ],
    });
    expect(pool.done).toEqual([]);
  });

  test("are lost only where somebody agrees", async () => {
    expect(await refusal(() => rollback())).toMatchObject({
      code: "loss-not-agreed",
      message: `rolling back would lose of ${USR}: ${USR}#sent, ${USR}#backup`,
    });
    expect(pool.done).toEqual([]);
    answers = [true];
    await rollback();
    expect(notes).toContain(`would be lost: ${USR}: ${USR}#backup`);
    expect(pool.datasets.get(USR)?.bookmarks.map(({ name }) => name)).toEqual(["base"]);
  });

  test("that were agreed to are not asked for again, and one that came since is", async () => {
    const bookmarks = [
      { bookmark: "sent", guid: "2" },
      { bookmark: "backup", guid: "3" },
    ];
    await state.writeJournal({ ...JOURNAL, lost: [{ dataset: USR, snapshots: [], bookmarks, written: 0 }] });
    pool.bookmark(USR, "R2", "later");
    expect(await refusal(() => rollback())).toMatchObject({
      code: "loss-not-agreed",
      message: `rolling back would lose of ${USR}: ${USR}#later`,
    });
    pool.datasets.get(USR)?.bookmarks.pop();
    await rollback();
    expect((await state.readState())?.installations[0]?.rolledBack).toBeDefined();
  });
});
