import { beforeAll, describe, expect, test } from "vitest";
import {
  BLOCK_BYTES,
  encodeHeader,
  encodeSums,
  LIMITS,
  paddingOf,
  parseSums,
  TRAILER,
} from "../../src/bundle/layout.js";
import { encodeManifest, parseManifest, type Manifest } from "../../src/bundle/manifest.js";
import type { ByteSource } from "../../src/bundle/members.js";
import { Bundle, VerifiedBundle } from "../../src/bundle/reader.js";
import { encodeMember } from "../../src/bundle/writer.js";
import { ZferryError, type ErrorCode } from "../../src/errors.js";
import { encodeSignature, generateKeyPair, sign } from "../../src/trust/minisign.js";
import {
  CREATED,
  flipped,
  input,
  join,
  KEY,
  longStream,
  pack,
  packAll,
  packExample,
  PUBLIC_KEY,
  refusal,
  replace,
  resign,
  resignSums,
  rootInput,
  smallStream,
  sourceOf,
  split,
  TRUST,
  type Member,
} from "./support.js";

const SIGNATURE = `signatures/${KEY.keyId}.minisig`;
const CHUNK = "streams/usr/00000000.zst";

let bundle: Buffer;
let members: Member[];
beforeAll(async () => {
  bundle = await packAll();
  members = split(bundle);
});

/** As `bundle verify` does it. */
async function check(bytes: Uint8Array, trust = TRUST): Promise<VerifiedBundle> {
  const verified = await VerifiedBundle.verify(sourceOf(bytes), trust);
  await verified.checkContents();
  return verified;
}

const codeOf = async (bytes: Uint8Array, trust = TRUST): Promise<ErrorCode> =>
  (await refusal(() => check(bytes, trust))).code;

const chunksOf = async (from: Bundle, role: string): Promise<Buffer> => {
  const stream = from.manifest.streams.find((each) => each.role === role);
  const chunks: Uint8Array[] = [];
  if (stream !== undefined) for await (const chunk of from.chunks(stream)) chunks.push(chunk);
  return Buffer.concat(chunks);
};

/** The start of a member's header in the archive. */
function offsetOf(name: string, list = members): number {
  let at = 0;
  for (const member of list) {
    if (member.name === name) return at;
    at += BLOCK_BYTES + member.content.length + paddingOf(member.content.length);
  }
  throw new Error(`no member ${name}`);
}

const without = (name: string): Member[] => members.filter((member) => member.name !== name);
const named = (name: string): Member => members.find((member) => member.name === name) as Member;

const changeManifest = (change: (manifest: Manifest) => Manifest): Member[] =>
  replace(members, "manifest.json", (content) => encodeManifest(change(parseManifest(content))));

/** The archive with a member's header written over. */
function withHeader(name: string, header: Uint8Array): Buffer {
  const copy = Buffer.from(bundle);
  copy.set(header, offsetOf(name));
  return copy;
}

describe("a whole bundle", () => {
  test("gives back what it was packed from", async () => {
    const verified = await check(bundle);
    expect(verified.manifest).toMatchObject({
      product: "demo",
      release: { name: "R2", sequence: 2 },
      created: CREATED,
      streams: [{ role: "data" }, { role: "usr" }],
    });
    expect(verified.signers).toEqual([
      { keyId: KEY.keyId, name: "plain.pub", trustedComment: "product demo release R2 sequence 2" },
    ]);
    expect(Buffer.compare(await chunksOf(verified, "usr"), smallStream())).toBe(0);
    expect(Buffer.compare(await chunksOf(verified, "data"), smallStream(40))).toBe(0);
    const root = rootInput();
    for (const kind of ["patch", "objects", "metadata"] as const) {
      expect(Buffer.compare(await verified.rootMember(kind), root[kind])).toBe(0);
    }
  });

  test("of several chunks gives back the stream", async () => {
    const verified = await check(await pack({ streams: [input("usr", longStream())] }));
    expect(verified.manifest.streams[0]?.chunks.length).toBeGreaterThan(3);
    expect(Buffer.compare(await chunksOf(verified, "usr"), longStream())).toBe(0);
  });

  test("tells how far the check came, up to the last byte", async () => {
    const seen: number[] = [];
    const verified = await VerifiedBundle.verify(sourceOf(bundle), TRUST);
    await verified.checkContents((done, total) => {
      expect(total).toBe(bundle.length);
      seen.push(done);
    });
    expect(seen).toEqual([...seen].sort((a, b) => a - b));
    expect(seen.at(-1)).toBe(bundle.length);
  });

  test("is refused when its root half is asked for and it has none", async () => {
    const verified = await check(await pack());
    await expect(verified.rootMember("patch")).rejects.toThrow(RangeError);
  });

  test("can be shown without a key, and then says nothing of signers", async () => {
    const shown = await Bundle.readUnverified(sourceOf(bundle));
    expect(shown).not.toBeInstanceOf(VerifiedBundle);
    expect(shown.manifest).toEqual((await check(bundle)).manifest);
  });
});

