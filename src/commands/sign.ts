import type { Command } from "commander";
import { readDetached, signBundle, withSignature } from "../build/sign.js";
import { Bundle, type Signature } from "../bundle/reader.js";
import { resigned } from "../bundle/writer.js";
import { ZferryError } from "../errors.js";
import { printable, type Environment } from "../report.js";
import { writeBundleFile } from "../system/bundle-file.js";
import { requireFileName } from "../system/files.js";
import { readPublicKey, readSecretKey, readSignatureFile } from "../system/key-files.js";
import { publicKeyOf, type PublicKey } from "../trust/minisign.js";
import { addSearchOption, openGiven } from "./summary.js";
import { checkWhole } from "./verify.js";

interface SignOptions {
  readonly key?: string;
  readonly passwordFile?: string;
  readonly attach?: string;
  readonly output?: string;
  readonly search?: readonly string[];
}

export function define(command: Command, environment: () => Environment): void {
  addSearchOption(command)
    .argument("<file>", "the bundle")
    .option(
      "-k, --key <file>",
      "the secret key that signs; with --attach: the public key to check the signature with",
    )
    .option("--password-file <file>", "take the key's passphrase from the first line of a file")
    .option("--attach <file>", "add a signature of what bundle sums prints, made by minisign elsewhere")
    .option("-o, --output <file>", "write to another file (default: replace the bundle)")
    .addHelpText(
      "after",
      "\nExamples:\n  bundle sign R2.bundle --key second.key" +
        "\n  bundle sign R2.bundle --attach SHA256SUMS.minisig --key second.pub",
    )
    .action((file: string, options: SignOptions) => runSign(file, options, environment()));
}

/** Adds a signature to a bundle, after every byte of it was checked. */
export async function runSign(path: string, options: SignOptions, env: Environment): Promise<void> {
  if (options.attach === undefined && options.key === undefined) {
    throw new ZferryError("usage", "--key or --attach is missing", { hint: "bundle sign --help shows how" });
  }
  if (options.attach !== undefined && options.passwordFile !== undefined) {
    throw new ZferryError("usage", "--attach needs no secret key, so no --password-file either");
  }
  const output = options.output ?? path;
  requireFileName(output, "--output");
  const file = await openGiven(path, options, env);
  try {
    if (file.stat.isBlockDevice() && options.output === undefined) {
      throw new ZferryError("usage", `${path} is a device, which cannot be replaced`, {
        hint: "name a file with --output",
      });
    }
    if (file.inVolumes && options.output === undefined) {
      throw new ZferryError("usage", `${path} is a volume, and a signature changes all of them`, {
        hint: "name a file for the whole bundle with --output, and write volumes of it with bundle copy",
      });
    }
    if (options.output === undefined) file.lock();
    const bundle = await Bundle.readUnverified(file);
    await checkWhole(bundle, env);
    const { signature, publicKey } = await makeSignature(bundle, options, env);
    const signatures = await withSignature(bundle, signature, publicKey);
    const parts = resigned(bundle, signatures);
    const bytes = await writeBundleFile(
      output,
      parts,
      env.signal,
      options.output === undefined ? { replace: file.stat } : {},
    );
    const { keyId } = signature;
    const what =
      publicKey === undefined ? `attached a signature of ${keyId}, NOT CHECKED` : `signed by ${keyId}`;
    await env.write(
      env.json
        ? `${JSON.stringify({ file: output, bytes, keyId, checked: publicKey !== undefined, signatures: signatures.length })}\n`
        : `${printable(`${output}: ${what}; signatures: ${signatures.map((each) => each.keyId).join(", ")}`)}\n`,
    );
  } finally {
    env.progress.end();
    await file.close();
  }
}

async function makeSignature(
  bundle: Bundle,
  options: SignOptions,
  env: Environment,
): Promise<{ signature: Signature; publicKey: PublicKey | undefined }> {
  const { key, attach, passwordFile } = options;
  if (attach === undefined) {
    const secret = await readSecretKey(key as string, passwordFile, (prompt) => env.askPassphrase(prompt));
    return { signature: signBundle(bundle, secret), publicKey: publicKeyOf(secret) };
  }
  const publicKey = key === undefined ? undefined : await readPublicKey(key);
  const signature = await readDetached(bundle, await readSignatureFile(attach), attach, publicKey);
  if (publicKey === undefined) {
    env.note(
      `the signature was not checked, and sites refuse a bundle with a wrong one: --key names the public key of ${signature.keyId}`,
    );
  }
  return { signature, publicKey };
}
