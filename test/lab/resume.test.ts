import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { VerifiedBundle } from "../../src/bundle/reader.js";
import { chunksFrom, streamOfToken } from "../../src/install/resume.js";
import { LAYOUT, RecordReader, viewHeader } from "../../src/stream/records.js";
import { resumeStream } from "../../src/stream/resume.js";
import { parseResumeToken, type ResumePoint } from "../../src/stream/resume-token.js";
import { input, pack, sourceOf, TRUST } from "../bundle/support.js";
import { MNT, openMachine, poolName, type Machine } from "./guest.js";
import { ALL } from "./rounds.js";
import { script } from "./system.js";

/*
 * A receive is cut at many places. What zferry makes from a bundle's chunks to go on is held against what `zfs send -t`
 * makes on the pool that has the snapshots, and is received.
 */

/** Of each form. */
const CUTS = ALL ? 25 : 8;
const TANK = poolName("tank");
const RPOOL = poolName("rpool");
const SITE = `${RPOOL}/site`;

interface Form {
  readonly name: string;
  readonly dataset: string;
  /** Options of `zfs send`. */
  readonly flags: string;
  /** Blocks of more than 128 KiB are sent in pieces, and zfs begins a block again. formats/stream.md, Resuming */
  readonly split?: boolean;
}

const FORMS: readonly Form[] = [
  { name: "plain", dataset: "usual", flags: "" },
  { name: "embedded", dataset: "usual", flags: "-e" },
  { name: "compressed", dataset: "usual", flags: "-c" },
  { name: "large", dataset: "large", flags: "-L" },
  { name: "split", dataset: "large", flags: "", split: true },
  { name: "raw", dataset: "secret", flags: "-w" },
];

/** Large and small files, sparse ones, spill blocks, more objects than a block of dnodes holds, and freed ones. */
const FILL = `
  mkdir many gone
  for i in {1..150}; do echo "file $i" >"many/$i"; done
  for i in {1..60}; do echo "file $i" >"gone/$i"; done
  for i in {1..12}; do head -c $((i * 20000)) /dev/urandom >"file-$i"; done
  head -c 1500000 /dev/urandom >large
  printf start >sparse; printf end | dd of=sparse bs=1 seek=900000000 conv=notrunc status=none
  for i in {1..8}; do setfattr -n user.large -v "0s$(head -c 3000 /dev/urandom | base64 -w 0)" "file-$i"; done`;
const CHANGE = `
  rm -r gone
  for i in {1..150..3}; do echo "file $i, changed" >"many/$i"; done
  for i in {200..260}; do echo "file $i" >"many/$i"; done
  for i in {1..12..2}; do head -c $((i * 25000)) /dev/urandom >"file-$i"; done
  head -c 300000 /dev/urandom | dd of=large bs=1000 seek=500 conv=notrunc status=none
  truncate -s 1000 file-12; printf middle | dd of=sparse bs=1 seek=70000 conv=notrunc status=none
  for i in {1..8..2}; do setfattr -n user.large -v "0s$(head -c 3500 /dev/urandom | base64 -w 0)" "file-$i"; done
  head -c 600000 /dev/urandom >new`;

let machine: Machine;
const here = (name: string): string => join(machine.share.here, name);
const there = (name: string): string => join(machine.share.there, name);

beforeAll(async () => {
  machine = await openMachine();
  await machine.createPool("tank", { size: "512M" });
  await machine.createPool("rpool", { size: "512M" });
  await machine.run(
    `head -c 32 /dev/urandom >/tmp/key
    make() { # NAME OPTIONS...
      zfs create -o xattr=sa "\${@:2}" "${TANK}/$1"
      cd "$(zfs get -H -o value mountpoint "${TANK}/$1")"
      ${FILL}
      zfs snapshot "${TANK}/$1@r1"
      ${CHANGE}
      zfs snapshot "${TANK}/$1@r2"
    }
    make usual -o compression=lz4
    make large -o recordsize=1M -o compression=lz4
    make secret -o encryption=on -o keyformat=raw -o keylocation=file:///tmp/key`,
    { timeout: 600_000 },
  );
});
afterAll(() => machine?.close());

/** Receives a part of a form's stream at the site, which has the base. */
const cutAt = (form: Form, bytes: number): string =>
  `head -c ${bytes} ${there(`${form.name}.stream`)} | zfs receive -s -u ${SITE} 2>/dev/null || true`;
const TOKEN = `zfs get -H -p -o value receive_resume_token ${SITE}`;

/** What zferry makes for a token, from a bundle of small chunks. */
async function restOf(bundle: Uint8Array, token: string): Promise<Buffer> {
  const verified = await VerifiedBundle.verify(sourceOf(bundle), TRUST);
  const parsed = parseResumeToken(token);
  const stream = streamOfToken(verified.manifest.streams, parsed);
  const pieces: Buffer[] = [];
  for await (const piece of resumeStream(verified.chunks(stream, chunksFrom(stream, parsed)), parsed)) {
    pieces.push(Buffer.from(piece));
  }
  return Buffer.concat(pieces);
}

