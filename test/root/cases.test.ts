import { beforeAll, describe, expect, it } from "vitest";
import type { ZferryError } from "../../src/errors.js";
import { ACCOUNTS, BuildHost, fieldsOf, parseReason, type Site, type RootPart } from "./hosts.js";
import {
  aclOf,
  complete,
  expectKept,
  fileOf,
  FOLDER,
  linkTo,
  mergeWithGit,
  readModel,
  writeModel,
  type Entry,
  type Expected,
  type GitMerge,
  type Model,
  type Side,
} from "./model.js";

// Each case is a folder of one repository, so that all can be merged at once; what git has an opinion of is expected
// to be as git's own merge has it, the rest as model.ts works it out.

/** One side of a case: a change of what is in its folder. `mine` differs between the two sides. */
interface Change {
  readonly name: string;
  readonly make: (files: Map<string, Entry>, mine: string) => void;
  readonly move?: readonly [string, string];
}

interface Case {
  readonly name: string;
  readonly folder: string;
  readonly base: Model;
  readonly release: Side;
  readonly site: Side;
}

/** Like that of no other case, or git might take one for the other's new name. */
const text = (id: string, changes: Record<number, string> = {}): string =>
  Array.from(
    { length: 12 },
    (_, line) => `${id} ${changes[line] ?? `${line} of ${id} ${line * line}`}\n`,
  ).join("");

type FileEntry = Extract<Entry, { content: string }>;

const change = (name: string, at: string, edit: (entry: FileEntry, mine: string) => Entry): Change => ({
  name,
  make: (files, mine) => {
    const entry = files.get(at);
    if (entry !== undefined && entry.kind !== "directory") files.set(at, edit(entry, mine));
  },
});

const replaceLine = (line: number, by: (mine: string) => string) => (entry: FileEntry, mine: string) => ({
  ...entry,
  content: entry.content
    .split("\n")
    .map((old, index) => (index === line ? by(mine) : old))
    .join("\n"),
});

const mode =
  (permissions: number) =>
  (entry: FileEntry): Entry => ({ ...entry, permissions });
const owner =
  (uid: number) =>
  (entry: FileEntry): Entry => ({ ...entry, uid });
const attribute =
  (name: string, value: (mine: string) => string) =>
  (entry: FileEntry, mine: string): Entry => ({
    ...entry,
    xattrs: { ...entry.xattrs, [name]: value(mine) },
  });

const moved = (
  name: string,
  to: string,
  edit: (entry: FileEntry, mine: string) => Entry = (entry) => entry,
): Change => ({
  name,
  make: (files, mine) => {
    const entry = files.get("f");
    if (entry === undefined || entry.kind === "directory") return;
    files.delete("f");
    files.set(to, edit(entry, mine));
  },
  move: ["f", to],
});

const added = (name: string, make: (mine: string) => Record<string, Entry>): Change => ({
  name,
  make: (files, mine) => {
    for (const [path, entry] of Object.entries(make(mine))) {
      for (const other of files.keys())
        if (other.startsWith(`${path}/`) || path.startsWith(`${other}/`)) files.delete(other);
      files.set(path, entry);
    }
  },
});

const removed = (name: string, ...paths: string[]): Change => ({
  name,
  make: (files) => {
    for (const path of paths) files.delete(path);
  },
});

const NOTHING: Change = { name: "does nothing", make: () => undefined };
const CAPABLE = (bits: number): string =>
  `0100000200${bits.toString(16).padStart(2, "0")}0000`.padEnd(40, "0");
const hex = (value: string): string => Buffer.from(value).toString("hex");

