import { randomBytes } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer as createHttpServer, type IncomingHttpHeaders } from "node:http";
import { createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Bundle } from "../../src/bundle/reader.js";
import { fetchBundle, fetchIndex, mirrorAt, startFrom, type FetchOptions } from "../../src/carry/fetch.js";
import { encodeIndex, entryOf, INDEX_NAME, pathOf, type IndexEntry } from "../../src/carry/index-format.js";
import { ZferryError } from "../../src/errors.js";
import { openSeenIndexes } from "../../src/carry/seen.js";
import { openHttp, parseUrl, type HttpClient } from "../../src/system/http.js";
import { partOf } from "../../src/system/part-file.js";
import { encodeSignature, generateKeyPair, sign, type SecretKey } from "../../src/trust/minisign.js";
import { encodeRecord } from "../../src/stream/records.js";
import {
  KEY,
  input,
  join as joined,
  pack,
  PUBLIC_KEY,
  refusal,
  replace,
  resign,
  rootInput,
  sourceOf,
  split,
  TRUST,
  type Member,
} from "../bundle/support.js";
import { randomOf } from "../fuzz/random.js";
import { begin, end, seal, TOGUID } from "../stream/support.js";
import { faultServer, type Fault, type FaultServer } from "./fault-server.js";
import { DAY, entry, index, NOW } from "./mirrors.js";

/** A stream whose chunks do not become smaller. */
const noise = (): Uint8Array =>
  seal([
    begin({ toname: "tank/BUILD/gentoo/usr@R2" }),
    ...Array.from({ length: 10 }, (_, at) =>
      encodeRecord(
        "WRITE",
        { object: BigInt(at + 1), type: 19, logicalSize: BigInt(100 << 10), toguid: TOGUID },
        randomBytes(100 << 10),
      ),
    ),
    end(),
  ]);

/** From 0 up to 1. */
const randomFrom = (seed: number): (() => number) => {
  const below = randomOf(seed);
  return () => below(2 ** 32) / 2 ** 32;
};

const whole = await pack({ streams: [input("usr", noise())], root: rootInput() });
const other = await pack({ streams: [input("usr", noise())], root: rootInput() });
const entryOfBytes = async (bytes: Buffer): Promise<IndexEntry> =>
  entryOf(await Bundle.readUnverified(sourceOf(bytes)), "R2.bundle");
const listed = await entryOfBytes(whole);
const files = new Map([["R2.bundle", whole]]);

let folder = "";
let client: HttpClient;
const servers: FaultServer[] = [];
const notes: string[] = [];
const stop = { controller: new AbortController() };

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "zferry-fetch-"));
  stop.controller = new AbortController();
  notes.length = 0;
  client = await openHttp({
    caFile: undefined,
    bytesPerSecond: undefined,
    timeoutSeconds: 0.3,
    signal: stop.controller.signal,
    env: {},
  });
});
afterEach(async () => {
  client.close();
  await Promise.all(servers.splice(0).map((server) => server.close()));
  rmSync(folder, { recursive: true });
});

const options = (changed: Partial<FetchOptions> = {}): FetchOptions => ({
  client,
  connections: 3,
  retries: 5,
  pause: async () => undefined,
  note: (line) => notes.push(line),
  progress: { update: () => undefined, end: () => undefined },
  signal: stop.controller.signal,
  ...changed,
});

async function serve(
  choose: (path: string) => Fault,
  random?: () => number,
  has: ReadonlyMap<string, Buffer> = files,
): Promise<FaultServer> {
  const server = await faultServer(has, choose, random, other);
  servers.push(server);
  return server;
}

const target = (): string => join(folder, "R2.bundle");
const fetchFrom = (from: readonly FaultServer[], changed: Partial<FetchOptions> = {}, what = listed) =>
  fetchBundle(
    what,
    "demo",
    from.map(({ url }) => mirrorAt(url)),
    target(),
    TRUST,
    options(changed),
  );

const rangeStart = (asked: FaultServer["asked"][number] | undefined): number =>
  Number(/=([0-9]+)-/.exec(asked?.range ?? "")?.[1]);

