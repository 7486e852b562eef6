import { spawnSync } from "node:child_process";
import { createRequire, syncBuiltinESMExports } from "node:module";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { commitRoot, discardRoot, importObjects, prepareRoot } from "../../src/root/apply.js";
import type { RootPlan } from "../../src/root/plan.js";
import { openRepository } from "../../src/system/git.js";
import { ACCOUNTS, BuildHost, command, edit, file, sh, type Site } from "./hosts.js";

/** The folder of a local user, 80, in which root has one that nobody else may look into. */
const HOME = "srv/alice";
const alices = 'chown -h 80:80 "$1"; chown 80:80 "$(dirname "$1")"';

const host = new BuildHost();
host.release("r1", { ...ACCOUNTS, [`${HOME}/conf`]: file("one\n", 0o600, alices), [`${HOME}/sub/a`]: "a\n" });
host.release("r2", {
  [`${HOME}/d/f`]: file("f\n", 0o600, alices),
  [`${HOME}/link`]: command(`ln -s f "$1"; chown -h 80:80 "$1"`),
  [`${HOME}/sub`]: command('chown 80:80 "$1"'),
});

const builtin = createRequire(import.meta.url)("node:fs") as Record<string, (...args: unknown[]) => unknown>;
const originals = { ...builtin };
afterEach(() => {
  for (const name of CALLS) builtin[name] = originals[name] as never;
  syncBuiltinESMExports();
});

const CALLS = ["mkdirSync", "openSync", "renameSync", "symlinkSync"] as const;

/** Has the user do something right after the first call with an argument that `isIt` knows. */
function after(
  name: (typeof CALLS)[number],
  isIt: (place: string) => boolean,
  use: () => void,
): () => boolean {
  let done = false;
  builtin[name] = function (this: unknown, ...args: unknown[]): unknown {
    const result = originals[name]?.apply(this, args);
    const place = args.map(String).find(isIt);
    if (!done && place !== undefined) {
      done = true;
      use();
    }
    return result;
  };
  syncBuiltinESMExports();
  return () => done;
}

const isPrepared = (place: string): boolean => /\/\.zferry-[0-9a-f]{16}$/.test(place);