/** Of a file `f`. `id` is in whatever is new, so that no case is like another. */
const ofFile = (id: string): Change[] => [
  NOTHING,
  change(
    "changes the first line",
    "f",
    replaceLine(0, (mine) => `first of ${mine}`),
  ),
  change(
    "changes the last line",
    "f",
    replaceLine(11, (mine) => `last of ${mine}`),
  ),
  change(
    "makes a line the same",
    "f",
    replaceLine(5, () => "the same"),
  ),
  change("replaces it", "f", (entry, mine) => ({ ...entry, content: text(`${id} replaced by ${mine}`) })),
  change("makes it binary", "f", (entry, mine) => ({ ...entry, content: `${entry.content}\0\xff${mine}` })),
  change("empties it", "f", (entry) => ({ ...entry, content: "" })),
  change("makes it executable", "f", mode(0o755)),
  change("changes a line and makes it executable", "f", (entry, mine) =>
    mode(0o755)(replaceLine(8, () => `eighth of ${mine}`)(entry, mine)),
  ),
  removed("removes it", "f"),
  moved("renames it", "g"),
  moved(
    "renames it and changes a line",
    "h",
    replaceLine(2, (mine) => `second of ${mine}`),
  ),
  moved("moves it to a folder and makes it executable", "sub/f", mode(0o755)),
  moved("makes a folder of it, with it inside", "f/inner"),
  added("makes a link of it", (mine) => ({ f: linkTo(`${id}/${mine}`) })),
  added("makes the same link of it", () => ({ f: linkTo(id) })),
  {
    name: "makes a folder of it",
    make: (files, mine) => {
      files.delete("f");
      files.set("f/new", fileOf(text(`${id} new of ${mine}`)));
    },
  },
  change("gives it to another user", "f", (entry, mine) => owner(mine === "site" ? 5 : 80)(entry)),
  change("gives it to the same user and group", "f", (entry) => ({ ...entry, uid: 80, gid: 80 })),
  change("makes it secret", "f", mode(0o600)),
  change("makes it set-user-id", "f", mode(0o4755)),
  change(
    "sets an attribute",
    "f",
    attribute("user.a", (mine) => hex(mine)),
  ),
  change("sets an attribute of its own", "f", (entry, mine) => attribute(`user.${mine}`, hex)(entry, mine)),
  change(
    "sets a capability",
    "f",
    attribute("security.capability", (mine) => CAPABLE(mine === "site" ? 1 : 2)),
  ),
  change(
    "sets an access list",
    "f",
    attribute("system.posix_acl_access", (mine) => aclOf(mine === "site" ? 5 : 80)),
  ),
];

/** Where there is nothing in the base. */
const ofNothing = (id: string): Change[] => [
  NOTHING,
  added("adds a file of its own", (mine) => ({ f: fileOf(text(`${id} added by ${mine}`)) })),
  added("adds a file", () => ({ f: fileOf(text(`${id} added`)) })),
  added("adds the file, executable", () => ({ f: fileOf(text(`${id} added`), { permissions: 0o755 }) })),
  added("adds the file, secret", () => ({ f: fileOf(text(`${id} added`), { permissions: 0o600 }) })),
  added("adds the file of another user", () => ({ f: fileOf(text(`${id} added`), { uid: 80 }) })),
  added("adds a link of its own", (mine) => ({ f: linkTo(`${id}/${mine}`) })),
  added("adds a link", () => ({ f: linkTo(id) })),
  added("adds a folder", (mine) => ({
    "f/a": fileOf(text(`${id} a`)),
    [`f/${mine}`]: fileOf(text(`${id} of ${mine}`)),
  })),
  added("adds a closed folder", (mine) => ({
    f: { ...FOLDER, permissions: 0o700 },
    [`f/${mine}`]: fileOf(text(`${id} of ${mine}`)),
  })),
];

/** Of a link `f`. */
const ofLink = (id: string): Change[] => [
  NOTHING,
  change("points it elsewhere", "f", (entry, mine) => ({ ...entry, content: `${id}/${mine}` })),
  change("points it to the same", "f", (entry) => ({ ...entry, content: `${id}/same` })),
  change("points it out of /", "f", (entry) => ({ ...entry, content: `/../../${id}` })),
  change("gives it to another user", "f", (entry, mine) => owner(mine === "site" ? 5 : 80)(entry)),
  removed("removes it", "f"),
  moved("renames it", "g"),
  moved("renames it to a folder", "sub/f"),
  added("makes a file of it", (mine) => ({ f: fileOf(text(`${id} of ${mine}`)) })),
  added("makes the same file of it", () => ({ f: fileOf(text(id)) })),
  {
    name: "makes a folder of it",
    make: (files, mine) => {
      files.delete("f");
      files.set("f/new", fileOf(text(`${id} new of ${mine}`)));
    },
  },
];

