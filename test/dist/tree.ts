/**
 * The tree that a site unpacks: node, zferry in one file, and zstd's binding. `npm run dist` packs it, and the lab's guests run it.
 *
 *     bin/bundle, bin/zferry                 a shell script, that starts
 *     bin/node                               with
 *     lib/cli.js                             of which lib/bundle and lib/zferry are names;
 *     lib/thread.js, lib/zstd-napi.node      what its threads run, and the native part
 *     package.json                           version, and that lib/ has ES modules
 *     formats/, README.md, LICENSE, LICENSES ...
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync, constants, copyFileSync, cpSync, existsSync, mkdirSync, mkdtempSync } from "node:fs";
import { readdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build, type Plugin } from "esbuild";

export const CHECKOUT = fileURLToPath(new URL("../..", import.meta.url));

/**
 * The node of every site, as nodejs.org builds it and npm's packages node-linux-ARCH have it: it needs no library but glibc and the
 * compiler's own. A line with long-term support; its hash is that of bin/node.
 */
const NODE = {
  version: "24.21.0",
  sha256: {
    x64: "7fde7b8afa198da66257f42ee2001d874c7355631e6d1579a5fb5ef1f246df4c",
    arm64: "0f8949d1028f6d61506b2d5bc57e7e6fe893d7b1997509b7847294fc9c616584",
  },
};
export const NODE_VERSION = NODE.version;

const ADDON = "node_modules/zstd-napi/build/Release/binding.node";
const DOCUMENTS = ["CHANGELOG.md", "LICENSE", "README.md", "SECURITY.md", "formats"];

export const platformOf = (): keyof typeof NODE.sha256 => {
  const { platform, arch } = process;
  if (platform === "linux" && (arch === "x64" || arch === "arm64")) return arch;
  throw new Error(`a tree is made on linux-x64 or linux-arm64, not on ${platform}-${arch}`);
};

/** zferry's own version. */
export const readVersion = (): string =>
  (JSON.parse(readFileSync(join(CHECKOUT, "package.json"), "utf8")) as { version: string }).version;

/** Makes the tree in `folder`, of which nothing is there but perhaps the folder itself. */
export async function layTree(folder: string): Promise<void> {
  const node = fetchNode();
  for (const name of ["bin", "lib"]) mkdirSync(join(folder, name), { recursive: true });
  copyFileSync(join(node, "bin/node"), join(folder, "bin/node"), constants.COPYFILE_FICLONE);
  writeFileSync(join(folder, "bin/bundle"), LAUNCHER);
  symlinkSync("bundle", join(folder, "bin/zferry"));
  for (const name of ["node", "bundle"]) chmodSync(join(folder, "bin", name), 0o755);

  const packages = await bundleProgram(join(folder, "lib"));
  for (const name of ["bundle", "zferry"]) symlinkSync("cli.js", join(folder, "lib", name));
  copyFileSync(join(CHECKOUT, ADDON), join(folder, "lib/zstd-napi.node"));
  writeFileSync(
    join(folder, "package.json"),
    `${JSON.stringify({ name: "zferry", version: readVersion(), license: "Apache-2.0", type: "module" }, undefined, 2)}\n`,
  );

  for (const name of DOCUMENTS) cpSync(join(CHECKOUT, name), join(folder, name), { recursive: true });
  writeFileSync(join(folder, "LICENSES"), licences(node, packages));
}

/** Follows links by hand, since a minimal system may lack realpath, and keeps those to folders: src/system/init-system.ts. */
const LAUNCHER = `#!/bin/sh
# Starts zferry by the node that lies beside this file, wherever that is, and whatever link leads to it.
self=$0
case $self in */*) ;; *) self=./$self ;; esac
while [ -L "$self" ]; do
  link=$(readlink "$self")
  case $link in
    /*) self=$link ;;
    *) self=\${self%/*}/$link ;;
  esac
done
case \${0##*/} in
  zferry) name=zferry ;;
  *) name=bundle ;;
esac
home=\${self%/*}/..
exec "$home/bin/node" "$home/lib/$name" "$@"
`;

/** In a bundled file the binding lies beside it. */
const addonBeside: Plugin = {
  name: "zstd-napi.node",
  setup({ onLoad, onResolve }) {
    onLoad({ filter: /\/zstd-napi\/binding\.js$/ }, () => ({
      contents: 'module.exports = require("./zstd-napi.node");',
    }));
    onResolve({ filter: /^\.\/zstd-napi\.node$/ }, ({ path }) => ({ path, external: true }));
  },
};

/**
 * In a bundled file every import of node's own is done at its start, and those of the network bring so much that each command would
 * start a fifth later: they are loaded with the module that asks for them.
 */
const networkWhenAsked: Plugin = {
  name: "node:http",
  setup({ onLoad, onResolve }) {
    const namespace = "when-asked";
    onResolve({ filter: /^node:(https?|tls)$/ }, ({ path, ...importer }) =>
      importer.namespace === namespace ? { path, external: true } : { path, namespace },
    );
    onLoad({ filter: /^/, namespace }, ({ path }) => ({ contents: `module.exports = require("${path}");` }));
  },
};

/**
 * Each entry becomes one file. That starts in half the time of the modules by themselves, and a file for each command would be as slow
 * as these in an emulated guest.
 * @returns the folders of the packages that are in them, in node_modules
 */
