import { randomBytes } from "node:crypto";
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { copyBundles, type Copy, type CopyOptions } from "../../src/carry/copy.js";
import { openBundleFile } from "../../src/system/bundle-file.js";
import { openPartial } from "../../src/system/medium.js";
import { openPartFile } from "../../src/system/part-file.js";
import { input, pack, PUBLIC_KEY, refusal, TRUST } from "../bundle/support.js";
import { begin, end, seal, write } from "../stream/support.js";
import { generateKeyPair } from "../../src/trust/minisign.js";

const MIB = 1 << 20;
let bundle: Buffer;
let folder: string;
let source: string;
let stick: string;

/** A bundle of some MiB that do not compress. */
beforeAll(async () => {
  const records = Array.from({ length: 6 }, (_, i) => {
    const record = write(BigInt(i + 1), MIB);
    record.set(randomBytes(MIB), record.length - MIB);
    return record;
  });
  bundle = await pack({ streams: [input("usr", seal([begin(), ...records, end()]))] });
});
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "zferry-copy-"));
  source = join(folder, "R2.bundle");
  stick = join(folder, "stick");
  mkdirSync(stick);
  writeFileSync(source, bundle);
});
afterEach(() => rmSync(folder, { recursive: true }));

type Step = (what: string, done: number) => void;

/** Copies, and does something after a step. */
async function copy(options: Partial<CopyOptions> = {}, step: Step = () => undefined): Promise<Copy> {
  const file = await openBundleFile(source);
  const progress = { update: step, end: () => undefined };
  const { signal } = new AbortController();
  const all = { folder: stick, trust: TRUST, volumeBytes: undefined, volumes: undefined, signal, progress };
  try {
    const [only] = await copyBundles([file], { ...all, ...options });
    return only as Copy;
  } finally {
    await file.close();
  }
}

const onStick = (name: string): string => join(stick, name);
const partial = (name = "R2.bundle"): string => onStick(`.${name}.partial`);
const names = (): string[] => readdirSync(stick).sort();

/** Changes bytes of a file in its place. */
function change(path: string, at: number, length = 1): void {
  const bytes = Buffer.from(readFileSync(path).subarray(at, at + length)).map((byte) => byte ^ 0xff);
  const file = openSync(path, "r+");
  writeSync(file, bytes, 0, length, at);
  closeSync(file);
}

/** Does something once, when a file was written whole. */
function whenWritten(name: string, size: number, act: () => void): Step {
  return (what, done) => {
    if (what === `writing ${onStick(name)}` && done === size) act();
  };
}

describe("a copy", () => {
  test("is the bundle under its own name, and says whose signature was checked", async () => {
    const { files, bundle: read, parts } = await copy();
    expect(files).toEqual([
      { file: onStick("R2.bundle"), bytes: bundle.length, outcome: "copied", resumed: 0 },
    ]);
    expect([parts, names()]).toEqual([1, ["R2.bundle"]]);
    expect(read).toMatchObject({ signers: [{ keyId: PUBLIC_KEY.keyId }] });
    expect(readFileSync(onStick("R2.bundle")).equals(bundle)).toBe(true);
    expect((await copy({ trust: undefined })).bundle).not.toHaveProperty("signers");
  });

  test.each([4_096, 100_001, MIB, 2 * MIB + 513])(
    "is volumes of %i bytes, which join to it",
    async (volumeBytes) => {
      if (bundle.length / volumeBytes > 999)
        return expect((await refusal(() => copy({ volumeBytes }))).code).toBe("usage");
      const { files, parts } = await copy({ volumeBytes });
      expect([files.length, names().length]).toEqual([parts, parts]);
      expect(Buffer.concat(names().map((name) => readFileSync(onStick(name)))).equals(bundle)).toBe(true);
    },
  );

  test("of volumes is one file, or other volumes", async () => {
    await copy({ volumeBytes: 2 * MIB });
    [source, stick] = [onStick("R2.bundle.001"), join(folder, "two")];
    mkdirSync(stick);
    await copy();
    expect(readFileSync(onStick("R2.bundle")).equals(bundle)).toBe(true);
    await copy({ volumeBytes: 3 * MIB });
    expect(names()).toEqual(["R2.bundle", "R2.bundle.001", "R2.bundle.002", "R2.bundle.003"]);
  });

  test("of some volumes is these alone", async () => {
    const { files } = await copy({ volumeBytes: 2 * MIB, volumes: { first: 2, last: 3 } });
    expect(files.map(({ file }) => file)).toEqual([onStick("R2.bundle.002"), onStick("R2.bundle.003")]);
    expect(readFileSync(onStick("R2.bundle.003")).equals(bundle.subarray(4 * MIB, 6 * MIB))).toBe(true);
    expect(names()).toHaveLength(2);
  });

  test("that is there already is compared and left", async () => {
    await copy({ volumeBytes: 2 * MIB });
    const { files } = await copy({ volumeBytes: 2 * MIB });
    expect(files.map(({ outcome }) => outcome)).toEqual(files.map(() => "present"));
    rmSync(onStick("R2.bundle.002"));
    const again = await copy({ volumeBytes: 2 * MIB });
    expect(again.files.map(({ outcome }) => outcome)).toEqual(["present", "copied", "present", "present"]);
  });
});

