import { expect, it } from "vitest";
import { parsePattern } from "../../src/root/path-pattern.js";
import type { MergePolicy } from "../../src/root/settle.js";
import {
  ACCOUNTS,
  BuildHost,
  command,
  fieldsOf,
  file,
  parseReason,
  sh,
  type Edits,
  type RootPart,
  type Site,
} from "./hosts.js";

// A file or folder of the base, what the site and the release do to it, and what becomes of it: fields in conflict, or
// its permissions, owner and group.
const CASES: readonly (readonly [
  name: string,
  base: string,
  site: string,
  release: string,
  outcome: { readonly conflict: string } | { readonly clean: string },
])[] = [
  [
    "set-user-id of the site, root by the release",
    "755 80:80",
    "chmod 4755",
    "chown 0",
    { conflict: "owner, permissions" },
  ],
  [
    "set-group-id of the site, group root by the release",
    "755 80:80",
    "chmod 2755",
    "chgrp 0",
    { conflict: "group, permissions" },
  ],
  [
    "another owner of the site, set-user-id by the release",
    "755 0:0",
    "chown 80",
    "chmod 4755",
    { conflict: "owner, permissions" },
  ],
  [
    "another group of the site, opened to the group by the release",
    "600 0:0",
    "chgrp 80",
    "chmod 640",
    { conflict: "group, permissions" },
  ],
  [
    "an access list with a mask of the site, opened to the group by the release",
    "600 0:0",
    "setfacl -m u:80:rwx,m::---",
    "chmod 660",
    { conflict: "permissions, system.posix_acl_access" },
  ],
  [
    "who may run a set-user-id program: a mode of the site, a group of the release",
    "750 0:5",
    "chmod 4750",
    "chgrp 80",
    { conflict: "group, permissions" },
  ],
  [
    "a capability of the site, opened to all by the release",
    "750 0:0",
    "setcap cap_net_raw+ep",
    "chmod 755",
    { conflict: "permissions, security.capability" },
  ],
  [
    "a folder's set-group-id of the site, another group by the release",
    "d755 0:0",
    "chmod 2755",
    "chgrp 80",
    { conflict: "group, permissions" },
  ],
  [
    "a folder's set-group-id of the site, a default list of the release",
    "d755 0:0",
    "chmod 2755",
    "setfacl -d -m u:80:rwx",
    { conflict: "permissions, system.posix_acl_default" },
  ],

  [
    "another owner of the site, executable by the release",
    "644 0:0",
    "chown 80",
    "chmod 755",
    { clean: "755 80:0" },
  ],
  [
    "another owner of the site, secret by the release",
    "644 0:0",
    "chown 80",
    "chmod 600",
    { clean: "600 80:0" },
  ],
  [
    "another group of the site, executable by the release",
    "644 0:0",
    "chgrp 80",
    "chmod 755",
    { clean: "755 0:80" },
  ],
  ["root's by the release, closed by the site", "644 80:80", "chmod 640", "chown 0", { clean: "640 0:80" }],
  [
    "set-user-id of the base, another group by the release, closed to others by the site",
    "4755 0:0",
    "chmod 4750",
    `sh -c 'chgrp 80 "$1"; chmod 4755 "$1"' sh`,
    { clean: "4750 0:80" },
  ],
  [
    "a capability of the site, closed by the release",
    "755 0:0",
    "setcap cap_net_raw+ep",
    "chmod 750",
    { clean: "750 0:0" },
  ],
  [
    "an access list of the site, closed to others by the release",
    "644 0:0",
    "setfacl -m u:80:r",
    "chmod 640",
    { clean: "640 0:0" },
  ],
  [
    "an attribute of the site, set-user-id by the release",
    "755 0:0",
    "setfattr -n user.a -v b",
    "chmod 4755",
    { clean: "4755 0:0" },
  ],
  [
    "a folder's group of the site, closed by the release",
    "d755 0:0",
    "chgrp 80",
    "chmod 750",
    { clean: "750 0:80" },
  ],
  [
    "a folder's default list of the site, closed by the release",
    "d755 0:0",
    "setfacl -d -m u:80:rx",
    "chmod 700",
    { clean: "700 0:0" },
  ],
];

const pathOf = (index: number): string => `srv/${index}/f`;

function made(base: string): (path: string) => void {
  const [mode = "", owner = ""] = base.split(" ");
  const make = mode.startsWith("d") ? 'mkdir -p "$1"; echo >"$1/x"' : 'echo "$1" >"$1"';
  return command(`${make}; chown ${owner} "$1"; chmod ${mode.replace("d", "")} "$1"`);
}

const edits = (cases: typeof CASES, of: (one: (typeof CASES)[number]) => (path: string) => void): Edits =>
  Object.fromEntries(cases.map((one, index) => [pathOf(index), of(one)]));

async function meet(cases: typeof CASES): Promise<{ host: BuildHost; site: Site; part: RootPart }> {
  const host = new BuildHost();
  host.release("r1", { ...ACCOUNTS, ...edits(cases, ([, base]) => made(base)) });
  host.release(
    "r2",
    edits(cases, ([, , , release]) => command(`${release} "$1"`)),
  );
  const site = host.site("r1", "cloned");
  site.commit(edits(cases, ([, , local]) => command(`${local} "$1"`)));
  return { host, site, part: await host.part("r1", "r2") };
}

