import { mkdirSync, writeFileSync } from "node:fs";
import { beforeEach, describe, expect, test } from "vitest";
import { blocksOf, readPage } from "../formats/page.js";
import { errorOf, inFolder, run, told } from "./support.js";

const folder = inFolder();
const history = (...args: string[]) => run(["history", "--config", folder.file("site.toml"), ...args]);

interface Installation {
  release: { name: string; sequence: number; identity: string };
  startedAt: number;
  finishedAt: number;
}
const [block = ""] = blocksOf(readPage("state.md"), "json state");
const example = JSON.parse(block) as { installations: Installation[] };
const installation = example.installations[0] as Installation;
const release = (name: string, sequence: number) => ({
  release: { ...installation.release, name, sequence },
});

const write = (installations: object[]): void =>
  writeFileSync(folder.file("state/state.json"), JSON.stringify({ ...example, installations }));

beforeEach(() => {
  mkdirSync(folder.file("state"), { mode: 0o700 });
  writeFileSync(
    folder.file("site.toml"),
    `product = "gentoo"\nstate = "${folder.file("state")}"\n[streams]\nusr = "rpool/SYSTEM/USR/gentoo"\n`,
  );
});

describe("bundle history", () => {
  test("says that nothing was installed", async () => {
    expect(await history()).toMatchObject({ status: 0, stderr: "" });
    expect((await history()).stdout.toString()).toBe("no release was installed by zferry yet\n");
    expect(JSON.parse((await history("--json")).stdout.toString())).toEqual({
      product: "gentoo",
      underWay: null,
      installations: [],
    });
  });

  test("lists releases, newest first, with what became of each and what is under way", async () => {
    write([
      { ...installation, ...release("R2", 2), confirmedAt: 1_750_090_000 },
      {
        ...installation,
        ...release("release-3", 3),
        startedAt: 1_750_100_000,
        finishedAt: 1_750_100_600,
        signers: ["0E07B77755AB6E15", "D950C3178AD0130D"],
        rolledBack: { startedAt: 1_750_200_000, finishedAt: 1_750_200_010 },
      },
      { ...installation, ...release("R4", 4), startedAt: 1_750_300_000, finishedAt: 1_750_300_045 },
    ]);
    const journal = {
      version: 3,
      operation: "rollback",
      ...release("R4", 4),
      startedAt: 1_750_400_000,
      phase: "rolling-back",
      undoing: false,
      present: [],
      streams: [],
      site: { product: "gentoo", root: null },
      lost: [],
      plan: null,
    };
    writeFileSync(folder.file("state/journal.json"), JSON.stringify(journal));
    const { status, stdout, stderr } = await history();
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout.toString()).toBe(
      [
        "RELEASE    SEQUENCE  INSTALLED                TOOK    SIGNERS                            RESULT",
        "R4         4         -                        -       -                                  being rolled back since 2025-06-20 06:13:20 UTC",
        "R4         4         2025-06-19 02:27:25 UTC  45 s    0E07B77755AB6E15                   installed",
        "release-3  3         2025-06-16 19:03:20 UTC  10 min  0E07B77755AB6E15,D950C3178AD0130D  rolled back at 2025-06-17 22:40:10 UTC",
        "R2         2         2025-06-16 15:07:40 UTC  60 s    0E07B77755AB6E15                   confirmed at 2025-06-16 16:06:40 UTC",
        "",
      ].join("\n"),
    );
    const told = JSON.parse((await history("--json")).stdout.toString()) as {
      underWay: object;
      installations: { release: { name: string }; result: string }[];
    };
    expect(told.underWay).toMatchObject({ operation: "rollback", phase: "rolling-back", undoing: false });
    expect(told.installations.map((each) => [each.release.name, each.result])).toEqual([
      ["R4", "installed"],
      ["release-3", "rolled-back"],
      ["R2", "confirmed"],
    ]);
  });

  test("is refused where the state is another product's", async () => {
    write([installation]);
    writeFileSync(
      folder.file("site.toml"),
      `product = "alpine"\nstate = "${folder.file("state")}"\n[streams]\nusr = "rpool/usr"\n`,
    );
    expect(told(await history()).status).toBe(13);
  });
});

test("bundle status has the newest release that was not rolled back", async () => {
  write([
    { ...installation, ...release("R2", 2), confirmedAt: 1_750_090_000 },
    { ...installation, ...release("R3", 3), rolledBack: { startedAt: 1, finishedAt: 2 } },
  ]);
  const { stdout } = await run(["status", "--config", folder.file("site.toml")]);
  expect(stdout.toString()).toContain("installed: release R2 (2) at ");
  expect(stdout.toString()).not.toContain("bundle rollback");
});

test("bundle resolve --rollback takes no bundle", async () => {
  expect(told(await run(["resolve", "R2.bundle", "--rollback"]))).toMatchObject({
    status: 2,
    message: "R2.bundle: with --rollback no bundle is named",
  });
  const refused = await run(["resolve", "--rollback", "--config", folder.file("site.toml")]);
  expect(told(refused)).toMatchObject({
    status: 17,
    message: "nothing can be rolled back: no release was installed by zferry yet",
  });
});

describe("what cannot be rolled back is said", () => {
  const [stream] = (installation as unknown as { streams: object[] }).streams;
  const refusals: [string, object, string, RegExp][] = [
    [
      "rolled back",
      { rolledBack: { startedAt: 1, finishedAt: 2 } },
      "rollback-impossible",
      /R2 \(2\) was, at 1970-/,
    ],
    ["confirmed", { confirmedAt: 2 }, "rollback-impossible", /R2 \(2\) was confirmed at 1970-/],
    [
      "a full stream",
      { streams: [{ ...stream, base: null }] },
      "rollback-impossible",
      /stream usr has no base/,
    ],
    ["an older zferry's", { plan: undefined }, "rollback-impossible", /an older zferry installed it/],
    [
      "another dataset's",
      { streams: [{ ...stream, dataset: "rpool/other" }] },
      "not-configured",
      /usr is rpool\/SYSTEM\/USR\/gentoo, not rpool\/other/,
    ],
    ["a / that is not configured", {}, "not-configured", /has no \[root\]/],
  ];
  // No dataset is asked.
  test.each(refusals)("%s", async (_, changes, code, message) => {
    write([{ ...installation, ...release("R2", 2), ...changes }]);
    const result = await run(["resolve", "--rollback", "--json", "--config", folder.file("site.toml")]);
    expect(errorOf(result)).toMatchObject({ code, message: expect.stringMatching(message) as string });
    expect(result.status).toBe(17);
  });
});

test("bundle status offers a rollback only where there is a way back", async () => {
  const status = async (changed: object): Promise<string> => {
    write([{ ...installation, ...release("R2", 2), ...changed }]);
    return (await run(["status", "--config", folder.file("site.toml")])).stdout.toString();
  };
  const [stream] = (installation as { streams?: object[] }).streams ?? [];
  expect(await status({})).toContain("can be rolled back: bundle rollback");
  for (const changed of [{ streams: [{ ...stream, base: null }] }, { plan: null }]) {
    const text = await status(changed);
    expect(text).toContain("installed: release R2 (2) at ");
    expect(text).not.toContain("bundle rollback");
  }
});
