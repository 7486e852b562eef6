import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { beforeEach, describe, expect, test } from "vitest";
import { encodePublicKey, generateKeyPair, publicKeyLine } from "../../src/trust/minisign.js";
import { blocksOf, readPage } from "../formats/page.js";
import { CLI, errorOf, EXAMPLE, hasMounts, inFolder, PUBLIC, run, told } from "./support.js";

const folder = inFolder();
const FIRST = "0E07B77755AB6E15";
const FIRST_LINE = readFileSync(PUBLIC, "utf8").split("\n")[1] as string;
const second = generateKeyPair().publicKey;
const trust = (...args: string[]) => run(["trust", "--config", "site.toml", ...args], { cwd: folder.path });
const verify = () => run(["verify", EXAMPLE, "--config", "site.toml", "--json"], { cwd: folder.path });
const configure = (threshold = 1): void =>
  writeFileSync(
    folder.file("site.toml"),
    `product = "demo"\nstate = "${folder.file("state")}"\n[streams]\nusr = "p/usr"\n[trust]\nkeys = "${folder.file("keys")}"\nthreshold = ${threshold}\n`,
  );

beforeEach(() => {
  mkdirSync(folder.file("keys"));
  copyFileSync(PUBLIC, folder.file("keys/release.pub"));
  writeFileSync(folder.file("second.pub"), encodePublicKey(second));
  configure();
});