const stat = ({ root }: Site, index: number): string =>
  sh(root, `stat -c '%a %u:%g' ${pathOf(index)}`).trim();

const conflicting = CASES.filter(([, , , , outcome]) => "conflict" in outcome);
const clean = CASES.filter(([, , , , outcome]) => "clean" in outcome);

it("what would let somebody do more than either side does is a conflict", async () => {
  const { site, part } = await meet(conflicting);
  const before = site.everything();
  const error: unknown = await site.plan(part).catch((caught: unknown) => caught);
  const { details } = error as { details: { reasons: string[] } };
  const reasons = conflicting.map(
    ([, , , , outcome], index) => `${pathOf(index)} (${"conflict" in outcome ? outcome.conflict : ""})`,
  );
  const told = details.reasons.map((reason) => {
    const { path, why } = parseReason(reason);
    return `${path} (${fieldsOf(why).join(", ")})`;
  });
  expect(told.toSorted()).toEqual(reasons.toSorted());
  expect(site.everything()).toBe(before);
});

it("what lets nobody do more is merged", async () => {
  const { site, part } = await meet(clean);
  await site.install(part);
  const found = clean.map(([name], index) => `${name}: ${stat(site, index)}`);
  expect(found).toEqual(
    clean.map(([name, , , , outcome]) => `${name}: ${"clean" in outcome ? outcome.clean : ""}`),
  );
});

it.each(["ours", "theirs"] as const)(
  "policy %s takes all that decides access from one side",
  async (side) => {
    const { host, site, part } = await meet(conflicting);
    const policy: MergePolicy = { ...parsePattern("srv/"), policy: side, command: [] };
    const before = site.state();
    await site.install(part, { policies: [policy] });
    expect(site.state()).toBe(side === "ours" ? before : host.site("r2", "cloned").state());
  },
);

it("the site's access to a file is settled so that git's mode stays", async () => {
  const { site, part } = await meet([["", "644 0:0", "chgrp 80", "chmod 750", { conflict: "" }]]);
  await site.install(part, { policies: [{ ...parsePattern("srv/"), policy: "ours", command: [] }] });
  expect(stat(site, 0)).toBe("744 0:80");
  expect(site.status()).toBe("");
});

it("warns of accounts with another number than at the build host, once for each, as the release leaves them", async () => {
  const passwd = (ids: Record<string, number>): string =>
    Object.entries(ids)
      .map(([name, id]) => `${name}:x:${id}:${id}::/:/bin/false\n`)
      .join("");
  const many = Object.fromEntries(Array.from({ length: 22 }, (_, index) => [`n${index + 10}`, 600 + index]));
  const here = Object.fromEntries(Object.entries(many).map(([name, id]) => [name, id + 100]));
  const host = new BuildHost();
  const between = { a: 1, b: 2, c: 3, d: 4 };
  const users = { root: 0, postgres: 70, web: 80, gone: 90, ...between };
  host.release("r1", {
    "etc/passwd": passwd(users),
    "etc/group": "root:x:0:\n",
    "etc/a": "a\n",
    "etc/c": "c\n",
  });
  host.release("r2", {
    "etc/a": file("a 2\n", 0o644, 'chown 70 "$1"'),
    "etc/b": file("b\n", 0o644, 'chown 70 "$1"'),
    "etc/c": file("c 2\n", 0o644, 'chown 80 "$1"'),
    "etc/passwd": passwd({ ...users, later: 95 }),
    "etc/d": file("d\n", 0o644, 'chown 95 "$1"'),
  });
  const warnings = async (part: RootPart, ids: Record<string, number>): Promise<string[]> => {
    const site = host.site("r1", "cloned");
    site.commit({ "etc/passwd": passwd(ids) });
    const told: string[] = [];
    await site.plan(part, { warn: (what) => told.push(what) });
    return told;
  };
  const part = await host.part("r1", "r2");
  expect(await warnings(part, users)).toEqual([]);
  const differing = { root: 0, games: 70, postgres: 115, web: 81, gone: 91, ...between };
  const end = "in /usr, which has only numbers, belongs to";
  expect(await warnings(part, differing)).toEqual([
    `user postgres is 115 on this site and 70 at the build host: what is of postgres ${end} user games on this site`,
    `user web is 81 on this site and 80 at the build host: what is of web ${end} no user on this site`,
  ]);

  const crowd = new BuildHost();
  crowd.release("r1", { "etc/passwd": passwd({ root: 0, ...many }), "etc/group": "root:x:0:\n" });
  const owned = Object.entries(many).map(([name, id]) => [
    `srv/${name}`,
    file(name, 0o644, `chown ${id} "$1"`),
  ]);
  crowd.release("r2", Object.fromEntries(owned) as Edits);
  const site = crowd.site("r1", "cloned");
  site.commit({ "etc/passwd": passwd({ root: 0, ...here }) });
  const told: string[] = [];
  await site.plan(await crowd.part("r1", "r2"), { warn: (what) => told.push(what) });
  expect(told).toHaveLength(21);
  expect(told[0]).toMatch(/^user n10 is 700 on this site and 600 at the build host/);
  expect(told[20]).toBe("2 more users and groups have other numbers here than at the build host");
});
