import type { Command } from "commander";
import { ZferryError } from "../errors.js";
import { printable, type Environment } from "../report.js";
import { requireFileName } from "../system/files.js";
import { readPassphraseFile, requireNewFiles, writeNewFiles } from "../system/key-files.js";
import { encodePublicKey, encodeSecretKey, generateKeyPair } from "../trust/minisign.js";

interface KeygenOptions {
  readonly output: string;
  readonly password: boolean;
  readonly passwordFile?: string;
}

export function define(command: Command, environment: () => Environment): void {
  command
    .requiredOption("-o, --output <name>", "write <name>.key, to be kept secret, and <name>.pub")
    .option("--no-password", "do not encrypt the secret key")
    .option("--password-file <file>", "take the passphrase from the first line of a file")
    .addHelpText(
      "after",
      "\nExample:\n  bundle keygen -o release    # release.key stays here, release.pub goes to the sites",
    )
    .action((options: KeygenOptions) => runKeygen(options, environment()));
}

/** Makes a minisign key pair. */
export async function runKeygen(options: KeygenOptions, env: Environment): Promise<void> {
  if (!options.password && options.passwordFile !== undefined) {
    throw new ZferryError("usage", "--no-password and --password-file contradict each other");
  }
  requireFileName(options.output, "--output");
  const secretPath = `${options.output}.key`;
  const publicPath = `${options.output}.pub`;
  await requireNewFiles([secretPath, publicPath]);
  const passphrase = options.password ? await newPassphrase(options, env) : undefined;
  const { secretKey, publicKey } = generateKeyPair();
  await writeNewFiles([
    { path: secretPath, bytes: await encodeSecretKey(secretKey, passphrase), mode: 0o600 },
    { path: publicPath, bytes: encodePublicKey(publicKey), mode: 0o644 },
  ]);
  await env.write(
    env.json
      ? `${JSON.stringify({ keyId: publicKey.keyId, secretKey: secretPath, publicKey: publicPath })}\n`
      : `${printable(`key ${publicKey.keyId}: secret in ${secretPath}, public in ${publicPath}`)}\n`,
  );
}

async function newPassphrase({ passwordFile }: KeygenOptions, env: Environment): Promise<string> {
  const passphrase =
    passwordFile === undefined
      ? await env.askPassphrase(
          "passphrase for the new secret key",
          "give the passphrase with --password-file, or make a key without one with --no-password",
        )
      : await readPassphraseFile(passwordFile);
  if (passphrase === "") {
    throw new ZferryError("usage", "the passphrase is empty", {
      hint: "for a key without one, say --no-password",
    });
  }
  if (passwordFile === undefined && (await env.askPassphrase("repeat the passphrase")) !== passphrase) {
    throw new ZferryError("usage", "the two passphrases differ");
  }
  return passphrase;
}
