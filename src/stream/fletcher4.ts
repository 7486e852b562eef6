/*
 * fletcher-4, the checksum of ZFS send streams: four 64-bit accumulators over 32-bit little-endian words,
 * a += w, b += a, c += b, d += c, wrapping (formats/stream.md, Checksums).
 *
 * JavaScript has no fast 64-bit integers, so the loop is WebAssembly, assembled below from named instructions.
 * Measured on one machine, in MB/s: 7,000 with eight words a turn, 4,500 with one word, 10,700 for copying alone; and
 * on another one 3,300 with one word, 83 with BigInt, 330 with BigInt once in 64 words, 115 with 32-bit halves.
 */

/** Length of a checksum in bytes. */
export const CHECKSUM_BYTES = 32;

// Types for these come with TypeScript's DOM library only.
declare const WebAssembly: {
  Module: new (bytes: Uint8Array) => object;
  Instance: new (module: object) => {
    exports: {
      memory: { buffer: ArrayBuffer };
      sum: (from: number, to: number) => void;
      unrolled: (from: number, to: number) => void;
    };
  };
};

const MEMORY_PAGES = 1; // of 64 KiB

const I32 = 0x7f;
const I64 = 0x7e;

const loop = [0x03, 0x40];
const branchIf = (depth: number) => [0x0d, depth];
const end = [0x0b];
const drop = [0x1a];
const get = (local: number) => [0x20, local];
const set = (local: number) => [0x21, local];
const tee = (local: number) => [0x22, local];
const i32 = (value: number) => [0x41, value];
const i32Add = [0x6a];
const i32Less = [0x49];
const i64Add = [0x7c];
const i64Load = (address: number) => [...i32(0), 0x29, 3, address];
const i64Store = (address: number, value: number[]) => [...i32(0), ...value, 0x37, 3, address];
const i64Load32 = (address: number) => [0x35, 2, address];

/** Of a length; constants are below 64, counts and addresses below 128, which are one byte each. */
const leb128 = (value: number): number[] =>
  value < 128 ? [value] : [(value & 127) | 128, ...leb128(value >>> 7)];
const sized = (bytes: number[]) => [...leb128(bytes.length), ...bytes];
const list = (...items: number[][]) => [items.length, ...items.flat()];
const section = (id: number, items: number[]) => [id, ...sized(items)];
const name = (text: string) => sized([...text].map((letter) => letter.charCodeAt(0)));

const WORD = 4;
const UNROLLED = 8;

/**
 * `sum(at, end)` adds the words from address `at` up to `end` to the accumulators, which lie at address 0 of the
 * memory; `unrolled` does so for a multiple of eight words. Both need one turn at least.
 */
function assemble(): Uint8Array {
  const [at, until, ...abcd] = [0, 1, 2, 3, 4, 5] as const; // locals: two parameters, four accumulators
  const addWord = (address: number) => [
    ...[...get(at), ...i64Load32(address)],
    ...abcd.flatMap((local) => [...get(local), ...i64Add, ...tee(local)]),
    ...drop,
  ];
  const body = (words: number) =>
    [
      list([abcd.length, I64]),
      ...abcd.map((local, i) => [...i64Load(8 * i), ...set(local)]),
      loop,
      ...Array.from({ length: words }, (_, i) => addWord(i * WORD)),
      [...get(at), ...i32(words * WORD), ...i32Add, ...tee(at), ...get(until), ...i32Less, ...branchIf(0)],
      end,
      ...abcd.map((local, i) => i64Store(8 * i, get(local))),
      end,
    ].flat();
  return Uint8Array.from([
    ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0], // magic, version
    ...section(1, list([0x60, ...list([I32], [I32]), ...list()])), // types: (i32, i32) -> ()
    ...section(3, list([0], [0])), // functions
    ...section(5, list([0, MEMORY_PAGES])), // memories
    ...section(7, list([...name("memory"), 2, 0], [...name("sum"), 0, 0], [...name("unrolled"), 0, 1])),
    ...section(10, list(sized(body(1)), sized(body(UNROLLED)))), // code
  ]);
}

// One instance serves every sum, because each would reserve gigabytes of addresses. The accumulators hold the sum
// that was last updated; copying them at each update would cost more than the sum of a small record.
const { memory, sum, unrolled } = new WebAssembly.Instance(new WebAssembly.Module(assemble())).exports;
const accumulators = new Uint8Array(memory.buffer, 0, CHECKSUM_BYTES);
const input = new Uint8Array(memory.buffer, CHECKSUM_BYTES);
let loaded: Uint8Array | undefined;

/** A running fletcher-4 sum. */
export class Fletcher4 {
  readonly #saved: Uint8Array;

  /** Starts at zero, or goes on from a sum's `digest()`. */
  constructor(digest: Uint8Array = new Uint8Array(CHECKSUM_BYTES)) {
    if (digest.length !== CHECKSUM_BYTES) throw new RangeError(`a sum has 32 bytes, not ${digest.length}`);
    this.#saved = digest.slice();
  }

  /** Adds bytes, which must be whole 32-bit words. */
  update(bytes: Uint8Array): void {
    if (bytes.length % 4 !== 0) throw new RangeError(`${bytes.length} bytes are not whole 32-bit words`);
    if (loaded !== this.#saved) {
      loaded?.set(accumulators);
      accumulators.set(this.#saved);
      loaded = this.#saved;
    }
    for (let at = 0; at < bytes.length; at += input.length) {
      const part = bytes.length <= input.length ? bytes : bytes.subarray(at, at + input.length);
      input.set(part);
      const from = input.byteOffset;
      const middle = from + part.length - (part.length % (UNROLLED * WORD));
      if (middle > from) unrolled(from, middle);
      if (middle < from + part.length) sum(middle, from + part.length);
    }
  }

  /** The sum of all bytes so far, as streams hold it: a, b, c, d, each 8 bytes, little-endian. */
  digest(): Uint8Array {
    return this.#current().slice();
  }

  /** Whether the sum of all bytes so far is `digest`. */
  matches(digest: Uint8Array): boolean {
    const current = this.#current();
    for (let i = 0; i < CHECKSUM_BYTES; i += 1) if (current[i] !== digest[i]) return false;
    return digest.length === CHECKSUM_BYTES;
  }

  #current(): Uint8Array {
    return loaded === this.#saved ? accumulators : this.#saved;
  }
}
