import { openGuest, type Machine } from "./guest.js";

// A build host and a site on one machine, as distribution.sh makes them, at release R1.

export const SITE_USR = "rpool/SYSTEM/USR/gentoo";

export const BUILD_CONFIG = `product = "gentoo"
[streams]
usr = "tank/BUILD/gentoo/usr"
[root]
path = "/build"
dataset = "tank/BUILD/gentoo"
[create]
key = "/root/release.key"
level = 3
`;

export const SITE_CONFIG = `product = "gentoo"
[trust]
keys = "/etc/zferry/keys"
[streams]
usr = "${SITE_USR}"
[root]
path = "/site"
`;

export const distribution = (machine: Machine, command: string) =>
  machine.run(`${machine.checkout}/test/lab/distribution.sh ${command}`);

/** Opens a machine with both pools, keys and configurations, release R1 made, and the site installed from it. */
export async function openSystem(): Promise<Machine> {
  // Always a guest: the names of the pools and the paths could be a real machine's own.
  const machine = await openGuest();
  try {
    await machine.createPool("tank");
    await machine.createPool("rpool");
    await machine.write("/etc/zferry/build.toml", BUILD_CONFIG);
    await machine.write("/etc/zferry/site.toml", SITE_CONFIG);
    await distribution(machine, "build-host");
    await machine.run(
      "bundle keygen --no-password -o /root/release && install -D -m 644 /root/release.pub /etc/zferry/keys/release.pub",
    );
    await machine.run("bundle snapshot R1");
    await distribution(machine, "site");
    return machine;
  } catch (error) {
    await machine.close();
    throw error;
  }
}

/** Changes the build host as an update to release R`number` does, makes the release and its bundle; gives the file. */
export async function makeRelease(machine: Machine, number: number): Promise<string> {
  const file = `/tmp/R${number}.bundle`;
  await distribution(machine, `change ${number}`);
  await machine.run(`bundle snapshot R${number} -m "release ${number}"`);
  await machine.run(`bundle create --base R${number - 1} --target R${number} --expires-days 30 -o ${file}`);
  return file;
}
