import { spawn, spawnSync, type ChildProcessByStdio } from "node:child_process";
import { randomBytes } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable, Writable } from "node:stream";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach } from "vitest";
import { EXIT_STATUS, type ErrorCode } from "../../src/errors.js";
import { begin, end, seal, write } from "../stream/support.js";

/** The built program. */
export const CLI = process.env["ZFERRY_CLI"] ?? fileURLToPath(new URL("../../dist/cli.js", import.meta.url));
if (!existsSync(CLI)) throw new Error(`${CLI} is not there: npm run build makes it`);

export const keyFile = (name: string): string =>
  fileURLToPath(new URL(`../../fixtures/keys/${name}`, import.meta.url));
export const PUBLIC = keyFile("plain.pub");
export const SECRET = keyFile("plain.key");
export const EXAMPLE = fileURLToPath(new URL("../../fixtures/bundle/example.bundle", import.meta.url));

export interface Result {
  readonly status: number | null;
  readonly stdout: Buffer;
  readonly stderr: string;
}

/** Whether a test can have mounts of its own; where the tools are required, it fails without. */
export const hasMounts =
  spawnSync("unshare", ["-m", "mount", "-t", "tmpfs", "none", tmpdir()]).status === 0 ||
  process.env["ZFERRY_REQUIRE_TOOLS"] === "1";

/** A folder of its own for each test, where the program runs. */
export function inFolder(): { path: string; file(name: string): string } {
  const folder = { path: "", file: (name: string): string => join(folder.path, name) };
  beforeEach(() => {
    folder.path = mkdtempSync(join(tmpdir(), "zferry-cli-"));
  });
  afterEach(() => rmSync(folder.path, { recursive: true, force: true }));
  return folder;
}

export type Running = ChildProcessByStdio<Writable, Readable, Readable>;

export const start = (args: readonly string[], cwd?: string): Running =>
  spawn(process.execPath, [CLI, ...args], { cwd, stdio: ["pipe", "pipe", "pipe"] });

/** Waits for the end; what is not read elsewhere is collected. */
export function ended(child: Running): Promise<Result> {
  const stdout: Buffer[] = [];
  const stderr: Buffer[] = [];
  child.stdout.on("data", (piece: Buffer) => stdout.push(piece));
  child.stderr.on("data", (piece: Buffer) => stderr.push(piece));
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (status) => {
      resolve({ status, stdout: Buffer.concat(stdout), stderr: Buffer.concat(stderr).toString() });
    });
  });
}

export function run(
  args: readonly string[],
  { cwd, input = "" }: { cwd?: string; input?: string | Uint8Array } = {},
): Promise<Result> {
  const child = start(args, cwd);
  child.stdin.on("error", () => undefined); // a program that refuses does not read its input
  child.stdin.end(input);
  return ended(child);
}

/**
 * Runs the program so that the modes of files hold for it. Root may read and write everything as long as it has these
 * capabilities; another user would need a way to where node is.
 */
export function runByModes(args: readonly string[], cwd: string): { status: number | null; stderr: string } {
  const drop = ["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"];
  const asRoot = process.getuid?.() === 0 ? ["setpriv", ...drop] : [];
  const [program = "", ...rest] = [...asRoot, process.execPath, CLI, ...args];
  const { status, stderr, error } = spawnSync(program, rest, { cwd, encoding: "utf8" });
  if (error !== undefined) throw error;
  return { status, stderr };
}

/** What a refused command leaves: the status of the code, a message for people, no stack trace. */
export function told(result: Result): { status: number | null; message: string; hint: string | undefined } {
  const [message = "", hint, ...rest] = result.stderr.trimEnd().split("\n");
  if (!message.startsWith("bundle: ") || rest.length > 0) throw new Error(`not a message: ${result.stderr}`);
  return { status: result.status, message: message.slice("bundle: ".length), hint: hint?.trim() };
}

/** The error that `--json` prints, whose status must be the program's. */
export function errorOf(result: Result): {
  code: ErrorCode;
  message: string;
  details: Record<string, unknown>;
} {
  const { error } = JSON.parse(result.stderr) as {
    error: { code: ErrorCode; status: number; message: string; details: Record<string, unknown> };
  };
  if (error.status !== result.status || error.status !== EXIT_STATUS[error.code]) {
    throw new Error(`status ${result.status} for ${result.stderr}`);
  }
  return error;
}

/** Runs the program in a terminal, doing and typing each answer once its question is there. */
export async function inTerminal(
  args: readonly string[],
  answers: readonly { readonly question: string; readonly answer: string; readonly act?: () => void }[] = [],
  cwd?: string,
): Promise<{ status: number | null; screen: string }> {
  const words = [process.execPath, CLI, ...args].map((word) => `'${word}'`).join(" ");
  const child = spawn("script", ["-qefc", words, "/dev/null"], { cwd, stdio: ["pipe", "pipe", "pipe"] });
  let screen = "";
  let from = 0;
  const left = [...answers];
  child.stdout.on("data", (piece: Buffer) => {
    screen += piece.toString();
    const [next] = left;
    if (next === undefined || !screen.includes(next.question, from)) return;
    from = screen.length;
    left.shift();
    next.act?.();
    child.stdin.write(next.answer);
  });
  const status = await new Promise<number | null>((resolve, reject) => {
    child.on("error", reject).on("close", resolve);
  });
  return { status, screen };
}

/** Makes R2.bundle in a folder, of 24 MiB that do not compress, and gives its bytes. */
export async function makeNoise(folder: string): Promise<Buffer> {
  const mib = 1 << 20;
  const records = Array.from({ length: 24 }, (_, i) => {
    const record = write(BigInt(i + 1), mib);
    record.set(randomBytes(mib), record.length - mib);
    return record;
  });
  const args = "create --product demo --release R2 --sequence 2 --level 1 --stream usr=- -o R2.bundle";
  const input = seal([begin(), ...records, end()]);
  const { status, stderr } = await run([...args.split(" "), "--key", SECRET], { cwd: folder, input });
  if (status !== 0) throw new Error(stderr);
  return readFileSync(join(folder, "R2.bundle"));
}