/** Of a folder `d` with the files `x` and `y`. */
const ofFolder = (id: string): Change[] => [
  NOTHING,
  change(
    "changes a file in it",
    "d/x",
    replaceLine(0, (mine) => `first of ${mine}`),
  ),
  removed("removes a file in it", "d/x"),
  removed("removes it", "d/x", "d/y"),
  added("adds a file to it", (mine) => ({ [`d/of ${mine}`]: fileOf(text(`${id} in d of ${mine}`)) })),
  added("makes a file of it", (mine) => ({ d: fileOf(text(`${id} for d of ${mine}`)) })),
  added("makes a link of it", (mine) => ({ d: linkTo(`${id}/${mine}`) })),
  ...(["0700", "2775", "1777"] as const).map((digits): Change => ({
    name: `sets its permissions to ${digits}`,
    make: (files) => files.set("d", { ...FOLDER, permissions: parseInt(digits, 8) }),
  })),
  {
    name: "sets a default access list on it",
    make: (files, mine) =>
      files.set("d", {
        ...FOLDER,
        xattrs: { "system.posix_acl_default": aclOf(mine === "site" ? 5 : 80, 0o755) },
      }),
  },
  {
    name: "gives it to another group",
    make: (files, mine) => files.set("d", { ...FOLDER, gid: mine === "site" ? 5 : 80 }),
  },
  {
    name: "moves a file out of it",
    make: (files) => {
      const entry = files.get("d/y");
      files.delete("d/y");
      if (entry !== undefined) files.set("y", entry);
    },
    move: ["d/y", "y"],
  },
];

/** Every field that git does not keep: what it is before, and what each side makes of it. */
const FIELDS: Record<
  string,
  readonly [values: readonly (string | number | null)[], set: (value: never) => Entry]
> = {
  owner: [[0, 5, 80], (uid: number) => fileOf("", { uid })],
  group: [[0, 5, 80], (gid: number) => fileOf("", { gid })],
  "permissions of a secret": [[0o644, 0o640, 0o600], (permissions: number) => fileOf("", { permissions })],
  "special permissions": [
    [0o755, 0o4755, 0o2711, 0o1755],
    (permissions: number) => fileOf("", { permissions }),
  ],
  "an attribute": [
    [null, "", hex("one"), hex("two\0\n\xff")],
    (value: string | null) => fileOf("", value === null ? {} : { xattrs: { "user.odd name": value } }),
  ],
  "a capability": [
    [null, CAPABLE(1), CAPABLE(2)],
    (value: string | null) =>
      fileOf("", { permissions: 0o755, xattrs: value === null ? {} : { "security.capability": value } }),
  ],
  "an access list": [
    [null, aclOf(5), aclOf(80)],
    (value: string | null) =>
      fileOf("", { xattrs: value === null ? {} : { "system.posix_acl_access": value } }),
  ],
};

/** Of a file `f`: what decides, together, who may do what with it. */
const ofAccess = (): Change[] => {
  const isMine = <T>(mine: string, site: T, release: T): T => (mine === "site" ? site : release);
  return [
    NOTHING,
    change("gives it to the owner that is its own", "f", (entry, mine) => owner(isMine(mine, 80, 0))(entry)),
    change("gives it to the group that is its own", "f", (entry, mine) => ({
      ...entry,
      gid: isMine(mine, 80, 0),
    })),
    ...[0o755, 0o640, 0o660, 0o4755, 0o2755, 0o4750].map((permissions) =>
      change(`sets its permissions to ${permissions.toString(8)}`, "f", mode(permissions)),
    ),
    change(
      "sets a capability",
      "f",
      attribute("security.capability", () => CAPABLE(1)),
    ),
    change("sets an access list without a mask for it", "f", (entry) => ({
      ...entry,
      permissions: entry.permissions & ~0o70,
      xattrs: { [ACCESS_LIST]: aclOf(80, entry.permissions & ~0o70, 0, 6) },
    })),
    change(
      "sets an access list",
      "f",
      attribute(ACCESS_LIST, () => aclOf(80)),
    ),
  ];
};

const ACCESS_LIST = "system.posix_acl_access";

