/*
 * node --import .../stop-at.mjs dist/cli.js ...: a process that is stopped at a step, without a word of it in the program.
 *
 * A step is what changes something of a site: a name that a file of the state folder gets or loses, and a program that
 * changes a pool, a repository or what is mounted. STOP_AT is the number of the step (from 1), or its name, or NAME:2 for the second of
 * that name, before which STOP_BY (KILL, INT, STOP) comes; the step's own name, and those of all before it, are added to the file STOP_LOG, a line each.
 */
import childProcess from "node:child_process";
import fs from "node:fs";
import { syncBuiltinESMExports } from "node:module";

const { STOP_AT = "0", STOP_BY = "KILL", STOP_LOG } = process.env;
const { renameSync, rmSync, appendFileSync } = fs;
const { spawn } = childProcess;
let steps = 0;
const named = new Map();

function step(name) {
  steps += 1;
  if (STOP_LOG !== undefined) appendFileSync(STOP_LOG, `${steps} ${name}\n`);
  const count = (named.get(name) ?? 0) + 1;
  named.set(name, count);
  if ([String(steps), name, `${name}:${count}`].includes(STOP_AT)) process.kill(process.pid, `SIG${STOP_BY}`);
}

const ofState = (path) =>
  /\/(state|journal|plan-[0-9a-f]+)\.json$/.exec(String(path))?.[1]?.replace(/-.*/, "");

/** What a journal says that is about to get its name. */
function describe(from, name) {
  if (name !== "journal") return name;
  const { phase, undoing } = JSON.parse(fs.readFileSync(from, "utf8"));
  return `journal: ${undoing ? "undoing " : ""}${phase}`;
}

fs.renameSync = (from, to) => {
  const name = ofState(to);
  if (name !== undefined) step(describe(from, name));
  renameSync(from, to);
};
fs.rmSync = (path, options) => {
  const name = ofState(path);
  if (name !== undefined && fs.existsSync(path)) step(`remove ${name}`);
  rmSync(path, options);
};
const CHANGING = {
  zfs: [
    ...["hold", "release", "receive", "rollback", "destroy", "snapshot", "clone"],
    ...["create", "set", "inherit", "promote", "rename"],
  ],
  zpool: ["set"],
  git: ["pack-objects", "update-ref"],
};
/** What changes something whatever it is told. */
const ALWAYS = ["mount", "umount", "cp"];
/** In a namespace of its own. */
const isChroot = (file, args) => file === "unshare" && args.some((word) => word.startsWith("chroot "));
childProcess.spawn = (file, args, options) => {
  const verb = Array.isArray(args) ? args.find((word) => CHANGING[file]?.includes(word)) : undefined;
  if (verb !== undefined && args[0] !== "list") step(`${file} ${verb}`);
  if (ALWAYS.includes(file)) step(file);
  if (isChroot(file, args)) step("chroot");
  return spawn(file, args, options);
};
syncBuiltinESMExports();
