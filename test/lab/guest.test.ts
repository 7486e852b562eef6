import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { NODE_VERSION } from "../dist/tree.js";
import { type Guest, openGuest } from "./guest.js";

describe("a guest", () => {
  let guest: Guest;

  beforeAll(async () => {
    guest = await openGuest({ disks: [{ name: "tank", size: "1G" }] });
  });
  afterAll(() => guest.close());

  it("has the OpenZFS of its image, and the node of sites", async () => {
    const { stdout } = await guest.run("zfs version; node --version");
    expect(stdout).toBe(`${guest.zfsVersion}\nv${NODE_VERSION}\n`);
  });

  it("gives output, errors and status of a script", async () => {
    const script = 'cat; echo "$WORD" >&2; exit 3';
    const result = await guest.run(script, { input: "in\n", env: { WORD: "it's" }, check: false });
    expect(result).toEqual({ stdout: "in\n", stderr: "it's\n", status: 3 });
    await expect(guest.run("echo why >&2; false | true")).rejects.toThrow(/status 1[^]*false \| true[^]*why/);
  });

  it("keeps bytes as they are", async () => {
    const bytes = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));
    await guest.write("/tmp/new folder/it's", bytes, "600");
    expect(await guest.read("/tmp/new folder/it's")).toEqual(bytes);
    expect((await guest.run("stat -c %a /tmp/new*/*")).stdout).toBe("600\n");
  });

  it("runs scripts beside each other", async () => {
    const waiting = guest.run("while [ ! -e /tmp/go ]; do sleep 0.1; done; cat /tmp/go");
    await guest.run("echo went >/tmp/go.new; mv /tmp/go.new /tmp/go");
    expect((await waiting).stdout).toBe("went\n");
  });

  it("kills a script that takes too long, with its children", async () => {
    await expect(guest.run("sleep 4711 & sleep 4711; wait", { timeout: 1000 })).rejects.toThrow("1000 ms");
    await expect
      .poll(() => guest.run("pgrep -fx 'sleep 4711'", { check: false }), { timeout: 20_000 })
      .toMatchObject({
        stdout: "",
      });
  });

  it("makes pools with the features asked for", async () => {
    const pool = await guest.createPool("plain", { args: ["-o", "feature@embedded_data=disabled"] });
    const { stdout } = await guest.run(
      `zpool get -H -o value feature@embedded_data ${pool}; stat -fc %T /mnt/${pool}`,
    );
    expect(stdout).toBe("disabled\nzfs\n");
  });

  it("loses in a power cut what was not synced, and what ran", async () => {
    const disk = guest.disk("tank");
    await guest.run(`zpool create tank ${disk}; echo kept >/tank/kept; zpool sync`);
    const running = expect(guest.run("sleep 1000")).rejects.toThrow("the guest is off");
    await guest.run("touch /tmp/lost");
    await guest.cut();
    await running;
    await expect(guest.run("true")).rejects.toThrow("the guest is off");
    await guest.start();
    expect((await guest.run("cat /tank/kept; ls /tmp; pgrep sleep || true")).stdout).toBe("kept\n");
  });

  it("keeps in a poweroff what was not synced", async () => {
    await guest.run("echo late >/tank/late");
    await guest.poweroff();
    await guest.start();
    expect((await guest.run("cat /tank/late")).stdout).toBe("late\n");
  });
});
