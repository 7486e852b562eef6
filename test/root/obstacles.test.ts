import { afterEach, describe, expect, it } from "vitest";
import { describeUnkept } from "../../src/root/obstacles.js";
import { everything } from "./everything.js";
import { file, keepsFlags, sh, type Site } from "./hosts.js";

const hasFlags = keepsFlags();

describe.skipIf(!hasFlags)("what chattr locks is told by the plan", () => {
  const host = everything();
  let site: Site;
  afterEach(() => sh(site.root, "chattr -R -f -i -a . || true"));

  it("all of it, and nothing is changed", async () => {
    site = host.site("r1", "cloned");
    sh(
      site.root,
      "chattr +a etc/secret; chattr +i etc/gone etc/modes etc/private etc/kept.d/stays etc/dir-to-file/b",
    );
    const before = site.state();
    const paths = [
      "etc/dir-to-file/b (immutable)",
      "etc/gone (immutable)",
      "etc/modes (immutable)",
      "etc/private (immutable)",
      "etc/secret (append-only)",
    ];
    await expect(site.plan(await host.part("r1", "r2"))).rejects.toMatchObject({
      code: "worktree-dirty",
      details: { paths },
      hint: expect.stringContaining(`chattr -a ${site.root}/etc/secret`) as unknown,
    });
    expect(site.state()).toBe(before);
    sh(site.root, "chattr -a etc/secret; chattr -i etc/gone etc/modes etc/private etc/dir-to-file/b");
    await site.install(await host.part("r1", "r2"));
  });

  it("also with names that are no text, and in the folder where new ones come", async () => {
    site = host.site("r2", "cloned");
    host.release("odd", {
      "etc/new.d/sub/new": "new\n",
      "etc/new\nline": "other\n",
      "etc/non-utf8": (path) => sh("/", `printf z > "$(dirname ${path})/$(printf 'caf\\351')"`),
    });
    site.commit({ "etc/own": file("own\n", 0o644) });
    sh(site.root, `chattr +i "etc/$(printf 'caf\\351')" "$(printf 'etc/new\\nline')"; chattr +a etc`);
    await expect(site.plan(await host.part("r2", "odd"))).rejects.toMatchObject({
      code: "worktree-dirty",
      details: {
        paths: ["etc (append-only)", '"etc/caf\\351" (immutable)', '"etc/new\\012line" (immutable)'],
      },
    });
  });

  it("once more before anything is written, because a stream may take hours", async () => {
    site = host.site("r1", "cloned");
    const plan = await site.plan(await host.part("r1", "r2"));
    await site.requireAsPlanned(plan);
    sh(site.root, "chattr +i etc/config");
    await expect(site.requireAsPlanned(plan)).rejects.toMatchObject({
      code: "worktree-dirty",
      details: { paths: ["etc/config (immutable)"] },
    });
  });
});

const FAT = "rw,uid=5,gid=6,fmask=0022,dmask=0077,codepage=437,errors=remount-ro";

it.each<[string | undefined, string, "fmask" | "dmask", number, number, number, string[]]>([
  [undefined, FAT, "fmask", 5, 6, 0o755, []],
  // DOS's own flag for what is read-only.
  [undefined, FAT, "fmask", 5, 6, 0o555, []],
  [undefined, FAT, "dmask", 5, 6, 0o700, []],
  [undefined, "rw,fmask=0133,dmask=0022", "fmask", 0, 0, 0o644, []],
  ["owner 0:0, there 5:6", FAT, "fmask", 0, 0, 0o755, []],
  ["owner 5:0, there 5:6", FAT, "fmask", 5, 0, 0o755, []],
  ["permissions 644, there 755", FAT, "fmask", 5, 6, 0o644, []],
  ["permissions 4755, there 755", FAT, "fmask", 5, 6, 0o4755, []],
  ["permissions 755, there 700", FAT, "dmask", 5, 6, 0o755, []],
  ["security.capability", FAT, "fmask", 5, 6, 0o755, ["security.capability"]],
])(
  "says %s of a file that FAT with %s is to keep",
  (expected, options, mask, uid, gid, permissions, names) => {
    const xattrs = Object.fromEntries(names.map((name) => [name, "AA=="]));
    expect(describeUnkept({ uid, gid, permissions, xattrs }, { options: options.split(",") }, mask)).toBe(
      expected,
    );
  },
);
