import { spawnSync } from "node:child_process";
import { open } from "node:fs/promises";
import { ZferryError } from "../errors.js";
import { mapSystemError } from "./files.js";

/**
 * Takes an exclusive lock on a file, which the kernel takes back when this process ends, however it ends. Node has no
 * flock; flock(1) of util-linux locks the open file description that it inherits, and that stays with us.
 * @throws ZferryError `site-busy`
 */
export async function acquireLock(path: string): Promise<() => Promise<void>> {
  const file = await open(path, "a", 0o600).catch((error: unknown) => {
    throw mapSystemError(error, path);
  });
  const { status, error, stderr } = spawnSync("flock", ["--exclusive", "--nonblock", "3"], {
    stdio: ["ignore", "ignore", "pipe", file.fd],
    encoding: "utf8",
  });
  if (status === 0) return () => file.close();
  await file.close();
  if (status === 1 && stderr === "") {
    throw new ZferryError("site-busy", `${path} is locked: another install is running on this site`, {
      details: { file: path },
      hint: "wait for it to end; bundle status shows it",
    });
  }
  throw new ZferryError("not-configured", `cannot lock ${path}: ${error?.message ?? stderr}`, {
    hint: "install util-linux, which has flock",
  });
}