async function bundleProgram(lib: string): Promise<string[]> {
  const { metafile } = await build({
    absWorkingDir: CHECKOUT,
    entryPoints: { cli: "src/cli.ts", thread: "src/system/thread.ts" },
    outdir: lib,
    bundle: true,
    platform: "node",
    format: "esm",
    target: "node20.19",
    metafile: true,
    logLevel: "warning",
    plugins: [addonBeside, networkWhenAsked],
    // Some packages are CommonJS, and require what is part of node.
    banner: {
      js: 'import { createRequire } from "node:module"; const require = createRequire(import.meta.url);',
    },
  });
  const inputs = Object.keys(metafile.inputs);
  const folders = inputs.map((path) => /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(path)?.[0]);
  return [...new Set(folders.filter((path) => path !== undefined))].sort();
}

/** What is compiled into zstd's binding, and has licences of its own. */
const COMPILED = ["node_modules/node-addon-api", "node_modules/zstd-napi/deps/zstd"];

/** The licences of all that is not zferry's own. */
function licences(node: string, packages: readonly string[]): string {
  const folders = [...packages, ...COMPILED].map((path) => join(CHECKOUT, path));
  const texts = [node, ...folders].map((folder) => {
    const files = readdirSync(folder)
      .filter((name) => /^(licen[cs]e|notice)/i.test(name))
      .sort();
    if (files.length === 0) throw new Error(`${folder} has no licence`);
    const title = folder === node ? `Node.js ${NODE.version}` : titleOf(folder);
    return [`==== ${title}`, ...files.map((name) => readFileSync(join(folder, name), "utf8").trim())].join(
      "\n\n",
    );
  });
  return `What zferry is made of, other than itself, under these licences:\n\n${texts.join("\n\n")}\n`;
}

function titleOf(folder: string): string {
  const file = join(folder, "package.json");
  if (!existsSync(file)) return "Zstandard, the library in zstd-napi";
  const { name, version } = JSON.parse(readFileSync(file, "utf8")) as { name: string; version: string };
  return `${name} ${version}`;
}

/** The folder with this machine's bin/node and its LICENSE, from npm's registry, the first time. */
function fetchNode(): string {
  const arch = platformOf();
  const cache = join(process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "zferry");
  const folder = join(cache, `node-${NODE.version}-${arch}`);
  if (!existsSync(folder)) {
    const spec = `node-linux-${arch}@${NODE.version}`;
    console.error(`fetching ${spec} (once)`);
    mkdirSync(cache, { recursive: true });
    const building = mkdtempSync(join(cache, "building-"));
    try {
      execFileSync("npm", ["pack", "--silent", "--pack-destination", building, spec], {
        stdio: ["ignore", "ignore", "inherit"],
      });
      const file = readdirSync(building)[0] ?? "";
      execFileSync("tar", ["-xzf", file, "package/bin/node", "package/LICENSE"], { cwd: building });
      try {
        renameSync(join(building, "package"), folder);
      } catch (error) {
        if (!existsSync(folder)) throw error; // another process was quicker
      }
    } finally {
      rmSync(building, { recursive: true, force: true });
    }
  }
  const found = createHash("sha256")
    .update(readFileSync(join(folder, "bin/node")))
    .digest("hex");
  if (found === NODE.sha256[arch]) return folder;
  throw new Error(`${folder}/bin/node has SHA-256 ${found}, not ${NODE.sha256[arch]}: remove ${folder}`);
}

/** The libraries that every system with glibc has, with those of its compiler. */
const LIBRARIES = /^(lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so\.\d+|ld-linux-.*)$/;

/** What a tree asks for at most: the versions of glibc 2.34 and of GCC 8. README.md and CONTRIBUTING.md name them. */
const OLDEST: Record<string, string> = { GLIBC: "2.34", GLIBCXX: "3.4.25", CXXABI: "1.3.11", GCC: "7.0.0" };

/**
 * Looks whether the programs of a tree run on the systems that they are for.
 * @returns the newest version of each library that they need
 */
export function requirementsOf(folder: string): Map<string, string> {
  const needed = new Map<string, string>();
  for (const name of ["bin/node", "lib/zstd-napi.node"]) {
    const text = execFileSync("readelf", ["-dVW", join(folder, name)], { encoding: "utf8" });
    for (const [, library = ""] of text.matchAll(/\(NEEDED\).*\[(.*)\]/g)) {
      if (!LIBRARIES.test(library)) throw new Error(`${name} needs ${library}, which a site may lack`);
    }
    for (const [, library = "", version = ""] of text.matchAll(/Name: ([A-Z]+)_([\d.]+)/g)) {
      if (isNewer(version, needed.get(library) ?? "0")) needed.set(library, version);
      const oldest = OLDEST[library] ?? "0";
      if (!isNewer(version, oldest)) continue;
      throw new Error(
        `${name} needs ${library} ${version}, newer than ${oldest}: make it on an older system`,
      );
    }
  }
  return needed;
}

const isNewer = (one: string, other: string): boolean => {
  const [left, right] = [one, other].map((version) => version.split(".").map(Number));
  const at = (left ?? []).findIndex((number, i) => number !== (right?.[i] ?? 0));
  return at !== -1 && (left?.[at] ?? 0) > (right?.[at] ?? 0);
};