describe("a bundle", () => {
  test("comes from an honest server, and nothing else is left", async () => {
    const { identity } = await fetchFrom([await serve(() => "none")]);
    expect(identity).toBe(listed.identity);
    expect(readFileSync(target()).equals(whole)).toBe(true);
    expect(readdirSync(folder)).toEqual(["R2.bundle"]);
  });

  test("comes from two servers at once", async () => {
    const both = [await serve(() => "none"), await serve(() => "none")];
    await fetchFrom(both, { connections: 4 });
    expect(both.every(({ asked }) => asked.length > 0)).toBe(true);
    expect(readFileSync(target()).equals(whole)).toBe(true);
  });

  test.each<Fault>(["whole", "longer"])("comes from a server that is %s", async (fault) => {
    const server = await serve(() => fault);
    await fetchFrom([server]);
    expect(readFileSync(target()).equals(whole)).toBe(true);
  });

  test.each<Fault>(["cut", "flip", "zeros", "swap", "length-lie", "total-lie", "range-lie", "busy", "stall"])(
    "comes though the only server answers with %s now and then",
    async (fault) => {
      const random = randomFrom(7);
      let turn = 0;
      await fetchFrom([await serve(() => ((turn += 1) % 3 === 1 ? fault : "none"), random)]);
      expect(readFileSync(target()).equals(whole)).toBe(true);
    },
  );

  test.each<Fault>(["gone", "gzip", "loop", "to-file", "headers", "swap", "flip", "stall", "busy", "zeros"])(
    "comes from the other server where one always answers with %s",
    async (fault) => {
      await fetchFrom([await serve(() => fault), await serve(() => "none")], { retries: 2 });
      expect(readFileSync(target()).equals(whole)).toBe(true);
    },
  );

  test.each<[Fault, string]>([
    ["gone", "download-failed"],
    ["gzip", "download-failed"],
    ["loop", "download-failed"],
    ["to-file", "download-failed"],
    ["headers", "download-failed"],
    ["busy", "download-failed"],
    ["stall", "download-failed"],
    ["range-lie", "download-failed"],
    ["total-lie", "download-failed"],
    ["swap", "content-mismatch"],
  ])("does not come where all servers always answer with %s: %s", async (fault, code) => {
    const { code: found } = await refusal(async () => fetchFrom([await serve(() => fault)], { retries: 1 }));
    expect([found, existsSync(target())]).toEqual([code, false]);
  });

  test("whose chunks are wrong everywhere is named so, and what was right stays for the next time", async () => {
    const wrong = Buffer.from(whole);
    const at = whole.length - 20_000;
    wrong[at] = (wrong[at] as number) ^ 1;
    const bad = await serve(() => "none", undefined, new Map([["R2.bundle", wrong]]));
    const { code, message } = await refusal(() => fetchFrom([bad]));
    expect([code, message]).toEqual([
      "content-mismatch",
      expect.stringMatching(/streams\/usr\/0000000[0-9]/),
    ]);
    expect(readdirSync(folder)).toEqual([".R2.bundle.part"]);

    const good = await serve(() => "none");
    await fetchFrom([good]);
    expect(readFileSync(target()).equals(whole)).toBe(true);
    // One chunk, and no head.
    expect(good.asked).toHaveLength(1);
  });

  test("goes on within a chunk after an interruption", async () => {
    const server = await serve(() => "none");
    let calls = 0;
    const progress = {
      update: () => void ((calls += 1) === 8 && stop.controller.abort()),
      end: () => undefined,
    };
    expect((await refusal(() => fetchFrom([server], { progress, connections: 1 }))).code).toBe("interrupted");
    expect(readdirSync(folder)).toEqual([".R2.bundle.part"]);
    stop.controller = new AbortController();
    client = await openHttp({
      caFile: undefined,
      bytesPerSecond: undefined,
      timeoutSeconds: 1,
      signal: stop.controller.signal,
      env: {},
    });
    const again = await serve(() => "none");
    await fetchFrom([again]);
    expect(readFileSync(target()).equals(whole)).toBe(true);
    const asked = again.asked.map(rangeStart);
    expect(Math.min(...asked)).toBeGreaterThan(100_000);
  });

  // What came of a head was thrown away each time, so that none ever came over a line that breaks before its end.
  test.each([
    ["at the half of what was asked for", 0.5, 0],
    ["at a hundredth", 0.01, 20],
  ])("comes over a line that breaks %s of its head", async (_, random, retries) => {
    const [first] = (await Bundle.readUnverified(sourceOf(whole))).storedMembers;
    const server = await serve(
      () => (rangeStart(server.asked.at(-1)) < (first?.offset ?? 0) - 512 ? "cut" : "none"),
      () => random,
    );
    await fetchFrom([server], { retries, connections: 1 });
    expect(readFileSync(target()).equals(whole)).toBe(true);
  });

  test("comes over a line that breaks again and again within a long head, for each time 64 KiB of it came", async () => {
    const long = await pack({ notes: "𝄞".repeat(65_536) });
    const has = new Map([["R2.bundle", long]]);
    let turn = 0;
    const server = await serve(
      () => ((turn += 1) <= 2 ? "cut" : "none"),
      () => 0.4,
      has,
    );
    await fetchFrom([server], { retries: 1, connections: 1 }, await entryOfBytes(long));
    const came = Math.floor(0.4 * (256 << 10));
    const more = Math.floor(0.4 * (long.length - came));
    expect(server.asked.slice(0, 3).map(rangeStart)).toEqual([0, came, came + more]);
    expect(readFileSync(target()).equals(long)).toBe(true);
  });

  test("is not spoilt by what lies in its part", async () => {
    writeFileSync(partOf(target()), randomBytes(whole.length + 5_000));
    await fetchFrom([await serve(() => "none")]);
    expect(readFileSync(target()).equals(whole)).toBe(true);
  });

  test("is refused where the index tells of it what is not so", async () => {
    const lie = { ...listed, release: { name: "R3", sequence: 3 } };
    const { code } = await refusal(async () => fetchFrom([await serve(() => "none")], {}, lie));
    expect([code, existsSync(target())]).toEqual(["index-malformed", false]);
  });

  test("that is not signed by a trusted key is refused, though the index lists it", async () => {
    const foreign = await pack({ key: generateKeyPair().secretKey });
    const server = await serve(() => "none", undefined, new Map([["R2.bundle", foreign]]));
    const { code } = await refusal(async () => fetchFrom([server], {}, await entryOfBytes(foreign)));
    expect([code, existsSync(target())]).toEqual(["signature-missing", false]);
  });
});

