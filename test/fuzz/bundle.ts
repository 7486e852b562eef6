/**
 * npx tsx test/fuzz/bundle.ts [--cases N] [--seed S] [--only CASE]: changes bundles at random and has the built program's reader read them.
 * It ends with status 1 at the first case that is accepted though it was changed, or that ends in anything but one of
 * zferry's own errors, and says how to see that case again; and when the memory passes its bound.
 */
import { fork } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { parseVector } from "../../fixtures/vectors/vector.js";
import { ZferryError } from "../../dist/errors.js";
import { VerifiedBundle } from "../../dist/bundle/reader.js";
import { BLOCK_BYTES, parseHeader, TRAILER } from "../../dist/bundle/layout.js";
import { encodeHead, encodeMember } from "../../dist/bundle/writer.js";
import { checkCounts, parseMetadata } from "../../dist/root/metadata.js";
import { join as joinMembers, PUBLIC_KEY, resign, sourceOf, split, type Member } from "../bundle/support.js";
import { mutate, pick, randomOf, type Random } from "./random.js";

const MEMORY_BOUND = 1 << 30;

const { values } = parseArgs({
  options: {
    cases: { type: "string", default: "100000" },
    seed: { type: "string", default: "1" },
    only: { type: "string" },
    part: { type: "string" },
  },
});
const seed = Number(values.seed);
const cases = Number(values.cases);

const folder = new URL("../../fixtures/vectors/", import.meta.url);
const corpus = readdirSync(folder)
  .filter((name) => name.endsWith(".vector"))
  .map((name) => parseVector(readFileSync(new URL(name, folder))).bundle)
  // Long ones take time and show nothing more.
  .filter((bundle) => bundle.length < 100_000);
const good = corpus.filter((bundle) => canSplit(bundle));

function canSplit(bundle: Buffer): boolean {
  try {
    return joinMembers(split(bundle)).equals(bundle);
  } catch {
    return false;
  }
}

type Kind = "bytes" | "members" | "header" | "signed";

/** A changed bundle; of `signed` ones the list of hashes is made and signed anew, so that only the change is wrong. */
function makeCase(random: Random): { kind: Kind; bundle: Buffer } {
  const kind = pick<Kind>(random, ["bytes", "bytes", "members", "header", "signed"]);
  const start = pick(random, kind === "bytes" ? corpus : good);
  switch (kind) {
    case "bytes": {
      let bundle = start;
      for (let count = random(3); count >= 0; count -= 1) bundle = mutate(random, bundle, corpus);
      return { kind, bundle };
    }
    case "members": {
      const members = split(start);
      const [a, b] = [random(members.length), random(members.length)];
      const other = pick(random, split(pick(random, good)));
      const moved = pick(random, [
        () => members.splice(a, 1),
        () => members.splice(a, 0, members[b] as Member),
        () => members.splice(a, 0, other),
        () =>
          members.splice(a, 1, {
            name: (members[b] as Member).name,
            content: (members[a] as Member).content,
          }),
        () => ([members[a], members[b]] = [members[b] as Member, members[a] as Member]),
      ]);
      moved();
      return { kind, bundle: joinMembers(members) };
    }
    case "header": {
      const bundle = Buffer.from(start);
      const headers: number[] = [];
      for (let at = 0; at < bundle.length - TRAILER.length;) {
        headers.push(at);
        at +=
          BLOCK_BYTES *
          (1 + Math.ceil(parseHeader(bundle.subarray(at, at + BLOCK_BYTES), at).size / BLOCK_BYTES));
      }
      const at = pick(random, headers);
      const header = bundle.subarray(at, at + BLOCK_BYTES);
      // Mostly a lie about the size.
      if (random(3) > 0)
        header.write(
          random(1 << 20)
            .toString(8)
            .padStart(11, "0"),
          124,
          "latin1",
        );
      else header[random(BLOCK_BYTES)] = random(256);
      header.fill(" ", 148, 156);
      const sum = header.reduce((total, byte) => total + byte, 0);
      header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
      return { kind, bundle };
    }
    case "signed": {
      const members = split(start);
      const at = random(members.length);
      const contents = members.map(({ content }) => Buffer.from(content));
      members[at] = {
        name: (members[at] as Member).name,
        content: mutate(random, contents[at] as Buffer, contents),
      };
      return { kind, bundle: joinMembers(resign(members)) };
    }
  }
}

