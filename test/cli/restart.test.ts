import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { expect, test } from "vitest";
import { hasMounts, inFolder } from "./support.js";

const MODULE = new URL("../../dist/system/private-mounts.js", import.meta.url).href;
/** The second process tells its number, and ends with 7 when it is told to. */
const PROGRAM = `
  import { isPrivate, restartPrivately } from ${JSON.stringify(MODULE)};
  if (isPrivate()) {
    process.on("SIGTERM", () => process.exit(7));
    setInterval(() => undefined, 1000);
    console.log(process.pid);
  } else {
    console.log(JSON.stringify(await restartPrivately()));
  }
`;

const folder = inFolder();

async function begin() {
  writeFileSync(folder.file("program.mjs"), PROGRAM);
  const child = spawn(process.execPath, [folder.file("program.mjs")], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async (): Promise<string> => String((await lines.next()).value);
  return { child, next, inner: await next() };
}

test.skipIf(!hasMounts)("what starts itself again passes signals on, and tells how it ended", async () => {
  const { child, next } = await begin();
  child.kill("SIGTERM");
  expect(await next()).toBe('{"status":7}');
});

test.skipIf(!hasMounts)("what it started does not outlive it", async () => {
  const { child, inner } = await begin();
  child.kill("SIGKILL");
  await once(child, "exit");
  await expect.poll(() => existsSync(`/proc/${inner}/root/.`), { timeout: 10_000 }).toBe(false);
});
