import { mkdtempSync, realpathSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { parseConfig, siteSchema } from "../../src/config.js";
import { parseMounts, visibleByPoint } from "../../src/system/mounts.js";
import { withMode } from "../../src/system/settings.js";

const SITE = 'product = "gentoo"\n[streams]\nusr = "rpool/SYSTEM/USR/one"\n';
const ROOT = `${SITE}[root]\n`;
/** As a system that boots from a pool has them. */
const mounts = (root: string): string =>
  `${root}\n32 22 0:31 / /usr ro shared:2 - zfs rpool/SYSTEM/USR/one ro,xattr,posixacl\n33 22 0:5 / /dev rw - devtmpfs udev rw\n`;
const rootOf = (source: string, folder = "/"): string =>
  mounts(`22 1 0:27 ${folder} / rw,relatime shared:1 - zfs ${source} rw,xattr,posixacl,casesensitive`);
const ZFS = rootOf("rpool/ROOT/one");

test.each<[string, string, string, string]>([
  ["/ is a dataset that has one above it", "boot-environment", ROOT, ZFS],
  ["the same by another spelling", "boot-environment", `${ROOT}path = "//"\n`, ZFS],
  ["without [root]", "in-place", SITE, ZFS],
  ["the site lies elsewhere", "in-place", `${ROOT}path = "/mnt/site"\n`, ZFS],
  ["/ is the pool's own dataset", "in-place", ROOT, rootOf("rpool")],
  ["/ is a snapshot", "in-place", ROOT, rootOf("rpool/ROOT/one@R1")],
  ["/ is a folder of a dataset", "in-place", ROOT, rootOf("rpool/ROOT/one", "/jail")],
  ["/ is another file system", "in-place", ROOT, mounts("22 1 8:2 / / rw - ext4 /dev/sda2 rw")],
  [
    "something lies over it",
    "in-place",
    ROOT,
    mounts("22 1 0:27 / / rw - zfs rpool/ROOT/one rw\n23 22 0:40 / / rw - overlay overlay rw"),
  ],
  ["nothing is known to be mounted there", "in-place", ROOT, ""],
])("without a mode, where %s: %s", (_, mode, text, mountinfo) => {
  const { install } = withMode(parseConfig(siteSchema, text, "x"), visibleByPoint(parseMounts(mountinfo)));
  expect(install).toEqual({ mode, from: "default", after: [] });
});

test("what / of another system is counts, not that of this one", () => {
  const other = visibleByPoint(parseMounts(`${ZFS}40 22 0:41 / /mnt rw - ext4 /dev/sdb1 rw\n`));
  const site = parseConfig(siteSchema, ROOT, "x");
  expect(withMode(site, other, "/mnt").install.mode).toBe("in-place");
  expect(withMode(site, other, "/").install.mode).toBe("boot-environment");
});

test("another system is known by a link, too, whatever characters its path has", () => {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), "zferry-ö-")));
  try {
    symlinkSync(folder, join(folder, "link"));
    const place = Buffer.from(folder).toString("latin1");
    const mountinfo = `${ZFS}40 22 0:41 / ${place} rw - zfs rpool/ROOT/two rw\n`;
    const found = withMode(
      parseConfig(siteSchema, ROOT, "x"),
      visibleByPoint(parseMounts(mountinfo)),
      join(folder, "link"),
    );
    expect(found.install.mode).toBe("boot-environment");
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test.each(["in-place", "boot-environment"])("a mode that is configured counts: %s", (mode) => {
  const site = parseConfig(siteSchema, `${ROOT}[install]\nmode = "${mode}"\n`, "x");
  for (const mountinfo of [ZFS, ""]) {
    const { install } = withMode(site, visibleByPoint(parseMounts(mountinfo)));
    expect(install).toEqual({ mode, from: "configuration", after: [] });
  }
});