describe("nothing is copied", () => {
  test("of a bundle that is damaged, or that others signed", async () => {
    const trust = { keys: [generateKeyPair().publicKey], threshold: 1 };
    expect((await refusal(() => copy({ trust }))).code).toBe("signature-missing");
    change(source, 3 * MIB);
    for (const trust of [TRUST, undefined]) {
      expect((await refusal(() => copy({ trust }))).code).toBe("content-mismatch");
    }
    expect(names()).toEqual([]);
  });

  test("over another file", async () => {
    const refused = async (): Promise<string> => {
      const { code, message } = await refusal(() => copy());
      expect(code).toBe("output-exists");
      return message;
    };
    writeFileSync(onStick("R2.bundle"), "another");
    expect(await refused()).toContain(`it has 7 bytes, not ${bundle.length}`);
    writeFileSync(onStick("R2.bundle"), bundle);
    change(onStick("R2.bundle"), 2 * MIB + 5, 3);
    expect(await refused()).toContain(`bytes ${2 * MIB + 5} to ${2 * MIB + 8} are not the bundle's`);
    rmSync(onStick("R2.bundle"));
    symlinkSync(source, onStick("R2.bundle"));
    expect(await refused()).toContain("it is no regular file");
    expect(names()).toEqual(["R2.bundle"]);
  });

  test("beside volumes that would be taken for the bundle's", async () => {
    writeFileSync(onStick("R2.bundle.005"), "of an older one");
    const { code, message } = await refusal(() => copy({ volumeBytes: 2 * MIB }));
    expect([code, message]).toEqual(["output-exists", expect.stringContaining("the bundle has 4 volumes")]);
    expect(names()).toEqual(["R2.bundle.005"]);
  });

  test("to what is no folder", async () => {
    for (const to of [source, join(folder, "nowhere")]) {
      expect((await refusal(() => copy({ folder: to }))).code).toBe("io-failed");
    }
  });

  test("while another copy writes the same file", async () => {
    const other = await openPartial(onStick("R2.bundle"));
    try {
      const { code, message } = await refusal(() => copy());
      expect([code, message]).toEqual([
        "site-busy",
        `${onStick("R2.bundle")}: another process is copying to it`,
      ]);
    } finally {
      await other.close();
    }
  });
});

// The lock was on a file that another copy had given its name since it was opened: that one was cut and written again.
test.each<[string, () => Promise<unknown>, string]>([
  ["a copy", () => openPartial(onStick("R2.bundle")), ".R2.bundle.partial"],
  ["a download", () => openPartFile(onStick("R2.bundle"), 9), ".R2.bundle.part"],
])("%s does not write to a file that gets its name before the lock is there", async (_, opening, name) => {
  writeFileSync(onStick(name), "of another");
  const bin = join(folder, "bin");
  mkdirSync(bin);
  const { PATH } = process.env;
  const move = `[ -e "${onStick("R2.bundle")}" ] || mv "${onStick(name)}" "${onStick("R2.bundle")}"`;
  writeFileSync(join(bin, "flock"), `#!/bin/sh\n${move}\nPATH="${PATH}"\nexec flock "$@"\n`, { mode: 0o755 });
  process.env["PATH"] = `${bin}:${PATH}`;
  try {
    expect((await refusal(opening)).code).toBe("output-exists");
  } finally {
    process.env["PATH"] = PATH;
  }
  expect(readFileSync(onStick("R2.bundle"), "utf8")).toBe("of another");
  expect(names()).toEqual(["R2.bundle"]);
});

