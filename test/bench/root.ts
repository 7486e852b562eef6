import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { commitRoot, importObjects, prepareRoot } from "../../dist/root/apply.js";
import { makeRootPart, type RootSummary } from "../../dist/root/diff.js";
import { planRoot } from "../../dist/root/merge.js";
import { openRepository } from "../../dist/system/git.js";

/*
 * The half of / for the benchmark, on git and files alone. In a folder:
 *   root.ts make FOLDER FILES   a repository of `/` with releases r1 and r2, of which r2 changes half of so many files and adds as
 *                               many, the folders `before` and `after` as snapshots have them, and `site.r1`, a site at r1
 *   root.ts create FOLDER       makes the root half of a bundle, in FOLDER/part
 *   root.ts install FOLDER      plans and installs it in FOLDER/site
 */

const [verb, folder = "", files = "0"] = process.argv.slice(2);
const at = (...names: string[]): string => join(folder, ...names);
const sh = (command: string): void =>
  void execFileSync("bash", ["-euc", command], { cwd: folder, stdio: ["ignore", "ignore", "inherit"] });

/** Contents of a real length, all different. */
const textOf = (number: number, release: number): string =>
  `# file ${number} of release ${release}\n${`setting = ${number}\n`.repeat(40)}`;

function writeFiles(root: string, numbers: Iterable<number>, release: number): void {
  for (const number of numbers) {
    const place = join(root, "etc", `folder${Math.floor(number / 100)}`);
    if (number % 100 === 0) mkdirSync(place, { recursive: true });
    writeFileSync(join(place, `file${number}`), textOf(number, release));
  }
}

const range = (from: number, to: number): number[] =>
  Array.from({ length: to - from }, (_, index) => from + index);

function make(count: number): void {
  mkdirSync(at("root"));
  const commit = (name: string): string =>
    `cd root; git add -A; git -c user.name=b -c user.email=b@example.org commit -qm ${name}; git tag ${name}`;
  writeFiles(at("root"), range(0, count), 1);
  writeFileSync(at("root/etc/passwd"), "root:x:0:0::/:/bin/sh\n");
  writeFileSync(at("root/etc/group"), "root:x:0:\n");
  // A collection in the background would take objects away under the hands of cp.
  sh(`git init -q -b main root; chmod 700 root/.git; git -C root config gc.auto 0; ${commit("r1")}`);
  sh(`cp -a root before; cp -a root site.r1; rm -rf before/.git`);
  const half = Math.floor(count / 2);
  writeFiles(at("root"), range(0, half), 2);
  const first = Math.ceil(count / 100) * 100;
  writeFiles(at("root"), range(first, first + half), 2);
  sh(`${commit("r2")}; cd ..; cp -a root after; rm -rf after/.git; git -C root diff --binary r1 r2 >patch`);
}

async function create(): Promise<void> {
  mkdirSync(at("part"));
  const part = await makeRootPart({
    ...{ base: "r1", target: "r2", beforeDir: at("before"), afterDir: at("after"), scratchDir: at("part") },
    git: await openRepository(at("root")),
    secrets: { deny: [], allow: [], own: [] },
  });
  writeFileSync(at("part/metadata"), part.metadata);
  writeFileSync(at("part/rest.json"), JSON.stringify({ ...part, metadata: undefined }));
}

async function install(): Promise<void> {
  const rest = JSON.parse(readFileSync(at("part/rest.json"), "utf8")) as Pick<
    Awaited<ReturnType<typeof makeRootPart>>,
    "patch" | "objects"
  > & { summary: RootSummary };
  const [rootDir, scratchDir] = [at("site"), at("scratch")];
  mkdirSync(scratchDir);
  const git = await openRepository(rootDir);
  const metadata = readFileSync(at("part/metadata"));
  const plan = await planRoot({ git, rootDir, scratchDir, ...rest, metadata, release: "r2", date: 1 });
  await importObjects(plan, { git, scratchDir });
  await prepareRoot(plan, { git, rootDir });
  await commitRoot(plan, { git, rootDir, scratchDir });
}

if (verb === "make") make(Number(files));
else if (verb === "create") await create();
else if (verb === "install") await install();
else throw new Error(`root.ts ${verb}: no such command`);
