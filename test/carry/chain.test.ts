import { describe, expect, test } from "vitest";
import { chooseChain, linkOf, type ChainOptions, type ChainStart, type Link } from "../../src/carry/chain.js";
import type { Manifest } from "../../src/bundle/manifest.js";
import { ZferryError } from "../../src/errors.js";

// formats/chain.md

const guidOf = (role: string, release: number): string =>
  String((role === "usr" ? 1_000_000 : 2_000_000) + release);
const treeOf = (release: number): string => release.toString(16).padStart(40, "0");

/** A bundle of `usr` and `/` from one release to another; 0 is no release, which makes it full. */
const link = (from: number, to: number, changed: Partial<Link> = {}): Link => ({
  id: `${from}-${to}`,
  product: "demo",
  release: { name: `R${to}`, sequence: to },
  bytes: 100,
  streams: [
    { role: "usr", base: from === 0 ? null : { guid: guidOf("usr", from) }, target: guidOf("usr", to) },
  ],
  root: { base: from === 0 ? null : treeOf(from), target: treeOf(to) },
  ...changed,
});

const at = (release: number, changed: Partial<ChainStart> = {}): ChainStart => ({
  product: "demo",
  installed: release === 0 ? undefined : { name: `R${release}`, sequence: release },
  highestSequence: release,
  accepted: new Set(),
  streams: new Map([["usr", release === 0 ? [] : [guidOf("usr", release)]]]),
  tree: release === 0 ? null : treeOf(release),
  ...changed,
});

const chosen = (links: readonly Link[], start: ChainStart, options?: ChainOptions): string[] =>
  chooseChain(links, start, options).links.map(({ id }) => id);

function refused(links: readonly Link[], start: ChainStart, options?: ChainOptions): ZferryError {
  try {
    chooseChain(links, start, options);
  } catch (error) {
    if (error instanceof ZferryError) return error;
    throw error;
  }
  throw new Error("a chain was found");
}

const opt = (from: number, to: number): Link["streams"][number] => ({
  role: "opt",
  base: from === 0 ? null : { guid: guidOf("opt", from) },
  target: guidOf("opt", to),
});
const usr = (from: number, to: number): Link["streams"][number] => link(from, to).streams[0] as never;

describe("the shortest chain", () => {
  test("leads over all bundles that there are, whatever their order", () => {
    expect(chosen([link(4, 5), link(2, 3), link(3, 4)], at(2))).toEqual(["2-3", "3-4", "4-5"]);
  });

  test("is that with the fewest bytes, not that with the fewest bundles", () => {
    const links = [
      link(1, 3, { bytes: 300 }),
      link(1, 2),
      link(2, 3),
      link(3, 4),
      link(2, 4, { bytes: 201 }),
    ];
    expect(chosen(links, at(1))).toEqual(["1-2", "2-3", "3-4"]);
    expect(chosen([...links, link(1, 4, { bytes: 299 })], at(1))).toEqual(["1-4"]);
  });

  test("is, of equally many bytes, that with fewer bundles, and then always the same", () => {
    expect(chosen([link(1, 2), link(2, 3), link(1, 3, { bytes: 200 })], at(1))).toEqual(["1-3"]);
    const twins = [link(1, 2, { id: "b" }), link(1, 2, { id: "a" }), link(1, 2, { id: "c" })];
    expect(chosen(twins, at(1))).toEqual(["a"]);
    expect(chosen(twins.toReversed(), at(1))).toEqual(["a"]);
  });

  test("ends at the release that is asked for", () => {
    const links = [link(1, 2), link(2, 3), link(3, 4)];
    expect(chosen(links, at(1), { to: "R3" })).toEqual(["1-2", "2-3"]);
    expect(chosen(links, at(3), { to: "R3" })).toEqual([]);
  });

  test("leaves out what was installed already", () => {
    expect(chosen([link(1, 2), link(2, 3), link(3, 4)], at(3))).toEqual(["3-4"]);
    expect(chooseChain([link(1, 2), link(2, 3)], at(3))).toMatchObject({
      links: [],
      release: { name: "R3" },
    });
    expect(chosen([link(1, 2)], at(3))).toEqual([]);
  });

  test("does nothing at a site that has the datasets, though zferry installed nothing there", () => {
    const start = at(0, { streams: new Map([["usr", [guidOf("usr", 2)]]]) });
    expect(chosen([link(1, 2)], start)).toEqual([]);
    expect(chosen([link(1, 2), link(2, 3)], start)).toEqual(["2-3"]);
  });

  test("takes any snapshot that the dataset is at", () => {
    const start = at(2, { streams: new Map([["usr", ["77", guidOf("usr", 2)]]]) });
    expect(chosen([link(2, 3), link(3, 4)], start)).toEqual(["2-3", "3-4"]);
  });

  test("is found among a thousand bundles", () => {
    const links = Array.from({ length: 1_000 }, (_, index) => link(index + 1, index + 2));
    expect(chosen(links.toReversed(), at(1))).toHaveLength(1_000);
    const dense: Link[] = [];
    for (let to = 2; dense.length < 1_000; to += 1) {
      for (let from = Math.max(1, to - 25); from < to && dense.length < 1_000; from += 1) {
        dense.push(link(from, to, { bytes: (to - from) ** 2 }));
      }
    }
    const ends = dense.at(-1) as Link;
    expect(chosen(dense, at(1))).toHaveLength(ends.release.sequence - 1);
  });
});

