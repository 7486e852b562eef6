import type { Command } from "commander";
import type { GenericSchema } from "valibot";
import { packBundle, type PackOptions } from "../build/pack.js";
import { MAX_LEVEL, MIN_LEVEL } from "../bundle/frame.js";
import { productName, releaseName, releaseNotes, roleName, sequenceNumber } from "../bundle/manifest.js";
import type { BuildConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { patternFault } from "../root/path-pattern.js";
import { checkValue } from "../schema.js";
import { formatBytes, printable, type Environment } from "../report.js";
import { createBundleFile } from "../system/bundle-file.js";
import { requireFileName } from "../system/files.js";
import { readSecretKey } from "../system/key-files.js";
import { readBuildConfig, readKeyChange } from "../system/settings.js";
import { readStreamFile, streamFileBytes, untilAborted } from "../system/stream-file.js";
import { withScratch } from "../system/scratch.js";
import { packingThreads } from "../system/threads.js";
import {
  addThreadsOption,
  describeStreams,
  repeatable,
  shownManifest,
  threadsOf,
  wholeNumber,
} from "./summary.js";

interface CreateOptions {
  readonly base?: string;
  readonly target?: string;
  readonly for?: string;
  readonly output?: string;
  readonly stream?: readonly string[];
  readonly product?: string;
  readonly release?: string;
  readonly sequence?: string;
  readonly key?: string;
  readonly passwordFile?: string;
  readonly level?: string;
  readonly chunkMib?: string;
  readonly notes?: string;
  readonly expiresDays?: string;
  readonly allowSecret?: readonly string[];
  readonly config?: string;
  readonly threads?: string;
}

export function define(command: Command, environment: () => Environment): void {
  addThreadsOption(
    command
      .option(
        "-b, --base <release>",
        "the release that sites have (without it: a full bundle, a new site's first)",
      )
      .option("-t, --target <release>", "the release that they get")
      .option(
        "--for <request>",
        "exactly for the site that made this request; --target: the newest by default",
      )
      .option("-o, --output <file>", "the bundle to write (default: <product>-<release>.bundle)")
      .option(
        "-s, --stream <role=file>",
        "pack a recorded stream, - for standard input; can be repeated",
        repeatable,
      )
      .option("--product <name>", "with --stream: the product")
      .option("--release <name>", "with --stream: the release's name")
      .option("--sequence <number>", "with --stream: the release's sequence number")
      .option("-k, --key <file>", "the secret key that signs")
      .option("--password-file <file>", "take the key's passphrase from the first line of a file")
      .option("-l, --level <number>", `zstd level, ${MIN_LEVEL} to ${MAX_LEVEL} (default: 9)`)
      .option("--chunk-mib <number>", "raw size of a chunk in MiB, 1 to 32 (default: 8)")
      .option("--notes <text>", "release notes")
      .option("--expires-days <number>", "sites refuse the bundle this long after its snapshot was taken")
      .option(
        "--allow-secret <path>",
        "carry what is, or looks like, a secret: a path of / or a pattern; can be repeated",
        repeatable,
      )
      .option("--config <file>", "the build host's configuration (default: /etc/zferry/build.toml)"),
  )
    .addHelpText(
      "after",
      "\nExamples:\n  bundle create --base R1 --target R2 -o R2.bundle" +
        "\n  bundle create --for plant.request -o plant.bundle" +
        "\n  zfs send -i @R1 tank/usr@R2 | bundle create --stream usr=- --product demo --release R2 --sequence 2 --key release.key -o R2.bundle",
    )
    .action((options: CreateOptions) => runCreate(options, environment()));
}

/** Writes a bundle: from two releases of this build host, or from streams that were recorded earlier. */
export async function runCreate(options: CreateOptions, env: Environment): Promise<void> {
  const { stream } = options;
  if (stream !== undefined) return create(recordedInputs(options, stream, env), options, env);
  await withScratch(async (folder) => create(await hostInputs(options, folder, env), options, env));
}

async function create(what: Inputs, options: CreateOptions, env: Environment): Promise<void> {
  const threads = threadsOf(options);
  const output = options.output ?? `${what.product}-${what.release.name}.bundle`;
  requireFileName(output, "--output");
  const file = await createBundleFile(output, env.signal);
  const work = packingThreads(threads);
  try {
    const key = await readSecretKey(what.keyPath, what.passwordFile, (prompt) => env.askPassphrase(prompt));
    const { manifest, bytes } = await packBundle({ ...what, key, work }, file, env.progress, env.signal);
    if (env.json) {
      const result = { file: output, bytes, keyId: key.keyId, manifest: shownManifest(manifest) };
      return await env.write(`${JSON.stringify(result)}\n`);
    }
    const { product, release } = manifest;
    const line =
      `${output}: ${product} release ${release.name} (${release.sequence}), ${describeStreams(manifest)}, ` +
      `${formatBytes(bytes)}, signed by ${key.keyId}`;
    await env.write(`${printable(line)}\n`);
  } finally {
    env.progress.end();
    await work.close();
    await file.discard();
  }
}

type Inputs = Omit<PackOptions, "key"> & {
  readonly keyPath: string;
  readonly passwordFile: string | undefined;
};

const needed = (value: string | undefined, option: string): string => {
  if (value === undefined)
    throw new ZferryError("usage", `${option} is missing`, { hint: "bundle create --help shows how" });
  return value;
};

/** An option's value, checked by the schema of the field that it becomes. */
function checked<Value>(schema: GenericSchema<unknown, Value>, value: unknown, option: string): Value {
  const parsed = checkValue(schema, value);
  if (parsed.fault === undefined) return parsed.value;
  throw new ZferryError("usage", `${option} ${JSON.stringify(value)}: ${parsed.fault}`);
}

const packing = (
  options: CreateOptions,
  defaults: { level: number; chunkMib: number; expiresDays?: number | undefined },
) => ({
  level: wholeNumber(options.level, "--level", MIN_LEVEL, MAX_LEVEL) ?? defaults.level,
  chunkBytes: (wholeNumber(options.chunkMib, "--chunk-mib", 1, 32) ?? defaults.chunkMib) << 20,
  expiresDays: wholeNumber(options.expiresDays, "--expires-days", 1, 36_500) ?? defaults.expiresDays,
  notes: options.notes === undefined ? undefined : checked(releaseNotes, options.notes, "--notes"),
  passwordFile: options.passwordFile,
});

function recordedInputs(options: CreateOptions, recorded: readonly string[], env: Environment): Inputs {
  if (options.base !== undefined || options.target !== undefined || options.for !== undefined) {
    throw new ZferryError(
      "usage",
      "--stream packs a recorded stream, --base, --target and --for this host's releases",
    );
  }
  if (options.config !== undefined) {
    throw new ZferryError("usage", "--stream needs no configuration: --config goes with --base and --target");
  }
  if (options.allowSecret !== undefined) {
    throw new ZferryError("usage", "--allow-secret is for paths of /: it goes with --base and --target");
  }
  const streams = recorded.map((value) => {
    const [, role, path] = /^([^=]*)=(.+)$/s.exec(value) ?? [];
    if (role === undefined || path === undefined) {
      throw new ZferryError("usage", `--stream ${value}: is not role=file`);
    }
    const name = checked(roleName, role, "--stream");
    if (path === "-") return { role: name, source: untilAborted(env.stdin, env.signal) };
    const estimate = streamFileBytes(path);
    return {
      role: name,
      source: readStreamFile(path, env.signal),
      ...(estimate === undefined ? {} : { estimate }),
    };
  });
  if (recorded.filter((value) => value.endsWith("=-")).length > 1) {
    throw new ZferryError("usage", "--stream: standard input holds one stream only");
  }
  if (new Set(streams.map(({ role }) => role)).size < streams.length) {
    throw new ZferryError("usage", "--stream: a role is given twice");
  }
  const sequence = wholeNumber(
    needed(options.sequence, "--sequence"),
    "--sequence",
    1,
    Number.MAX_SAFE_INTEGER,
  );
  return {
    ...packing(options, { level: 9, chunkMib: 8 }),
    product: checked(productName, needed(options.product, "--product"), "--product"),
    release: {
      name: checked(releaseName, needed(options.release, "--release"), "--release"),
      sequence: checked(sequenceNumber, sequence, "--sequence"),
    },
    streams,
    root: undefined,
    keyPath: needed(options.key, "--key"),
  };
}

async function hostInputs(options: CreateOptions, scratchDir: string, env: Environment): Promise<Inputs> {
  for (const option of ["product", "release", "sequence"] as const) {
    if (options[option] !== undefined) throw new ZferryError("usage", `--${option} goes with --stream only`);
  }
  if (options.for !== undefined && options.base !== undefined) {
    throw new ZferryError("usage", "--for finds the base itself: leave out --base");
  }
  const wanted =
    options.for !== undefined && options.target === undefined
      ? undefined
      : checked(releaseName, needed(options.target, "--target"), "--target");
  const own = options.base === undefined ? undefined : checked(releaseName, options.base, "--base");
  const allow = options.allowSecret ?? [];
  for (const pattern of allow) {
    const fault = patternFault(pattern);
    if (fault !== undefined)
      throw new ZferryError("usage", `--allow-secret ${JSON.stringify(pattern)}: ${fault}`);
  }
  const config = await readBuildConfig(options.config);
  const { create } = config;
  // Loaded here, because what runs zfs and git takes a while to load, and a recorded stream needs neither.
  const { releaseInputs } = await import("../build/release.js");
  const site = options.for === undefined ? undefined : await inputsFor(options.for, wanted, config, env);
  const target = site?.target ?? needed(wanted, "--target");
  return {
    ...packing(options, {
      level: create.level,
      chunkMib: create.chunk_mib,
      expiresDays: create.expires_days,
    }),
    passwordFile: options.passwordFile ?? create.password_file,
    keyPath: needed(options.key ?? create.key, "--key, or key in [create] of the configuration,"),
    product: config.product,
    keys: await readKeyChange(config),
    ...(await releaseInputs(
      config,
      site === undefined ? own : site.base,
      target,
      { allow, files: [options.key, options.passwordFile] },
      scratchDir,
      site?.enabled,
    )),
    receivable: site?.receivable,
  };
}

/** What a bundle for one site is made from. */
async function inputsFor(
  path: string,
  wanted: string | undefined,
  config: BuildConfig,
  env: Environment,
): Promise<{
  readonly base: string | undefined;
  readonly target: string;
  readonly enabled: ReadonlyMap<string, ReadonlySet<string>>;
  readonly receivable: NonNullable<PackOptions["receivable"]>;
}> {
  const { baseFor, requireReceivable } = await import("../carry/request.js");
  const { readRequest } = await import("../carry/sites.js");
  const { describeReleases } = await import("../build/release.js");
  const { request, warnings } = await readRequest(path, config.sites, env.now());
  if (!env.json) for (const warning of warnings) env.note(`warning: ${warning}`);
  const releases = await describeReleases(config);
  const target = wanted === undefined ? releases.at(-1) : releases.find(({ name }) => name === wanted);
  if (target === undefined) {
    throw new ZferryError(
      "usage",
      wanted === undefined ? "there is no release yet" : `there is no release ${wanted}`,
      {
        hint: `releases: ${releases.map(({ name }) => name).join(", ") || "none; bundle snapshot makes one"}`,
      },
    );
  }
  const base = baseFor(request, config.product, Object.keys(config.streams), releases, target);
  return {
    base: base?.name,
    target: target.name,
    enabled: new Map(request.streams.map(({ role, poolFeatures }) => [role, new Set(poolFeatures)])),
    receivable: (role, poolFeatures) => requireReceivable(request, role, poolFeatures),
  };
}
