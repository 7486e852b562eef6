import {
  chmodSync,
  existsSync,
  fsyncSync,
  lstatSync,
  mkdirSync,
  readlinkSync,
  realpathSync,
  symlinkSync,
  unlinkSync,
  type Stats,
} from "node:fs";
import { dirname, isAbsolute, join, resolve } from "node:path";
import { SITE_CONFIG_PATH, type SiteConfig } from "../config.js";
import { ZferryError } from "../errors.js";
import { ancestors, type RawPath } from "../raw-path.js";
import { writeFileDurably } from "../system/files.js";
import {
  INIT_SYSTEMS,
  installedInitSystems,
  runningInitSystem,
  type InitSystem,
} from "../system/init-system.js";
import { readSiteConfig } from "../system/settings.js";
import { inPlace, kindAt, readFileIn, type Tree } from "../system/tree.js";
import { bootUnit, isOurs, PLACES, type PlacedFile } from "./boot-units.js";
import { planTrialSetup, trialPlaces, type TrialSetup } from "./trial-setup.js";

/** What became of a path, which is given with the folder of the tree. */
export interface SetupStep {
  readonly path: string;
  readonly outcome: "written" | "present" | "removed" | "absent";
}

/** The paths of a unit are absolute in the system, and those of the tree relative. */
const inTree = (path: string): RawPath => path.slice(1) as RawPath;

/**
 * The init system that a tree boots with: the one that runs, if the tree is this machine's own, else the one that is there.
 * @throws ZferryError `not-configured` when there is none, or more than one
 */
export function recogniseInitSystem(tree: Tree): InitSystem {
  const running = tree.path === "/" ? runningInitSystem() : undefined;
  if (running !== undefined) return running;
  const [found, other] = installedInitSystems(tree);
  if (found !== undefined && other === undefined) return found;
  throw new ZferryError(
    "not-configured",
    found === undefined
      ? `${tree.path} has neither systemd nor OpenRC`
      : `${tree.path} has both systemd and OpenRC, and neither is running`,
    { details: { root: tree.path }, hint: "say which is meant: --init systemd or --init openrc" },
  );
}

/**
 * Where a site's configuration is named in its system; undefined where it is the usual one.
 * @param root the system's folder
 * @throws ZferryError `usage` for a path in another system that is not absolute
 */
export function configWithin(root: string, config: string | undefined): string | undefined {
  if (root !== "/" && config !== undefined && !isAbsolute(config)) {
    throw new ZferryError("usage", `--config ${JSON.stringify(config)}: is not an absolute path`, {
      hint: `with --root it is a path in the system of ${root}`,
    });
  }
  return config === undefined ? undefined : resolve(config);
}

/**
 * What a tree's system is to have at boot, as the site's configuration there says.
 * @param config the configuration's path in that system, where it is not the usual one
 * @param program node and zferry, by their paths in that system
 * @param warn told in a line what may be missing: of a system that does not run, not all need be mounted
 * @throws ZferryError `usage`, `not-configured`, `config-malformed`
 */
export async function planSetup(
  tree: Tree,
  init: InitSystem,
  config: string | undefined,
  program: readonly string[],
  warn: (line: string) => void,
): Promise<TrialSetup & { readonly site: SiteConfig }> {
  const isOwn = tree.path === "/";
  const named = configWithin(tree.path, config);
  const file = join(tree.path, named ?? SITE_CONFIG_PATH);
  if (!isOwn) requireNoLink(tree, file);
  const site = await readSiteConfig(file, { system: tree.path });
  for (const path of isOwn ? [] : program) {
    const there = join(tree.path, path);
    if (!existsSync(there)) warn(`there is no ${there}, by which zferry is started at boot`);
  }
  // What links lead to in another system cannot be told from here.
  const leadsTo = isOwn ? program.map((path) => realpathSync(path)) : [];
  const command = { program, leadsTo, config: named, state: site.state, root: site.root?.path };
  const { files, advice } = planTrialSetup(tree, init, site, command);
  return { files: [bootUnit(init, command), ...files], advice, site };
}

/** In another system's tree a link may lead to this system's own configuration. */
function requireNoLink(tree: Tree, file: string): void {
  const kind = kindAt(tree, inTree(file.slice(tree.path.length)));
  if (kind !== "symlink" && kind !== "blocked") return;
  throw new ZferryError(
    "not-configured",
    `${file} is, or lies behind, a link, which may lead out of ${tree.path}`,
    {
      details: { file },
      hint: "name the file itself with --config",
    },
  );
}

/**
 * Puts files into a system's tree, and the links that enable them, unless they are there; takes away what of an earlier setup is not
 * among them. No link is followed on the way: those of another system's tree may lead into this one's.
 * @throws ZferryError `output-exists` when something that zferry did not write is in the place of any; then nothing is changed
 */