describe("signatures", () => {
  const other = generateKeyPair();
  const signedBy = (key: typeof KEY, sums: Uint8Array, keyId = key.keyId): Member => ({
    name: `signatures/${keyId}.minisig`,
    content: encodeSignature(sign(key, sums, { trustedComment: "test" })),
  });
  const both = () => [KEY, other.secretKey].sort((a, b) => (a.keyId < b.keyId ? -1 : 1));
  const trustBoth = (threshold: number) => ({ keys: [PUBLIC_KEY, other.publicKey], threshold });

  test("of two keys, both trusted and both needed", async () => {
    const verified = await check(join(resign(members, both())), trustBoth(2));
    expect(verified.signers.map(({ keyId }) => keyId)).toEqual(both().map(({ keyId }) => keyId));
  });

  test("beside one by a key that is not trusted", async () => {
    expect((await check(join(resign(members, both())))).signers.length).toBe(1);
  });

  test("none", async () => {
    expect(await codeOf(join(without(SIGNATURE)))).toBe("archive-malformed");
  });

  test("by a key that is not trusted only", async () => {
    expect(await codeOf(join(resign(members, [other.secretKey])))).toBe("signature-missing");
  });

  test("fewer than are needed", async () => {
    expect(await codeOf(bundle, trustBoth(2))).toBe("signature-missing");
  });

  test("not sorted", async () => {
    expect(await codeOf(join(resign(members, both().reverse())))).toBe("archive-malformed");
  });

  test("one twice", async () => {
    expect(await codeOf(join(resign(members, [KEY, KEY])))).toBe("archive-malformed");
  });

  test("sixteen may be there, and seventeen not", async () => {
    const keys = [KEY, ...Array.from({ length: 15 }, () => generateKeyPair().secretKey)];
    const sorted = () => [...keys].sort((a, b) => (a.keyId < b.keyId ? -1 : 1));
    await check(join(resign(members, sorted())));
    keys.push(generateKeyPair().secretKey);
    const { message } = await refusal(() => check(join(resign(members, sorted()))));
    expect(message).toMatch(/has more than 16 signatures/);
  });

  test("under another key's id", async () => {
    const list = [named("SHA256SUMS"), signedBy(KEY, named("SHA256SUMS").content, "0".repeat(16))];
    expect(await codeOf(join([...list, ...members.slice(2)]))).toBe("signature-malformed");
  });

  test("by another key under the trusted id", async () => {
    const forged = { ...other.secretKey, keyId: KEY.keyId };
    expect(await codeOf(join(resign(members, [forged])))).toBe("signature-invalid");
  });

  test("of another list", async () => {
    const otherSums = resign(changeManifest((manifest) => ({ ...manifest, product: "other" })));
    const list = [named("SHA256SUMS"), otherSums[1] as Member, ...members.slice(2)];
    expect(await codeOf(join(list))).toBe("signature-invalid");
  });

  test("that are no signatures", async () => {
    expect(await codeOf(join(replace(members, SIGNATURE, () => Buffer.from("x"))))).toBe(
      "signature-malformed",
    );
  });

  test("larger than the limit", async () => {
    const content = Buffer.alloc(LIMITS.signatureBytes + 1);
    expect(await codeOf(join(replace(members, SIGNATURE, () => content)))).toBe("archive-malformed");
  });
});

