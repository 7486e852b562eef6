import { join, resolve } from "node:path";
import type { Command } from "commander";
import { ZferryError } from "../errors.js";
import { SITE_CONFIG_PATH } from "../config.js";
import type { PlacedFile } from "../install/boot-units.js";
import {
  configWithin,
  placeFiles,
  planSetup,
  recogniseInitSystem,
  removeFiles,
  type SetupStep,
} from "../install/setup.js";
import { describeMove, moveState, planStateMove, type StateMove } from "../install/state-dataset.js";
import { makeRepository, planRepository, type SiteRepository } from "../install/repository.js";
import { showPath } from "../raw-path.js";
import { formatBytes, printable, type Environment } from "../report.js";
import { pathName } from "../root/paths.js";
import { INIT_SYSTEMS, ownCommand, type InitSystem } from "../system/init-system.js";
import { readSiteConfig } from "../system/settings.js";
import { closeTree, openTree } from "../system/tree.js";
import { repeatable } from "./summary.js";

interface SetupOptions {
  readonly init?: string;
  readonly root?: string;
  readonly config?: string;
  readonly print?: boolean;
  readonly remove?: boolean;
  readonly repository?: boolean;
  readonly ignore?: readonly string[];
}

export function define(command: Command, environment: () => Environment): void {
  command
    .option("--init <system>", "systemd or openrc (default: the one that is there)")
    .option("--root <folder>", "the system in this folder, instead of the one that runs")
    .option("--config <file>", "the site's configuration, in that system (default: /etc/zferry/site.toml)")
    .option("--print", "show what would be written, and write nothing")
    .option("--remove", "take it away again")
    .option(
      "--repository",
      "instead, make a git repository of a site's / that has none, and commit what is there",
    )
    .option("--ignore <pattern>", "with --repository: ignore this too; can be repeated", repeatable)
    .addHelpText(
      "after",
      "\nExamples:\n  bundle setup\n  bundle setup --print\n  bundle setup --root /mnt/image --init openrc\n" +
        "  bundle setup --repository --print\n  bundle setup --repository --ignore /var/lib/docker\n\n" +
        "At boot it runs bundle install, if an install is under way. It is not started now.",
    )
    .action((options: SetupOptions) => runSetup(options, environment()));
}

/** Has an init system finish at boot what was interrupted, or no longer; or makes the repository of `/`. */
export async function runSetup(options: SetupOptions, env: Environment): Promise<void> {
  if (options.print && options.remove) {
    throw new ZferryError("usage", "--print and --remove contradict each other");
  }
  if (options.root === "") throw new ZferryError("usage", "--root names no folder");
  if (options.repository) return setUpRepository(options, env);
  if (options.ignore !== undefined) {
    throw new ZferryError("usage", "--ignore goes with --repository");
  }
  const init = initOf(options);
  const tree = openTree(options.root ?? "/");
  try {
    if (options.remove) {
      const steps = removeFiles(tree, init === undefined ? INIT_SYSTEMS : [init]);
      await env.write(env.json ? asJson(init, steps) : removalAsText(steps));
      return;
    }
    const system = init ?? recogniseInitSystem(tree);
    const note = (line: string): void => env.note(printable(line));
    const { files, advice, site } = await planSetup(tree, system, options.config, ownCommand(), note);
    const move = tree.path === "/" ? await planStateMove(site) : undefined;
    if (options.print) {
      const besides = { advice, state: move };
      await env.write(
        env.json ? filesAsJson(tree.path, system, files, besides) : filesAsText(tree.path, files, move),
      );
    } else {
      const steps = placeFiles(tree, files);
      if (move !== undefined) await moveState(site, move);
      await env.write(
        env.json ? asJson(system, steps, { advice, state: move }) : asText(system, steps, move),
      );
    }
    advice.forEach(note);
  } finally {
    closeTree(tree);
  }
}

/** Makes the repository of a site's `/`, or says what it would have. */
async function setUpRepository(options: SetupOptions, env: Environment): Promise<void> {
  if (options.remove || options.init !== undefined) {
    const other = options.remove ? "--remove" : "--init";
    throw new ZferryError("usage", `--repository and ${other} contradict each other`);
  }
  const systemDir = resolve(options.root ?? "/");
  const config = configWithin(systemDir, options.config) ?? SITE_CONFIG_PATH;
  const site = await readSiteConfig(join(systemDir, config));
  const wanted = { site, systemDir, ignore: options.ignore ?? [] };
  if (options.print) {
    const planned = await planRepository(wanted);
    return env.write(env.json ? repositoryAsJson(planned, null) : planAsText(planned));
  }
  const made = await makeRepository(wanted, env.now());
  await env.write(env.json ? repositoryAsJson(made, made.commit) : repositoryAsText(made));
}

