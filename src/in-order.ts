/**
 * Starts work on each item while earlier ones are not done yet, `ahead` at most at a time, and gives the results in
 * the order of the items. The next item is taken only when there is room for it, so a slow taker slows down all.
 * Whatever was started has ended when the generator has, also after a failure.
 */
export async function* inOrder<Item, Result>(
  items: Iterable<Item> | AsyncIterable<Item>,
  ahead: number,
  start: (item: Item) => Promise<Result>,
): AsyncGenerator<Result, void, void> {
  const running: Promise<Result>[] = [];
  try {
    for await (const item of items) {
      const work = start(item);
      // Its failure is told when its turn comes.
      work.catch(() => undefined);
      running.push(work);
      if (running.length >= ahead) yield await (running.shift() as Promise<Result>);
    }
    while (running.length > 0) yield await (running.shift() as Promise<Result>);
  } finally {
    await Promise.allSettled(running);
  }
}