// Where the list is signed anew, only the fault itself is left to be found.
describe("members", () => {
  test.each(["SHA256SUMS", "manifest.json"])("%s missing", async (name) => {
    expect(await codeOf(join(without(name)))).toBe("archive-malformed");
  });

  test.each(["root/patch.zst", "root/metadata.json.zst", CHUNK, "streams/data/00000000.zst"])(
    "%s missing, from the archive or from the signed list too",
    async (name) => {
      expect(await codeOf(join(without(name)))).toBe("bundle-truncated");
      expect(await codeOf(join(resign(without(name))))).toBe("sums-malformed");
    },
  );

  test.each([
    "extra",
    "root/extra.zst",
    "streams/usr/00000001.zst",
    "streams/zzz/00000000.zst",
    "../../etc/passwd",
  ])("%s more, in the archive or in the signed list too", async (name) => {
    const more = [...members, { name, content: Buffer.from("x") }];
    expect(await codeOf(join(more))).toBe("archive-malformed");
    expect(await codeOf(join(resign(more)))).toBe("sums-malformed");
  });

  test("one more among the signatures", async () => {
    for (const name of ["signatures/x.minisig", "signatures/0E07B77755AB6E15.minisig.sig", "x"]) {
      const more = [...members.slice(0, 2), { name, content: Buffer.from("x") }, ...members.slice(2)];
      expect(await codeOf(join(more))).toBe("archive-malformed");
    }
  });

  test("one twice", async () => {
    for (const [index, member] of members.entries()) {
      const twice = [...members.slice(0, index), member, ...members.slice(index)];
      expect(await codeOf(join(twice)), member.name).toBe("archive-malformed");
    }
  });

  test("two exchanged", async () => {
    for (let index = 0; index + 1 < members.length; index += 1) {
      const list = [...members];
      list.splice(index, 2, members[index + 1] as Member, members[index] as Member);
      expect(await codeOf(join(list)), members[index]?.name).toBe("archive-malformed");
    }
    const [manifest, patch, objects, ...rest] = members.slice(2) as [Member, Member, Member, ...Member[]];
    expect(await codeOf(join(resign([manifest, objects, patch, ...rest])))).toBe("sums-malformed");
  });

  test("one renamed", async () => {
    for (const { name, content } of members) {
      const list = members.map((member) => (member.name === name ? { name: `${name}x`, content } : member));
      expect(await codeOf(join(list)), name).toBe("archive-malformed");
    }
    const list = members.map((member) =>
      member.name === CHUNK ? { ...member, name: "streams/usr/0.zst" } : member,
    );
    expect(await codeOf(join(resign(list)))).toBe("sums-malformed");
  });

  test.each(["1", "2", "3", "5", "x", "g", "L"])("one with typeflag %s", async (type) => {
    for (const { name, content } of members) {
      const header = Buffer.from(encodeHeader({ name, size: content.length, mtime: CREATED }));
      header.write(type, 156, "latin1");
      header.fill(" ", 148, 156);
      const sum = header.reduce((total, byte) => total + byte, 0);
      header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
      expect(await codeOf(withHeader(name, header)), name).toBe("archive-malformed");
    }
  });

  test("one with another time", async () => {
    for (const { name, content } of members) {
      const header = encodeHeader({ name, size: content.length, mtime: CREATED + 1 });
      expect(await codeOf(withHeader(name, header)), name).toBe("archive-malformed");
    }
  });

  test("all with a time that is not the manifest's", async () => {
    expect(await codeOf(join(members, CREATED + 1))).toBe("archive-malformed");
  });

  test("one that says it is longer", async () => {
    for (const { name, content } of members) {
      const header = encodeHeader({ name, size: content.length + 1, mtime: CREATED });
      const expected = name === SIGNATURE ? "signature-malformed" : "archive-malformed";
      const code = await codeOf(withHeader(name, header));
      // The byte more of a head member is padding, which is then a part of what was signed or hashed.
      const head: Record<string, ErrorCode> = {
        SHA256SUMS: "signature-invalid",
        "manifest.json": "content-mismatch",
      };
      expect(code, name).toBe(head[name] ?? expected);
    }
  });

  test.each([LIMITS.sumsBytes + 1, 0o77777777777])("a list of hashes of %i bytes", async (size) => {
    const header = encodeHeader({ name: "SHA256SUMS", size, mtime: CREATED });
    const reads: number[] = [];
    const source = sourceOf(withHeader("SHA256SUMS", header));
    const { code } = await refusal(() =>
      VerifiedBundle.verify(
        { ...source, read: (at, length) => (reads.push(length), source.read(at, length)) },
        TRUST,
      ),
    );
    expect([code, reads]).toEqual(["archive-malformed", [BLOCK_BYTES]]);
  });

  test("a manifest over the limit", async () => {
    const header = encodeHeader({ name: "manifest.json", size: LIMITS.manifestBytes + 1, mtime: CREATED });
    expect(await codeOf(withHeader("manifest.json", header))).toBe("archive-malformed");
  });
});

