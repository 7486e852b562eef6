import { parse, TomlError } from "smol-toml";
import * as v from "valibot";
import { datasetName, productName, roleName, sequenceNumber } from "./bundle/manifest.js";
import { ZferryError } from "./errors.js";
import { patternFault } from "./root/path-pattern.js";
import { checkValue, integer, list, record, table } from "./schema.js";

// formats/configuration.md. The JSON Schemas beside it are generated from these schemas and tested to be the same.

export const SITE_CONFIG_PATH = "/etc/zferry/site.toml";
export const BUILD_CONFIG_PATH = "/etc/zferry/build.toml";
/** Where a site keeps what no update and no rollback may turn back. */
export const STATE_PATH = "/var/lib/zferry";

const absolutePath = v.pipe(v.string(), v.regex(/^\/[^\0]*$/, "is not an absolute path"));
const pathPattern = v.pipe(
  v.string(),
  v.check(
    (text) => patternFault(text) === undefined,
    ({ input }) => patternFault(input) ?? "",
  ),
);
/** Of a command that has a program at all. */
const isProgram = ([program = "/"]: readonly string[]): boolean =>
  program.startsWith("/") && !program.includes("\0");
const mergePolicy = v.pipe(
  table({
    path: v.pipe(pathPattern, v.description("A pattern of the paths that it is for.")),
    policy: v.pipe(
      v.picklist(["ours", "theirs", "union", "command"]),
      v.description("What becomes of a conflict there."),
    ),
    command: v.pipe(
      v.optional(v.pipe(v.array(v.string()), v.maxLength(64)), []),
      v.description("The program of policy command, by its absolute path, and its first arguments."),
    ),
  }),
  v.check(
    ({ policy, command }) => (policy === "command") === command.length > 0,
    "needs command with policy command, and with no other",
  ),
  v.check(({ command }) => isProgram(command), "has a command that is not an absolute path"),
);
const MAX_MERGE_POLICIES = 1000;
const MAX_COMMANDS = 100;
/** Programs by absolute paths, each with its arguments. */
const commands = list(
  v.pipe(
    v.array(v.string()),
    v.minLength(1),
    v.maxLength(64),
    v.check((command) => isProgram(command), "is not an absolute path"),
  ),
  MAX_COMMANDS,
);
const MAX_ACCEPTED = 1000;
const MAX_SHARED = 100;
/** A path below `/`, spelled in one way. */
const pathBelowRoot = v.pipe(
  v.string(),
  v.regex(/^(\/(?!\.{1,2}(\/|$))[^/\0]+)+$/, "is no absolute path of a mount point"),
);
const bootEnvironment = v.pipe(
  table({
    container: v.pipe(
      v.optional(datasetName),
      v.description("The dataset right above the environments; by default that above the running one."),
    ),
    loader: v.pipe(
      v.optional(v.picklist(["bootfs", "zectl", "command"]), "bootfs"),
      v.description("What makes an environment the one that boots next."),
    ),
    command: v.pipe(
      v.optional(v.pipe(v.array(v.string()), v.maxLength(64)), []),
      v.description("The program of loader command, by its absolute path, and its first arguments."),
    ),
    boots: v.pipe(
      v.optional(integer(0, 99), 2),
      v.description("How often a new one is booted without being confirmed; 0: it is never on trial."),
    ),
    deadline: v.pipe(
      v.optional(integer(1, 86_400), 600),
      v.description(
        "Seconds after the first services of a boot start until a new one must have passed the checks.",
      ),
    ),
    checks: v.pipe(
      v.optional(commands, []),
      v.description("Programs that must end with 0 in a new one before it is confirmed."),
    ),
    changes: v.pipe(
      v.optional(v.picklist(["name", "merge"]), "name"),
      v.description(
        "What becomes of changes that were made in the one before after a new one was made from it, when that is confirmed.",
      ),
    ),
    keep: v.pipe(
      v.optional(integer(1, 1000), 3),
      v.description("How many of the environments that zferry made are not removed by itself."),
    ),
    keep_free: v.pipe(
      v.optional(integer(0), 0),
      v.description("Bytes that shall be free on their pool: for that, also some of those go that are kept."),
    ),
    accept: v.pipe(
      v.optional(list(pathPattern, MAX_ACCEPTED), []),
      v.description(
        "Patterns of paths on the dataset of / that git does not track, and that may turn back with it.",
      ),
    ),
    shared: v.pipe(
      v.optional(list(pathBelowRoot, MAX_SHARED), []),
      v.description(
        "Mount points in / of file systems that all environments share, and that an install may change at once.",
      ),
    ),
  }),
  v.check(
    ({ loader, command }) => (loader === "command") === command.length > 0,
    "needs command with loader command, and with no other",
  ),
  v.check(({ command }) => isProgram(command), "has a command that is not an absolute path"),
);
const install = v.pipe(
  table({
    mode: v.pipe(
      v.optional(v.picklist(["in-place", "boot-environment"])),
      v.description(
        "Whether the system itself is changed, or a new one beside it that boots next; by default the latter where / is on ZFS.",
      ),
    ),
    after: v.pipe(
      v.optional(commands, []),
      v.description(
        "Programs that are run in a new boot environment, by absolute paths, with their arguments.",
      ),
    ),
  }),
  v.check(
    ({ mode, after }) => mode !== "in-place" || after.length === 0,
    "has after, which only mode boot-environment runs",
  ),
);
const streams = v.pipe(
  record(roleName, datasetName),
  v.check((datasets) => Object.keys(datasets).length > 0, "names no dataset"),
  v.check(
    (datasets) => new Set(Object.values(datasets)).size === Object.keys(datasets).length,
    "names a dataset twice",
  ),
);

