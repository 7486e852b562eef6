import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  closeSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  writeSync,
} from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { Fletcher4 } from "../../dist/stream/fletcher4.js";
import { encodeRecord, sealRecord, type HeaderFields, type RecordType } from "../../dist/stream/records.js";

/*
 * Streams for the benchmark. They are not recorded by ZFS: this script frames the files of a tree as the records that
 * `zfs send -L -i` writes for new and changed files on a dataset with a recordsize of 128 KiB, with checksums that zferry checks.
 */

const BLOCK = 128 << 10;
const PLAIN_FILE = 19; // DMU_OT_PLAIN_FILE_CONTENTS
const SA = 44; // DMU_OT_SA
const TOGUID = 0x1122334455667788n;
const UINT64_MAX = (1n << 64n) - 1n;

export const cacheFolder = join(process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "zferry/bench");

/** Frames content as a send stream. */
export class Framer {
  readonly #sum = new Fletcher4();
  readonly #write: (record: Uint8Array) => void;
  #object = 127n;

  constructor(write: (record: Uint8Array) => void) {
    this.#write = write;
    this.#record("BEGIN", {
      magic: 0x2f5bacbacn,
      versioninfo: 1n | (((1n << 17n) | (1n << 19n)) << 2n),
      creationTime: 1_790_000_000n,
      type: 2,
      toguid: TOGUID,
      fromguid: 99n,
      toname: "tank/BUILD/gentoo/usr@R2",
    });
  }

  #record<Type extends RecordType>(
    type: Type,
    fields: Partial<HeaderFields<Type>>,
    payload?: Uint8Array,
  ): void {
    const record = encodeRecord(type, fields, payload);
    sealRecord(record, this.#sum);
    this.#write(record);
  }

  /** A file, of which `block` gives each block of 128 KiB, the last one filled up with zeros. */
  file(bytes: number, block: (offset: number) => Uint8Array): void {
    this.#object += 1n;
    const object = this.#object;
    const blksz = Math.min(BLOCK, Math.max(512, Math.ceil(bytes / 512) * 512));
    const attributes = new Uint8Array(176);
    new DataView(attributes.buffer).setBigUint64(8, BigInt(bytes), true);
    new DataView(attributes.buffer).setBigUint64(16, object, true);
    this.#record(
      "OBJECT",
      { object, type: PLAIN_FILE, bonustype: SA, blksz, bonuslen: 176, dnSlots: 1, toguid: TOGUID },
      attributes,
    );
    for (let offset = 0; offset < bytes; offset += blksz) {
      const payload = new Uint8Array(blksz);
      payload.set(block(offset).subarray(0, blksz));
      this.#record(
        "WRITE",
        { object, type: PLAIN_FILE, offset: BigInt(offset), logicalSize: BigInt(blksz), toguid: TOGUID },
        payload,
      );
    }
    const end = BigInt(Math.ceil(bytes / blksz) * blksz);
    this.#record("FREE", { object, offset: end, length: UINT64_MAX, toguid: TOGUID });
  }

  /** Objects that the base had and the target has not. */
  removed(count: number): void {
    if (count > 0) {
      this.#record("FREEOBJECTS", { firstobj: this.#object + 1n, numobjs: BigInt(count), toguid: TOGUID });
    }
  }

  end(): void {
    this.#record("END", { toguid: TOGUID });
  }
}

/** Large packages that a desktop system has, of which Debian has two versions most of the time. */
const PACKAGES =
  `chromium firefox-esr thunderbird libreoffice-core libreoffice-common libreoffice-writer libreoffice-calc inkscape
  containerd git qemu-system-x86 qemu-system-arm libwebkit2gtk-4.1-0 libjavascriptcoregtk-4.1-0 mariadb-server-core
  mariadb-client postgresql-15 snapd vlc-l10n locales-all openjdk-17-jre-headless linux-doc calibre qemu-system-misc
  telegram-desktop libnode108 libfreecad-python3-0.20 samba-libs libc6 libssl3 libpython3.11-stdlib bind9-libs
  imagemagick-6-common gimp-data libgs10-common perl-modules-5.36 linux-source-6.1 openssh-client curl systemd`
    .split(/\s+/)
    .filter((name) => name !== "");

const run = (file: string, args: string[], cwd?: string): string =>
  execFileSync(file, args, { encoding: "utf8", maxBuffer: 1 << 28, stdio: ["ignore", "pipe", "pipe"], cwd });

/** Each package's two newest versions, the older first. */
function versionsOf(names: readonly string[]): [name: string, old: string, new_: string][] {
  const rows = run("apt-cache", ["madison", ...names])
    .split("\n")
    .map((line) => line.split("|").map((field) => field.trim()));
  return names.flatMap((name) => {
    const versions = [
      ...new Set(rows.filter(([package_]) => package_ === name).map(([, version = ""]) => version)),
    ];
    const [newest, before] = versions.sort((a, b) => (isOlder(a, b) ? 1 : -1));
    return newest === undefined || before === undefined ? [] : [[name, before, newest]];
  });
}