describe("the end", () => {
  test.each<[string, (bytes: Buffer) => Buffer]>([
    ["a byte after it", (bytes) => Buffer.concat([bytes, Buffer.alloc(1)])],
    ["a block after it", (bytes) => Buffer.concat([bytes, Buffer.alloc(BLOCK_BYTES)])],
    [
      "tar's usual ten KiB",
      (bytes) => Buffer.concat([bytes, Buffer.alloc(10_240 - (bytes.length % 10_240))]),
    ],
    ["another bundle after it", (bytes) => Buffer.concat([bytes, bytes])],
    ["a member after it", (bytes) => Buffer.concat([bytes, encodeMember("x", Buffer.from("x"), CREATED)])],
    ["a trailer that is not zero", (bytes) => flipped(bytes, bytes.length - 1)],
    [
      "a member in the trailer",
      (bytes) => withTail(bytes, encodeHeader({ name: "x", size: 0, mtime: CREATED })),
    ],
  ])("with %s", async (_what, change) => {
    expect(await codeOf(change(bundle))).toBe("archive-malformed");
  });

  const withTail = (bytes: Buffer, tail: Uint8Array): Buffer => {
    const copy = Buffer.from(bytes);
    copy.set(tail, copy.length - TRAILER.length);
    return copy;
  };

  test("one block of zeros only", async () => {
    expect(await codeOf(bundle.subarray(0, -BLOCK_BYTES))).toBe("bundle-truncated");
  });

  test("missing from any byte on", async () => {
    const head = offsetOf("root/patch.zst");
    for (let length = 0; length < bundle.length; length += 1) {
      const cut = sourceOf(bundle.subarray(0, length));
      // Behind the head each verification would be the same one again.
      const read = () => (length < head ? VerifiedBundle.verify(cut, TRUST) : Bundle.readUnverified(cut));
      const { code, details } = await refusal(read);
      expect([code, details["size"]]).toEqual(["bundle-truncated", length]);
    }
    expect(await codeOf(bundle.subarray(0, -1))).toBe("bundle-truncated");
  });
});

