/**
 * npm run lab                              a root shell in a guest with ZFS; its end switches the guest off
 * npm run lab -- COMMAND...                runs a command there, as ssh would
 * npm run lab -- --build [2.1|2.3|all]     only builds the image, or both
 *
 * ZFERRY_LAB_ZFS=2.1 or 2.3 chooses the OpenZFS, ZFERRY_LAB_SHARE a folder to be seen as /host.
 */
import { buildImage, defaultZfs, Guest } from "./guest.js";

const [first, ...rest] = process.argv.slice(2);
if (first === "--build") await build(rest[0] ?? defaultZfs());
else if (first?.startsWith("-")) usage();
else process.exitCode = await lab([first, ...rest].join(" "));

function usage(): never {
  console.error("usage: npm run lab -- [COMMAND... | --build [2.1|2.3|all]]");
  process.exit(2);
}

async function build(which: string): Promise<void> {
  if (which === "all") await build("2.3");
  const zfs = which === "all" ? "2.1" : which;
  if (zfs !== "2.1" && zfs !== "2.3") usage();
  console.log((await buildImage(zfs)).folder);
}

async function lab(command: string): Promise<number> {
  const disks = ["tank", "rpool"].map((name) => ({ name, size: "8G" }));
  const share = process.env["ZFERRY_LAB_SHARE"];
  const guest = new Guest(await buildImage(defaultZfs()), { disks, ...(share && { share }) });
  try {
    if (command === "") {
      console.error(
        `lab: ${guest.zfsVersion.split("\n")[0]}, with bundle, zferry and node of this checkout;`,
      );
      console.error("lab: empty disks are /dev/lab/tank and /dev/lab/rpool; exit ends it; booting ...");
      await guest.shell();
      return 0;
    }
    await guest.start();
    const script = `set +eu +o pipefail\n${command}`;
    return (await guest.run(script, { check: false, print: true, timeout: 2 ** 31 - 1 })).status;
  } finally {
    await guest.close();
  }
}