/** A file is called by it, and a key. */
export const siteName = v.pipe(
  v.string(),
  v.regex(/^(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, "is not a site's name"),
);

export const siteSchema = table({
  product: v.pipe(productName, v.description("Bundles of any other product are refused.")),
  site: v.pipe(
    v.optional(
      table({
        name: v.pipe(siteName, v.description("What its requests and receipts call it.")),
        key: v.pipe(v.optional(absolutePath), v.description("The secret key that signs them.")),
      }),
    ),
    v.description("Which machine this is."),
  ),
  trust: v.optional(
    table({
      keys: v.pipe(
        v.optional(absolutePath, "/etc/zferry/keys"),
        v.description("The folder of the trusted public keys, *.pub."),
      ),
      threshold: v.pipe(
        v.optional(integer(1, 16), 1),
        v.description("How many of these keys must have signed."),
      ),
    }),
    {},
  ),
  streams: v.pipe(streams, v.description("The dataset that receives each role's stream.")),
  root: v.pipe(
    v.optional(
      table({
        path: v.optional(absolutePath, "/"),
        drift: v.pipe(
          v.optional(v.picklist(["refuse", "commit"]), "refuse"),
          v.description("What becomes of changes that the site did not commit before an install."),
        ),
        merge: v.pipe(
          v.optional(list(mergePolicy, MAX_MERGE_POLICIES), []),
          v.description("What decides conflicts; the first entry that means a path."),
        ),
      }),
    ),
    v.description("The git work tree that the root half changes."),
  ),
  install: v.pipe(v.optional(install, {}), v.description("How a release is installed.")),
  "boot-environment": v.pipe(
    v.optional(bootEnvironment, {}),
    v.description("Where the boot environments are, and who boots them."),
  ),
  state: v.pipe(
    v.optional(absolutePath, STATE_PATH),
    v.description("The folder of what no update and no rollback may turn back."),
  ),
});
/** What the file has. */
export type SiteFile = v.InferOutput<typeof siteSchema>;

/** How a release is installed, and what decided that: `live` is `--live`, `under-way` what is in the journal. */
export interface InstallMode {
  readonly mode: "in-place" | "boot-environment";
  readonly from: "configuration" | "under-way" | "live" | "default";
}
/** A site's configuration, with the mode that counts. */
export type SiteConfig = Omit<SiteFile, "install"> & {
  readonly install: Omit<SiteFile["install"], "mode"> & InstallMode;
};

/**
 * The git work tree of a site's `/`.
 * @throws ZferryError `not-configured` where the configuration names none
 */
export function requireRoot({ root }: SiteConfig): NonNullable<SiteConfig["root"]> {
  if (root !== undefined) return root;
  throw new ZferryError("not-configured", "the site's configuration has no [root]", {
    hint: 'add [root] with path = "/"',
  });
}

export const buildSchema = table({
  product: productName,
  streams: v.pipe(streams, v.description("The dataset that is sent as each role's stream.")),
  root: table({
    path: v.pipe(v.optional(absolutePath, "/"), v.description("The git work tree of /.")),
    dataset: v.pipe(
      datasetName,
      v.description("What it lies on: its snapshots tell owners and modes as they were."),
    ),
  }),
  send: v.optional(
    table({
      large_blocks: v.pipe(
        v.optional(v.boolean(), false),
        v.description("zfs send -L. It must never change between releases."),
      ),
      embedded: v.pipe(v.optional(v.boolean(), false), v.description("zfs send -e.")),
      compressed: v.pipe(v.optional(v.boolean(), false), v.description("zfs send -c.")),
      raw: v.pipe(v.optional(v.boolean(), false), v.description("zfs send -w.")),
    }),
    {},
  ),
  secrets: v.optional(
    table({
      deny: v.pipe(
        v.optional(v.array(pathPattern), []),
        v.description("Paths of / that no bundle carries, beside those that none ever does."),
      ),
      allow: v.pipe(
        v.optional(v.array(pathPattern), []),
        v.description("Paths of / that are no secrets, whatever they look like."),
      ),
    }),
    {},
  ),
  keys: v.pipe(
    v.optional(
      table({
        counter: v.pipe(sequenceNumber, v.description("Must rise with every change of the two lists.")),
        add: v.pipe(
          v.optional(v.array(absolutePath), []),
          v.description("Files of public keys that sites trust from now on."),
        ),
        revoke: v.pipe(
          v.optional(v.array(absolutePath), []),
          v.description("Files of public keys that sites never trust again."),
        ),
      }),
    ),
    v.description("A change of the sites' trusted keys, which every bundle carries."),
  ),
  sites: v.optional(
    table({
      keys: v.pipe(
        v.optional(absolutePath, "/etc/zferry/sites"),
        v.description("The folder of the sites' public keys, NAME.pub."),
      ),
      receipts: v.pipe(
        v.optional(absolutePath, "/var/lib/zferry/sites"),
        v.description("The folder of the newest receipt of each site."),
      ),
    }),
    {},
  ),
  create: v.optional(
    table({
      key: v.pipe(v.optional(absolutePath), v.description("The secret key that signs.")),
      password_file: v.pipe(
        v.optional(absolutePath),
        v.description("Its passphrase is the first line of this file."),
      ),
      level: v.pipe(v.optional(integer(1, 22), 9), v.description("zstd's level.")),
      chunk_mib: v.pipe(v.optional(integer(1, 32), 8), v.description("Raw size of a chunk in MiB.")),
      expires_days: v.pipe(
        v.optional(integer(1, 36_500)),
        v.description("Days from a bundle's creation to its expiry."),
      ),
    }),
    {},
  ),
});
export type BuildConfig = v.InferOutput<typeof buildSchema>;

/**
 * Parses a configuration file.
 * @throws ZferryError `config-malformed`, naming the file and the line or field
 */
export function parseConfig<Schema extends v.GenericSchema>(
  schema: Schema,
  text: string,
  path: string,
): v.InferOutput<Schema> {
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
