import { expect, test } from "vitest";
import { chooseChain, type ChainStart, type Link } from "../../src/carry/chain.js";
import { afterLink } from "../../src/carry/site.js";

const link = (from: number, to: number): Link => ({
  id: `${from}-${to}`,
  product: "demo",
  release: { name: `R${to}`, sequence: to },
  bytes: 1,
  streams: [{ role: "usr", base: { guid: String(from) }, target: String(to) }],
  root: { base: `tree ${from}`, target: `tree ${to}` },
});
const start: ChainStart = {
  product: "demo",
  installed: { name: "R1", sequence: 1 },
  highestSequence: 7,
  accepted: new Set(["1-2"]),
  streams: new Map([
    ["usr", ["1"]],
    ["opt", ["9"]],
  ]),
  tree: "tree 1",
};

test("a chain goes on after what is under way as after what is installed", () => {
  const after = afterLink(start, link(1, 2));
  expect(after).toEqual({
    ...start,
    installed: { name: "R2", sequence: 2 },
    streams: new Map([
      ["usr", ["2"]],
      ["opt", ["9"]],
    ]),
    tree: "tree 2",
  });
  expect(chooseChain([link(1, 2), link(2, 8)], after).links).toEqual([link(2, 8)]);
  expect(afterLink(start, { ...link(1, 8), root: null })).toMatchObject({
    highestSequence: 8,
    tree: "tree 1",
  });
});
