import type { Command } from "commander";
import type { ManifestStream } from "../bundle/manifest.js";
import { VerifiedBundle } from "../bundle/reader.js";
import { ZferryError } from "../errors.js";
import { untilInterrupted, type Environment } from "../report.js";
import type { ResumeToken } from "../stream/resume-token.js";
import { chunksFrom, streamOfToken } from "../install/resume.js";
import { addSearchOption, addThreadsOption, openGiven, readTrust, repeatable, threadsOf } from "./summary.js";

interface SendOptions {
  readonly key?: readonly string[];
  readonly config?: string;
  readonly stream?: string;
  readonly threads?: string;
  readonly token?: string;
  readonly search?: readonly string[];
}

export function define(command: Command, environment: () => Environment): void {
  addThreadsOption(
    addSearchOption(command)
      .argument("<file>", "the bundle")
      .option("-k, --key <file>", "a public key that may have signed it; can be repeated", repeatable)
      .option("-s, --stream <role>", "which stream (default: the only one)")
      .option(
        "-t, --token <token>",
        "only what the interrupted receive with this resume token needs to go on",
      )
      .option(
        "--config <file>",
        "the site's configuration, which names its key folder (default: /etc/zferry/site.toml)",
      ),
  )
    .addHelpText(
      "after",
      "\nEach chunk is checked before it is written. One that is damaged ends it with status 12, after those before it:" +
        "\nin a pipe, set -o pipefail shows that." +
        "\n\nExample:\n  bundle send R2.bundle --key release.pub --stream usr | zfs receive -s -u rpool/SYSTEM/USR/gentoo" +
        "\n  bundle send R2.bundle --key release.pub --token $(zfs get -H -o value receive_resume_token rpool/SYSTEM/USR/gentoo) |" +
        "\n    zfs receive -s -u rpool/SYSTEM/USR/gentoo",
    )
    .action((file: string, options: SendOptions) => runSend(file, options, environment()));
}

/** Writes a verified stream to standard output. Each chunk is checked before its bytes leave. */
export async function runSend(path: string, options: SendOptions, env: Environment): Promise<void> {
  if (env.terminal) {
    throw new ZferryError("usage", "standard output is a terminal, and a send stream is binary", {
      hint: "give it to zfs receive, or to a file",
    });
  }
  const token = options.token === undefined ? undefined : await parseToken(options.token);
  const file = await openGiven(path, options, env, threadsOf(options));
  try {
    const trust = await readTrust(options);
    const bundle = await VerifiedBundle.verify(file, trust);
    const stream = chooseStream(bundle, options.stream, token);
    const indices = token === undefined ? [...stream.chunks.keys()] : chunksFrom(stream, token);
    const total = indices.reduce((sum, index) => sum + (stream.chunks[index]?.rawBytes ?? 0), 0);
    const chunks = counted(bundle.chunks(stream, indices), (done) =>
      env.progress.update(`sending ${stream.role}`, done, total),
    );
    const write = (piece: Uint8Array): Promise<void> => untilInterrupted(env.write(piece), env.signal);
    if (token === undefined) for await (const piece of chunks) await write(piece);
    else await writeAhead(resumed(chunks, token), write);
  } finally {
    env.progress.end();
    await file.close();
  }
}

// Loaded only when they are needed.
const parseToken = async (text: string): Promise<ResumeToken> =>
  (await import("../stream/resume-token.js")).parseResumeToken(text);

async function* resumed(
  chunks: AsyncIterable<Uint8Array>,
  token: ResumeToken,
): AsyncGenerator<Uint8Array, void, void> {
  yield* (await import("../stream/resume.js")).resumeStream(chunks, token);
}

/** Makes each piece while the one before is written. */
async function writeAhead(
  pieces: AsyncIterable<Uint8Array>,
  write: (piece: Uint8Array) => Promise<void>,
): Promise<void> {
  let writing: Promise<void> = Promise.resolve();
  try {
    for await (const piece of pieces) {
      await writing;
      writing = write(piece);
      // It is awaited with the next piece, which may take a while.
      writing.catch(() => undefined);
    }
  } finally {
    await writing;
  }
}

async function* counted(
  pieces: AsyncIterable<Uint8Array>,
  count: (bytes: number) => void,
): AsyncGenerator<Uint8Array, void, void> {
  let bytes = 0;
  for await (const piece of pieces) {
    yield piece;
    bytes += piece.length;
    count(bytes);
  }
}

function chooseStream(
  { manifest: { streams } }: VerifiedBundle,
  role: string | undefined,
  token: ResumeToken | undefined,
): ManifestStream {
  const roles = streams.map((stream) => stream.role).join(", ");
  const candidates = role === undefined ? streams : streams.filter((stream) => stream.role === role);
  const [chosen] = candidates;
  if (chosen === undefined) {
    throw new ZferryError("usage", `the bundle has no stream ${role}, only ${roles}`);
  }
  if (token !== undefined) return streamOfToken(candidates, token);
  if (candidates.length === 1) return chosen;
  throw new ZferryError("usage", `the bundle has streams ${roles}`, { hint: "choose one with --stream" });
}