export function placeFiles(tree: Tree, files: readonly PlacedFile[]): SetupStep[] {
  const found = files.map((each) => ({ ...each, ...stateOf(tree, each) }));
  const unwanted = trialPlaces(INIT_SYSTEMS).filter(({ path }) => !files.some((each) => each.path === path));
  const left = findRemovable(tree, unwanted).filter(({ isThere }) => isThere);
  return [
    ...found.flatMap(({ path, text, mode, links, isPlaced }) => [
      placing(tree, path, isPlaced, (place) => writeFileDurably(place, text, mode, join(tree.path, path))),
      // The links last: they never lead to nothing.
      ...links.map((link) =>
        placing(tree, link.path, link.isLinked, (place) => symlinkSync(link.target, place)),
      ),
    ]),
    ...left.map((each) => removing(tree, each)),
  ];
}

function stateOf(tree: Tree, { path, text, mode, links = [] }: PlacedFile) {
  const current = readOwn(tree, path);
  return {
    isPlaced: current === text && inPlace(tree, inTree(path), (place) => isOwnFile(lstatSync(place), mode)),
    links: links.map((link) => ({ ...link, isLinked: readOwnLink(tree, path, link.path) })),
  };
}

/**
 * Takes away what `placeFiles` put there, for any of the init systems.
 * @throws ZferryError `output-exists` as `placeFiles`
 */
export function removeFiles(tree: Tree, inits: readonly InitSystem[] = INIT_SYSTEMS): SetupStep[] {
  const usual = findRemovable(
    tree,
    inits.map((init) => PLACES[init]),
  );
  const others = findRemovable(tree, trialPlaces(inits)).filter(({ isThere }) => isThere);
  return [...usual, ...others].map((each) => removing(tree, each));
}

interface Removable {
  readonly path: string;
  readonly isThere: boolean;
}

const findRemovable = (tree: Tree, files: readonly Omit<PlacedFile, "text" | "mode">[]): Removable[] =>
  files.flatMap(({ path, links = [] }) => [
    ...links.map((link) => ({ path: link.path, isThere: readOwnLink(tree, path, link.path) })),
    { path, isThere: readOwn(tree, path) !== undefined },
  ]);

function removing(tree: Tree, { path, isThere }: Removable): SetupStep {
  if (isThere) changeIn(tree, inTree(path), unlinkSync);
  return { path: join(tree.path, path), outcome: isThere ? "removed" : "absent" };
}

/** What starts at boot must be nobody else's to change. */
const isOwnFile = (stat: Stats, mode: number): boolean =>
  (stat.mode & 0o7777) === mode && stat.uid === process.geteuid?.() && stat.gid === process.getegid?.();

/** The text of a file that zferry wrote; undefined when there is none. */
function readOwn(tree: Tree, path: string): string | undefined {
  const kind = kindAt(tree, inTree(path));
  if (kind === "absent") return undefined;
  const text = kind === "file" ? readFileIn(tree, inTree(path))?.toString("utf8") : undefined;
  if (text !== undefined && isOurs(text)) return text;
  throw foreign(tree, path, kind);
}

/** Whether the link to a unit's file is there, in whatever way it is spelled. */
function readOwnLink(tree: Tree, file: string, path: string): boolean {
  const kind = kindAt(tree, inTree(path));
  if (kind === "absent") return false;
  const target =
    kind === "symlink" ? inPlace(tree, inTree(path), (place) => readlinkSync(place, "utf8")) : "";
  if (resolve(dirname(path), target) === file) return true;
  throw foreign(tree, path, kind);
}

function foreign(tree: Tree, path: string, kind: string): ZferryError {
  const shown = join(tree.path, path);
  const what =
    kind === "blocked"
      ? "a folder on the way to it is a link, or no folder"
      : `there is a ${kind} that zferry did not write`;
  return new ZferryError("output-exists", `${shown}: ${what}`, {
    details: { file: shown },
    hint: "move it away, if nothing needs it",
  });
}

function placing(tree: Tree, path: string, isThere: boolean, write: (place: string) => void): SetupStep {
  if (!isThere) {
    makeFolders(tree, inTree(path));
    changeIn(tree, inTree(path), write);
  }
  return { path: join(tree.path, path), outcome: isThere ? "present" : "written" };
}

/** Makes the folders above a path that are not there, for all to read. */
function makeFolders(tree: Tree, path: RawPath): void {
  for (const folder of ancestors(path)) {
    if (kindAt(tree, folder) !== "absent") continue;
    changeIn(tree, folder, (place) => {
      mkdirSync(place);
      chmodSync(place, 0o755);
    });
  }
}

/** Changes one name in a folder of the tree, and writes that to disk. */
function changeIn(tree: Tree, path: RawPath, change: (place: string) => void): void {
  inPlace(tree, path, (place, folder) => {
    change(place.toString());
    fsyncSync(folder);
  });
}