const isOlder = (a: string, b: string): boolean => {
  try {
    run("dpkg", ["--compare-versions", a, "lt", b]);
    return true;
  } catch {
    return false;
  }
};

function unpack(packages: readonly string[], folder: string): void {
  const downloads = mkdtempSync(join(tmpdir(), "zferry-bench-"));
  try {
    run("apt-get", ["download", "-o", "APT::Sandbox::User=root", ...packages], downloads);
    mkdirSync(folder);
    for (const name of readdirSync(downloads).sort()) run("dpkg-deb", ["-x", join(downloads, name), folder]);
  } finally {
    rmSync(downloads, { recursive: true, force: true });
  }
}

function* filesBelow(folder: string, path = ""): Generator<string> {
  for (const entry of readdirSync(join(folder, path), { withFileTypes: true }).sort((a, b) =>
    a.name < b.name ? -1 : 1,
  )) {
    const name = join(path, entry.name);
    if (entry.isDirectory()) yield* filesBelow(folder, name);
    else yield name;
  }
}

const contentOf = (path: string): Buffer | undefined => {
  const stat = lstatSync(path, { throwIfNoEntry: false });
  if (stat === undefined) return undefined;
  return stat.isFile() ? readFileSync(path) : Buffer.from(stat.isSymbolicLink() ? readlinkSync(path) : "");
};

/**
 * The stream of an update of Debian packages from one version to the next: every file that is new or has other content.
 * Made once for each set of versions.
 * @returns the path of the stream
 */
export function updateStream(note: (line: string) => void): string {
  const versions = versionsOf(PACKAGES);
  if (versions.length === 0) {
    throw new Error(
      "apt-cache knows no two versions of any package; run apt-get update, or give --stream FILE",
    );
  }
  const key = createHash("sha256").update(JSON.stringify(versions)).digest("hex").slice(0, 16);
  const path = join(cacheFolder, `debian-${key}.stream`);
  if (existsSync(path)) return path;

  note(`making a stream of ${versions.length} Debian packages, two versions of each`);
  mkdirSync(cacheFolder, { recursive: true });
  const trees = mkdtempSync(join(cacheFolder, "trees-"));
  try {
    const [old, new_] = [join(trees, "old"), join(trees, "new")];
    unpack(
      versions.map(([name, version]) => `${name}=${version}`),
      old,
    );
    unpack(
      versions.map(([name, , version]) => `${name}=${version}`),
      new_,
    );
    writeStream(`${path}.new`, (framer) => {
      for (const name of filesBelow(new_)) {
        const content = contentOf(join(new_, name)) as Buffer;
        if (contentOf(join(old, name))?.equals(content) === true) continue;
        framer.file(content.length, (offset) => content.subarray(offset, offset + BLOCK));
      }
      framer.removed([...filesBelow(old)].filter((name) => contentOf(join(new_, name)) === undefined).length);
    });
    renameSync(`${path}.new`, path);
  } finally {
    rmSync(trees, { recursive: true, force: true });
  }
  return path;
}

/** Writes a stream of about `bytes` to a descriptor: half of each block is noise, the other half repeats it. */
export function writeSynthetic(fd: number, bytes: number): void {
  const block = new Uint8Array(BLOCK);
  const words = new Uint32Array(block.buffer);
  let state = 1;
  const framer = new Framer((record) => writeWhole(fd, record));
  for (let done = 0; done < bytes; done += 64 * BLOCK) {
    framer.file(Math.min(64 * BLOCK, bytes - done), () => {
      for (let i = 0; i < words.length / 2; i += 1) {
        // xorshift32
        state ^= state << 13;
        state ^= state >>> 17;
        state ^= state << 5;
        words[i] = state;
      }
      block.copyWithin(BLOCK / 2, 0, BLOCK / 2);
      return block;
    });
  }
  framer.end();
}

function writeWhole(fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length;) {
    try {
      done += writeSync(fd, bytes, done);
    } catch (error) {
      // tsx makes standard output non-blocking.
      if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}

/** A file with {@link writeSynthetic} in it. */
export function syntheticStream(path: string, bytes: number): string {
  const file = openSync(path, "w");
  try {
    writeSynthetic(file, bytes);
  } finally {
    closeSync(file);
  }
  return path;
}

function writeStream(path: string, fill: (framer: Framer) => void): void {
  const file = openSync(path, "w");
  try {
    const framer = new Framer((record) => writeWhole(file, record));
    fill(framer);
    framer.end();
  } finally {
    closeSync(file);
  }
}

// As a program it writes a synthetic stream of so many bytes to standard output.
if (process.argv[1] === import.meta.filename) writeSynthetic(1, Number(process.argv[2]));
