/** Numbers that look random and are the same for a seed: mulberry32. */
export function randomOf(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

export type Random = ReturnType<typeof randomOf>;

export const pick = <T>(random: Random, list: readonly T[]): T => list[random(list.length)] as T;

/** What breaks parsers: limits of numbers, ends of ranges, marks of formats. */
const TOKENS = [
  ...'\0 \n \r\n \t \x1b[2J \xff \x7f - / .. ../ : , [ ] { } " \\ \\u0000 00 0x -1 1e9 null true'.split(" "),
  ...["4294967296", "9007199254740993", "18446744073709551616", "7777777", "77777777777", "__proto__"],
].map((text) => Buffer.from(text, "latin1"));

/** The bytes with one small change, or with a part of another file. */
export function mutate(random: Random, bytes: Buffer, others: readonly Buffer[]): Buffer {
  const at = random(bytes.length + 1);
  const [before, after] = [bytes.subarray(0, at), bytes.subarray(at)];
  const length = 1 + random(pick(random, [4, 64, 2048]));
  switch (random(9)) {
    case 0:
    case 1: {
      const copy = Buffer.from(bytes);
      if (copy.length > 0) copy[random(copy.length)]! ^= 1 << random(8);
      return copy;
    }
    case 2: {
      const copy = Buffer.from(bytes);
      if (copy.length > 0) copy[random(copy.length)] = pick(random, [0, 0xff, 0x7f, 0x80, random(256)]);
      return copy;
    }
    case 3:
      return before;
    case 4:
      return Buffer.concat([before, after.subarray(length)]);
    case 5:
      return Buffer.concat([before, pick(random, TOKENS), after]);
    case 6:
      return Buffer.concat([before, after.subarray(0, length), after]);
    case 7: {
      const token = pick(random, TOKENS);
      return Buffer.concat([before, token, after.subarray(token.length)]);
    }
    default: {
      const other = pick(random, others);
      const from = random(other.length + 1);
      return Buffer.concat([before, other.subarray(from, from + length), after.subarray(random(2) * length)]);
    }
  }
}