describe("bundle trust", () => {
  test("shows who must have signed, and changes nothing", async () => {
    const { status, stdout } = await trust();
    expect([status, stdout.toString()]).toEqual([
      0,
      `signatures by 1 of these keys are needed:\n  ${FIRST} (${folder.file("keys")}/release.pub)\n    ${FIRST_LINE}\nno key change by a release yet\nthis site has no state yet\n`,
    ]);
    expect(existsSync(folder.file("state"))).toBe(false);
  });

  test.runIf(hasMounts)("is shown, and believed, where /proc is not mounted, as in a chroot", () => {
    const script =
      'mount -t tmpfs none /proc; "$@" trust --config site.toml; exec "$@" verify $EXAMPLE --config site.toml';
    const args = ["-m", "sh", "-euc", script, "sh", process.execPath, CLI];
    const stdout = execFileSync("unshare", args, {
      cwd: folder.path,
      encoding: "utf8",
      env: { ...process.env, EXAMPLE },
      stdio: ["ignore", "pipe", "ignore"],
    });
    expect(stdout).toMatch(/^signatures by 1 of these keys are needed:\n[^]*\nOK .*: demo release R2 /);
  });

  test("waits for nobody where its lock is no file", async () => {
    mkdirSync(folder.file("state"));
    execFileSync("mkfifo", [folder.file("state/lock")]);
    expect((await trust("--revoke", FIRST)).status).toBe(16);
  });

  test("takes one key at a time, and passes over none", async () => {
    const { status, message } = told(await trust("--add", "second.pub", "--add", PUBLIC));
    expect([status, message]).toEqual([2, expect.stringContaining("The option is given twice")]);
    expect(readdirSync(folder.file("keys"))).toEqual(["release.pub"]);
  });

  test("adds a key", async () => {
    expect((await trust("--add", "second.pub")).stdout.toString()).toContain(`  ${second.keyId} (`);
    expect(readdirSync(folder.file("keys")).sort()).toEqual([`${second.keyId}.pub`, "release.pub"].sort());
    expect((await trust("--add", "second.pub")).status).toBe(0);
    expect((await trust("--add", PUBLIC)).status).toBe(0);
    expect(readdirSync(folder.file("keys"))).toHaveLength(2);
  });

  test("believes a key whatever bytes its file is named by, as any other", async () => {
    execFileSync("sh", ["-c", `mv second.pub "keys/$(printf 'caf\\351.pub')"`], { cwd: folder.path });
    const { status, stdout } = await trust();
    expect(status).toBe(0);
    expect(stdout.toString()).toContain(`  ${second.keyId} ("${folder.file("keys")}/caf\\351.pub")\n`);
    expect((await verify()).status).toBe(0);
    await trust("--revoke", second.keyId);
    expect((await trust()).stdout.toString()).toContain(`  ${second.keyId} is revoked\n`);
  });

  test.each([1_081, 65_536, 65_537, 1 << 20])("refuses a key file of %d bytes", async (bytes) => {
    writeFileSync(folder.file("keys/long.pub"), "x".repeat(bytes));
    expect(errorOf(await verify())).toMatchObject({
      code: "key-malformed",
      message: `public key ${folder.file("keys/long.pub")}: has ${bytes} bytes, the limit is 1080`,
    });
  });

  test("revokes a key for good, by its id or by its file", async () => {
    expect((await verify()).status).toBe(0);
    await trust("--add", "second.pub");
    expect((await trust("--revoke", FIRST)).stdout.toString()).toContain(`  ${FIRST} is revoked\n`);
    expect(errorOf(await verify()).code).toBe("signature-missing");
    expect(errorOf(await trust("--add", PUBLIC, "--json")).code).toBe("key-revoked");
    copyFileSync(PUBLIC, folder.file("keys/another-name.pub"));
    expect(errorOf(await verify()).code).toBe("signature-missing");
    const json = JSON.parse((await trust("--json")).stdout.toString()) as object;
    expect(json).toMatchObject({
      threshold: 1,
      counter: 0,
      trusted: [{ keyId: second.keyId }],
      revoked: [{ keyId: FIRST }],
    });
  });

  test("keeps what the state says of releases", async () => {
    await trust("--add", "second.pub");
    await trust("--revoke", PUBLIC);
    const state = JSON.parse(readFileSync(folder.file("state/state.json"), "utf8")) as object;
    expect(state).toMatchObject({ version: 3, product: "demo", highestSequence: 0, installations: [] });
  });

  test("says when no bundle can have enough signatures", async () => {
    configure(2);
    expect((await trust()).stdout.toString()).toContain("they are too few: no bundle can be accepted");
  });

  test("does not revoke more keys than the site can do without", async () => {
    expect(errorOf(await trust("--revoke", FIRST, "--json"))).toMatchObject({
      code: "keys-too-few",
      details: { left: 0, threshold: 1 },
    });
    expect((await verify()).status).toBe(0);
  });

  test("says when no key, or none that is known, is named", async () => {
    expect(told(await trust("--revoke", "0123456789ABCDEF"))).toMatchObject({
      status: 2,
      message: "no key of this site has the id 0123456789ABCDEF",
    });
    expect((await trust("--revoke", "none.pub")).status).toBe(16);
    expect((await trust("--add", "none.pub")).status).toBe(16);
    expect((await trust("--add", "second.pub", "--revoke", FIRST)).status).toBe(2);
  });

  test("changes nothing while an install is under way", async () => {
    await trust("--add", "second.pub");
    const [example = ""] = blocksOf(readPage("state.md"), "json state");
    const { streams } = (JSON.parse(example) as { installations: { streams: object }[] })
      .installations[0] as {
      streams: object;
    };
    const release = { name: "R2", sequence: 2, identity: "0".repeat(64) };
    writeFileSync(
      folder.file("state/journal.json"),
      JSON.stringify({ version: 1, release, startedAt: 1, phase: "receiving", streams, root: null }),
    );
    expect(errorOf(await trust("--revoke", FIRST, "--json")).code).toBe("install-pending");
    expect((await verify()).status).toBe(0);
  });

  test("a key that a release added counts, one that it revoked does not", async () => {
    mkdirSync(folder.file("state"), { mode: 0o700 });
    const state = (keys: object): void =>
      writeFileSync(
        folder.file("state/state.json"),
        JSON.stringify({ version: 1, product: "demo", highestSequence: 2, installations: [], keys }),
      );
    state({ counter: 7, added: [publicKeyLine(second)], revoked: [FIRST_LINE] });
    expect((await trust()).stdout.toString()).toBe(
      `signatures by 1 of these keys are needed:\n  ${second.keyId} (added by a release)\n    ${publicKeyLine(second)}\n  ${FIRST} is revoked\nlast key change by a release: 7\n`,
    );
    expect(errorOf(await verify()).code).toBe("signature-missing");
  });
});