const shown = (line: string): string => printable(Buffer.from(line, "latin1").toString("utf8"));

const repositoryAsJson = (repository: SiteRepository, commit: string | null): string =>
  `${JSON.stringify({
    outcome: commit === null ? "printed" : "written",
    path: repository.gitDir,
    commit,
    ignored: repository.ignored.map(shown),
    files: repository.files,
    bytes: repository.bytes,
    leftOut: repository.inner.map(pathName),
  })}\n`;

const leftOut = ({ inner }: SiteRepository): string[] =>
  inner.map((path) => `  left out: ${printable(showPath(path))}, a repository of its own`);

function planAsText(repository: SiteRepository): string {
  const { gitDir, ignored, files, bytes } = repository;
  const lines = [
    `# ${printable(join(gitDir, "info/exclude"))}`,
    ...ignored.map(shown),
    "",
    `${files} files would be committed, ${formatBytes(bytes)}`,
    ...leftOut(repository),
  ];
  return `${lines.join("\n")}\n`;
}

function repositoryAsText(repository: SiteRepository & { readonly commit: string }): string {
  const { gitDir, commit, files, bytes } = repository;
  const title = `made ${printable(gitDir)}, with ${files} files, ${formatBytes(bytes)}, in commit ${commit}`;
  return `${[title, ...leftOut(repository)].join("\n")}\n`;
}

function initOf({ init }: SetupOptions): InitSystem | undefined {
  const known = INIT_SYSTEMS.find((name) => name === init);
  if (init !== undefined && known === undefined) {
    throw new ZferryError("usage", `--init ${JSON.stringify(init)}: is not ${INIT_SYSTEMS.join(" or ")}`);
  }
  return known;
}

/** What is said beside the files. */
interface Besides {
  readonly advice: readonly string[];
  readonly state: StateMove | undefined;
}

const asJson = (init: InitSystem | undefined, files: readonly SetupStep[], besides?: Besides): string =>
  `${JSON.stringify({ init: init ?? null, files, ...told(besides) })}\n`;

/** Members that are absent where there is nothing to be said. */
const told = ({ advice, state }: Besides = { advice: [], state: undefined }): object => ({
  ...(advice.length === 0 ? {} : { advice }),
  ...(state === undefined ? {} : { state }),
});

const filesAsJson = (
  root: string,
  init: InitSystem,
  files: readonly PlacedFile[],
  besides: Besides,
): string =>
  `${JSON.stringify({
    init,
    ...told(besides),
    files: files.flatMap(({ path, mode, text, links = [] }) => [
      { path: join(root, path), outcome: "printed", mode: mode.toString(8), text },
      ...links.map((link) => ({ path: join(root, link.path), outcome: "printed", target: link.target })),
    ]),
  })}\n`;

function filesAsText(root: string, files: readonly PlacedFile[], move: StateMove | undefined): string {
  const texts = files.map(({ path, text, links = [] }) => {
    const enabled = links.map((link) => `\n# ${printable(join(root, link.path))} -> ${link.target}\n`);
    return `# ${printable(join(root, path))}\n${text}${enabled.join("")}`;
  });
  return [...texts, ...(move === undefined ? [] : [`# ${printable(describeMove(move))}\n`])].join("\n");
}

function asText(init: InitSystem, steps: readonly SetupStep[], move: StateMove | undefined): string {
  const changed = steps.filter(({ outcome }) => outcome !== "present");
  const moved = move === undefined ? [] : [`  ${describeMove(move)}`];
  const lines =
    changed.length + moved.length === 0
      ? [`${init} is set up already; nothing to do`]
      : [
          `set up ${init}: a boot finishes an install that was interrupted`,
          ...changed.map(({ path, outcome }) => `  ${outcome === "removed" ? "removed" : "wrote"} ${path}`),
          ...moved,
        ];
  return `${lines.map(printable).join("\n")}\n`;
}

function removalAsText(steps: readonly SetupStep[]): string {
  const removed = steps.filter(({ outcome }) => outcome === "removed");
  const lines =
    removed.length === 0
      ? ["nothing of bundle setup is there; nothing to do"]
      : removed.map(({ path }) => `removed ${path}`);
  return `${lines.map(printable).join("\n")}\n`;
}
