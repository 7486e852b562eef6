import { expect, test } from "vitest";
import { requireAsEncrypted } from "../../src/install/state-dataset.js";
import type { ZferryError } from "../../src/errors.js";

const move = { path: "/var/lib/zferry", dataset: "p/zferry" };
const origin = "p/ROOT/one";

/** What the move is refused with, of a state on the dataset of `/`. */
function refusal(encryptionroot: string, above = "off"): ZferryError | undefined {
  const encryption = encryptionroot === "-" ? "off" : "aes-256-gcm";
  try {
    requireAsEncrypted(move, origin, { dataset: origin, encryption, encryptionroot }, { encryption: above });
    return undefined;
  } catch (error) {
    return error as ZferryError;
  }
}

test("the state moves where nothing was encrypted, or all is", () => {
  expect(refusal("-")).toBeUndefined();
  expect(refusal("p", "aes-256-gcm")).toBeUndefined();
});

test("an encrypted state does not become plain: where its key is that of what lies above /, so is the new one's", () => {
  const error = refusal("p/ROOT");
  expect([error?.code, error?.message]).toEqual([
    "dataset-unsuitable",
    "the state folder /var/lib/zferry lies on p/ROOT/one, which is encrypted, and p/zferry would not be",
  ]);
  expect(error?.hint).toBe(
    "make one that has its key from p/ROOT, as / has: zfs create -o mountpoint=/var/lib/zferry.new p/ROOT/zferry" +
      " && chmod 700 /var/lib/zferry.new && cp -a /var/lib/zferry/. /var/lib/zferry.new" +
      " && mv /var/lib/zferry /var/lib/zferry.before-p-ROOT-zferry && mkdir -m 700 /var/lib/zferry" +
      " && echo p/ROOT/zferry >/var/lib/zferry/mounted-from && zfs set mountpoint=/var/lib/zferry p/ROOT/zferry && bundle setup",
  );
});

test("where / has a key of its own, the new one needs one, too", () => {
  expect(refusal(origin)?.hint).toBe(
    "make it by hand, with a key that is loaded at boot before file systems are mounted: (umask 077; head -c 32 /dev/urandom >/etc/zferry/state.key)" +
      " && zfs create -o encryption=on -o keyformat=raw -o keylocation=file:///etc/zferry/state.key" +
      " -o mountpoint=legacy -o canmount=noauto -o zferry:state=copying p/zferry && bundle setup",
  );
});
