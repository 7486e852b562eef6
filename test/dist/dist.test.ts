import { execFile, execFileSync, spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync } from "node:fs";
import { renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { EXAMPLE, hasMounts, PUBLIC, SECRET } from "../cli/support.js";
import { begin, end, seal, write } from "../stream/support.js";
import { CHECKOUT, NODE_VERSION, platformOf, readVersion, requirementsOf } from "./tree.js";

const NAME = `zferry-${readVersion()}-linux-${platformOf()}`;
const FILE = `${NAME}.tar.gz`;
const MINIMAL = fileURLToPath(new URL("minimal-root.sh", import.meta.url));

/** Where the tools are required, it fails without. */
const hasMinisign =
  spawnSync("minisign", ["-v"]).error === undefined || process.env["ZFERRY_REQUIRE_TOOLS"] === "1";

let folder: string;
let tree: string;
let printed: string[];

/** Makes the tarball, in a folder of its own and an environment that must not matter. */
async function make(name: string, env: Record<string, string>): Promise<string> {
  mkdirSync(join(folder, name));
  const args = ["--import", "tsx", "test/dist/dist.ts", "--key", SECRET, "-o", join(folder, name)];
  const { stdout } = await promisify(execFile)(
    "bash",
    ["-c", 'umask "$1"; exec "${@:2}"', "make", env["UMASK"] ?? "022", process.execPath, ...args],
    {
      cwd: CHECKOUT,
      env: { ...process.env, SOURCE_DATE_EPOCH: "1700000000", ...env },
    },
  );
  return stdout;
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "zferry-dist-test-"));
  printed = await Promise.all([
    make("one", {}),
    make("two", { UMASK: "077", TZ: "Asia/Tokyo", LC_ALL: "C" }),
  ]);
  mkdirSync(join(folder, "un packed"));
  execFileSync("tar", ["-xzf", join(folder, "one", FILE), "-C", join(folder, "un packed")]);
  tree = join(folder, "un packed", NAME);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Runs a program with an empty environment, in the root folder. */
const run = (program: string, ...args: string[]) => {
  const { status, stdout, stderr } = spawnSync(program, args, { cwd: "/", env: {}, encoding: "utf8" });
  return { status, stdout, stderr };
};

describe("the tarball", () => {
  test("has the same bytes, whatever the folder, the umask and the time zone", () => {
    const [one, two] = ["one", "two"].map((name) => readFileSync(join(folder, name, FILE)));
    expect(one?.equals(two as Buffer)).toBe(true);
    expect(printed[0]).toMatch(new RegExp(`^[0-9a-f]{64}  ${FILE}\n$`));
    expect(printed[1]).toBe(printed[0]);
    expect(readdirSync(join(folder, "one")).sort()).toEqual([FILE, `${FILE}.minisig`]);
  });

  test.skipIf(!hasMinisign)(
    "is checked by sha256sum with what was printed, and by minisign with what was signed",
    () => {
      const cwd = join(folder, "one");
      const sums = spawnSync("sha256sum", ["--strict", "-c"], { cwd, input: printed[0], encoding: "utf8" });
      expect(sums.stdout).toBe(`${FILE}: OK\n`);
      const signature = spawnSync("minisign", ["-Vm", FILE, "-p", PUBLIC], { cwd, encoding: "utf8" });
      expect(signature.stdout).toContain(`Trusted comment: timestamp:1700000000\tfile:${FILE}\thashed\n`);
      expect(signature.status).toBe(0);
    },
  );

  test("has one folder, root's, of one time, that nobody else can write to", () => {
    const list = execFileSync(
      "tar",
      ["--utc", "--full-time", "--numeric-owner", "-tvzf", join(folder, "one", FILE)],
      { encoding: "utf8" },
    );
    const lines = list.trimEnd().split("\n");
    expect(lines.length).toBeGreaterThan(20);
    for (const line of lines)
      expect(line).toMatch(
        new RegExp(`^(l|[d-]rw[x-]r-[x-]r-[x-]).* 0/0 +\\d+ 2023-11-14 22:13:20 ${NAME}/`),
      );
  });

  test("has the licences of what is in it", () => {
    const text = readFileSync(join(tree, "LICENSES"), "utf8");
    for (const name of [
      `Node.js ${NODE_VERSION}`,
      "execa 9",
      "valibot 1",
      "zstd-napi 0",
      "Zstandard",
      "node-addon-api 7",
      "which 2",
    ])
      expect(text).toContain(`==== ${name}`);
    // What only builds or tests it is not in it.
    expect(text).not.toMatch(/==== (esbuild|typescript|vitest|prebuild-install)/);
  });

  test.skipIf(!hasMinisign)("is not made of a program that needs what a site may lack", () => {
    const other = join(folder, "other");
    mkdirSync(join(other, "bin"), { recursive: true });
    copyFileSync(
      execFileSync("sh", ["-c", "command -v minisign"], { encoding: "utf8" }).trim(),
      join(other, "bin/node"),
    );
    expect(() => requirementsOf(other)).toThrow(
      /^bin\/node needs libsodium\.so\.\d+, which a site may lack$/,
    );
  });
});

