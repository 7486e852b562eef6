#!/usr/bin/env node
import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { EXIT_STATUS, ToldElsewhere, ZferryError } from "./errors.js";
import { asZferryError, errorAsJson, printable, printableJson, type Environment } from "./report.js";
import { isMoved, isOutputStuck, processEnvironment, settleMoved, writeOutput } from "./system/terminal.js";

/** What a file in commands/ exports: it adds arguments, options, an example and the action. */
interface CommandModule {
  define(command: Command, environment: () => Environment): void;
}

interface Verb {
  readonly name: string;
  readonly summary: string;
  readonly load: () => Promise<CommandModule>;
}

const VERBS: readonly Verb[] = [
  { name: "keygen", summary: "make a key pair for signing", load: () => import("./commands/keygen.js") },
  {
    name: "snapshot",
    summary: "make a release on the build host",
    load: () => import("./commands/snapshot.js"),
  },
  { name: "create", summary: "write a release's bundle", load: () => import("./commands/create.js") },
  {
    name: "sign",
    summary: "add a signature to a bundle",
    load: () => import("./commands/sign.js"),
  },
  {
    name: "sums",
    summary: "print what the signatures of a bundle sign",
    load: () => import("./commands/sums.js"),
  },
  {
    name: "verify",
    summary: "say whether a bundle is whole and from us",
    load: () => import("./commands/verify.js"),
  },
  {
    name: "copy",
    summary: "copy bundles to a medium, and read back what arrived",
    load: () => import("./commands/copy.js"),
  },
  { name: "inspect", summary: "show what is in a bundle", load: () => import("./commands/inspect.js") },
  {
    name: "plan",
    summary: "show what installing a bundle on this site would do",
    load: () => import("./commands/plan.js"),
  },
  {
    name: "install",
    summary: "install a bundle on this site, or go on with what is under way",
    load: () => import("./commands/install.js"),
  },
  {
    name: "resolve",
    summary: "settle the conflicts of a bundle with this site's /",
    load: () => import("./commands/resolve.js"),
  },
  {
    name: "abort",
    summary: "give up what is under way",
    load: () => import("./commands/abort.js"),
  },
  {
    name: "rollback",
    summary: "take the newest install back",
    load: () => import("./commands/rollback.js"),
  },
  {
    name: "confirm",
    summary: "keep the newest install: it cannot be rolled back any more",
    load: () => import("./commands/confirm.js"),
  },
  {
    name: "history",
    summary: "list the releases of this site",
    load: () => import("./commands/history.js"),
  },
  {
    name: "trust",
    summary: "show or change whose signatures this site believes",
    load: () => import("./commands/trust.js"),
  },
  {
    name: "setup",
    summary: "have the next boot finish an install that was interrupted",
    load: () => import("./commands/setup.js"),
  },
  {
    name: "request",
    summary: "say what this site has, so that a bundle can be made for it",
    load: () => import("./commands/request.js"),
  },
  {
    name: "receipt",
    summary: "say what this site installed, to be carried back",
    load: () => import("./commands/receipt.js"),
  },
  {
    name: "sites",
    summary: "keep the receipts of sites on the build host, and show which is where",
    load: () => import("./commands/sites.js"),
  },
  {
    name: "status",
    summary: "show what is installed and what is under way",
    load: () => import("./commands/status.js"),
  },
  {
    name: "environments",
    summary: "list the boot environments of this site",
    load: () => import("./commands/environments.js"),
  },
  {
    name: "activate",
    summary: "have a boot environment boot next",
    load: () => import("./commands/activate.js"),
  },
  {
    name: "drift",
    summary: "show how this site's / differs from its release",
    load: () => import("./commands/drift.js"),
  },
  {
    name: "send",
    summary: "write a bundle's stream to standard output",
    load: () => import("./commands/send.js"),
  },
  {
    name: "mirror",
    summary: "keep a folder of bundles, with a signed index, for a web server",
    load: () => import("./commands/mirror.js"),
  },
  {
    name: "fetch",
    summary: "download the bundles that lead to a release from mirrors",
    load: () => import("./commands/fetch.js"),
  },
];

/** The name that zferry was started by. */
const PROGRAM = basename(process.argv[1] ?? "") === "zferry" ? "zferry" : "bundle";
const COMMANDS = new RegExp(`\\bbundle (?=(?:${VERBS.map(({ name }) => name).join("|")})\\b)`, "g");

/** Commands that a text names, as they can be typed here: another `bundle` may be installed. */
const asStarted = (text: string): string => text.replace(COMMANDS, `${PROGRAM} `);