describe("a user who owns a folder where root prepares files", () => {
  let site: Site;
  let plan: RootPlan;
  let options: Parameters<typeof commitRoot>[1];
  beforeEach(async () => {
    site = host.site("r1", "cloned");
    sh("/", `chmod 755 ${host.folder}/.. ${host.folder} ${site.folder}`);
    edit(site.root, {
      [`${HOME}/vault/secret`]: "root's\n",
      [`${HOME}/vault/f`]: "root's\n",
      ".git/info/exclude": "vault\n",
    });
    sh(site.root, `chmod 700 ${HOME}/vault`);
    plan = await site.plan(await host.part("r1", "r2"));
    options = { git: await openRepository(site.root), rootDir: site.root, scratchDir: site.scratch };
  });

  const asAlice = (script: string): string => {
    const user = ["--reuid=80", "--regid=80", "--clear-groups", "--", "/bin/sh", "-euc", script];
    const { status, stdout, stderr } = spawnSync("setpriv", user, {
      cwd: join(site.root, HOME),
      encoding: "utf8",
    });
    expect(stderr).toBe("");
    expect(status).toBe(0);
    return stdout;
  };
  /** Puts root's folder in the place of the one that is prepared. */
  const swap = (): string =>
    asAlice('for x in .zferry-*; do if [ -d "$x" ]; then mv "$x" mine; mv vault "$x"; break; fi; done');
  /** Where root's folder is by now, as root left it. */
  const vault = (): string =>
    sh(site.root, `cd ${HOME}; find . -path '*/secret' -execdir stat -c '%n %U %a' . ./secret ./f \\;`);
  const UNTOUCHED = ". root 700\n./secret root 644\n./f root 644\n";

  it("does not get root's own by putting it in the place of a folder as soon as that is made", async () => {
    const isDone = after("mkdirSync", isPrepared, swap);
    await importObjects(plan, options);
    await expect(prepareRoot(plan, options)).rejects.toMatchObject({ code: "worktree-dirty" });
    expect(isDone()).toBe(true);
    expect(vault()).toBe(UNTOUCHED);
  });

  it("nor once files are written into it", async () => {
    const isDone = after("openSync", (place) => place.endsWith("/f"), swap);
    await importObjects(plan, options);
    await expect(prepareRoot(plan, options)).rejects.toMatchObject({
      code: "worktree-dirty",
      message: expect.stringContaining(`${HOME}/.zferry-`) as unknown,
    });
    expect(isDone()).toBe(true);
    expect(vault()).toBe(UNTOUCHED);
  });

  it("nor when the prepared folder is renamed into its place", async () => {
    await importObjects(plan, options);
    await prepareRoot(plan, options);
    const isDone = after(
      "renameSync",
      (place) => place.endsWith("/d"),
      () => asAlice("mv d mine; mv vault d"),
    );
    await expect(commitRoot(plan, options)).rejects.toMatchObject({
      code: "worktree-dirty",
      message: expect.stringContaining(`${HOME}/d `) as unknown,
    });
    expect(isDone()).toBe(true);
    expect(vault()).toBe(UNTOUCHED);
  });

  it("nor by a file of root's in the place of a link", async () => {
    sh(site.root, `echo root >${HOME}/private; chmod 600 ${HOME}/private`);
    const isDone = after("symlinkSync", isPrepared, () =>
      asAlice('for x in .zferry-*; do if [ -L "$x" ]; then mv private "$x"; fi; done'),
    );
    await importObjects(plan, options);
    await expect(prepareRoot(plan, options)).rejects.toMatchObject({ code: "io-failed" });
    expect(isDone()).toBe(true);
    expect(sh(site.root, `find ${HOME} -maxdepth 1 -type f -user 80 -printf '%f\\n'`)).toBe("conf\n");
  });

  it("nor in the place of a folder that gets another owner", async () => {
    await importObjects(plan, options);
    await prepareRoot(plan, options);
    const isDone = after(
      "openSync",
      (place) => place.endsWith("/sub"),
      () => asAlice("mv sub mine; mv vault sub"),
    );
    await expect(commitRoot(plan, options)).rejects.toMatchObject({
      code: "worktree-dirty",
      details: { paths: [`${HOME}/sub (permissions)`] },
    });
    expect(isDone()).toBe(true);
    expect(vault()).toBe(UNTOUCHED);
  });

  it("does not have it removed when the install is given up", async () => {
    await importObjects(plan, options);
    await prepareRoot(plan, options);
    swap();
    await expect(discardRoot(plan, options)).rejects.toMatchObject({
      code: "worktree-dirty",
      message: expect.stringContaining(`${HOME}/.zferry-`) as unknown,
    });
    expect(vault()).toBe(UNTOUCHED);
    asAlice('for x in .zferry-*; do if [ -d "$x" ]; then mv "$x" vault; mv mine "$x"; fi; done');
    await discardRoot(plan, options);
    expect(site.leftovers()).toBe("");
  });

  it("nor when it is gone on with", async () => {
    await importObjects(plan, options);
    await prepareRoot(plan, options);
    swap();
    await expect(commitRoot(plan, options)).rejects.toMatchObject({ code: "worktree-dirty" });
    expect(vault()).toBe(UNTOUCHED);
    expect(site.has(`${HOME}/d`)).toBe(false);
  });

  it("nor does a file of root's get the permissions of one that waits for its folder to be closed", async () => {
    const closing = new BuildHost();
    closing.release("r1", { ...ACCOUNTS, [`${HOME}/conf`]: file("one\n", 0o600, alices) });
    closing.release("r2", {
      [`${HOME}/conf`]: file("two\n", 0o644, 'chmod 700 "$(dirname "$1")"'),
    });
    site = closing.site("r1", "cloned");
    sh("/", `chmod 755 ${site.folder}`);
    edit(site.root, { [`${HOME}/own`]: file("root's\n", 0o600), ".git/info/exclude": "own\n" });
    plan = await site.plan(await closing.part("r1", "r2"));
    options = { git: await openRepository(site.root), rootDir: site.root, scratchDir: site.scratch };
    await importObjects(plan, options);
    await prepareRoot(plan, options);
    expect(sh(site.root, `stat -c '%U %a' ${HOME}/.zferry-*`)).toBe("root 600\n");
    // It is looked at, read, and then opened to be changed.
    let isDone = (): boolean => false;
    after("openSync", isPrepared, () => {
      isDone = after("openSync", isPrepared, () => asAlice('mv -f own "$(echo .zferry-*)"'));
    });
    await expect(commitRoot(plan, options)).rejects.toMatchObject({ code: "worktree-dirty" });
    expect(isDone()).toBe(true);
    expect(sh(site.root, `cd ${HOME}; cat .zferry-*; stat -c '%U %a' .zferry-*`)).toBe("root's\nroot 600\n");
    await commitRoot(plan, options);
    expect(sh(site.root, `cd ${HOME}; cat conf; stat -c '%a' . conf`)).toBe("two\n700\n644\n");
  });
});
