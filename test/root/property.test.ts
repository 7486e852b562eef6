import { describe, expect, it } from "vitest";
import type { ZferryError } from "../../src/errors.js";
import { pick, randomOf, type Random } from "../fuzz/random.js";
import { pathOf } from "../../src/root/paths.js";
import type { RootPlan } from "../../src/root/plan.js";
import { ALL } from "../rarely.js";
import { ACCOUNTS, BuildHost, fingerprint } from "./hosts.js";
import {
  aclOf,
  complete,
  expectKept,
  expectLinks,
  fileOf,
  FOLDER,
  foldersOf,
  linkTo,
  mergeWithGit,
  namesOf,
  readModel,
  writeModel,
  type Entry,
  type Side,
} from "./model.js";

const ROUNDS = Number(process.env["ZFERRY_ROUNDS"] ?? (ALL ? 40 : 8));
const SEED = Number(process.env["ZFERRY_SEED"] ?? 1);

const NAMES = ["a", "b", "c", "d e", "caf\xe9", "\xc3\xbc", "new\nline", "-f", "x.conf"];
const LINES = 14;

/** Unlike any other: git would take one for another's new name. */
function contents(random: Random): string {
  const id = `${random(2 ** 30)}`;
  return Array.from({ length: LINES }, (_, line) => `${id} ${line} ${random(2 ** 30)}\n`).join("");
}

const path = (random: Random): string =>
  ["t", ...Array.from({ length: random(3) }, () => pick(random, NAMES)), pick(random, NAMES)].join("/");

/** Puts a file at a path, unless another one lies above or below it. */
function put(model: Map<string, Entry>, at: string, entry: Entry): boolean {
  for (const [other, { kind }] of model) {
    const isAbove = at.startsWith(`${other}/`) && kind !== "directory";
    if (other === at || isAbove || other.startsWith(`${at}/`)) return false;
  }
  model.set(at, entry);
  return true;
}

const kept = (random: Random): Pick<Entry, "uid" | "gid" | "permissions" | "xattrs"> => {
  const permissions = pick(random, [0o644, 0o644, 0o755, 0o600, 0o4755, 0o2711]);
  const isListed = random(8) === 0 && permissions === 0o644;
  return {
    uid: pick(random, [0, 0, 0, 5, 80]),
    gid: pick(random, [0, 0, 80]),
    permissions,
    xattrs: {
      ...(random(4) === 0 ? { "user.a": pick(random, ["", "00", "61"]) } : {}),
      ...(isListed ? { "system.posix_acl_access": aclOf(pick(random, [5, 80]), permissions) } : {}),
    },
  };
};

function fresh(random: Random): Entry {
  if (random(6) === 0) return linkTo(`${pick(random, ["/", "../", ""])}${random(2 ** 30)}`);
  return fileOf(contents(random), kept(random));
}

function makeBase(random: Random): Map<string, Entry> {
  const model = new Map<string, Entry>();
  for (const [name, content] of Object.entries(ACCOUNTS)) model.set(name, fileOf(content as string));
  for (let count = 4 + random(24); count > 0; count -= 1) put(model, path(random), fresh(random));
  for (let count = random(4); count > 0; count -= 1) linkTwo(random, model, [...model.keys()]);
  return model;
}

/** Makes one of two files a name of the other. */
function linkTwo(random: Random, model: Map<string, Entry>, among: readonly string[]): void {
  const files = among.filter((at) => at.startsWith("t/") && model.get(at)?.kind === "file");
  const [at, other] = [pick(random, files), pick(random, files)];
  const entry = model.get(at);
  if (files.length < 2 || at === other || entry?.kind !== "file") return;
  const linked = { ...entry, file: entry.file ?? random(2 ** 30) };
  model.set(at, linked).set(other, linked);
}

/** Changes a file under all its names. */
function setAll(model: Map<string, Entry>, at: string, entry: Entry): void {
  for (const name of namesOf(model, at)) model.set(name, entry);
  model.set(at, entry);
}

/** A few changes of one side. A file's content changes once, so that a new name stays one. */
function change(
  random: Random,
  base: ReadonlyMap<string, Entry>,
  others: readonly string[],
  renames: boolean,
): Side {
  const model = new Map(base);
  const moved = new Map<string, string>();
  const edited = new Set<string>();
  for (let count = random(9); count > 0; count -= 1) {
    const files = [...model].flatMap(([at, entry]) =>
      at.startsWith("t/") && entry.kind !== "directory" ? [{ at, entry }] : [],
    );
    const at = random(2) === 0 && others.length > 0 ? pick(random, others) : path(random);
    const chosen = files.length === 0 ? undefined : pick(random, files);
    const entry = chosen && model.get(chosen.at);
    if (chosen === undefined || entry === undefined || entry.kind === "directory" || random(8) === 0) {
      put(model, at, fresh(random));
      continue;
    }
    switch (random(10)) {
      case 0:
      case 1:
      case 2:
        if (entry.kind === "link" || edited.has(chosen.at)) break;
        for (const name of namesOf(model, chosen.at)) edited.add(name);
        setAll(model, chosen.at, {
          ...entry,
          content: entry.content
            .split("\n")
            .map((line, index) => (index === 2 * random(7) ? `changed ${random(3)}` : line))
            .join("\n"),
        });
        break;
      case 3:
        if (entry.kind === "file") setAll(model, chosen.at, { ...entry, ...kept(random) });
        break;
      case 4:
        setAll(model, chosen.at, { ...entry, uid: pick(random, [0, 5, 80]) });
        break;
      case 5:
        model.delete(chosen.at);
        break;
      case 6: {
        // Names of one file are alike: git would take one for another's new name.
        if (!renames || (entry.kind === "file" && entry.file !== undefined)) break;
        model.delete(chosen.at);
        if (put(model, at, entry)) {
          const origin = [...moved].find(([, to]) => to === chosen.at)?.[0] ?? chosen.at;
          moved.set(origin, at);
        } else {
          model.set(chosen.at, entry);
        }
        break;
      }
      case 7:
        model.set(chosen.at, entry.kind === "link" ? fileOf(contents(random)) : linkTo(`${random(2 ** 30)}`));
        break;
      case 8: {
        const folder = chosen.at.split("/").slice(0, -1).join("/");
        model.set(folder, {
          ...FOLDER,
          ...pick(random, [{ permissions: 0o700 }, { gid: 80 }, { uid: 5 }, {}]),
        });
        break;
      }
      default:
        model.delete(chosen.at);
        put(model, `${chosen.at}/${pick(random, NAMES)}`, fresh(random));
    }
  }
  // A new name for git is one that the base does not have, of a file that is gone and was not made another kind of thing.
  // Names are given and taken last, to what has its place in the base, or a new name would be one of several files'.
  const unmoved = [...base.keys()].filter((at) => model.has(at) && ![...moved].flat().includes(at));
  for (let count = random(3); count > 0 && unmoved.length > 0; count -= 1) {
    const at = pick(random, unmoved);
    const entry = model.get(at);
    if (entry?.kind !== "file") continue;
    if (random(2) === 0) linkTwo(random, model, unmoved);
    else model.set(at, fileOf(entry.content, entry));
  }
  const moves = [...moved].filter(
    ([from, to]) => !base.has(to) && !model.has(from) && model.get(to)?.kind === base.get(from)?.kind,
  );
  return { model, moves: new Map(moves) };
}