describe("roles and /", () => {
  const two = (from: number, to: number, id = `${from}-${to}`): Link =>
    link(from, to, { id, streams: [opt(from, to), usr(from, to)] });
  const both = (usrAt: number, optAt: number): ChainStart =>
    at(usrAt, {
      streams: new Map([
        ["opt", optAt === 0 ? [] : [guidOf("opt", optAt)]],
        ["usr", [guidOf("usr", usrAt)]],
      ]),
    });

  test("that a bundle moves must all fit", () => {
    expect(chosen([two(1, 2), two(2, 3)], both(1, 1))).toEqual(["1-2", "2-3"]);
    expect(refused([two(1, 2)], both(1, 9)).code).toBe("chain-missing");
  });

  test("that a bundle does not move stay where they are", () => {
    const links = [
      link(1, 2),
      link(2, 3, { streams: [opt(1, 3)] }),
      link(3, 4, { streams: [opt(3, 4), usr(2, 4)] }),
    ];
    expect(chosen(links, both(1, 1))).toEqual(["1-2", "2-3", "3-4"]);
  });

  test("that are new begin with a full stream, among others that go on", () => {
    const links = [link(1, 2, { streams: [opt(0, 2), usr(1, 2)] }), two(2, 3)];
    expect(chosen(links, both(1, 0))).toEqual(["1-2", "2-3"]);
    expect(refused(links, both(1, 1)).code).toBe("chain-missing");
  });

  test("that the site does not have keep a bundle out, and it is told", () => {
    const { links, left } = chooseChain([link(1, 2), two(1, 3)], at(1));
    expect(links.map(({ id }) => id)).toEqual(["1-2"]);
    expect(left).toEqual([
      { link: two(1, 3), reason: "has a stream opt, and this site has no dataset for it" },
    ]);
  });

  test("of which / was made from another tree keep a bundle out", () => {
    const other = link(1, 2, { root: { base: treeOf(8), target: treeOf(2) } });
    const { message } = refused([other], at(1));
    expect(message).toBe(
      "you have R1, the newest here, R2, needs R1: release R2 here starts from another R1",
    );
    expect(chosen([other], at(1, { tree: null }))).toEqual(["1-2"]);
    expect(chosen([link(1, 2, { root: null }), link(2, 3)], at(1, { tree: treeOf(2) }))).toEqual([
      "1-2",
      "2-3",
    ]);
  });
});

describe("without a chain", () => {
  test("both ends of what is missing are told", () => {
    const links = [link(1, 2), link(2, 3), link(5, 6), link(6, 7)];
    const error = refused(links, at(3));
    expect(error.code).toBe("chain-missing");
    expect(error.message).toBe(
      "you have R3, the newest here, R7, needs guid 1000005: missing R3→guid 1000005",
    );
    const named = links.with(
      2,
      link(5, 6, {
        streams: [
          { role: "usr", base: { guid: guidOf("usr", 5), snapshot: "R5" }, target: guidOf("usr", 6) },
        ],
      }),
    );
    expect(refused(named, at(3)).message).toBe("you have R3, the newest here, R7, needs R5: missing R3→R5");
    const further = refused([...named, link(3, 4)], at(3));
    expect(further.message).toBe("you have R3, the newest here, R7, needs R5: missing R4→R5");
    expect(further.details).toEqual({ have: "R3", wanted: "R7", needs: "R5", reached: "R4" });
    expect(further.hint).toContain("--to R4");
  });

  test("the shortest gap is told", () => {
    const { details } = refused([link(2, 8), link(4, 5), link(5, 8), link(2, 4)], at(3));
    expect(details["needs"]).toBe("guid 1000002");
    expect(refused([link(2, 8), link(6, 7), link(7, 8), link(2, 6)], at(3)).details["needs"]).toBe(
      "guid 1000002",
    );
    expect(refused([link(2, 8), link(6, 7), link(7, 8)], at(3)).details["needs"]).toBe("guid 1000006");
  });

  test("a release that no bundle has, or that is older, is told", () => {
    expect(refused([link(1, 2)], at(1), { to: "R9" }).code).toBe("chain-missing");
    expect(refused([], at(1))).toMatchObject({
      code: "chain-missing",
      message: "no bundle is here that counts, and this site has R1",
    });
    expect(refused([link(1, 2)], at(3), { to: "R2" })).toMatchObject({
      code: "sequence-mismatch",
      details: { found: 2, accepted: 3 },
    });
  });
});