/** Reads all of a bundle. @returns a code, or `ok` */
async function verdict(bundle: Buffer): Promise<{ code: string; read?: VerifiedBundle }> {
  try {
    const read = await VerifiedBundle.verify(sourceOf(bundle), { keys: [PUBLIC_KEY], threshold: 1 });
    await read.checkContents();
    const { root, streams } = read.manifest;
    if (root !== undefined) {
      for (const kind of ["patch", "objects"] as const) await read.rootMember(kind);
      checkCounts(parseMetadata(await read.rootMember("metadata")), root);
    }
    for (const stream of streams) for await (const chunk of read.chunks(stream)) void chunk;
    return { code: "ok", read };
  } catch (error) {
    if (error instanceof ZferryError && error.code !== "unexpected") return { code: error.code };
    throw error;
  }
}

/** What was accepted must be, byte for byte, the one way to write a list of hashes that was signed. */
async function requireHonest(
  kind: Kind,
  bundle: Buffer,
  read: VerifiedBundle,
  known: Set<string>,
): Promise<void> {
  const parts = [encodeHead(read.manifest, read.sums, read.signatures)];
  for await (const { name, bytes } of read.contents())
    parts.push(encodeMember(name, bytes, read.manifest.created));
  if (!Buffer.concat([...parts, TRAILER]).equals(bundle)) throw new Error("accepted in another form");
  // The test's own key signed `signed` ones, so their contents may be anything that is well-formed.
  if (kind !== "signed" && !known.has(read.identity)) throw new Error("accepted though it was changed");
}

async function runPart(first: number, step: number): Promise<void> {
  const known = new Set<string>();
  for (const bundle of corpus) {
    const { read } = await verdict(bundle);
    if (read !== undefined) known.add(read.identity);
  }
  const counts: Record<string, number> = {};
  for (let number = first; number < cases; number += step) {
    const { kind, bundle } = makeCase(randomOf(seed * 1_000_003 + number));
    try {
      const { code, read } = await verdict(bundle);
      if (read !== undefined) await requireHonest(kind, bundle, read, known);
      counts[code] = (counts[code] ?? 0) + 1;
    } catch (error) {
      const file = join(tmpdir(), `zferry-fuzz-${seed}-${number}.bundle`);
      writeFileSync(file, bundle);
      console.error(`case ${number} of seed ${seed} (${kind}): ${String(error)}\n  the bundle is ${file}`);
      process.exit(1);
    }
  }
  process.send?.({ counts, memory: process.resourceUsage().maxRSS * 1024 });
  process.disconnect?.();
}

async function main(): Promise<number> {
  const started = Date.now();
  const workers = Math.min(availableParallelism(), 8);
  const counts: Record<string, number> = {};
  let memory = 0;
  const statuses = await Promise.all(
    Array.from({ length: workers }, (_, part) => {
      const args = ["--cases", String(cases), "--seed", String(seed), "--part", `${part}/${workers}`];
      const child = fork(fileURLToPath(import.meta.url), args, { execArgv: process.execArgv });
      child.on("message", (report: { counts: Record<string, number>; memory: number }) => {
        for (const [code, count] of Object.entries(report.counts)) counts[code] = (counts[code] ?? 0) + count;
        memory = Math.max(memory, report.memory);
      });
      return new Promise<number>((resolve) => child.on("exit", (status) => resolve(status ?? 1)));
    }),
  );
  for (const [code, count] of Object.entries(counts).sort((a, b) => b[1] - a[1])) {
    console.log(`${String(count).padStart(9)}  ${code}`);
  }
  const seconds = Math.round((Date.now() - started) / 1000);
  const done = Object.values(counts).reduce((sum, count) => sum + count, 0);
  console.log(
    `${done} of ${cases} cases, seed ${seed}, in ${seconds} s; at most ${memory >> 20} MiB a process`,
  );
  if (memory > MEMORY_BOUND) console.error(`more memory than ${MEMORY_BOUND >> 20} MiB`);
  return statuses.every((status) => status === 0) && done === cases && memory <= MEMORY_BOUND ? 0 : 1;
}

if (values.only !== undefined) {
  const { kind, bundle } = makeCase(randomOf(seed * 1_000_003 + Number(values.only)));
  console.log(kind, (await verdict(bundle)).code);
} else if (values.part !== undefined) {
  const [first, step] = values.part.split("/").map(Number) as [number, number];
  await runPart(first, step);
} else {
  process.exitCode = await main();
}
