/** formats/stream.md and the code say the same. */
import { readFileSync } from "node:fs";

import { expect, test } from "vitest";

import { CHUNK_BYTES, chunkStream } from "../../src/stream/chunker.js";
import { encodeRecord, FEATURES, HEADER_BYTES, LAYOUT, PAYLOAD_LIMITS } from "../../src/stream/records.js";
import { collect, inPieces, seal, TOGUID as toguid } from "./support.js";

const page = readFileSync(new URL("../../formats/stream.md", import.meta.url), "utf8");

/** The cells of the first table after a line that begins with `start`. */
function tableAfter(start: string): string[][] {
  const lines = page.split("\n");
  const first = lines.findIndex(
    (line, i) => line.startsWith("|") && i > lines.findIndex((l) => l.startsWith(start)),
  );
  const rows = lines.slice(first, lines.indexOf("", first)).slice(2);
  return rows.map((row) =>
    row
      .split("|")
      .map((cell) => cell.trim())
      .slice(1, -1),
  );
}

const camelCase = (name: string) => name.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase());

test.each(Object.entries(LAYOUT))("the fields of %s", (type, layout) => {
  const rows = tableAfter(`### ${type} (`).map(([at, bytes, name]) => [
    camelCase(name ?? ""),
    Number(at),
    Number(bytes),
  ]);
  if (type !== "BEGIN") rows.push(["checksum", 280, 32]);
  expect(rows).toEqual(
    Object.entries<{ at: number; bytes: number }>(layout).map(([name, { at, bytes }]) => [name, at, bytes]),
  );
});

test("the numbers of the types", () => {
  for (const type of Object.keys(LAYOUT) as (keyof typeof LAYOUT)[]) {
    const [number] = encodeRecord(type, {});
    expect(page).toContain(`### ${type} (${number})\n`);
  }
});

test("the features", () => {
  const rows = tableAfter("Features, numbered").map(([bit, name]) => [name, Number(bit)]);
  expect(rows).toEqual(Object.entries(FEATURES));
});

test("the limits", () => {
  const rows = tableAfter("The meaning of the records").map(([type, bytes]) => [type, Number(bytes)]);
  expect(rows).toEqual(Object.entries(PAYLOAD_LIMITS));
  expect(page).toContain(
    `a record has at most ${HEADER_BYTES + Math.max(...Object.values(PAYLOAD_LIMITS))} bytes`,
  );
  for (const bytes of Object.values(CHUNK_BYTES)) expect(page).toContain(` ${bytes} `);
});

test("the example", async () => {
  const stream = seal([
    encodeRecord("BEGIN", {
      magic: 0x2f5bacbacn,
      versioninfo: 1n,
      creationTime: 1_750_000_000n,
      type: 2,
      flags: 4,
      toguid,
      toname: "tank/usr@r1",
    }),
    encodeRecord(
      "WRITE",
      { object: 7n, type: 19, logicalSize: 16n, toguid },
      Buffer.from("sixteen bytes..\n"),
    ),
    encodeRecord("END", { toguid }),
  ]);
  const example = new Uint8Array(stream.length);
  for (const [, offset, bytes] of page.matchAll(/^([0-9a-f]{8})  ([0-9a-f ]+)$/gm)) {
    example.set(Buffer.from((bytes ?? "").replaceAll(" ", ""), "hex"), Number.parseInt(offset ?? "", 16));
  }
  expect(example).toEqual(stream);
  const { items } = await collect(chunkStream(inPieces(example, 100)));
  expect(items).toMatchObject([{ data: { length: 952 }, largestObject: 7n }]);
});