function makeCase(kind: string, index: number, start: Model, release: Change, site: Change): Case {
  const side = ({ make, move }: Change, mine: string): Side => {
    const model = new Map(start);
    make(model, mine);
    return { model, moves: new Map(move === undefined ? [] : [move]) };
  };
  return {
    name: `${kind}: the release ${release.name}, the site ${site.name}`,
    folder: `cases/${kind.replaceAll(" ", "-")}/${index}`,
    base: start,
    release: side(release, "release"),
    site: side(site, "site"),
  };
}

/** Every change of a release with every change of a site. */
function cross(
  kind: string,
  changes: (id: string) => readonly Change[],
  start: (id: string) => Model,
): Case[] {
  const names = changes("").map((_, index) => index);
  return names.flatMap((released) =>
    names.map((local) => {
      const index = released * names.length + local;
      const id = `${kind}-${index}`;
      const list = changes(id);
      return makeCase(kind, index, start(id), list[released] as Change, list[local] as Change);
    }),
  );
}

function fieldCases(): Case[] {
  return Object.entries(FIELDS).flatMap(([field, [values, set]]) => {
    const show = (value: string | number | null): string =>
      value === null ? "none" : typeof value === "number" ? value.toString(8) : value.slice(0, 24);
    const triples = values.flatMap((was) =>
      values.flatMap((there) => values.map((here) => [was, there, here])),
    );
    return triples.map(([was = null, there = null, here = null], index) => {
      const content = text(`${field}-${index}`);
      const start = (value: string | number | null): Entry => ({ ...set(value as never), content }) as Entry;
      const becomes = (value: string | number | null): Change => ({
        name: `has ${show(value)}`,
        make: (files) => files.set("f", start(value)),
      });
      const made = makeCase(field, index, new Map([["f", start(was)]]), becomes(there), becomes(here));
      return { ...made, name: `${made.name}, the base has ${show(was)}` };
    });
  });
}

const CASES: readonly Case[] = [
  ...cross("a file", ofFile, (id) => new Map([["f", fileOf(text(id))]])),
  ...cross("nothing", ofNothing, () => new Map()),
  ...cross("a link", ofLink, (id) => new Map([["f", linkTo(`${id}/base`)]])),
  ...cross(
    "a folder",
    ofFolder,
    (id) =>
      new Map([
        ["d/x", fileOf(text(`${id} x`))],
        ["d/y", fileOf(text(`${id} y`))],
      ]),
  ),
  ...fieldCases(),
  ...[0o755, 0o600].flatMap((permissions) =>
    cross(
      `access to ${permissions.toString(8)}`,
      ofAccess,
      (id) => new Map([["f", fileOf(text(`${id} ${permissions}`), { uid: 5, gid: 5, permissions })]]),
    ),
  ),
];

/** All cases in one tree. */
function together(
  cases: readonly Case[],
  model: (one: Case) => Model,
  more: Record<string, string> = {},
): Model {
  const all = new Map<string, Entry>();
  for (const [path, content] of Object.entries({ ...ACCOUNTS, ...more }))
    all.set(path, fileOf(content as string));
  for (const one of cases) for (const [path, entry] of model(one)) all.set(`${one.folder}/${path}`, entry);
  return complete(all);
}

const sideOf = (cases: readonly Case[], side: (one: Case) => Side, more?: Record<string, string>): Side => ({
  model: together(cases, (one) => side(one).model, more),
  moves: new Map(
    cases.flatMap((one) =>
      [...side(one).moves].map(([from, to]): [string, string] => [
        `${one.folder}/${from}`,
        `${one.folder}/${to}`,
      ]),
    ),
  ),
});

interface Meeting {
  readonly site: Site;
  readonly part: RootPart;
  readonly git: GitMerge;
  readonly expected: Expected;
}

async function meet(cases: readonly Case[], history: "cloned" | "unrelated"): Promise<Meeting> {
  const own = { "etc/site": "site\n" };
  const base = together(cases, (one) => one.base);
  const release = sideOf(cases, (one) => one.release);
  const local = sideOf(cases, (one) => one.site, own);
  const host = new BuildHost();
  host.release("r1", { ".": writeModel(base) });
  host.release("r2", { ".": writeModel(release.model) });
  const site = host.site("r1", history);
  site.commit({ ".": writeModel(local.model) });
  const git = mergeWithGit(host, site);
  return {
    site,
    part: await host.part("r1", "r2"),
    git,
    expected: expectKept(base, local, release, git.files),
  };
}

