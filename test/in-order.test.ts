import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { inOrder } from "../src/in-order.js";

async function collect<T>(source: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const each of source) all.push(each);
  return all;
}

describe("inOrder", () => {
  test("gives the results in the order of the items, however long each takes", async () => {
    const delays = [30, 5, 20, 1, 10, 0, 3];
    expect(await collect(inOrder(delays, 3, (ms) => sleep(ms, ms)))).toEqual(delays);
  });

  test.each([1, 2, 5])("has %i pieces of work under way at most, and that many", async (ahead) => {
    let running = 0;
    let most = 0;
    const work = async (): Promise<void> => {
      running += 1;
      most = Math.max(most, running);
      await sleep(2);
      running -= 1;
    };
    await collect(inOrder(Array.from({ length: 20 }), ahead, work));
    expect(most).toBe(ahead);
  });

  test("takes no item that there is no room for", async () => {
    let taken = 0;
    function* items(): Generator<number> {
      for (;;) yield taken++;
    }
    for await (const result of inOrder(items(), 3, async (item) => item)) {
      expect(taken).toBeLessThanOrEqual(result + 3);
      if (result === 50) break;
    }
  });

  test("tells the first failure by the order of the items, when all that was started has ended", async () => {
    const ended: number[] = [];
    const work = async (item: number): Promise<number> => {
      await sleep(item === 1 ? 20 : 1);
      ended.push(item);
      if (item === 1 || item === 2) throw new Error(`item ${item}`);
      return item;
    };
    await expect(collect(inOrder([0, 1, 2, 3, 4, 5, 6], 3, work))).rejects.toThrow("item 1");
    expect(ended.sort()).toEqual([0, 1, 2, 3]);
  });

  test("waits for what was started when its taker leaves, and closes the source", async () => {
    let [started, ended, closed] = [0, 0, false];
    async function* items(): AsyncGenerator<number> {
      try {
        for (let item = 0; ; item += 1) yield item;
      } finally {
        closed = true;
      }
    }
    const work = async (item: number): Promise<number> => {
      started += 1;
      await sleep(5);
      ended += 1;
      return item;
    };
    for await (const result of inOrder(items(), 4, work)) if (result === 2) break;
    expect(closed).toBe(true);
    expect(ended).toBe(started);
  });

  test("passes a failure of the source on", async () => {
    function* items(): Generator<number> {
      yield 1;
      throw new Error("source");
    }
    await expect(collect(inOrder(items(), 2, async (item) => item))).rejects.toThrow("source");
  });
});
