import { describe, expect, test } from "vitest";
import {
  deviceOfEntry,
  findKernels,
  isEarly,
  isEnvironment,
  isOfRoot,
  isOptional,
  judgeDataset,
  judgeProperties,
  nameDatasets,
  parseFstab,
  type FstabEntry,
  type Loader,
} from "../../src/install/environment-rules.js";
import { readPage, rowsOf } from "../formats/page.js";

const table = rowsOf(readPage("environments.md")).filter(([, , , , judged = ""]) =>
  ["taken", "refused"].includes(judged),
);
const of = (dataset: string, mountpoint: string, canmount: string, active = "-") => ({
  dataset,
  mountpoint,
  canmount,
  active,
});

describe("the properties of an environment", () => {
  test("have a table for every loader", () => {
    expect(new Set(table.map(([loader]) => loader))).toEqual(new Set(["bootfs", "zectl", "command"]));
  });

  test.each(table)("%s, mountpoint=%s, canmount=%s, org.zfsbootmenu:active=%s: %s", (...row) => {
    const [loader, mountpoint = "", canmount = "", active = "", judged] = row;
    const faults = judgeProperties(loader as Loader, of("p/ROOT/a", mountpoint, canmount, active), []);
    expect(faults.length === 0 ? "taken" : "refused").toBe(judged);
    for (const { message } of faults) expect(message).toMatch(/^p\/ROOT\/a has /);
  });

  test.each(["bootfs", "zectl", "command"] as const)("with %s, no other is mounted over it", (loader) => {
    const own = of("p/ROOT/a", "/", "noauto");
    const harmless = [
      of("p/ROOT/b", "/", "noauto"),
      of("p/ROOT/b/usr", "/usr", "noauto"),
      of("p/ROOT/b/home", "/home", "on"),
      of("p/ROOT/c", "legacy", "on"),
      of("p/ROOT/d", "none", "on"),
    ];
    expect(judgeProperties(loader, own, harmless)).toEqual([]);
    const over = [of("p/ROOT/e", "/", "on"), of("p/ROOT/b/usr", "/usr", "on")];
    expect(judgeProperties(loader, own, [...harmless, ...over])).toEqual([
      {
        message: "p/ROOT/e has mountpoint=/ and canmount=on: every boot would mount it there",
        hint: "zfs set canmount=noauto p/ROOT/e",
      },
      {
        message: "p/ROOT/b/usr has mountpoint=/usr and canmount=on: every boot would mount it there",
        hint: "zfs set canmount=noauto p/ROOT/b/usr",
      },
    ]);
  });

  test("all faults are told", () => {
    const faults = judgeProperties("bootfs", of("p/a", "/", "on", "off"), [of("p/b", "/", "on")]);
    expect(faults.map(({ message }) => message)).toEqual([
      "p/a has org.zfsbootmenu:active=off: ZFSBootMenu hides it",
      "p/a has canmount=on, not noauto",
      "p/b has mountpoint=/ and canmount=on: every boot would mount it there",
    ]);
  });

  test.each<[string, boolean]>([
    ["/", true],
    ["legacy", true],
    ["none", false],
    ["-", false],
    ["/home", false],
  ])("mountpoint=%s is that of an environment: %s", (mountpoint, expected) => {
    expect(isEnvironment({ mountpoint })).toBe(expected);
  });
});

const entry = (line: string): FstabEntry => {
  const [only, ...more] = parseFstab(line);
  if (only === undefined || more.length > 0) throw new Error(`${line} is not one entry`);
  return only;
};