// The head went into the part as it came: the file was not the published one, or no run after it got beyond that part.
describe("a mirror that has another signature of the same length", () => {
  const [first, second] = [generateKeyPair().secretKey, generateKeyPair().secretKey];
  const both = (one: SecretKey): Buffer =>
    joined(
      resign(
        split(whole),
        [KEY, one].sort((a, b) => (a.keyId < b.keyId ? -1 : 1)),
      ),
    );
  const pathOfBytes = async (bytes: Buffer): Promise<string> =>
    pathOf(await Bundle.readUnverified(sourceOf(bytes)));

  test.each([
    ["a file that is named by its head", true, "content-mismatch"],
    ["a file of another name", false, "index-malformed"],
  ])("of %s is left alone, and spoils nothing", async (_, isNamed, code) => {
    const [published, swapped] = [both(first), both(second)];
    expect(swapped.length).toBe(published.length);
    const path = isNamed ? await pathOfBytes(published) : "R2.bundle";
    const what = { ...(await entryOfBytes(published)), path };
    const bad = await serve(() => "none", undefined, new Map([[path, swapped]]));
    const refused = await refusal(() => fetchFrom([bad], { retries: 1 }, what));
    expect([refused.code, refused.message.startsWith(bad.url.href)]).toEqual([code, true]);
    // As one that an older version left.
    writeFileSync(partOf(target()), swapped.subarray(0, swapped.length / 2));
    const good = await serve(() => "none", undefined, new Map([[path, published]]));
    await fetchFrom([bad, good], { retries: 1 }, what);
    expect(readFileSync(target()).equals(published)).toBe(true);
  });

  test("by the same key is not taken for the one that the name is of", async () => {
    const [sums, ...others] = resign(split(whole)) as [Member, ...Member[]];
    const name = `signatures/${KEY.keyId}.minisig`;
    const again = encodeSignature(sign(KEY, sums.content, { trustedComment: "tesT" }));
    const published = joined([sums, ...others]);
    const swapped = joined(replace([sums, ...others], name, () => again));
    expect([swapped.length, swapped.equals(published)]).toEqual([published.length, false]);
    const path = await pathOfBytes(published);
    const bad = await serve(() => "none", undefined, new Map([[path, swapped]]));
    const good = await serve(() => "none", undefined, new Map([[path, published]]));
    await fetchFrom([bad, good], { retries: 1 }, { ...(await entryOfBytes(published)), path });
    expect(readFileSync(target()).equals(published)).toBe(true);
  });
});

