import { expect, it } from "vitest";
import { ACCESS_LIST, CAPABILITY, showXattr } from "../../src/root/xattrs.js";
import { newFolder, sh } from "./hosts.js";

it("shows an access list as getfacl does", () => {
  const folder = newFolder();
  sh(folder, "touch f; setfacl -m u:1000:rw,g:50:r,m::r f");
  const value = sh(folder, `getfattr --only-values -n ${ACCESS_LIST} f | base64 -w0`);
  const shown = sh(folder, "getfacl --omit-header --numeric --no-effective f").trim().replaceAll("\n", ",");
  expect(showXattr(ACCESS_LIST, value)).toBe(shown);
});

it.each([
  ["none", undefined],
  ['"a text"', Buffer.from("a text")],
  ["0x0001ff", Buffer.from([0, 1, 255])],
  [/^41 bytes with SHA-256 [0-9a-f]{16}…$/, Buffer.alloc(41, "x")],
])("shows %s", (shown, value) => {
  expect(showXattr(CAPABILITY, value?.toString("base64"))).toMatch(shown);
});
