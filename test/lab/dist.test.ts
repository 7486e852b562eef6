import { execFile } from "node:child_process";
import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { EXAMPLE, PUBLIC, SECRET } from "../cli/support.js";
import { CHECKOUT, platformOf, readVersion } from "../dist/tree.js";
import { openGuest, type Guest } from "./guest.js";

// What `npm run dist` makes, in a machine that has no network and no npm.

const NAME = `zferry-${readVersion()}-linux-${platformOf()}`;

describe("zferry for sites", () => {
  let guest: Guest;
  let sums: string;

  beforeAll(async () => {
    guest = await openGuest();
    const args = ["--import", "tsx", "test/dist/dist.ts", "--key", SECRET, "-o", guest.share.here];
    sums = (await promisify(execFile)(process.execPath, args, { cwd: CHECKOUT })).stdout;
    for (const file of [EXAMPLE, PUBLIC])
      copyFileSync(file, join(guest.share.here, file === PUBLIC ? "release.pub" : "example.bundle"));
  });
  afterAll(() => guest?.close());

  const lines = async (script: string): Promise<string[]> =>
    (await guest.run(script)).stdout.trimEnd().split("\n");

  it("is checked, unpacked and linked as README.md says, on Debian", async () => {
    expect(await lines("ls /sys/class/net; command -v npm || echo no npm")).toEqual(["lo", "no npm"]);
    await guest.write("/tmp/sums", sums);
    const checked = await lines(`
      cd ${guest.share.there}
      sha256sum --strict -c /tmp/sums
      mkdir -p /tmp/opt /tmp/bin
      tar -xzf ${NAME}.tar.gz -C /tmp/opt
      ln -s ${NAME} /tmp/opt/zferry
      ln -s /tmp/opt/zferry/bin/bundle /tmp/opt/zferry/bin/zferry /tmp/bin/
      env -i /tmp/bin/zferry --version
      env -i PATH=/usr/bin:/bin /tmp/bin/bundle verify example.bundle --key release.pub --threads 2 2>/dev/null`);
    expect(checked).toEqual([
      `${NAME}.tar.gz: OK`,
      readVersion(),
      expect.stringMatching(/^OK example\.bundle: demo release R2 /),
    ]);
  });

  it("has the boot go by the link, which the next version takes", async () => {
    await guest.write("/etc/zferry/site.toml", 'product = "demo"\n[streams]\nusr = "p/usr"\n');
    const [start] = await lines("/tmp/bin/bundle setup --init systemd --print | sed -n 's/^ExecStart=://p'");
    expect(start).toBe("/tmp/opt/zferry/bin/node /tmp/opt/zferry/lib/cli.js install --at-boot");
    const version = await lines(`
      mv /tmp/opt/${NAME} /tmp/opt/zferry-next
      ln -s zferry-next /tmp/opt/zferry.new
      mv -T /tmp/opt/zferry.new /tmp/opt/zferry
      ${start?.replace(/ install --at-boot$/, " --version")}`);
    expect(version).toEqual([readVersion()]);
  });

  it("runs in a root that has a shell and glibc alone", async () => {
    const script = `
      cd /work
      "/opt/zf 1/bin/bundle" verify example.bundle --key release.pub --threads 2
      "/opt/zf 1/bin/zferry" keygen --no-password -o new
      echo /*`;
    await guest.run(
      `mkdir -p /tmp/root/work; cp ${guest.share.there}/{example.bundle,release.pub} /tmp/root/work/`,
    );
    await guest.write("/tmp/script", script);
    const told = await lines(
      `${guest.checkout}/test/dist/minimal-root.sh /tmp/opt/zferry-next /tmp/root "$(cat /tmp/script)" 2>/dev/null`,
    );
    expect(told).toEqual([
      expect.stringMatching(/^OK example\.bundle: /),
      expect.stringMatching(/^key [0-9A-F]{16}: /),
      expect.stringMatching(/^\/bin \/dev \/lib(64)? /),
    ]);
  });
});