describe("fstab", () => {
  test("is parsed as mount does", () => {
    const text =
      "# <fs> <dir>\n\n  rpool/SYSTEM/USR/one\t/usr   zfs  ro,nofail 0 0\n#x /y zfs\nproc /proc proc\n" +
      "LABEL=a\\040b /my\\040disk ext4 defaults 0 2\nbroken\nbroken /too\n";
    expect(parseFstab(text)).toEqual([
      { source: "rpool/SYSTEM/USR/one", path: "/usr", type: "zfs", options: ["ro", "nofail"] },
      { source: "proc", path: "/proc", type: "proc", options: ["defaults"] },
      { source: "LABEL=a b", path: "/my disk", type: "ext4", options: ["defaults"] },
    ]);
  });

  test.each<[string, boolean]>([
    ["p/u /usr zfs ro,noauto", true],
    ["p/u /usr zfs ro,nofail,x-systemd.device-timeout=5", true],
    ["p/u /usr zfs ro", false],
    ["p/u /usr zfs auto", false],
  ])("%s: the boot goes on without it: %s", (line, expected) => {
    expect(isOptional(entry(line))).toBe(expected);
  });

  test.each<[string, string | undefined, string | undefined]>([
    ["p/u /usr zfs ro", "legacy", undefined],
    ["p/u /usr zfs ro", undefined, "/etc/fstab mounts p/u on /usr: there is no such dataset"],
    ["p/u /usr zfs ro", "/usr", "/etc/fstab mounts p/u on /usr, and it has mountpoint=/usr, not legacy"],
    ["p/u /usr zfs ro", "none", "/etc/fstab mounts p/u on /usr, and it has mountpoint=none, not legacy"],
    ["p/u /usr zfs ro,zfsutil", "/usr", undefined],
    [
      "p/u /usr zfs ro,zfsutil",
      "legacy",
      "/etc/fstab mounts p/u on /usr with zfsutil, and it has mountpoint=legacy",
    ],
  ])("%s, of a dataset with mountpoint=%s", (line, mountpoint, message) => {
    expect(judgeDataset(entry(line), mountpoint)?.message).toBe(message);
  });

  test.each<[string, string | undefined]>([
    ["UUID=9F8A-F566 /efi vfat", "/dev/disk/by-uuid/9F8A-F566"],
    ['UUID="9F8A-F566" /efi vfat', "/dev/disk/by-uuid/9F8A-F566"],
    ["LABEL=my\\040disk/1 /x ext4", "/dev/disk/by-label/my\\x20disk\\x2f1"],
    ["LABEL=müll /x ext4", "/dev/disk/by-label/müll"],
    ["PARTUUID=ab-01 /x ext4", "/dev/disk/by-partuuid/ab-01"],
    ["PARTLABEL=EFI /x vfat", "/dev/disk/by-partlabel/EFI"],
    ["ID=virtio-one /x ext4", "/dev/disk/by-id/virtio-one"],
    ["/dev/sda1 /x ext4", "/dev/sda1"],
    ["tmpfs /tmp tmpfs", undefined],
    ["server:/export /x nfs", undefined],
    ["/efi/env/org.zectl-a /boot none bind", undefined],
    ["NONSENSE=1 /x ext4", undefined],
  ])("%s needs %s", (line, device) => {
    expect(deviceOfEntry(entry(line))).toBe(device);
  });

  test.each<[string, boolean]>([
    ["/usr", true],
    ["/usr/lib", true],
    ["/lib64", true],
    ["/sbin", true],
    ["/home", false],
    ["/usrlocal", false],
    ["/", false],
  ])("%s is mounted before the system begins: %s", (path, expected) => {
    expect(isEarly(path)).toBe(expected);
  });
});

