import { execFileSync, spawn } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { availableParallelism, cpus, totalmem } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import type { Manifest } from "../../src/bundle/manifest.js";
import { listOf, number, pair, tokenOf } from "../stream/token.js";
import { FROM, makeBundles, makeNext, serve } from "./mirror.js";
import { cacheFolder, syntheticStream, updateStream } from "./stream.js";

/*
 * npm run bench: zferry and what people use instead, in turn, on one machine, with warm caches. Every time is a
 * process's from its start to its end; every ratio is the median of the ratios of pairs that ran one after the other.
 */

const USAGE = `npm run bench -- [--quick] [--stream FILE] [--only PATTERN] [--runs N] [--output FILE]

  --quick         a small stream and one run each: shows that the harness works, and nothing of speed
  --stream FILE   a recorded send stream instead of that of Debian packages
  --only PATTERN  the rows whose name matches a regular expression
  --runs N        pairs of runs for each row (5)
  --output FILE   also writes the table there
`;

const MIB = 1 << 20;
const LEVEL = 3;
const ROOT = join(import.meta.dirname, "../..");
const CLI = join(ROOT, "dist/cli.js");
const SECRET_KEY = join(ROOT, "fixtures/keys/plain.key");
const PUBLIC_KEY = join(ROOT, "fixtures/keys/plain.pub");

interface Figures {
  /** Seconds from start to end. */
  readonly seconds: number;
  /** Highest resident set of the process itself, in bytes. */
  readonly peak: number;
}

/** Runs a shell's command to its end; `exec` in it makes the peak that of the program. */
async function timed(script: string): Promise<Figures> {
  const started = performance.now();
  const child = spawn("bash", ["-c", `set -eo pipefail; ${script}`], { stdio: ["ignore", "ignore", "pipe"] });
  let errors = "";
  child.stderr.on("data", (data: Buffer) => (errors += data.toString()));
  let peak = 0;
  const look = (): void => {
    try {
      const [, kib = "0"] = /^VmHWM:\s*(\d+)/m.exec(readFileSync(`/proc/${child.pid}/status`, "utf8")) ?? [];
      peak = Math.max(peak, Number(kib) * 1024);
    } catch {
      // It has ended.
    }
  };
  const looking = setInterval(look, 20);
  try {
    const status = await new Promise((resolve, reject) => {
      child.once("error", reject);
      child.once("close", resolve);
    });
    if (status !== 0) throw new Error(`exit status ${String(status)}: ${script}\n${errors}`);
  } finally {
    clearInterval(looking);
  }
  return { seconds: (performance.now() - started) / 1000, peak };
}

const median = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] as number;

interface Row {
  readonly work: string;
  readonly alternative: string;
  /** What the ratio is to be. */
  readonly atMost: number | undefined;
  readonly ratio: number;
  readonly ours: string;
  readonly theirs: string;
}

const seconds = (value: number): string => `${value.toFixed(2)} s`;
const gigabytes = (bytes: number): string => `${Number((bytes / 1e9).toFixed(1))} GB`;
const mebibytes = (bytes: number): string => `${(bytes / MIB).toFixed(0)} MiB`;

/** zferry's command and another one, in turn. */
async function pairs(
  names: Pick<Row, "work" | "alternative" | "atMost">,
  commands: { ours: string; theirs: string; before?: () => void },
  runs: number,
): Promise<Row> {
  const [ours, theirs]: [number[], number[]] = [[], []];
  for (let run = -1; run < runs; run += 1) {
    commands.before?.();
    const a = (await timed(commands.ours)).seconds;
    commands.before?.();
    const b = (await timed(commands.theirs)).seconds;
    // The first pair warms the caches; where there is only one it counts.
    if (run < 0 && runs > 1) continue;
    ours.push(a);
    theirs.push(b);
    if (runs === 1) break;
  }
  const ratios = ours.map((value, index) => value / (theirs[index] as number));
  return { ...names, ratio: median(ratios), ours: seconds(median(ours)), theirs: seconds(median(theirs)) };
}