/** A whole stream's records, without the pieces of a block that lie before the resume point, and without checksums. */
function recordsFrom(stream: Uint8Array, { object, offset }: ResumePoint): string[] {
  const reader = new RecordReader((length) => new Uint8Array(length));
  const records = [...reader.read(stream)];
  reader.finish();
  return records
    .filter(
      ({ type, object: of, bytes }) =>
        type !== "WRITE" || of !== object || LAYOUT.WRITE.offset.read(viewHeader(bytes)) >= offset,
    )
    .map(({ type, bytes }) => {
      const end = type === "BEGIN" ? bytes.length : 280;
      const sum = type === "END" ? bytes.subarray(40, end) : bytes.subarray(0, end);
      return `${type} ${Buffer.concat([sum, bytes.subarray(312)]).toString("base64")}`;
    });
}

/** Blocks as they are, in pieces, and as they are encrypted; the others differ from the first in a flag. */
const TRIED = FORMS.filter(({ name }) => ALL || ["plain", "split", "raw"].includes(name));

describe.each(TRIED)("the rest of a stream: $name", (form) => {
  const snapshots = `-i ${TANK}/${form.dataset}@r1 ${TANK}/${form.dataset}@r2`;
  let stream: Buffer;
  let bundle: Buffer;
  let cuts: number[];

  beforeAll(async () => {
    await machine.run(
      `if zfs list ${SITE} >/dev/null 2>&1; then zfs destroy -r ${SITE}; fi
      zfs send ${form.flags} ${TANK}/${form.dataset}@r1 | zfs receive -u ${SITE}
      zfs send ${form.flags} ${snapshots} >${there(`${form.name}.stream`)}`,
      { timeout: 300_000 },
    );
    stream = readFileSync(here(`${form.name}.stream`));
    bundle = await pack({ chunkBytes: 256 * 1024, streams: [input("usr", stream)] });
    cuts = Array.from({ length: CUTS }, (_, cut) => Math.floor(((cut + 0.5) / CUTS) * stream.length));
  });

  it(`is what zfs send -t makes, at each of ${CUTS} cuts`, async () => {
    await machine.run(
      cuts
        .map(
          (bytes, cut) => `
          ${cutAt(form, bytes)}
          token=$(${TOKEN})
          echo "$token" >${there(`${cut}.token`)}
          if [ "$token" != - ]; then
            zfs send -t "$token" >${there(`${cut}.rest`)}
            zfs receive -A ${SITE}
          fi`,
        )
        .join(""),
      { timeout: 600_000 },
    );
    const points = new Set<string>();
    for (const cut of cuts.keys()) {
      const token = readFileSync(here(`${cut}.token`), "utf8").trim();
      // Nothing is kept of a receive that was cut before its first object.
      if (token === "-") continue;
      const theirs = readFileSync(here(`${cut}.rest`));
      const ours = await restOf(bundle, token);
      const point = parseResumeToken(token);
      if (form.split === true) expect(recordsFrom(ours, point)).toEqual(recordsFrom(theirs, point));
      else expect([cut, ours.equals(theirs)]).toEqual([cut, true]);
      points.add(`${point.object} ${point.offset}`);
    }
    // The cuts are not all at one place.
    expect(points.size).toBeGreaterThan(CUTS / 5);
  });

  it("makes the dataset what an uninterrupted receive makes it, after one cut and after two", async () => {
    const get = (property: string, name: string) => `zfs get -H -p -o value ${property} ${name}`;
    await machine.run(`zfs receive -s -u ${SITE} <${there(`${form.name}.stream`)}`);
    const state = `zfs send ${form.flags} -i ${SITE}@r1 ${SITE}@r2 | sha256sum; ${get("guid", `${SITE}@r2`)}`;
    const fingerprint =
      form.dataset === "secret"
        ? state
        : `${state}; zfs set readonly=on mountpoint=${MNT}/resume ${SITE}; zfs mount ${SITE} 2>/dev/null || true; ` +
          `${script(machine, `fingerprint ${MNT}/resume`)} | sha256sum; zfs unmount ${SITE}`;
    const whole = (await machine.run(fingerprint)).stdout;
    for (const at of [[0.35, 0.5], [0.9]]) {
      await machine.run(
        `zfs rollback -r ${SITE}@r1; ${cutAt(form, Math.floor(stream.length * (at[0] ?? 0)))}`,
      );
      for (const second of at.slice(1)) {
        const rest = await restOf(bundle, (await machine.run(TOKEN)).stdout.trim());
        writeFileSync(here("rest"), rest.subarray(0, Math.floor(rest.length * second)));
        await machine.run(`zfs receive -s -u ${SITE} <${there("rest")} || true`);
      }
      const token = (await machine.run(TOKEN)).stdout.trim();
      writeFileSync(here("rest"), token === "-" ? stream : await restOf(bundle, token));
      await machine.run(`zfs receive -s -u ${SITE} <${there("rest")}`);
      expect((await machine.run(fingerprint)).stdout).toBe(whole);
    }
  });
});
