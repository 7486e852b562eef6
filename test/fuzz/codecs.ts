/**
 * npx tsx test/fuzz/codecs.ts [--seconds N] [--seed S] [--target NAME]: gives each codec of the built program changed inputs, and
 * keeps for further changes what reaches code that was not reached before, as V8 counts it. It ends with status 1 at
 * the first input that ends in anything but the codec's own error.
 */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { Session, type Profiler } from "node:inspector";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { decompress } from "zstd-napi";
import { parseVector } from "../../fixtures/vectors/vector.js";
import { decodeFrame } from "../../dist/bundle/frame.js";
import { parseHeader, parseSums } from "../../dist/bundle/layout.js";
import { parseManifest } from "../../dist/bundle/manifest.js";
import { parseCanonicalJson } from "../../dist/canonical-json.js";
import { buildSchema, parseConfig, siteSchema } from "../../dist/config.js";
import { ZferryError } from "../../dist/errors.js";
import { parseMetadata } from "../../dist/root/metadata.js";
import { chunkStream } from "../../dist/stream/chunker.js";
import { parsePublicKey, parseSecretKey, parseSignature } from "../../dist/trust/minisign.js";
import { rootInput, smallStream, split } from "../bundle/support.js";
import { readPage, blocksOf } from "../formats/page.js";
import { mutate, pick, randomOf } from "./random.js";

interface Target {
  readonly name: string;
  readonly seeds: readonly Buffer[];
  readonly run: (input: Buffer) => unknown;
  /** What else may be thrown. */
  readonly allowed?: (error: unknown) => boolean;
}

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "60" },
    seed: { type: "string", default: String(Date.now() % 1_000_000) },
    target: { type: "string" },
  },
});

const fixture = (path: string): Buffer => readFileSync(new URL(`../../fixtures/${path}`, import.meta.url));
const folderOf = (path: string): string[] => readdirSync(new URL(`../../fixtures/${path}`, import.meta.url));
const example = split(fixture("bundle/example.bundle"));
const content = (name: RegExp): Buffer[] =>
  example.filter((member) => name.test(member.name)).map((member) => Buffer.from(member.content));
const keys = (ending: string): Buffer[] =>
  folderOf("keys")
    .filter((name) => name.endsWith(ending))
    .map((name) => fixture(`keys/${name}`));
const manifests = folderOf("vectors")
  .filter((name) => /^(ok|manifest).*\.vector$/.test(name))
  .flatMap((name) => {
    const { bundle } = parseVector(fixture(`vectors/${name}`));
    try {
      return split(bundle).filter((member) => member.name === "manifest.json");
    } catch {
      return [];
    }
  })
  .map((member) => Buffer.from(member.content))
  .filter(({ length }) => length < 20_000);
const streams = folderOf("streams")
  .filter((name) => name.endsWith(".zst"))
  .map((name) => decompress(fixture(`streams/${name}`)))
  .filter(({ length }) => length < 60_000);

async function readStream(input: Buffer): Promise<void> {
  async function* pieces(): AsyncGenerator<Uint8Array> {
    for (let at = 0; at < input.length; at += 1000) yield input.subarray(at, at + 1000);
  }
  for await (const chunk of chunkStream(pieces(), { chunkBytes: 256 << 10 })) void chunk;
}

const TARGETS: readonly Target[] = [
  {
    name: "header",
    seeds: [fixture("bundle/example.bundle").subarray(0, 512)],
    run: (input) => parseHeader(input, 0),
  },
  { name: "sums", seeds: content(/^SHA256SUMS$/), run: parseSums },
  { name: "manifest", seeds: manifests, run: parseManifest },
  {
    name: "canonical-json",
    seeds: manifests,
    run: (input) => parseCanonicalJson(input, 10_000),
    allowed: (error) => error instanceof Error,
  },
  { name: "metadata", seeds: [Buffer.from(rootInput().metadata)], run: parseMetadata },
  { name: "frame", seeds: content(/\.zst$/), run: (input) => decodeFrame(input, 600, "frame") },
  { name: "signature", seeds: keys(".minisig"), run: (input) => parseSignature(input, "x") },
  { name: "public-key", seeds: keys(".pub"), run: (input) => parsePublicKey(input, "x") },
  // An encrypted key asks for a password, which is refused: decrypting takes seconds.
  { name: "secret-key", seeds: keys(".key"), run: (input) => parseSecretKey(input, "x", undefined) },
  {
    name: "site-configuration",
    seeds: blocksOf(readPage("configuration.md"), "toml site").map((text) => Buffer.from(text)),
    run: (input) => parseConfig(siteSchema, input.toString(), "x"),
  },
  {
    name: "build-configuration",
    seeds: blocksOf(readPage("configuration.md"), "toml build").map((text) => Buffer.from(text)),
    run: (input) => parseConfig(buildSchema, input.toString(), "x"),
  },
  { name: "stream", seeds: [Buffer.from(smallStream()), ...streams], run: readStream },
];

const session = new Session();
session.connect();
const post = <T>(method: string, parameters: object = {}): Promise<T> =>
  new Promise((resolve, reject) => {
    session.post(method, parameters, (error, result) =>
      error === null ? resolve(result as T) : reject(error),
    );
  });

/** The blocks of the built program that ran since the last call. */
async function blocksRun(): Promise<string[]> {
  const { result } = await post<Profiler.TakePreciseCoverageReturnType>("Profiler.takePreciseCoverage");
  return result
    .filter(({ url }) => url.includes("/dist/"))
    .flatMap(({ scriptId, functions }) =>
      functions.flatMap(({ ranges }) =>
        ranges
          .filter(({ count }) => count > 0)
          .map(({ startOffset, endOffset }) => `${scriptId}:${startOffset}-${endOffset}`),
      ),
    );
}

async function fuzz({ name, seeds, run, allowed = () => false }: Target, seconds: number): Promise<void> {
  const random = randomOf(Number(values.seed));
  const pool = [...seeds];
  const seen = new Set<string>();
  let cases = 0;
  const attempt = async (input: Buffer): Promise<boolean> => {
    cases += 1;
    try {
      await run(input);
    } catch (error) {
      if (!(error instanceof ZferryError && error.code !== "unexpected") && !allowed(error)) {
        const file = join(tmpdir(), `zferry-fuzz-${name}`);
        writeFileSync(file, input);
        throw new Error(`${name}: ${String(error)}\n  the input is ${file}`, { cause: error });
      }
    }
    const before = seen.size;
    for (const block of await blocksRun()) seen.add(block);
    return seen.size > before;
  };
  for (const input of seeds) await attempt(input);
  const until = Date.now() + seconds * 1000;
  while (Date.now() < until) {
    let input = pick(random, pool);
    for (let count = random(4); count >= 0; count -= 1) input = mutate(random, input, pool);
    if (input.length < 200_000 && (await attempt(input))) pool.push(input);
  }
  console.log(
    `${name.padEnd(20)} ${String(cases).padStart(8)} cases, ${seen.size} blocks reached, ${pool.length - seeds.length} inputs kept`,
  );
}

await post("Profiler.enable");
await post("Profiler.startPreciseCoverage", { callCount: true, detailed: true });
console.log(`seed ${values.seed}`);
for (const target of TARGETS) {
  if (values.target === undefined || values.target === target.name)
    await fuzz(target, Number(values.seconds));
}
