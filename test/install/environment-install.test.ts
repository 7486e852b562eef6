import { expect, test } from "vitest";
import type { VerifiedBundle } from "../../src/bundle/reader.js";
import { parseConfig, siteSchema } from "../../src/config.js";
import { Obstacles } from "../../src/errors.js";
import { planStreamsBeside } from "../../src/install/environment-install.js";
import type { NewEnvironment } from "../../src/install/state.js";
import { withMode } from "../../src/system/settings.js";
import { refusal } from "../bundle/support.js";

// What ZFS does is in test/lab/environment-install.test.ts.

test("a full bundle says that it needs to be installed in place", async () => {
  const text = 'product = "demo"\n[streams]\nusr = "p/SYSTEM/USR/gentoo"\n[root]\n';
  const site = withMode(parseConfig(siteSchema, text, "x"), new Map());
  const manifest = { streams: [{ role: "usr", target: { snapshot: "R1", guid: "1" } }] };
  const environment = { dataset: "p/ROOT/R1", origin: "p/ROOT/one" } as NewEnvironment;
  const obstacles = new Obstacles();
  await planStreamsBeside({ manifest } as unknown as VerifiedBundle, site, environment, undefined, obstacles);
  expect(await refusal(() => obstacles.throwAny())).toMatchObject({
    code: "dataset-unsuitable",
    message: "the bundle has all of stream usr, and a boot environment begins with a base",
    hint: expect.stringMatching(
      /^a full bundle is installed in place: mode = "in-place" under \[install\], /,
    ) as string,
  });
});