const quote = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;
const bundle = (...args: string[]): string => ["node", CLI, ...args].map(quote).join(" ");
const create = (stream: string, output: string, ...more: string[]): string =>
  bundle(
    ...["create", "--stream", `usr=${stream}`, "--product", "bench", "--release", "R2", "--sequence", "2"],
    ...["--key", SECRET_KEY, "--level", String(LEVEL), "--output", output, ...more],
  );
const verify = (file: string, ...more: string[]): string =>
  bundle("verify", file, "--key", PUBLIC_KEY, ...more);
const send = (file: string, ...more: string[]): string => bundle("send", file, "--key", PUBLIC_KEY, ...more);

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      quick: { type: "boolean", default: false },
      stream: { type: "string" },
      only: { type: "string", default: "" },
      runs: { type: "string" },
      output: { type: "string" },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) return void process.stdout.write(USAGE);
  const { quick } = values;
  const runs = Number(values.runs ?? (quick ? 1 : 5));
  if (!Number.isInteger(runs) || runs < 1) throw new Error(`--runs ${values.runs}: is no number of runs`);
  if (values.stream !== undefined && !existsSync(values.stream)) {
    throw new Error(`--stream ${values.stream}: there is no such file`);
  }
  const note = (line: string): void => void process.stderr.write(`${line}\n`);

  mkdirSync(cacheFolder, { recursive: true });
  const folder = mkdtempSync(join(cacheFolder, "run-"));
  const at = (name: string): string => join(folder, name);
  try {
    const [small, large] = quick ? [64 * MIB, 128 * MIB] : [1e9, 1e10];
    const stream = values.stream ?? (quick ? syntheticStream(at("stream"), small) : updateStream(note));
    const two = ["--threads", "2"];

    note("preparing");
    await timed(create(stream, at("usr.bundle")));
    await timed(`zstd -q -T2 -${LEVEL} ${quote(stream)} -o ${quote(at("usr.zst"))}`);
    mkdirSync(at("extracted"));
    execFileSync("tar", ["-xf", at("usr.bundle"), "-C", at("extracted")]);
    const [signature = ""] = readdirSync(at("extracted/signatures"));
    await timed(`${send(at("usr.bundle"))} | cmp - ${quote(stream)}`);

    const rows: Row[] = [];
    const wanted = new RegExp(values.only);
    const row = async (work: string, make: () => Promise<Row | Row[]>): Promise<void> => {
      if (!wanted.test(work)) return;
      note(work);
      rows.push(...[await make()].flat());
    };
    const compare = (
      work: string,
      alternative: string,
      atMost: number | undefined,
      commands: { ours: string; theirs: string; before?: () => void },
    ): Promise<void> => row(work, () => pairs({ work, alternative, atMost }, commands, runs));

    const made = ["made.bundle", "made.zst", "SHA256SUMS", "SHA256SUMS.minisig"];
    const remove = (): void => made.forEach((name) => rmSync(at(name), { force: true }));
    await compare(`create, level ${LEVEL}`, `zstd -T2 -${LEVEL}, sha256sum, minisign -S`, 0.85, {
      ours: create(stream, at("made.bundle"), ...two),
      theirs:
        `cd ${quote(folder)}; zstd -q -T2 -${LEVEL} ${quote(stream)} -o made.zst; sha256sum made.zst >SHA256SUMS; ` +
        `minisign -S -s ${quote(SECRET_KEY)} -m SHA256SUMS`,
      before: remove,
    });
    remove();
    await compare("verify", "minisign -V, sha256sum -c", 0.25, {
      ours: verify(at("usr.bundle"), ...two),
      theirs:
        `cd ${quote(at("extracted"))}; minisign -V -m SHA256SUMS -x signatures/${signature} -p ${quote(PUBLIC_KEY)}; ` +
        "sha256sum --strict --quiet -c SHA256SUMS",
    });
    await compare("send, through a pipe", "zstd -dc, through a pipe", 0.7, {
      ours: `${send(at("usr.bundle"), ...two)} | cat >/dev/null`,
      theirs: `zstd -q -dc ${quote(at("usr.zst"))} | cat >/dev/null`,
    });
    await compare("send, without a pipe", "zstd -dc, without a pipe", undefined, {
      ours: `${send(at("usr.bundle"), ...two)} >/dev/null`,
      theirs: `zstd -q -dc ${quote(at("usr.zst"))} >/dev/null`,
    });
    await row("send, a token at 90 %", async () => {
      const token = tokenAt(0.9, at("usr.bundle"));
      const names = { work: "send, a token at 90 %", alternative: "send, the whole", atMost: 0.2 };
      const ours = `${send(at("usr.bundle"), "--token", token)} | cat >/dev/null`;
      return pairs(names, { ours, theirs: `${send(at("usr.bundle"))} | cat >/dev/null` }, runs);
    });
    await row("size", async () => {
      const [ours, theirs] = [statSync(at("usr.bundle")).size, statSync(at("usr.zst")).size];
      return {
        work: "size",
        alternative: `zstd -${LEVEL} of the whole stream`,
        atMost: 1.02,
        ratio: ours / theirs,
        ours: mebibytes(ours),
        theirs: mebibytes(theirs),
      };
    });
    await compare("bundle --version", "node -e 0", 2, { ours: bundle("--version"), theirs: "node -e 0" });
    for (const [what, ours] of [
      [`create, level ${LEVEL},`, (...more: string[]) => create(stream, at("made.bundle"), ...more)],
      ["verify", (...more: string[]) => verify(at("usr.bundle"), ...more)],
      ["send, through a pipe,", (...more: string[]) => `${send(at("usr.bundle"), ...more)} | cat >/dev/null`],
    ] as const) {
      await compare(`${what} with 2 threads`, "with 1 thread", undefined, {
        ours: ours("--threads", "2"),
        theirs: ours("--threads", "1"),
        before: remove,
      });
    }
    remove();

    for (const files of quick ? [200] : [10_000, 100_000]) {
      const half = new RootHalf(at(`root-${files}`), files);
      // A hundred thousand take minutes.
      const times = files > 10_000 ? 1 : runs;
      await row(`create, ${half.what}`, () => half.create(times));
      await row(`install, ${half.what}`, () => half.install(times));
      half.remove();
    }

    await row("mirror index, fetch, mirror add", () => mirrors(at("mirrors"), quick ? 100 : 1_000, runs));

    if (/memory|bundle of/.test(values.only) || values.only === "") {
      rows.push(...(await sizes(folder, small, large, runs, note)).filter(({ work }) => wanted.test(work)));
    }
    if (rows.length === 0) throw new Error(`--only ${values.only}: no row has such a name`);
    const table = describe(stream, rows, quick);
    process.stdout.write(table);
    if (values.output !== undefined) writeFileSync(values.output, table);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** A root half that changes many files, beside git's own ways of making and taking it. See root.ts. */
class RootHalf {
  readonly what: string;
  private readonly folder: string;
  private readonly files: number;

  constructor(folder: string, files: number) {
    this.what = `/ of which ${files} files change`;
    this.folder = folder;
    this.files = files;
  }

  private zferry(verb: string, ...more: string[]): string {
    const script = [process.execPath, "--import", "tsx", join(ROOT, "test/bench/root.ts")];
    return `exec ${[...script, verb, this.folder, ...more].map(quote).join(" ")}`;
  }

  private async make(): Promise<void> {
    if (existsSync(this.folder)) return;
    mkdirSync(this.folder);
    await timed(this.zferry("make", String(this.files)));
    await timed(this.zferry("create"));
  }

  async create(runs: number): Promise<Row> {
    await this.make();
    const diff = `git -C ${quote(join(this.folder, "root"))} diff --binary r1 r2`;
    return pairs(
      { work: `create, ${this.what}`, alternative: "git diff --binary", atMost: undefined },
      {
        ours: this.zferry("create"),
        theirs: `${diff} >${quote(join(this.folder, "patch"))}`,
        before: () => rmSync(join(this.folder, "part"), { recursive: true, force: true }),
      },
      runs,
    );
  }

  async install(runs: number): Promise<Row[]> {
    await this.make();
    if (!existsSync(join(this.folder, "part"))) await timed(this.zferry("create"));
    const site = join(this.folder, "site");
    const apply = `cd ${quote(site)}; git apply --index ../patch`;
    const commit = "git -c user.name=b -c user.email=b@example.org commit -qm R2";
    const fresh = (): void => {
      for (const name of ["site", "scratch"])
        rmSync(join(this.folder, name), { recursive: true, force: true });
      execFileSync("cp", ["-a", "site.r1", "site"], { cwd: this.folder });
      execFileSync("git", ["update-index", "-q", "--refresh"], { cwd: site });
    };
    const time = await pairs(
      { work: `install, ${this.what}`, alternative: "git apply --index, git commit", atMost: undefined },
      { ours: this.zferry("install"), theirs: `${apply}; ${commit}`, before: fresh },
      runs,
    );
    fresh();
    const ours = (await timed(this.zferry("install"))).peak;
    fresh();
    const theirs = (await timed(apply.replace("git apply", "exec git apply"))).peak;
    const memory = {
      work: `peak memory of install, ${this.what}`,
      alternative: "git apply --index",
      atMost: undefined,
      ratio: ours / theirs,
      ours: mebibytes(ours),
      theirs: mebibytes(theirs),
    };
    return [time, memory];
  }

  remove(): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** A mirror with many bundles, beside one with a single one: what takes longer than starting. */
async function mirrors(folder: string, many: number, runs: number): Promise<Row[]> {
  mkdirSync(folder);
  const at = (name: string): string => join(folder, name);
  const mirror = (verb: string, ...names: string[]): string =>
    bundle("mirror", verb, ...names.map(at), "--key", SECRET_KEY, "--json");
  const counts = { many, one: 1 };
  for (const [name, count] of Object.entries(counts)) {
    await makeBundles(at(`${name}.from`), count);
    await makeNext(at(`${name}.bundle`), count);
    mkdirSync(at(name));
    await timed(`cp ${quote(at(`${name}.from`))}/*.bundle ${quote(at(name))}; ${mirror("index", name)}`);
  }
  const served = { many: await serve(at("many")), one: await serve(at("one")) };
  const fetch = (name: keyof typeof served): string =>
    `XDG_STATE_HOME=${quote(at("state"))} ` +
    bundle("fetch", served[name].url, "--key", PUBLIC_KEY, "--from", FROM, "-o", at("out"), "--json");
  const rows: Row[] = [];
  const compare = async (
    work: string,
    command: (name: keyof typeof served) => string,
    before = (): void => undefined,
  ): Promise<void> => {
    const names = { work: `${work} ${many} bundles`, alternative: "of one", atMost: 4 };
    const commands = {
      ours: `${command("many")} >/dev/null`,
      theirs: `${command("one")} >/dev/null`,
      before,
    };
    rows.push(await pairs(names, commands, runs));
  };
  try {
    await compare("mirror index, of", (name) => mirror("index", name));
    await compare("fetch, the choice of", fetch, () => {
      for (const name of ["out", "state"]) rmSync(at(name), { recursive: true, force: true });
      mkdirSync(at("out"));
    });
    // Of each run anew, or there would be nothing to add.
    const added = Object.keys(counts).map((name) => [at(name), readdirSync(at(name))] as const);
    await compare(
      "mirror add, to",
      (name) => mirror("add", `${name}.bundle`, name),
      () => {
        for (const [place, names] of added)
          for (const name of readdirSync(place)) if (!names.includes(name)) rmSync(join(place, name));
      },
    );
  } finally {
    for (const { close } of Object.values(served)) close();
  }
  return rows;
}

/** The token that a receive leaves which was interrupted after this part of the bundle's first stream. */
function tokenAt(part: number, file: string): string {
  const output = execFileSync("node", [CLI, "inspect", file, "--json"], { maxBuffer: 1 << 28 });
  const { manifest } = JSON.parse(output.toString()) as { manifest: Manifest };
  const { base, target, chunks } = manifest.streams[0] as Manifest["streams"][number];
  const { largestObject } = chunks[Math.floor(chunks.length * part)] as (typeof chunks)[number];
  const numbers = {
    fromguid: base?.guid ?? 0,
    toguid: target.guid,
    object: largestObject,
    offset: 0,
    bytes: 0,
  };
  const pairs = Object.entries(numbers).map(([name, value]) => number(name, BigInt(value)));
  return tokenOf(listOf(...pairs, pair("toname", 9, Buffer.from("tank/usr@R2\0"))));
}

/** What depends on the size of a bundle: memory, and the part of start-up in the time of verify. */
async function sizes(
  folder: string,
  small: number,
  large: number,
  runs: number,
  note: (line: string) => void,
): Promise<Row[]> {
  const rows: Row[] = [];
  const generator = [process.execPath, "--import", "tsx", join(ROOT, "test/bench/stream.ts")]
    .map(quote)
    .join(" ");
  const peaks: Record<string, number[]> = { create: [], verify: [], send: [] };
  for (const bytes of [small, large]) {
    note(`memory, ${gigabytes(bytes)} of stream`);
    const file = join(folder, "synthetic.bundle");
    rmSync(file, { force: true });
    for (const [verb, script] of [
      ["create", `exec ${create("-", file, "--threads", "2")} < <(${generator} ${bytes})`],
      ["verify", `exec ${verify(file, "--threads", "2")}`],
      ["send", `exec ${send(file, "--threads", "2")} > >(cat >/dev/null)`],
    ] as const) {
      peaks[verb]?.push((await timed(script)).peak);
    }
    if (bytes !== large) continue;
    const size = statSync(file).size;
    rows.push(
      await pairs(
        {
          work: `verify, a bundle of ${gigabytes(size)}`,
          alternative: "openssl dgst -sha256",
          atMost: 0.65,
        },
        { ours: verify(file, "--threads", "2"), theirs: `openssl dgst -sha256 ${quote(file)}` },
        runs,
      ),
    );
  }
  for (const [verb, [first = 0, second = 0]] of Object.entries(peaks)) {
    rows.push({
      work: `peak memory of ${verb}, ${gigabytes(large)} of stream`,
      alternative: `${gigabytes(small)} of stream`,
      atMost: 1.1,
      ratio: second / first,
      ours: mebibytes(second),
      theirs: mebibytes(first),
    });
  }
  return rows;
}

function describe(stream: string, rows: readonly Row[], quick: boolean): string {
  const version = (program: string, ...args: string[]): string =>
    /\d+(\.\d+)+/.exec(execFileSync(program, args, { encoding: "utf8" }))?.[0] ?? "?";
  const machine =
    `${cpus()[0]?.model.trim()}, ${availableParallelism()} processors, ${(totalmem() / 2 ** 30).toFixed(0)} GiB, ` +
    `node ${process.versions.node}, zstd ${version("zstd", "--version")}, openssl ${version("openssl", "version")}`;
  const lines = rows.map(({ work, alternative, atMost, ratio, ours, theirs }) => {
    const bound = atMost === undefined || quick ? "" : `${atMost}${ratio <= atMost ? "" : " (missed)"}`;
    return `| ${work} | ${alternative} | ${ours} | ${theirs} | ${ratio.toFixed(2)} | ${bound} |`;
  });
  return [
    ...(quick ? ["A quick run: it says nothing of speed.", ""] : []),
    `${machine}; a stream of ${(statSync(stream).size / 1e9).toFixed(2)} GB`,
    "",
    "| work | alternative | zferry | alternative | ratio | at most |",
    "| --- | --- | --- | --- | --- | --- |",
    ...lines,
    "",
  ].join("\n");
}

try {
  await main();
} catch (error) {
  process.stderr.write(`bench: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