describe("a medium that fails", () => {
  test("is found by a byte that is not what was written, and leaves no file", async () => {
    const at = 4 * MIB + 4_099;
    const spoil = whenWritten("R2.bundle", bundle.length, () => change(partial(), at));
    const { code, message, details } = await refusal(() => copy({}, spoil));
    expect(code).toBe("copy-damaged");
    expect(message).toBe(
      `${onStick("R2.bundle")}: read back, bytes ${at} to ${at + 1} are not what was written: 4.0 KiB in 1 range`,
    );
    expect(details).toEqual({ file: onStick("R2.bundle"), offset: at, end: at + 1, ranges: 1, bytes: 4_096 });
    expect(names()).toEqual([]);
  });

  test("is told with the first and the last byte, and how much lies between", async () => {
    const spoil = whenWritten("R2.bundle", bundle.length, () => {
      change(partial(), 10_000, 10_000);
      change(partial(), 3 * MIB, 1);
    });
    const { details } = await refusal(() => copy({}, spoil));
    expect(details).toMatchObject({ offset: 10_000, end: 3 * MIB + 1, ranges: 2, bytes: 4 * 4_096 });
  });

  test("may end before the file does", async () => {
    const spoil = whenWritten("R2.bundle", bundle.length, () => truncateSync(partial(), 5 * MIB + 1));
    const { code, details } = await refusal(() => copy({}, spoil));
    expect([code, details["offset"], details["end"]]).toEqual(["copy-damaged", 5 * MIB + 1, bundle.length]);
  });

  test("that writes later volumes over earlier ones is found, also where these were there before", async () => {
    const spoil = whenWritten("R2.bundle.002", 2 * MIB, () => change(partial("R2.bundle.001"), 100, 5_000));
    expect((await refusal(() => copy({ volumeBytes: 2 * MIB }, spoil))).message).toContain(
      `${onStick("R2.bundle.001")}: read back, bytes 100 to 5100 `,
    );
    // The others are good, and need not be written again.
    const { files } = await copy({ volumeBytes: 2 * MIB });
    expect(files.map(({ resumed }) => resumed)).toEqual([0, 2 * MIB, 2 * MIB, bundle.length - 6 * MIB]);
    rmSync(onStick("R2.bundle.003"));
    const over = whenWritten("R2.bundle.003", 2 * MIB, () => change(onStick("R2.bundle.002"), 7));
    const { code, details } = await refusal(() => copy({ volumeBytes: 2 * MIB }, over));
    expect([code, details["file"]]).toEqual(["copy-damaged", onStick("R2.bundle.002")]);
  });

  test("that the bundle is read from is found by what it was when it was verified", async () => {
    let changed = false;
    const spoil: Step = (what, done) => {
      if (!what.startsWith("writing") || done !== MIB || changed) return;
      change(source, 4 * MIB);
      changed = true;
    };
    const { code, details } = await refusal(() => copy({}, spoil));
    expect([code, details]).toEqual(["content-mismatch", { file: source, offset: 4 * MIB, end: 5 * MIB }]);
    expect(names()).toEqual([".R2.bundle.partial"]);
  });
});

describe("an interrupted copy", () => {
  const interrupt = async (at: number): Promise<void> => {
    const controller = new AbortController();
    const stop: Step = (what, done) => {
      if (what.startsWith("writing") && done === at) controller.abort();
    };
    expect((await refusal(() => copy({ signal: controller.signal }, stop))).code).toBe("interrupted");
    expect(names()).toEqual([".R2.bundle.partial"]);
  };
  const resumed = async (): Promise<number | undefined> => (await copy()).files[0]?.resumed;

  test("is gone on with from where it stopped", async () => {
    await interrupt(4 * MIB);
    expect(await resumed()).toBe(4 * MIB);
    expect(readFileSync(onStick("R2.bundle")).equals(bundle)).toBe(true);
    expect(names()).toEqual(["R2.bundle"]);
  });

  test("is gone on with from before what is damaged, cut or of another bundle", async () => {
    await interrupt(4 * MIB);
    change(partial(), 2 * MIB + 1);
    expect(await resumed()).toBe(2 * MIB);
    rmSync(onStick("R2.bundle"));
    writeFileSync(partial(), bundle.subarray(0, 3 * MIB - 1));
    expect(await resumed()).toBe(2 * MIB);
    rmSync(onStick("R2.bundle"));
    writeFileSync(partial(), Buffer.concat([bundle, Buffer.alloc(MIB)]));
    expect(await resumed()).toBe(bundle.length);
    expect(readFileSync(onStick("R2.bundle")).equals(bundle)).toBe(true);
    rmSync(onStick("R2.bundle"));
    writeFileSync(partial(), randomBytes(7 * MIB));
    expect(await resumed()).toBe(0);
    expect(readFileSync(onStick("R2.bundle")).equals(bundle)).toBe(true);
  });

  // What it left was there for ever, hidden, and took the room.
  test("that is gone on with as volumes, or as others, leaves nothing of what it was", async () => {
    await interrupt(4 * MIB);
    writeFileSync(onStick(".R2.bundle.009.partial"), "");
    writeFileSync(onStick(".R3.bundle.partial"), "of another");
    const busy = await openPartial(onStick("R2.bundle.008"));
    await copy({ volumeBytes: 4 * MIB });
    await busy.close();
    expect(names()).toEqual([
      ".R2.bundle.008.partial",
      ".R3.bundle.partial",
      "R2.bundle.001",
      "R2.bundle.002",
    ]);
    await copy();
    expect(names()).toEqual([".R3.bundle.partial", "R2.bundle", "R2.bundle.001", "R2.bundle.002"]);
  });

  test("whose partial file is a link does not follow it", async () => {
    symlinkSync(source, partial());
    expect((await refusal(() => copy())).code).toBe("io-failed");
    expect(readFileSync(source).equals(bundle)).toBe(true);
  });

  test("may be stopped while it is verified or read back, too", async () => {
    for (const when of ["verifying", "reading back"]) {
      const controller = new AbortController();
      const stop: Step = (what) => (what.startsWith(when) ? controller.abort() : undefined);
      expect((await refusal(() => copy({ signal: controller.signal }, stop))).code).toBe("interrupted");
      expect(names().filter((name) => name === "R2.bundle")).toEqual([]);
    }
    expect(await resumed()).toBe(bundle.length);
  });
});