// Each connection counted for itself, so that four of them were one outage too many.
test("an outage that all connections meet at once is one failure in a row", async () => {
  const pauses: number[] = [];
  const { url, asked } = await serve(() => (asked.length > 1 && pauses.length < 2 ? "busy" : "none"));
  const pause = async (failures: number): Promise<void> => {
    pauses.push(failures);
    await new Promise((resolve) => setTimeout(resolve, 50));
  };
  await fetchBundle(
    listed,
    "demo",
    [mirrorAt(url)],
    target(),
    TRUST,
    options({ connections: 4, retries: 2, pause }),
  );
  expect(pauses).toEqual([1, 2]);
  // The head, and more than one request at each failure.
  expect(asked.length).toBeGreaterThan(6);
  expect(readFileSync(target()).equals(whole)).toBe(true);
});

// What the mirror that was down had said of its index stood before it, and hid it.
test.each<[string, Fault, RegExp]>([
  ["in its head", "gone", /answers 404$/],
  ["in a member", "none", /is wrong on every mirror|has SHA-256/],
])(
  "what the other mirror has wrong %s is told first, where one was down from the beginning",
  async (_, fault, told) => {
    const wrong = Buffer.from(whole);
    wrong[whole.length - 20_000] = (wrong[whole.length - 20_000] as number) ^ 1;
    const down = mirrorAt(new URL("http://127.0.0.1:9/"));
    down.fault = new ZferryError("download-failed", "down", { details: { reason: "ECONNREFUSED" } });
    const live = await serve(() => fault, undefined, new Map([["R2.bundle", wrong]]));
    const error = await refusal(() =>
      fetchBundle(listed, "demo", [down, mirrorAt(live.url)], target(), TRUST, options({ retries: 1 })),
    );
    expect([error.message, error.also.map(({ message }) => message)]).toEqual([
      expect.stringMatching(told),
      expect.arrayContaining(["down"]),
    ]);
  },
);

const SEED = Number(process.env["ZFERRY_SEED"] ?? 20261126);
const TRANSIENT: Fault[] = [
  "none",
  "none",
  "cut",
  "flip",
  "zeros",
  "swap",
  "whole",
  "longer",
  "length-lie",
  "total-lie",
  "range-lie",
  "busy",
];
const LASTING: Fault[] = ["gone", "gzip", "loop", "to-file", "headers"];

/** Each takes as long as a server may be silent. */
const STALLS_MAX = 20;