describe("the signed list and the manifest", () => {
  const hashed = () => members.slice(2);
  const sumsOf = () => parseSums(named("SHA256SUMS").content);

  test("a line changed", async () => {
    const content = Buffer.from(named("SHA256SUMS").content);
    content[0] = content[0] === 0x30 ? 0x31 : 0x30;
    expect(await codeOf(join(replace(members, "SHA256SUMS", () => content)))).toBe("signature-invalid");
    expect(await codeOf(join(resignSums(hashed(), content)))).toBe("content-mismatch");
  });

  test("the last line's digest changed and signed", async () => {
    const sums = sumsOf().map((sum, i, all) =>
      i === all.length - 1 ? { ...sum, sha256: "0".repeat(64) } : sum,
    );
    expect(await codeOf(join(resignSums(hashed(), encodeSums(sums))))).toBe("content-mismatch");
  });

  test("lines exchanged", async () => {
    const [first, second, third, ...rest] = sumsOf() as [Sum, Sum, Sum, ...Sum[]];
    expect(await codeOf(join(resignSums(hashed(), encodeSums([first, third, second, ...rest]))))).toBe(
      "sums-malformed",
    );
    expect(await codeOf(join(resignSums(hashed(), encodeSums([second, first, third, ...rest]))))).toBe(
      "sums-malformed",
    );
  });
  type Sum = ReturnType<typeof parseSums>[number];

  test("a list that is empty, or malformed, and signed", async () => {
    expect(await codeOf(join(resignSums(hashed(), new Uint8Array())))).toBe("sums-malformed");
    expect(await codeOf(join(resignSums(hashed(), Buffer.from("x\n"))))).toBe("sums-malformed");
  });

  test("a manifest changed", async () => {
    const changed = changeManifest((manifest) => ({ ...manifest, product: "other" }));
    expect(await codeOf(join(changed))).toBe("content-mismatch");
  });

  test("a manifest of another format", async () => {
    const changed = replace(members, "manifest.json", () => Buffer.from('{"format":2}'));
    expect(await codeOf(join(resign(changed)))).toBe("format-unsupported");
  });

  test("a stored size that is not the member's", async () => {
    for (const difference of [-1, 1, BLOCK_BYTES]) {
      const changed = changeManifest((manifest) => ({
        ...manifest,
        streams: manifest.streams.map((stream) => ({
          ...stream,
          chunks: stream.chunks.map((chunk) => ({ ...chunk, storedBytes: chunk.storedBytes + difference })),
        })),
      }));
      const expected = difference === BLOCK_BYTES ? "bundle-truncated" : "archive-malformed";
      expect(await codeOf(join(resign(changed)))).toBe(expected);
    }
  });

  test("a raw size that is not the chunk's is found as it is used", async () => {
    const changed = changeManifest((manifest) => ({
      ...manifest,
      streams: manifest.streams.map((stream) => ({
        ...stream,
        rawBytes: stream.rawBytes + 1,
        chunks: stream.chunks.map((chunk) => ({ ...chunk, rawBytes: chunk.rawBytes + 1 })),
      })),
    }));
    const verified = await check(join(resign(changed)));
    expect((await refusal(() => chunksOf(verified, "usr"))).code).toBe("frame-malformed");
  });

  test("a root half whose members are missing", async () => {
    const changed = changeManifest((manifest) => {
      delete manifest.root;
      return manifest;
    });
    expect(await codeOf(join(resign(changed)))).toBe("sums-malformed");
  });
});

describe("contents", () => {
  test("a byte of a member changed", async () => {
    for (const { name, content } of members.slice(3)) {
      for (const at of [0, content.length - 1]) {
        const { code, details } = await refusal(() =>
          check(join(replace(members, name, (bytes) => flipped(bytes, at)))),
        );
        expect([code, details["member"]]).toEqual(["content-mismatch", name]);
      }
    }
  });

  test("padding that is not zero", async () => {
    for (const { name, content } of members) {
      if (paddingOf(content.length) === 0) continue;
      const at = offsetOf(name) + BLOCK_BYTES + content.length;
      const { code, details } = await refusal(() => check(flipped(bundle, at)));
      expect([code, details["offset"]], name).toEqual(["archive-malformed", at]);
    }
  });

  test("any byte of a bundle changed, but for the comment that no signature covers", async () => {
    const small = await packExample();
    const list = split(small);
    const signature = offsetOf(SIGNATURE, list) + BLOCK_BYTES;
    const comment = {
      from: signature + "untrusted comment: ".length,
      to: small.indexOf("\n", signature),
    };
    expect(small.toString("latin1", comment.from, comment.to)).toBe("signature from zferry secret key");

    const end = offsetOf("manifest.json", list) + BLOCK_BYTES + (list[2] as Member).content.length;
    // Of what comes after the head nothing is read before the signatures were verified: one verification serves all.
    let medium = small;
    const source: ByteSource = {
      ...sourceOf(small),
      read: (at, length) => sourceOf(medium).read(at, length),
    };
    const verified = await VerifiedBundle.verify(source, TRUST);
    const passed: number[] = [];
    for (let at = 0; at < small.length; at += 1) {
      const changed = flipped(small, at);
      medium = changed;
      try {
        await (at < end ? check(changed) : verified.checkContents());
        passed.push(at);
      } catch (error) {
        expect(error).toMatchObject({ name: "ZferryError" });
      }
    }
    const length = comment.to - comment.from;
    expect(passed).toEqual(Array.from({ length }, (_, i) => comment.from + i));
  });
});