async function main(argv: readonly string[]): Promise<number> {
  const interrupted = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM", ...(isMoved() ? [] : ["SIGHUP"])])
    process.on(signal, () => interrupted.abort());

  const { version } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as {
    version: string;
  };
  let help = "";
  const program = new Command(PROGRAM)
    .description("Carries operating system updates on ZFS over an air gap: one signed file a release.")
    .version(version)
    .configureOutput({ outputError: () => undefined, writeOut: (text) => (help += text) })
    .addOption(new Option("--json", "print the result, or the error, as JSON"))
    .addOption(new Option("-q, --quiet", "no progress and no steps"))
    .exitOverride();

  const options = (): { json: boolean; quiet: boolean; version: string } => {
    const { json = false, quiet = false } = program.opts<{ json?: boolean; quiet?: boolean }>();
    return { json, quiet, version };
  };
  const [first, second] = argv.filter((argument) => !argument.startsWith("-"));
  const wanted = first === "help" ? second : first;
  for (const { name, summary, load } of VERBS) {
    const command = program.command(name).description(summary).exitOverride();
    // Only the verb that runs is loaded.
    if (name === wanted)
      (await load()).define(command, () => processEnvironment(options(), interrupted.signal));
    for (const option of command.options) refuseTwice(option);
    command
      .addOption(new Option("--json", "print the result, or the error, as JSON"))
      .addOption(new Option("-q, --quiet", "no progress and no steps"))
      .hook("preAction", () => {
        const own = command.opts<{ json?: boolean; quiet?: boolean }>();
        if (own.json) program.setOptionValue("json", true);
        if (own.quiet) program.setOptionValue("quiet", true);
      });
  }

  try {
    if (isMoved()) settleMoved();
    requireUtf8(argv);
    try {
      await program.parseAsync(argv, { from: "user" });
    } catch (error) {
      if (!(error instanceof CommanderError && error.exitCode === 0)) throw error;
      await writeOutput(asStarted(help));
    }
    return 0;
  } catch (error) {
    if (error instanceof ToldElsewhere) return error.status;
    const known = error instanceof CommanderError ? usageError(error, wanted) : asZferryError(error);
    const told =
      interrupted.signal.aborted && known.code !== "interrupted"
        ? new ZferryError("interrupted", "interrupted", { cause: error })
        : known;
    reportError(told, argv.includes("--json"));
    return EXIT_STATUS[told.code];
  }
}

/** An option that takes a value must not be given two, of which one would be passed over in silence. */
function refuseTwice(option: Option): void {
  if (!(option.required || option.optional) || option.parseArg !== undefined) return;
  option.argParser((value: string, previous: string | undefined) => {
    if (previous === undefined) return value;
    throw new InvalidArgumentError(
      `The option is given twice; the first time with ${JSON.stringify(previous)}`,
    );
  });
}

/** Node decodes arguments as UTF-8; a name in which it had to replace something is the name of another file. */
function requireUtf8(argv: readonly string[]): void {
  const wrong = argv.find((argument) => argument.includes("\ufffd"));
  if (wrong !== undefined) {
    throw new ZferryError("usage", `${wrong}: is not UTF-8`, { hint: "give the file a name in UTF-8" });
  }
}

function usageError({ code, message }: CommanderError, verb: string | undefined): ZferryError {
  // Commander gives its help code to a command line without a verb, and has shown the help.
  const fault =
    code === "commander.help"
      ? "a command is missing"
      : message.replace(/^error: /, "").replaceAll("\n", " ");
  const known = VERBS.some(({ name }) => name === verb);
  return new ZferryError("usage", fault, { hint: `${PROGRAM} ${known ? `${verb} ` : ""}--help shows how` });
}

function reportError(error: ZferryError, json: boolean): void {
  if (json) {
    process.stderr.write(`${printableJson(JSON.stringify(errorAsJson(error, asStarted)))}\n`);
    return;
  }
  const lines = [error, ...error.also].flatMap(({ message, hint }) => [
    `${PROGRAM}: ${message}`,
    ...(hint === undefined ? [] : [`  ${asStarted(hint)}`]),
  ]);
  process.stderr.write(lines.map((line) => `${printable(line)}\n`).join(""));
  if (error.code === "unexpected")
    process.stderr.write("  this is a fault of zferry itself; please report it\n");
}

// Site repositories and state are for root to write, whatever umask an installer was started with.
process.umask((process.umask() & 0o077) | 0o022);
process.exitCode = await main(process.argv.slice(2));
if (process.exitCode === EXIT_STATUS.interrupted && isOutputStuck()) {
  // Node would wait until somebody reads. To a shell an end by this signal is status 130 too.
  process.removeAllListeners("SIGINT");
  process.kill(process.pid, "SIGINT");
}