test(`200 faulty downloads: none is accepted wrong, and all but the impossible come (seed ${SEED})`, async () => {
  const random = randomFrom(SEED);
  const one = <Item>(from: readonly Item[]): Item => from[Math.floor(random() * from.length)] as Item;
  const met = new Map<Fault, number>();
  let impossible = 0;
  for (let faulty = 0, round = 0; faulty < 200; round += 1) {
    const faults = new Set<Fault>();
    const transient = (): Fault => {
      const mayStall = (met.get("stall") ?? 0) < STALLS_MAX && !faults.has("stall");
      return mayStall && random() < 0.02 ? "stall" : one(TRANSIENT);
    };
    // Of up to three servers the last one is honest at times; without it, it need not come.
    const lasting = Array.from({ length: Math.floor(random() * 3) }, () => {
      const fault = one(LASTING);
      return () => (random() < 0.7 ? fault : transient());
    });
    const isPossible = random() < 0.9;
    const last = isPossible
      ? () => (random() < 0.5 ? transient() : "none")
      : () => one<Fault>(["flip", "swap", "busy", "gzip"]);
    const noted = (choose: () => Fault) => (): Fault => {
      const fault = choose();
      if (fault !== "none") faults.add(fault);
      return fault;
    };
    const from = await Promise.all([...lasting, last].map((choose) => serve(noted(choose), random)));
    let error: unknown;
    try {
      await fetchFrom(from, { retries: 30, connections: 1 + Math.floor(random() * 4) });
    } catch (thrown) {
      error = thrown;
    }
    if (existsSync(target())) expect(readFileSync(target()).equals(whole)).toBe(true);
    else {
      expect([round, isPossible, error]).toEqual([round, false, expect.any(Error)]);
      impossible += 1;
    }
    expect(error === undefined).toBe(existsSync(target()));
    if (faults.size > 0) faulty += 1;
    for (const fault of faults) met.set(fault, (met.get(fault) ?? 0) + 1);
    rmSync(target(), { force: true });
    rmSync(partOf(target()), { force: true });
    await Promise.all(servers.splice(0).map((server) => server.close()));
  }
  expect(impossible).toBeLessThan(40);
  for (const fault of new Set([...TRANSIENT, ...LASTING])) {
    if (fault !== "none") expect([fault, met.get(fault)]).toEqual([fault, expect.toSatisfy((n) => n >= 10)]);
  }
  expect(met.get("stall")).toBeGreaterThan(0);
});

// It waited until the time was over.
test("an interruption ends the wait for a proxy that says nothing", async () => {
  const proxy = createServer(() => stop.controller.abort());
  await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  const { port } = proxy.address() as AddressInfo;
  const patient = await openHttp({
    caFile: undefined,
    bytesPerSecond: undefined,
    timeoutSeconds: 600,
    signal: stop.controller.signal,
    env: { https_proxy: `http://127.0.0.1:${port}` },
  });
  try {
    expect((await refusal(() => patient.get(new URL("https://mirror.example/")))).code).toBe("interrupted");
  } finally {
    patient.close();
    proxy.close();
  }
});

// Node made an Authorization of it besides, which a proxy hands on to the mirror.
test("a proxy's password goes to the proxy alone", async () => {
  const asked: IncomingHttpHeaders[] = [];
  const proxy = createHttpServer((request, response) => {
    asked.push(request.headers);
    response.end("x");
  }).on("connect", ({ headers }, socket) => {
    asked.push(headers);
    socket.end("HTTP/1.1 403 Forbidden\r\n\r\n");
  });
  await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  const address = `http://us%20er:secret@127.0.0.1:${(proxy.address() as AddressInfo).port}`;
  const { signal } = stop.controller;
  const env = { http_proxy: address, https_proxy: address };
  const through = await openHttp({
    caFile: undefined,
    bytesPerSecond: undefined,
    timeoutSeconds: 5,
    signal,
    env,
  });
  try {
    (await through.get(new URL("http://mirror.example/"))).cancel();
    const { message } = await refusal(() => through.get(new URL("https://mirror.example/")));
    expect(message).toBe(`https://mirror.example/: the proxy ${new URL(address).host} answers 403`);
    const basic = `Basic ${Buffer.from("us er:secret").toString("base64")}`;
    expect(asked.map((headers) => [headers.authorization, headers["proxy-authorization"]])).toEqual([
      [undefined, basic],
      [undefined, basic],
    ]);
  } finally {
    through.close();
    proxy.close();
    proxy.closeAllConnections();
  }
});

