import { Argument, type Command } from "commander";
import {
  addToMirror,
  indexMirror,
  removeFromMirror,
  type ChangedMirror,
  type MirrorOptions,
} from "../carry/mirror.js";
import { INDEX_LIMITS } from "../carry/index-format.js";
import { ZferryError } from "../errors.js";
import { formatBytes, formatTime, printable, type Environment } from "../report.js";
import type { OpenedFile } from "../system/bundle-file.js";
import { readPublicKey, readSecretKey } from "../system/key-files.js";
import { publicKeyOf } from "../trust/minisign.js";
import {
  addSearchOption,
  addThreadsOption,
  openGiven,
  repeatable,
  threadsOf,
  wholeNumber,
} from "./summary.js";

interface MirrorCommandOptions {
  readonly key: string;
  readonly passwordFile?: string;
  readonly trust?: readonly string[];
  readonly expiresDays?: string;
  readonly threads?: string;
  readonly verify?: boolean;
  readonly search?: readonly string[];
}

const ACTIONS = ["add", "remove", "index"] as const;
type Action = (typeof ACTIONS)[number];

const DEFAULT_EXPIRES_DAYS = 30;

export function define(command: Command, environment: () => Environment): void {
  addThreadsOption(
    addSearchOption(command)
      .addArgument(
        new Argument("<action>", "add FILE… DIR, remove RELEASE… DIR, or index DIR").choices(ACTIONS),
      )
      .argument("<names...>", "bundles or releases, and last the mirror's folder")
      .requiredOption("-k, --key <file>", "the secret key that signs the index")
      .option("--password-file <file>", "take the key's passphrase from the first line of a file")
      .option(
        "--trust <file>",
        "a public key that may have signed the bundles, beside --key's own; can be repeated",
        repeatable,
      )
      .option(
        "--expires-days <days>",
        `how long clients believe the index (default: ${DEFAULT_EXPIRES_DAYS}, at most ${INDEX_LIMITS.indexDays})`,
      )
      .option("--verify", "index: read every byte of every bundle, not only the heads of those that changed"),
  )
    .addHelpText(
      "after",
      "\nAny web server that serves the folder is a mirror. add verifies the bundles first; index makes the index anew, of all the" +
        "\nbundles that lie there, and renews its expiry: run it more often than that." +
        "\n\nExamples:\n  bundle mirror add R2.bundle /srv/www/gentoo --key release.key" +
        "\n  bundle mirror remove R1 /srv/www/gentoo --key release.key" +
        "\n  bundle mirror index /srv/www/gentoo --key release.key --password-file release.password",
    )
    .action((action: Action, names: readonly string[], options: MirrorCommandOptions) =>
      runMirror(action, names, options, environment()),
    );
}

/** Changes a mirror's folder, and prints what it has then. */
export async function runMirror(
  action: Action,
  names: readonly string[],
  options: MirrorCommandOptions,
  env: Environment,
): Promise<void> {
  const folder = names.at(-1) as string;
  const what = names.slice(0, -1);
  if ((action === "index") !== (what.length === 0)) {
    throw new ZferryError(
      "usage",
      action === "index"
        ? `mirror index takes the mirror's folder alone, not also ${what.join(" ")}`
        : `mirror ${action}: ${folder} is the only name; the mirror's folder comes last`,
      { hint: "bundle mirror --help shows how" },
    );
  }
  if (options.verify === true && action !== "index") {
    throw new ZferryError("usage", `--verify is for mirror index; mirror ${action} has none`);
  }
  const expiresDays =
    wholeNumber(options.expiresDays, "--expires-days", 1, INDEX_LIMITS.indexDays) ?? DEFAULT_EXPIRES_DAYS;
  const threads = threadsOf(options);
  const trust = await Promise.all((options.trust ?? []).map(readPublicKey));
  const key = await readSecretKey(options.key, options.passwordFile, (prompt) => env.askPassphrase(prompt));
  const settings: MirrorOptions = {
    key,
    trusted: [publicKeyOf(key, options.key), ...trust],
    expiresDays,
    threads,
    verifyAll: options.verify === true,
  };
  const changed = await change(action, folder, what, settings, options, env);
  const { index, added, removed } = changed;
  if (env.json) {
    const { product, counter, expires, bundles } = index;
    const result = { folder, product, counter, expires, keyId: key.keyId, bundles, added, removed };
    return await env.write(`${JSON.stringify(result)}\n`);
  }
  const lines = [
    ...added.map(({ path, size }) => `added ${path}, ${formatBytes(size)}`),
    ...removed.map(({ path }) => `removed ${path}`),
    `${folder}: product ${index.product}, bundles: ${index.bundles.length}, counter ${index.counter}, signed by ${key.keyId}, until ${formatTime(index.expires)}`,
  ];
  await env.write(lines.map((line) => `${printable(line)}\n`).join(""));
}

async function change(
  action: Action,
  folder: string,
  what: readonly string[],
  settings: MirrorOptions,
  options: MirrorCommandOptions,
  env: Environment,
): Promise<ChangedMirror> {
  switch (action) {
    case "add": {
      const files: OpenedFile[] = [];
      try {
        for (const path of what) files.push(await openGiven(path, options, env, settings.threads));
        return await addToMirror(folder, files, settings, env);
      } finally {
        env.progress.end();
        await Promise.all(files.map((file) => file.close()));
      }
    }
    case "remove":
      return removeFromMirror(folder, what, settings, env);
    case "index":
      return indexMirror(folder, settings, env);
  }
}