describe("kernels", () => {
  test.each<[string, string, string]>([
    ["Void", "vmlinuz-6.6.1_1", "initramfs-6.6.1_1.img"],
    ["Arch", "vmlinuz-linux", "initramfs-linux.img"],
    ["Debian", "vmlinuz-6.1.0-13-amd64", "initrd.img-6.1.0-13-amd64"],
    ["Alpine", "vmlinuz-lts", "initramfs-lts"],
    ["Gentoo", "kernel-6.6.1-gentoo", "initramfs-6.6.1-gentoo.img"],
    ["Fedora", "vmlinuz-6.6", "initramfs-6.6.img"],
    ["a name alone", "vmlinux", "initramfs.img"],
    ["a compressed one", "linux-1", "initrd-1.zstd"],
    ["a compressed image", "linuz-1", "initrd.img.gz-1"],
  ])("of %s: %s with %s", (_, kernel, initramfs) => {
    const names = ["System.map-6", "config-6", "grub", initramfs, kernel, "initramfs-other.img"];
    expect(findKernels(names)).toEqual({ found: [{ kernel, initramfs }], alone: [] });
  });

  test("another's initramfs is none", () => {
    expect(findKernels(["vmlinuz-2", "vmlinuz-1", "initrd.img-1"])).toEqual({
      found: [{ kernel: "vmlinuz-1", initramfs: "initrd.img-1" }],
      alone: ["vmlinuz-2"],
    });
  });

  test.each(["vmlinuz.old", "xvmlinuz-1", "linux64", "initrd.img-1", "Kernel-1"])(
    "%s is no kernel",
    (name) => {
      expect(findKernels([name, "initramfs.img", "initrd.img-1"])).toEqual({ found: [], alone: [] });
    },
  );
});

describe("the /etc/fstab of a new environment", () => {
  const datasets = [
    { dataset: "p/USR/R2", path: "/usr" },
    { dataset: "p/O PT/R2", path: "/opt" },
  ];

  test("names its datasets, and is else as it was, byte by byte", () => {
    const text =
      "# \xe9\r\n\n \tp/USR/one\t/usr/  zfs  ro,x=1  0 0 # end\ntmpfs /usr tmpfs defaults\np/o /opt zfs";
    expect(nameDatasets(text, datasets)).toBe(
      "# \xe9\r\n\n \tp/USR/R2\t/usr/  zfs  ro,x=1  0 0 # end\ntmpfs /usr tmpfs defaults\np/O\\040PT/R2 /opt zfs",
    );
  });

  test("gets what is missing as its last lines", () => {
    expect(nameDatasets("", datasets.slice(0, 1))).toBe("p/USR/R2 /usr zfs defaults 0 0\n");
    expect(nameDatasets("#p/USR/one /usr zfs\nx /opt zfs\ny /srv ext4", datasets)).toBe(
      "#p/USR/one /usr zfs\np/O\\040PT/R2 /opt zfs\ny /srv ext4\np/USR/R2 /usr zfs defaults 0 0\n",
    );
    expect(nameDatasets("x /srv ext4\n", [{ dataset: "p/R2", path: "/a b" }])).toBe(
      "x /srv ext4\np/R2 /a\\040b zfs defaults 0 0\n",
    );
  });

  test("names its own root, with the options that were there, and gets no entry for that", () => {
    const root = [{ dataset: "p/ROOT/R2", path: "/" }, ...datasets.slice(0, 1)];
    const text = (one: string, two: string): string =>
      `${one}  / zfs noatime,zfsutil 0 0\nUUID=1 / ext4\n${two} /usr zfs ro\n`;
    expect(nameDatasets(text("p/ROOT/one", "p/USR/one"), root)).toBe(text("p/ROOT/R2", "p/USR/R2"));
    expect(nameDatasets("p/USR/one /usr zfs\n", root)).toBe("p/USR/R2 /usr zfs\n");
    expect(
      ["p/ROOT/one / zfs", "p/u /usr zfs", "UUID=1 / ext4"].map((line) => isOfRoot(entry(line))),
    ).toEqual([true, false, false]);
  });

  test("mounts them as legacy", () => {
    const one = datasets.slice(0, 1);
    expect(nameDatasets("x /usr zfs zfsutil 0 0\n", one)).toBe("p/USR/R2 /usr zfs defaults 0 0\n");
    expect(nameDatasets("x /usr zfs ro,zfsutil,nodev 0 0\n", one)).toBe("p/USR/R2 /usr zfs ro,nodev 0 0\n");
  });
});