/** Whether a new name lies below a file of another tree, or is taken there: such a rename is not followed. */
const hasNoRoom = (moves: Side["moves"], ...models: ReadonlyMap<string, Entry>[]): boolean =>
  [...moves.values()].some((to) =>
    models.some((model) => {
      const isFile = (at: string): boolean => (model.get(at)?.kind ?? "directory") !== "directory";
      return complete(model).has(to) || foldersOf(to).some(isFile);
    }),
  );

async function round(seed: number, history: "cloned" | "unrelated"): Promise<"clean" | "conflict"> {
  const random = randomOf(seed);
  const base = makeBase(random);
  const names = Array.from({ length: 6 }, () => path(random));
  const release = change(random, base, names, true);
  const local = change(random, base, names, history === "cloned");
  const model = new Map([...local.model, ["etc/site", fileOf("site\n")]]);
  const host = new BuildHost();
  host.release("r1", { ".": writeModel(base) });
  host.release("r2", { ".": writeModel(release.model) });
  const site = host.site("r1", history);
  site.commit({ ".": writeModel(model) });
  const part = await host.part("r1", "r2");
  const git = mergeWithGit(host, site);
  const expected = expectKept(base, { ...local, model }, release, git.files);
  const isClean = git.tree !== null && expected.conflicts.size === 0;
  const [before, files, links] = [fingerprint(site), readModel(site.root), site.links()];

  let plan;
  try {
    plan = await site.plan(part);
  } catch (error) {
    const { code, details } = error as ZferryError;
    if (code !== "merge-conflict") throw error;
    const isUnfollowed = hasNoRoom(release.moves, base, model) || hasNoRoom(local.moves, base, release.model);
    if (!isUnfollowed) expect({ isClean, ...details }).toEqual({ isClean: false, ...details });
    expect(fingerprint(site)).toBe(before);
    return "conflict";
  }
  expect({ contents: [...git.conflicts], attributes: [...expected.conflicts] }).toEqual({
    contents: [],
    attributes: [],
  });
  expect(fingerprint(site)).toBe(before);
  expect(await site.plan(part)).toEqual(plan);
  await site.apply(plan);
  expect(readModel(site.root)).toEqual(expected.model);
  expect(site.links()).toEqual(expectLinks(base, { ...local, model }, release, expected.model));
  expect(site.git("rev-parse HEAD^{tree}")).toBe(git.tree);
  expect(site.status() + site.leftovers()).toBe("");
  await site.apply(plan);
  expect(readModel(site.root)).toEqual(expected.model);
  await site.takeBack(plan);
  expect(inPlan(site.links(), plan)).toEqual(inPlan(links, plan));
  expect(complete(readModel(site.root))).toEqual(complete(files));
  expect(site.status() + site.leftovers()).toBe("");
  return "clean";
}

/** Of files' names those that a plan changes: these are linked again when it is taken back. */
const inPlan = (links: readonly string[][], { changes }: RootPlan): string[][] => {
  const paths = new Set<string>(changes.map(({ path }) => pathOf(path)));
  return links.map((names) => names.filter((at) => paths.has(at))).filter(({ length }) => length > 1);
};

describe.each(["cloned", "unrelated"] as const)("a site with %s history", (history) => {
  it(`merges as git does, in ${ROUNDS} rounds`, { timeout: 60_000 + ROUNDS * 30_000 }, async () => {
    const outcomes = { clean: 0, conflict: 0 };
    for (let index = 0; index < ROUNDS; index += 1) {
      const seed = SEED + index;
      try {
        outcomes[await round(seed, history)] += 1;
      } catch (error) {
        throw new Error(`with ZFERRY_SEED=${seed} ZFERRY_ROUNDS=1: ${(error as Error).message}`, {
          cause: error,
        });
      }
    }
    // Both must be common, or the rounds show little.
    const least = ROUNDS >= 40 ? ROUNDS / 8 : 0;
    if (ROUNDS >= 8) expect(Math.min(outcomes.clean, outcomes.conflict)).toBeGreaterThan(least);
  });
});