describe("an index", () => {
  const stranger = generateKeyPair();
  const now = new Date((NOW + DAY) * 1000);
  const good = index([entry(1), entry(2)]);
  const read = async (bytes: readonly (Buffer | Uint8Array)[], at = now) => {
    const from = await Promise.all(
      bytes.map((each) => serve(() => "none", undefined, new Map([[INDEX_NAME, Buffer.from(each)]]))),
    );
    const seen = await openSeenIndexes(join(folder, "state"));
    return fetchIndex(
      from.map(({ url }) => mirrorAt(url)),
      [PUBLIC_KEY],
      seen,
      at,
      options(),
    );
  };
  const older = index([entry(1)], { counter: NOW - 1, created: NOW - 1 });

  test("is read, and remembered", async () => {
    expect(await read([encodeIndex(good, KEY)])).toEqual(good);
    expect(statSync(join(folder, "state/mirrors.json")).mode & 0o777).toBe(0o600);
    expect(await read([encodeIndex(good, KEY)])).toEqual(good);
  });

  test.each<[string, Uint8Array, string]>([
    ["an old one, replayed", encodeIndex(older, KEY), "index-rolled-back"],
    [
      "one that expired",
      encodeIndex(
        index([entry(1)], { counter: NOW + 1, created: NOW - 9 * DAY, expires: NOW + DAY - 1 }),
        KEY,
      ),
      "index-expired",
    ],
    [
      "one from the future, after which none would count",
      encodeIndex(
        index([entry(1)], { counter: NOW + 1, created: NOW + 2 * DAY + 1, expires: NOW + 9 * DAY }),
        KEY,
      ),
      "time-ahead",
    ],
    [
      "one by a foreign key",
      encodeIndex(index([entry(1)], { counter: NOW + 9 }), stranger.secretKey),
      "signature-missing",
    ],
    ["a huge one", Buffer.alloc((16 << 20) + 1), "index-malformed"],
    ["an empty one", Buffer.alloc(0), "index-malformed"],
  ])("is refused: %s", async (_, bytes, code) => {
    await read([encodeIndex(good, KEY)]);
    expect((await refusal(() => read([bytes]))).code).toBe(code);
  });

  test("that was seen makes time go on, where the clock was set back", async () => {
    const later = index([], { created: NOW + 40 * DAY, counter: NOW, expires: NOW + 50 * DAY });
    await read([encodeIndex(later, KEY)], new Date((NOW + 40 * DAY) * 1000));
    const replayed = encodeIndex(index([], { counter: NOW + 1 }), KEY);
    expect((await refusal(() => read([replayed]))).code).toBe("index-expired");
  });

  test("of another mirror counts where one is refused; the newest of several", async () => {
    const newest = index([entry(1), entry(2), entry(3)], { counter: NOW + 1 });
    const all = [encodeIndex(good, KEY), Buffer.from("x"), encodeIndex(newest, KEY)];
    expect(await read(all)).toEqual(newest);
    expect(notes).toEqual([expect.stringMatching(/^left alone: .*index\.signed/)]);
  });

  test("is not judged by a memory that is damaged", async () => {
    await read([encodeIndex(good, KEY)]);
    writeFileSync(join(folder, "state/mirrors.json"), "{");
    expect((await refusal(() => read([encodeIndex(good, KEY)]))).code).toBe("journal-malformed");
  });
});

describe("what a chain starts from", () => {
  const mirror = index([entry(1), entry(2)]);
  test("is the release that a guid is the target of", () => {
    const { installed, streams, highestSequence } = startFrom(mirror, ["1001"]);
    expect([installed?.name, highestSequence, streams.get("usr")]).toEqual(["R1", 1, ["1001"]]);
  });

  test("is a base that no bundle leads to", () => {
    const { installed, streams } = startFrom(mirror, ["1000"]);
    expect([installed, streams.get("usr")]).toEqual([undefined, ["1000"]]);
  });

  test("is not a guid that no bundle knows", async () => {
    expect((await refusal(() => startFrom(mirror, ["7"]))).code).toBe("chain-missing");
  });
});

test.each(["file:///etc/passwd", "ftp://a/", "a/b", "http://user:secret@a/"])(
  "%s is no address of a mirror",
  async (text) => {
    const { code, message } = await refusal(() => parseUrl(text));
    expect([code, message.includes("secret")]).toEqual(["usage", false]);
  },
);