describe("the sequence rule", () => {
  test("keeps out what the site had a newer one of, except what it accepted itself", () => {
    const rolledBack = at(2, { highestSequence: 4 });
    const links = [link(2, 3), link(3, 4)];
    expect(refused(links, rolledBack).code).toBe("sequence-mismatch");
    expect(chosen(links, { ...rolledBack, accepted: new Set(["2-3", "3-4"]) })).toEqual(["2-3", "3-4"]);
    expect(chosen([link(2, 5)], rolledBack)).toEqual(["2-5"]);
  });

  test("lets no bundle follow one of the same number", () => {
    const sameNumber = link(2, 3, { id: "again", release: { name: "R2", sequence: 2 } });
    expect(refused([link(1, 2), sameNumber, link(3, 4)], at(1)).code).toBe("chain-missing");
    // Nor is one made cheaper by it.
    const dear = link(1, 3, { id: "dear", bytes: 900, release: { name: "R1b", sequence: 2 } });
    const cheap = link(1, 2, { id: "cheap", release: { name: "R1b", sequence: 3 } });
    const on = link(2, 3, { id: "on", release: { name: "R1b", sequence: 3 } });
    expect(chosen([dear, cheap, on, link(3, 4)], at(1))).toEqual(["dear", "3-4"]);
  });
});

describe("a full bundle", () => {
  test("begins a chain only when that is asked for, at a site that has nothing", () => {
    const links = [link(0, 1), link(1, 2)];
    const without = refused(links, at(0));
    expect(without.code).toBe("chain-missing");
    expect(without.message).toContain("needs R1: a full bundle alone leads to R1");
    expect(without.hint).toContain("--full");
    expect(chosen(links, at(0), { full: true })).toEqual(["0-1", "1-2"]);
    expect(refused([link(0, 4)], at(2), { full: true }).message).toBe(
      "you have R2, the newest here, R4, needs a new site: this site has datasets already, and a full bundle makes new ones",
    );
  });

  test("is named where the newest release is there in no other way", () => {
    const error = refused([link(2, 3), link(0, 4)], at(2));
    expect(error.message).toBe("you have R2, and the newest here, R4, is here as a full bundle only");
    expect(error.hint).toContain("--to R3");
    expect(chosen([link(2, 3), link(0, 3, { bytes: 1 })], at(2))).toEqual(["2-3"]);
  });
});

describe("what lies", () => {
  test("is left out, and told", () => {
    const own = link(1, 2);
    const foreign = link(1, 9, { id: "foreign", product: "other" });
    const still = link(4, 9, { id: "still", streams: [usr(9, 9)] });
    const twice = link(1, 9, { id: "twice", streams: [usr(1, 9), usr(1, 8)] });
    const none = link(1, 9, { id: "none", streams: [] });
    const { links, left } = chooseChain([twice, foreign, still, own, none], at(1));
    expect(links).toEqual([own]);
    expect(Object.fromEntries(left.map(({ link: { id }, reason }) => [id, reason]))).toEqual({
      foreign: "is for product other, this site has demo",
      none: "leads to where it comes from",
      still: "leads to where it comes from",
      twice: "has a stream twice",
    });
  });

  test("in a circle leads nowhere", () => {
    const back = link(3, 2, { id: "back", release: { name: "R4", sequence: 4 } });
    const on = link(2, 3, { id: "on", release: { name: "R5", sequence: 5 } });
    expect(chosen([link(2, 3), back, on], at(2))).toEqual(["on"]);
    expect(refused([link(7, 8), link(8, 7)], at(2)).code).toBe("chain-missing");
  });

  test("twice counts once, as it was given first", () => {
    const copy = { ...link(1, 2), bytes: 1 };
    const { links } = chooseChain([link(1, 2), copy], at(1));
    expect(links[0]?.bytes).toBe(100);
  });

  test("in ever more ways is refused", () => {
    const roles = Array.from({ length: 20 }, (_, index) => `r${index}`);
    const links = roles.map((role, index) =>
      link(1, index + 2, { streams: [{ role, base: { guid: "1" }, target: "2" }], root: null }),
    );
    const start = at(1, { streams: new Map(roles.map((role) => [role, ["1"]])) });
    expect(refused(links, start).message).toBe("the bundles here can be installed in more than 30000 ways");
  });
});

test("a link is what the manifest says", () => {
  const manifest: Manifest = {
    format: 1,
    product: "demo",
    release: { name: "R2", sequence: 2 },
    created: 1,
    streams: [
      {
        role: "usr",
        dataset: "tank/usr",
        base: { snapshot: "R1", guid: "11" },
        target: { snapshot: "R2", guid: "12" },
        features: [],
        rawBytes: 1,
        chunks: [{ rawBytes: 1, storedBytes: 1, largestObject: "0" }],
      },
    ],
    requires: { poolFeatures: [], freeBytes: 0 },
  };
  expect(linkOf(manifest, "abc", 7)).toEqual({
    id: "abc",
    product: "demo",
    release: { name: "R2", sequence: 2 },
    bytes: 7,
    streams: [{ role: "usr", base: { snapshot: "R1", guid: "11" }, target: "12" }],
    root: null,
  });
});