describe("a medium that changes between two reads", () => {
  /** Gives the true bytes once, and then others. */
  function turncoat(bytes: Buffer): ByteSource {
    const seen = new Set<number>();
    return {
      ...sourceOf(bytes),
      read: async (offset, length) => {
        const copy = Buffer.from(bytes.subarray(offset, offset + length));
        if (seen.has(offset) && length > 0) copy[length - 1] = (copy[length - 1] as number) ^ 1;
        seen.add(offset);
        return copy;
      },
    };
  }

  test("is found as the bytes are used", async () => {
    const verified = await VerifiedBundle.verify(turncoat(bundle), TRUST);
    // Reads each content once: what comes now is what was not verified.
    for (const kind of ["patch", "objects", "metadata"] as const) await verified.rootMember(kind);
    for (const { role } of verified.manifest.streams) await chunksOf(verified, role);
    for (const kind of ["patch", "objects", "metadata"] as const) {
      expect((await refusal(() => verified.rootMember(kind))).code).toBe("content-mismatch");
    }
    for (const { role } of verified.manifest.streams) {
      expect((await refusal(() => chunksOf(verified, role))).code).toBe("content-mismatch");
    }
  });

  test("gives no byte of the chunk that changed", async () => {
    const long = await pack({ streams: [input("usr", longStream())] });
    const second = offsetOf("streams/usr/00000001.zst", split(long)) + BLOCK_BYTES;
    const source = sourceOf(flipped(long, second));
    const verified = await VerifiedBundle.verify(source, TRUST);
    const [stream] = verified.manifest.streams;
    const chunks = verified.chunks(stream as Manifest["streams"][number]);
    const first = await chunks.next();
    expect(Buffer.compare(first.value as Uint8Array, longStream().subarray(0, first.value?.length))).toBe(0);
    expect((await refusal(() => chunks.next())).code).toBe("content-mismatch");
  });

  test("is never parsed from a second read of the head", async () => {
    const reads = new Map<number, number>();
    const source = sourceOf(bundle);
    await VerifiedBundle.verify(
      {
        ...source,
        read: (at, length) => {
          reads.set(at, (reads.get(at) ?? 0) + 1);
          return source.read(at, length);
        },
      },
      TRUST,
    );
    expect(Math.max(...reads.values())).toBe(1);
  });
});

describe("a medium that fails", () => {
  /** Every read that has a byte of `at` fails. */
  const failing = (at: number): ByteSource => {
    const source = sourceOf(bundle);
    return {
      ...source,
      async read(offset, length) {
        if (offset > at || offset + length <= at) return source.read(offset, length);
        throw new ZferryError("io-failed", `cannot read bytes ${offset} to ${offset + length}`, {
          details: { offset },
          hint: "try again",
        });
      },
    };
  };
  const check = async (source: ByteSource): Promise<void> =>
    (await VerifiedBundle.verify(source, TRUST)).checkContents();

  test("is told with the member, whichever it is", async () => {
    for (const { name, content } of split(bundle)) {
      const at = offsetOf(name, split(bundle)) + BLOCK_BYTES + content.length - 1;
      const { code, message, details, hint } = await refusal(() => check(failing(at)));
      expect([code, details["member"], hint]).toEqual(["io-failed", name, "try again"]);
      expect(message).toMatch(new RegExp(`^cannot read bytes \\d+ to \\d+, in ${name}$`));
    }
  });

  test("is told where there is no member", async () => {
    expect((await refusal(() => check(failing(0)))).details["member"]).toBe("a header");
    expect((await refusal(() => check(failing(bundle.length - 1)))).details["member"]).toBe("the end");
  });
});
