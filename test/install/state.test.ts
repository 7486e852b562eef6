import { mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { parseConfig, siteSchema, type SiteConfig } from "../../src/config.js";
import { ZferryError } from "../../src/errors.js";
import {
  installed,
  isRecorded,
  lockState,
  openState,
  phasesOf,
  undoable,
  type Installation,
  type InstallJournal,
  type Journal,
  type MergeJournal,
  type RollbackJournal,
} from "../../src/install/state.js";
import { readSite, settleMode } from "../../src/install/mode.js";
import { makeReceipt } from "../../src/carry/receipt.js";
import { pending, requireSameSite } from "../../src/install/pending.js";
import { readUnderWay as readUnderWayOf } from "../../src/install/under-way.js";
import { parseMounts, visibleByPoint } from "../../src/system/mounts.js";
import { withMode } from "../../src/system/settings.js";

// formats/state.md

const ID = "a".repeat(40);

const JOURNAL: InstallJournal = {
  operation: "install",
  release: { name: "R5", sequence: 5, identity: "b".repeat(64) },
  startedAt: 1_800_000_000,
  phase: "receiving",
  undoing: false,
  streams: [
    {
      role: "usr",
      dataset: "rpool/usr",
      base: { snapshot: "R4", guid: "4" },
      target: { snapshot: "R5", guid: "5" },
      rawBytes: 1000,
    },
  ],
  present: [],
  site: { product: "gentoo", root: "/" },
  origin: { file: "/media/R5.bundle", created: 1_800_000_000, signers: [], keys: null },
  environment: null,
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
};

const ENVIRONMENT = {
  dataset: "rpool/ROOT/R5",
  origin: "rpool/ROOT/R4",
  snapshot: "zferry-R5",
  next: "rpool/ROOT/R4",
  activate: true,
  configured: { usr: "rpool/usr/one" },
};
const SITE = `product = "gentoo"
[streams]
usr = "rpool/usr/one"
[root]
path = "/"
[install]
mode = "boot-environment"
`;

const { release, undoing, streams, present, root } = JOURNAL;
const ROLLBACK: RollbackJournal = {
  release,
  undoing,
  streams,
  present,
  root,
  operation: "rollback",
  startedAt: 1_800_000_500,
  phase: "rolling-back",
  site: { product: "gentoo", root: "/" },
  lost: [{ dataset: "rpool/usr", snapshots: [{ snapshot: "daily 1", guid: "77" }], written: 4096 }],
};

const MERGE: MergeJournal = {
  operation: "merge",
  startedAt: 1_800_000_900,
  phase: "writing",
  undoing: false,
  site: { product: "gentoo", root: "/" },
  into: "rpool/ROOT/R5",
  from: "rpool/ROOT/R4",
  difference: "c".repeat(64),
  root,
};

const INSTALLATION: Installation = {
  release: JOURNAL.release,
  created: 1,
  startedAt: JOURNAL.startedAt,
  finishedAt: JOURNAL.startedAt + 60,
  signers: [],
  streams: JOURNAL.streams,
  commit: ID,
};
const stateOf = (...installations: Installation[]) =>
  ({ version: 3, product: "demo", highestSequence: 5, installations }) as const;

let folder: string;
const file = (name: string): string => join(folder, name);
const names = (): string[] => readdirSync(folder).sort();
const readUnderWay = () => readUnderWayOf({ state: folder, streams: {} });
const planFile = (): string => names().find((name) => name.startsWith("plan-")) ?? "no plan";

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "zferry-state-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** What reading the journal fails with; the folder must be as it was. */
async function faultOf(): Promise<{ code: string; message: string; hint: string | undefined }> {
  const before = names().map((name) => [name, readFileSync(file(name), "hex")]);
  try {
    await readUnderWay();
  } catch (error) {
    expect(names().map((name) => [name, readFileSync(file(name), "hex")])).toEqual(before);
    if (error instanceof ZferryError) return error;
    throw error;
  }
  throw new Error("nothing is refused");
}

describe("a journal", () => {
  test("is read as it was written, with its plan", async () => {
    await openState(folder).writeJournal(JOURNAL);
    expect(names()).toEqual(["journal.json", planFile()]);
    expect(await readUnderWay()).toMatchObject(JOURNAL);
    await openState(folder).removeJournal();
    expect(names()).toEqual([]);
  });

  test("has the plan of its own only", async () => {
    const state = openState(folder);
    await state.writeJournal(JOURNAL);
    const old = planFile();
    await state.writeJournal({ ...JOURNAL, root: { ...JOURNAL.root!, mergeCommit: "c".repeat(40) } });
    expect(names()).toEqual(["journal.json", planFile()]);
    expect(planFile()).not.toBe(old);
  });

  test("that is cut off is refused", async () => {
    await openState(folder).writeJournal(JOURNAL);
    writeFileSync(file("journal.json"), readFileSync(file("journal.json")).subarray(0, 100));
    expect(await faultOf()).toMatchObject({
      code: "journal-malformed",
      message: expect.stringContaining(`${file("journal.json")}: is cut off or no JSON: `) as string,
      hint: expect.stringContaining("nothing is changed") as string,
    });
  });

  test("that is malformed is refused with what its plan tells of it", async () => {
    await openState(folder).writeJournal(JOURNAL);
    const plan = file(planFile());
    const told = `${plan} takes / from commit ${ID} to ${ID}, 0 files`;
    writeFileSync(file("journal.json"), "");
    expect(await faultOf()).toMatchObject({
      code: "journal-malformed",
      message: expect.stringMatching(
        /journal\.json: is cut off or no JSON: .*; of what was under way, /,
      ) as string,
      details: { file: file("journal.json"), traces: [told] },
      hint: expect.stringContaining("bring it back from a copy") as string,
    });
    writeFileSync(plan, "{}");
    expect((await faultOf()).message).not.toContain("under way");
  });

  test("that is empty is refused", async () => {
    writeFileSync(file("journal.json"), "");
    expect((await faultOf()).code).toBe("journal-malformed");
  });

  test("of another version is refused, naming both", async () => {
    writeFileSync(file("journal.json"), JSON.stringify({ version: 6 }));
    expect(await faultOf()).toMatchObject({
      code: "format-unsupported",
      message: `${file("journal.json")} has version 6, this zferry reads versions 1, 2, 3, 4 and 5`,
      hint: "use the zferry that wrote it",
    });
  });

  test("without a number as its version is refused", async () => {
    writeFileSync(file("journal.json"), JSON.stringify({ version: "2" }));
    expect(await faultOf()).toMatchObject({
      code: "journal-malformed",
      message: `${file("journal.json")}: has no number as its version`,
    });
  });

  test("that is a link to nothing does not count as none", async () => {
    symlinkSync("nothing", file("journal.json"));
    await expect(readUnderWay()).rejects.toMatchObject({
      code: "journal-malformed",
      message: `${file("journal.json")}: is a link that leads to nothing`,
    });
  });

  test("with a member that is not known is refused", async () => {
    await openState(folder).writeJournal(JOURNAL);
    const value = JSON.parse(readFileSync(file("journal.json"), "utf8")) as object;
    writeFileSync(file("journal.json"), JSON.stringify({ ...value, more: 1 }));
    expect(await faultOf()).toMatchObject({
      code: "journal-malformed",
      message: expect.stringContaining("more") as string,
    });
  });

  test("whose plan is gone is refused", async () => {
    await openState(folder).writeJournal(JOURNAL);
    const plan = file(planFile());
    rmSync(plan);
    expect(await faultOf()).toMatchObject({
      code: "journal-malformed",
      message: `${plan}: is not there, and the journal needs it`,
    });
  });

  test("whose plan was changed is refused", async () => {
    await openState(folder).writeJournal(JOURNAL);
    const plan = file(planFile());
    writeFileSync(plan, "{}\n");
    expect(await faultOf()).toMatchObject({
      code: "journal-malformed",
      message: expect.stringMatching(/: has SHA-256 [0-9a-f]{64}, not that of its name$/) as string,
    });
  });

  test.each([
    ["receiving", "receiving"],
    ["writing", "writing"],
  ])("of version 1 in its phase %s is gone on with from %s", async (phase, from) => {
    const { release, startedAt, streams, root } = JOURNAL;
    writeFileSync(
      file("journal.json"),
      JSON.stringify({ version: 1, release, startedAt, streams, phase, root }),
    );
    expect(await readUnderWay()).toMatchObject({
      release,
      startedAt,
      streams,
      root,
      phase: from,
      undoing: false,
      present: [],
      origin: null,
    });
  });

  test("of version 2 is of an install", async () => {
    const none = { operation: undefined, root: undefined, environment: undefined, plan: null };
    const before = { ...JOURNAL, ...none, version: 2 };
    writeFileSync(file("journal.json"), JSON.stringify(before));
    expect(await readUnderWay()).toMatchObject({ ...JOURNAL, root: null });
    writeFileSync(file("journal.json"), JSON.stringify({ ...before, operation: "install" }));
    expect((await faultOf()).code).toBe("journal-malformed");
  });

  test("of version 3 is of an install in place, or of a rollback", async () => {
    const none = { root: undefined, environment: undefined, plan: null, version: 3 };
    writeFileSync(file("journal.json"), JSON.stringify({ ...JOURNAL, ...none }));
    expect(await readUnderWay()).toMatchObject({ ...JOURNAL, root: null });
    writeFileSync(file("journal.json"), JSON.stringify({ ...JOURNAL, ...none, phase: "cloning" }));
    expect((await faultOf()).message).toContain("phase: is not ");
    writeFileSync(file("journal.json"), JSON.stringify({ ...ROLLBACK, ...none }));
    expect(await readUnderWay()).toMatchObject({ ...ROLLBACK, root: null });
  });

  test("of a boot environment is read as it was written; one in place has none of its phases", async () => {
    const state = openState(folder);
    await state.writeJournal({ ...JOURNAL, environment: ENVIRONMENT, phase: "activating" });
    expect(await readUnderWay()).toMatchObject({ environment: ENVIRONMENT, phase: "activating" });
    await state.writeJournal({ ...JOURNAL, phase: "activating" });
    expect(await faultOf()).toMatchObject({
      code: "journal-malformed",
      message: expect.stringContaining("phase: is activating, and no boot environment is made") as string,
    });
  });

  test("goes on only at the site that it was begun at", () => {
    const parse = (text: string): SiteConfig =>
      withMode(parseConfig(siteSchema, text, "site.toml"), new Map());
    const journal = { ...JOURNAL, environment: ENVIRONMENT };
    const fault = (text: string): string => {
      try {
        requireSameSite(journal, parse(text));
      } catch (error) {
        return (error as Error).message.replace(/.*has changed: /, "");
      }
      return "none";
    };
    expect(() => requireSameSite(JOURNAL, parse(SITE))).toThrow("mode is boot-environment, not in-place");
    expect(fault(SITE)).toBe("none");
    expect(fault(SITE.replace("boot-environment", "in-place"))).toBe(
      "mode is in-place, not boot-environment",
    );
    expect(fault(SITE.replace("usr/one", "usr/two"))).toBe("usr is rpool/usr/two, not rpool/usr/one");
    expect(fault(SITE.replace('path = "/"', 'path = "/mnt"'))).toBe("root is /mnt, not /");
    expect(fault(`${SITE}[boot-environment]\ncontainer = "rpool/other"\n`)).toBe(
      "container is rpool/other, not rpool/ROOT",
    );
  });

  test("goes on as it was begun, where no mode is configured", async () => {
    const config = file("site.toml");
    const text = SITE.replace('mode = "boot-environment"', "").replace(
      "product",
      `state = "${folder}"\nproduct`,
    );
    writeFileSync(config, text);
    // / of the machine that runs this is no dataset of ZFS.
    expect((await readSite(config)).install).toMatchObject({ mode: "in-place", from: "default" });
    expect((await readSite(config, true)).install).toMatchObject({ mode: "in-place", from: "live" });
    const state = openState(folder);
    await state.writeJournal({ ...JOURNAL, environment: ENVIRONMENT });
    for (const live of [true, false]) {
      const { install } = await readSite(config, live);
      expect(install).toMatchObject({ mode: "boot-environment", from: "under-way" });
    }
    await state.writeState(stateOf({ ...INSTALLATION, plan: null }));
    await state.writeJournal(JOURNAL);
    expect((await readSite(config)).install.from).toBe("default");
    writeFileSync(config, text.replace("[install]", '[install]\nmode = "in-place"'));
    await state.writeJournal({ ...JOURNAL, environment: ENVIRONMENT });
    expect((await readSite(config)).install).toMatchObject({ mode: "in-place", from: "configuration" });
  });

  test.each<[string, Journal, string]>([
    ["an install in place", JOURNAL, "in-place"],
    ["a rollback", ROLLBACK, "in-place"],
    ["a boot environment", { ...JOURNAL, environment: ENVIRONMENT }, "boot-environment"],
  ])("of %s leaves it that, where / has come to be on ZFS or not", (_, journal, mode) => {
    const text = SITE.replace('mode = "boot-environment"', "");
    const zfs = parseMounts("22 1 0:27 / / rw - zfs rpool/ROOT/one rw\n");
    for (const mounts of [zfs, []]) {
      const site = withMode(parseConfig(siteSchema, text, "x"), visibleByPoint(mounts));
      const { install } = settleMode(site, journal, false);
      expect(install).toMatchObject({ mode, from: "under-way" });
    }
  });

  test("of a rollback is read as it was written, and has no phase of an install", async () => {
    const state = openState(folder);
    await state.writeJournal(ROLLBACK);
    expect(await readUnderWay()).toMatchObject(ROLLBACK);
    const text = readFileSync(file("journal.json"), "utf8");
    writeFileSync(file("journal.json"), text.replace('"rolling-back"', '"receiving"'));
    expect(await faultOf()).toMatchObject({
      code: "journal-malformed",
      message: expect.stringContaining("phase: is not ") as string,
    });
  });

  test("of a merge has a version of its own, and no release", async () => {
    const state = openState(folder);
    await state.writeJournal(MERGE);
    expect(await readUnderWay()).toEqual({ ...MERGE, version: 5 });
    const text = readFileSync(file("journal.json"), "utf8");
    expect((JSON.parse(text) as { version: number }).version).toBe(5);
    for (const [from, to] of [
      ['"writing"', '"receiving"'],
      ['"into":"rpool/ROOT/R5"', '"into":"-o x"'],
      [`"${"c".repeat(64)}"`, '"wanted"'],
      [/"plan":"[0-9a-f]*"/, '"plan":null'],
    ] as const) {
      writeFileSync(file("journal.json"), text.replace(from, to));
      expect(await faultOf()).toMatchObject({ code: "journal-malformed" });
    }
    await state.writeJournal({ ...ROLLBACK, phase: "preparing" });
    expect((JSON.parse(readFileSync(file("journal.json"), "utf8")) as { version: number }).version).toBe(4);
  });

  test("of a merge is named in what has to wait for it, and needs the mode that it was begun with", async () => {
    expect(await pending(MERGE, "and it waits")).toMatchObject({
      code: "install-pending",
      message: "a merge of changes of R4 into R5 is under way, and it waits",
      hint: "finish it first: bundle confirm --merge; or give it up: bundle abort",
    });
    expect(await pending({ ...MERGE, undoing: true }, "and it waits")).toMatchObject({
      message: "a merge of changes of R4 into R5 is under way, which is being given up, and it waits",
      hint: "finish that first: bundle abort",
    });
    const site = (text: string) => withMode(parseConfig(siteSchema, text, "site.toml"), new Map());
    expect(() => requireSameSite(MERGE, site(SITE.replace("usr/one", "usr/two")))).not.toThrow();
    expect(() => requireSameSite(MERGE, site(SITE.replace("boot-environment", "in-place")))).toThrow(
      "mode is in-place, not boot-environment",
    );
    expect(
      makeReceipt(undefined, MERGE, { site: "a", product: "demo", made: 1, zferry: "0.1.0" }).underWay,
    ).toBeNull();
  });

  test("of an install that is recorded is of nothing under way", async () => {
    const state = openState(folder);
    await state.writeJournal(JOURNAL);
    await state.writeState(stateOf({ ...INSTALLATION, plan: null }));
    expect(await readUnderWay()).toBeUndefined();
    // Installed once more after a rollback, in the same second by a clock that was set back.
    const rolledBack = { startedAt: 1, finishedAt: 2 };
    await state.writeState(stateOf({ ...INSTALLATION, plan: null, rolledBack }));
    expect(await readUnderWay()).toMatchObject({ operation: "install" });
  });

  test("of a rollback is of nothing under way once that is recorded", async () => {
    const state = openState(folder);
    await state.writeJournal(ROLLBACK);
    await state.writeState(stateOf(INSTALLATION));
    expect(await readUnderWay()).toMatchObject({ operation: "rollback" });
    const rolledBack = { startedAt: ROLLBACK.startedAt, finishedAt: ROLLBACK.startedAt };
    await state.writeState(stateOf({ ...INSTALLATION, rolledBack }));
    expect(await readUnderWay()).toBeUndefined();
  });
});

describe("a journal of several bundles", () => {
  const LAST = "c".repeat(64);
  const done = [
    { release: { ...JOURNAL.release, name: "R3", sequence: 3 }, startedAt: 7, streams: [], commit: null },
  ];
  const chain = { release: "R6", identity: LAST, done };
  const before: InstallJournal = { ...JOURNAL, environment: { ...ENVIRONMENT, chain }, phase: "linking" };
  const last: InstallJournal = {
    ...before,
    release: { ...before.release, identity: LAST },
    phase: "recording",
  };

  test("waits for the next one, and ends as one install", async () => {
    const state = await lockState(folder);
    await state.writeJournal(before);
    expect(await readUnderWay()).toMatchObject({ environment: { chain }, phase: "linking" });
    await state.release();
    expect(phasesOf(before).slice(-2)).toEqual(["writing", "linking"]);
    expect(phasesOf(last).slice(-4)).toEqual(["writing", "finishing", "activating", "recording"]);
    // It began with the first of them.
    const recorded = { ...INSTALLATION, release: last.release, startedAt: 7 };
    expect(isRecorded(stateOf(recorded), last)).toBe(true);
    expect(isRecorded(stateOf({ ...recorded, startedAt: last.startedAt }), last)).toBe(false);
  });
});

describe("a state", () => {
  test("is not taken for missing where only its dataset is not mounted", async () => {
    const code = "not-configured";
    for (const [name, told] of [
      ["rpool/zferry\n", "rpool/zferry"],
      ["\u001b[2J\n", "\\u{1b}[2J"],
      ["x".repeat(2000), "its dataset"],
    ]) {
      writeFileSync(file("mounted-from"), name ?? "");
      const message = `${told}, which has the site's state, is not mounted on ${folder}`;
      expect(() => openState(folder)).toThrow(expect.objectContaining({ code, message }) as Error);
      await expect(lockState(folder)).rejects.toMatchObject({ code, message });
    }
    rmSync(file("mounted-from"));
    symlinkSync("/nowhere", file("mounted-from"));
    expect(() => openState(folder)).toThrow(expect.objectContaining({ code }) as Error);
    expect(readdirSync(folder)).toEqual(["mounted-from"]);
  });

  test("of version 2 is one of installations in place", async () => {
    const before = { ...stateOf({ ...INSTALLATION, plan: null }), version: 2 };
    writeFileSync(file("state.json"), JSON.stringify(before));
    expect(await openState(folder).readState()).toEqual(stateOf({ ...INSTALLATION, plan: null }));
    const environment = { dataset: "rpool/ROOT/R5", guid: "1", previous: "rpool/ROOT/R4" };
    const other = { ...before, installations: [{ ...INSTALLATION, environment }] };
    writeFileSync(file("state.json"), JSON.stringify(other));
    await expect(openState(folder).readState()).rejects.toMatchObject({ code: "journal-malformed" });
  });

  test("of version 1 is one of installations that have no plan", async () => {
    const before = { ...stateOf(INSTALLATION), version: 1 };
    writeFileSync(file("state.json"), JSON.stringify(before));
    expect(await openState(folder).readState()).toEqual(stateOf(INSTALLATION));
    writeFileSync(
      file("state.json"),
      JSON.stringify({ ...before, installations: [{ ...INSTALLATION, plan: null }] }),
    );
    await expect(openState(folder).readState()).rejects.toMatchObject({ code: "journal-malformed" });
  });

  test("has the newest installation that was not rolled back, and one that can be", () => {
    const first = { ...INSTALLATION, startedAt: 1 };
    const back = { ...INSTALLATION, rolledBack: { startedAt: 8, finishedAt: 9 } };
    const confirmed = { ...INSTALLATION, confirmedAt: 9 };
    expect([installed(undefined), undoable(undefined)]).toEqual([undefined, undefined]);
    expect([installed(stateOf(first)), undoable(stateOf(first))]).toEqual([first, first]);
    expect([installed(stateOf(first, back)), undoable(stateOf(first, back))]).toEqual([first, undefined]);
    expect([installed(stateOf(back)), undoable(stateOf(back))]).toEqual([undefined, undefined]);
    expect([installed(stateOf(confirmed)), undoable(stateOf(confirmed))]).toEqual([confirmed, undefined]);
  });

  test("keeps the plan of what can be rolled back, until it is not", async () => {
    const state = await lockState(folder);
    await state.writeJournal(JOURNAL);
    const plan = state.keepPlan(JOURNAL.root);
    await state.writeState(stateOf({ ...INSTALLATION, plan }));
    await state.removeJournal();
    expect(names()).toEqual(["lock", `plan-${plan}.json`, "state.json"]);
    await state.release();
    const again = await lockState(folder);
    expect(await again.readPlan(plan ?? "")).toEqual(JOURNAL.root);
    // The next install has its own beside it.
    await again.writeJournal({ ...JOURNAL, root: { ...JOURNAL.root!, mergeCommit: "c".repeat(40) } });
    expect(names().filter((name) => name.startsWith("plan-"))).toHaveLength(2);
    await again.removeJournal();
    expect(names()).toEqual(["lock", `plan-${plan}.json`, "state.json"]);
    await again.writeState(stateOf({ ...INSTALLATION, plan, confirmedAt: 9 }));
    await again.removePlans();
    expect(names()).toEqual(["lock", "state.json"]);
    await expect(again.readPlan(plan ?? "")).rejects.toMatchObject({ code: "journal-malformed" });
    await again.release();
  });
});

describe("the lock", () => {
  test("removes what writes that were interrupted left, and nothing else", async () => {
    const torn = ["state", "journal", `plan-${"0".repeat(64)}`].map((name) => `.${name}.json.0123456789ab`);
    for (const name of [...torn, ".state.json.backup", "notes"]) writeFileSync(file(name), "{");
    const state = await lockState(folder);
    expect(names()).toEqual([".state.json.backup", "lock", "notes"]);
    await state.release();
  });

  test("removes a plan without a journal, and keeps that of one", async () => {
    const state = await lockState(folder);
    await state.writeJournal(JOURNAL);
    await state.release();
    const plan = planFile();
    await (await lockState(folder)).release();
    expect(names()).toEqual(["journal.json", "lock", plan]);
    rmSync(file("journal.json"));
    await (await lockState(folder)).release();
    expect(names()).toEqual(["lock"]);
  });

  test("is one process's, or one opening's, at a time", async () => {
    const state = await lockState(folder);
    await expect(lockState(folder)).rejects.toMatchObject({ code: "site-busy" });
    await state.release();
    await (await lockState(folder)).release();
  });

  test.each([
    ["", "another command that changes this site"],
    ["812 bundle install\n", "bundle install (process 812)"],
    ["812 bundle \n", "another command that changes this site"],
    ["812 bundle install", "another command that changes this site"],
    ["812 bundle in\u001b[1m\n", "another command that changes this site"],
    ["812 bundle install\nand more", "another command that changes this site"],
  ])("names who has it, if that is what is written there: %j", async (text, holder) => {
    const state = await lockState(folder);
    writeFileSync(file("lock"), text);
    await expect(lockState(folder)).rejects.toThrow(`${file("lock")} is locked by ${holder}`);
    await state.release();
    await (await lockState(folder)).release();
    expect(readFileSync(file("lock"), "utf8")).toBe(`${process.pid} bundle \n`);
  });
});
