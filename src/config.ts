import { parse, TomlError } from "smol-toml";
import { z } from "zod";
import { datasetName, productName, roleName, sequenceNumber } from "./bundle/manifest.js";
import { ZferryError } from "./errors.js";
import { checkValue } from "./schema.js";

// formats/configuration.md. The JSON Schemas beside it are generated from these schemas and tested to be the same.

export const SITE_CONFIG_PATH = "/etc/zferry/site.toml";
export const BUILD_CONFIG_PATH = "/etc/zferry/build.toml";
/** Where a site keeps what no update and no rollback may turn back. */
export const STATE_PATH = "/var/lib/zferry";

const absolutePath = z.string().regex(/^\/[^\0]*$/, "is not an absolute path");
const streams = z
  .record(roleName, datasetName)
  .refine((datasets) => Object.keys(datasets).length > 0, "names no dataset")
  .refine(
    (datasets) => new Set(Object.values(datasets)).size === Object.keys(datasets).length,
    "names a dataset twice",
  );

export const siteSchema = z.strictObject({
  product: productName.describe("Bundles of any other product are refused."),
  trust: z
    .strictObject({
      keys: absolutePath
        .default("/etc/zferry/keys")
        .describe("The folder of the trusted public keys, *.pub."),
      threshold: z.int().min(1).max(16).default(1).describe("How many of these keys must have signed."),
    })
    .prefault({}),
  streams: streams.describe("The dataset that receives each role's stream."),
  root: z
    .strictObject({ path: absolutePath.default("/") })
    .optional()
    .describe("The git work tree that the root half changes."),
  state: absolutePath
    .default(STATE_PATH)
    .describe("The folder of what no update and no rollback may turn back."),
});
export type SiteConfig = z.infer<typeof siteSchema>;

export const buildSchema = z.strictObject({
  product: productName,
  streams: streams.describe("The dataset that is sent as each role's stream."),
  root: z.strictObject({
    path: absolutePath.default("/").describe("The git work tree of /."),
    dataset: datasetName.describe("What it lies on: its snapshots tell owners and modes as they were."),
  }),
  send: z
    .strictObject({
      large_blocks: z
        .boolean()
        .default(false)
        .describe("zfs send -L. It must never change between releases."),
      embedded: z.boolean().default(false).describe("zfs send -e."),
      compressed: z.boolean().default(false).describe("zfs send -c."),
      raw: z.boolean().default(false).describe("zfs send -w."),
    })
    .prefault({}),
  keys: z
    .strictObject({
      counter: sequenceNumber.describe("Must rise with every change of the two lists."),
      add: z.array(absolutePath).default([]).describe("Files of public keys that sites trust from now on."),
      revoke: z
        .array(absolutePath)
        .default([])
        .describe("Files of public keys that sites never trust again."),
    })
    .optional()
    .describe("A change of the sites' trusted keys, which every bundle carries."),
  create: z
    .strictObject({
      key: absolutePath.optional().describe("The secret key that signs."),
      password_file: absolutePath.optional().describe("Its passphrase is the first line of this file."),
      level: z.int().min(1).max(22).default(9).describe("zstd's level."),
      chunk_mib: z.int().min(1).max(32).default(8).describe("Raw size of a chunk in MiB."),
      expires_days: z
        .int()
        .min(1)
        .max(36_500)
        .optional()
        .describe("Days from a bundle's creation to its expiry."),
    })
    .prefault({}),
});
export type BuildConfig = z.infer<typeof buildSchema>;

/**
 * Parses a configuration file.
 * @throws ZferryError `config-malformed`, naming the file and the line or field
 */
export function parseConfig<Schema extends z.ZodType>(
  schema: Schema,
  text: string,
  path: string,
): z.infer<Schema> {
  const malformed = (fault: string): ZferryError =>
    new ZferryError("config-malformed", `${path}: ${fault}`, { details: { file: path } });
  let value: unknown;
  try {
    value = parse(text);
  } catch (error) {
    if (!(error instanceof TomlError)) throw error;
    // The first line of the message says what is wrong, the others draw where.
    throw malformed(`line ${error.line}, column ${error.column}: ${error.message.split("\n", 1)[0]}`);
  }
  const parsed = checkValue(schema, value);
  if (parsed.fault !== undefined) throw malformed(parsed.fault);
  return parsed.value;
}