/** The reasons of a conflict by path; none where the site can be merged. */
async function conflictsOf({ site, part }: Meeting): Promise<Map<string, string>> {
  try {
    await site.plan(part);
  } catch (error) {
    const { code, details } = error as ZferryError;
    if (code !== "merge-conflict") throw error;
    const reasons = details["reasons"] as string[];
    return new Map(
      reasons.map((reason) => {
        const { path, why } = parseReason(reason);
        return [path, why];
      }),
    );
  }
  return new Map();
}

const within = <T>(one: Case, found: Iterable<readonly [string, T]>): Record<string, T> =>
  Object.fromEntries(
    [...found].flatMap(([path, value]): [string, T][] =>
      path.startsWith(`${one.folder}/`) ? [[path.slice(one.folder.length + 1), value]] : [],
    ),
  );

const isEmpty = (found: object): boolean => Object.keys(found).length === 0;

// Without the whole base a site's renames are not followed, which renames.test.ts has.
describe.each([
  ["cloned", CASES],
  // A third of them, for the time: only where the base comes from is different.
  ["unrelated", CASES.filter(({ site }, index) => site.moves.size === 0 && index % 3 === 0)],
] as const)("a site with %s history", (history, cases) => {
  /** Contents that do not merge, attributes that do not, and what was installed: from three sites. */
  let all: Meeting;
  let mergeable: Meeting;
  let clean: Meeting;
  let contents: Map<string, string>;
  let attributes: Map<string, string>;
  let before: ReturnType<typeof readModel>;
  let installed: ReturnType<typeof readModel>;
  let takenBack: ReturnType<typeof readModel>;
  let tree: string;

  beforeAll(async () => {
    all = await meet(cases, history);
    contents = await conflictsOf(all);
    const conflicts = [...all.git.conflicts].map((path): [string, true] => [path, true]);
    const merging = cases.filter((one) => isEmpty(within(one, conflicts)) && isEmpty(within(one, contents)));
    mergeable = await meet(merging, history);
    attributes = await conflictsOf(mergeable);
    const { expected } = mergeable;
    clean = await meet(
      merging.filter((one) => isEmpty(within(one, expected.conflicts)) && isEmpty(within(one, attributes))),
      history,
    );
    before = readModel(clean.site.root);
    const plan = await clean.site.plan(clean.part);
    expect(await clean.site.plan(clean.part)).toEqual(plan);
    await clean.site.apply(plan);
    installed = readModel(clean.site.root);
    tree = clean.site.git("rev-parse HEAD^{tree}");
    expect(clean.site.status()).toBe("");
    expect(clean.site.leftovers()).toBe("");
    await clean.site.apply(plan);
    await clean.site.takeBack(plan);
    takenBack = readModel(clean.site.root);
  }, 300_000);

  it("comes to have the tree that git's merge gives, and gets its own back", () => {
    expect(clean.git.tree).toMatch(/^[0-9a-f]{40}$/);
    expect(tree).toBe(clean.git.tree);
    expect(takenBack).toEqual(before);
  });

  it.each(cases.map((one): [string, Case] => [one.name, one]))("%s", (_, one) => {
    const inGit = within(
      one,
      [...all.git.conflicts].map((path): [string, true] => [path, true]),
    );
    const found = within(one, contents);
    if (!isEmpty(inGit)) {
      // Where both sides moved a file away from, git has nothing where a folder is now.
      const places = [...Object.keys(inGit), ...one.release.moves.keys()];
      expect(places).toEqual(expect.arrayContaining(Object.keys(found)));
      expect(found).not.toEqual({});
      return;
    }
    expect(found).toEqual({});
    const fields = within(one, mergeable.expected.conflicts);
    const told = within(one, attributes);
    expect(
      Object.fromEntries(Object.entries(told).map(([path, why]) => [path, fieldsOf(why).sort()])),
    ).toEqual(Object.fromEntries(Object.entries(fields).map(([path, names]) => [path, names.sort()])));
    if (isEmpty(fields)) expect(within(one, installed)).toEqual(within(one, clean.expected.model));
  });
});
