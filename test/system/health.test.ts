import { expect, test } from "vitest";
import { missingServices } from "../../src/system/health.js";

// As rc-status of OpenRC 0.45 and later prints it.
const STATUS = `[sysinit]
devfs =  started 
[boot]
hwclock =  stopped 
[default]
cron =  started 00:01:10 (0)
local =  inactive 
sshd =  crashed 
plc = failed
watched =  unsupervised 
late = scheduled
[Stacked base]
nfs =  stopped 
`;

test("services of a runlevel of OpenRC that do not run are told, and no others", () => {
  expect(missingServices(STATUS)).toEqual(["hwclock", "sshd", "plc", "watched", "nfs"]);
  expect(missingServices("")).toEqual([]);
});