describe("the tree", () => {
  test("needs glibc and the compiler's libraries alone", () => {
    for (const name of ["bin/node", "lib/zstd-napi.node"]) {
      const text = execFileSync("ldd", [join(tree, name)], { encoding: "utf8" });
      const names = text
        .trim()
        .split("\n")
        .map((line) => /[^\s/]+\.so(\.\d+)?(?= )/.exec(line)?.[0]);
      const usual = /^(linux-vdso|ld-linux-.*|lib(c|m|dl|pthread|stdc\+\+|gcc_s))\.so\.\d+$/;
      for (const library of names) expect(library).toMatch(usual);
    }
  });

  test("runs from any folder, also through links, and names itself as it was started", () => {
    const bin = join(folder, "bin");
    mkdirSync(bin);
    symlinkSync(join("..", "un packed", NAME, "bin/bundle"), join(bin, "bundle"));
    symlinkSync(join(tree, "bin/zferry"), join(bin, "zferry"));
    symlinkSync("bundle", join(bin, "other-name"));
    expect(run(join(tree, "bin/bundle"), "--version")).toEqual({
      status: 0,
      stdout: `${readVersion()}\n`,
      stderr: "",
    });
    for (const [name, told] of [
      ["bundle", "bundle"],
      ["zferry", "zferry"],
      ["other-name", "bundle"],
    ] as const)
      expect(run(join(bin, name), "verify", "/nothing")).toMatchObject({
        status: 16,
        stderr: `${told}: /nothing: there is no such file\n`,
      });
    // As a shell finds it in a PATH with the folder where it stands.
    expect(spawnSync("bundle", ["--version"], { cwd: join(tree, "bin"), env: { PATH: "." } }).status).toBe(0);
  });

  test("keeps running at boot when the next version is unpacked beside it and the link is switched", () => {
    const opt = join(folder, "opt");
    mkdirSync(join(opt, "etc/zferry"), { recursive: true });
    writeFileSync(join(opt, "etc/zferry/site.toml"), 'product = "demo"\n[streams]\nusr = "p/usr"\n');
    symlinkSync(tree, join(opt, "zferry"));
    const command = join(folder, "started");
    symlinkSync(join(opt, "zferry/bin/bundle"), command);
    const { stdout } = run(command, "setup", "--root", opt, "--init", "openrc", "--print");
    const words = [join(opt, "zferry/bin/node"), join(opt, "zferry/lib/cli.js")];
    expect(stdout).toContain(`\t\t${words.join(" ")} install --at-boot </dev/null\n`);

    const next = join(folder, "un packed", "zferry-next");
    renameSync(tree, next);
    expect(run(words[0] as string, words[1] as string, "--version").status).not.toBe(0);
    rmSync(join(opt, "zferry"));
    symlinkSync(next, join(opt, "zferry"));
    expect(run(words[0] as string, words[1] as string, "--version").stdout).toBe(`${readVersion()}\n`);
    renameSync(next, tree);
  });
});

describe.skipIf(!hasMounts)("a system that has a shell and glibc, and no network, home or compiler", () => {
  test("makes keys and a bundle, and verifies by threads what is made elsewhere", () => {
    const root = join(folder, "minimal");
    mkdirSync(join(root, "work"), { recursive: true });
    copyFileSync(EXAMPLE, join(root, "work/example.bundle"));
    copyFileSync(PUBLIC, join(root, "work/plain.pub"));
    const records = Array.from({ length: 30 }, (_, i) => write(BigInt(i + 1), 1 << 20));
    writeFileSync(join(root, "work/usr.stream"), Buffer.concat([seal([begin(), ...records, end()])]));
    const script = `
      cd /work
      bundle="/opt/zf 1/bin/bundle"
      "$bundle" verify example.bundle --key plain.pub
      "$bundle" keygen --no-password -o new >keygen
      "$bundle" create --product demo --release R2 --sequence 2 --key new.key --level 1 --stream usr=usr.stream --threads 2 -o R2.bundle
      "$bundle" verify R2.bundle --key new.pub --threads 3
      "$bundle" setup --root / --init systemd --print || echo "status $?"`;
    const { status, stdout, stderr } = spawnSync(MINIMAL, [tree, root, script], { encoding: "utf8" });
    expect(stderr).toContain("there is no such file");
    expect(stdout).toMatch(/^OK example\.bundle: [^]*^OK R2\.bundle: demo release R2[^]*^status 17$/m);
    expect(status).toBe(0);
  });
});
