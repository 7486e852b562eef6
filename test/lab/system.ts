import { BLOCK_BYTES, paddingOf, parseHeader } from "../../src/bundle/layout.js";
import { MNT, openMachine, poolName, type Machine } from "./guest.js";

// A build host and a site on one machine, as distribution.sh makes them, at release R1.

export const TANK = poolName("tank");
export const RPOOL = poolName("rpool");
export const BUILD_USR = `${TANK}/BUILD/gentoo/usr`;
export const SITE_USR = `${RPOOL}/SYSTEM/USR/gentoo`;

const BUILD_CONFIG = `product = "gentoo"
[streams]
usr = "${BUILD_USR}"
[root]
path = "${MNT}/build"
dataset = "${TANK}/BUILD/gentoo"
[create]
key = "/etc/zferry/release.key"
level = 3
`;

export const SITE_CONFIG = `product = "gentoo"
[streams]
usr = "${SITE_USR}"
[root]
path = "${MNT}/site"
`;

export const script = (machine: Machine, command: string): string =>
  `MNT=${MNT} TANK=${TANK} RPOOL=${RPOOL} ${machine.checkout}/test/lab/distribution.sh ${command}`;

export const distribution = (machine: Machine, command: string) => machine.run(script(machine, command));

async function configure(machine: Machine): Promise<void> {
  await machine.write("/etc/zferry/build.toml", BUILD_CONFIG);
  await machine.write("/etc/zferry/site.toml", SITE_CONFIG);
}

/** On a machine with both pools: both configurations, release R1 made, and the site installed from it. */
export async function makeSystem(machine: Machine): Promise<void> {
  await configure(machine);
  await distribution(machine, "build-host");
  await machine.run(
    "bundle keygen --no-password -o /etc/zferry/release; install -D -m 644 /etc/zferry/release.pub /etc/zferry/keys/release.pub; bundle snapshot R1",
  );
  await distribution(machine, "site");
}

async function openWith(setUp: (machine: Machine) => Promise<void>): Promise<Machine> {
  const machine = await openMachine();
  try {
    for (const pool of ["tank", "rpool"]) await machine.createPool(pool);
    await setUp(machine);
    return machine;
  } catch (error) {
    await machine.close();
    throw error;
  }
}

/** Opens a machine with both pools and both configurations. */
export const openPools = (): Promise<Machine> => openWith(configure);

/** Opens a machine with all that `makeSystem` makes. */
export const openSystem = (): Promise<Machine> => openWith(makeSystem);

/** Changes the build host as an update to release R`number` does, makes the release and its bundle; gives the file. */
export async function makeRelease(machine: Machine, number: number): Promise<string> {
  const file = `/tmp/R${number}.bundle`;
  await machine.run(
    `${script(machine, `change ${number}`)}; bundle snapshot R${number} -m "release ${number}"; bundle create --base R${number - 1} --target R${number} --expires-days 30 -o ${file}`,
    { timeout: 600_000 },
  );
  return file;
}

/** Where a member's content begins in the archive. */
export function contentOffset(bundle: Uint8Array, wanted: string): number {
  for (let at = 0; ;) {
    const { name, size } = parseHeader(bundle.subarray(at, at + BLOCK_BYTES), at);
    at += BLOCK_BYTES;
    if (name === wanted) return at;
    at += size + paddingOf(size);
  }
}
