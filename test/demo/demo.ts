import { defaultZfs, MNT, usesLocalZfs } from "../lab/guest.js";
import { distribution, openPools, RPOOL, TANK } from "../lab/system.js";

// npm run demo: two releases are made on one pool, carried as files, and installed on another pool.

const started = Date.now();
const say = (text: string): void => console.log(text);
const chapter = (title: string): void =>
  say(
    `\n\u2500\u2500 ${title} ${"\u2500".repeat(Math.max(0, 90 - title.length))} ${Math.round((Date.now() - started) / 1000)} s`,
  );

chapter("a machine with ZFS");
say(
  usesLocalZfs()
    ? `Everything happens in two pools of its own, ${TANK} and ${RPOOL}, in files; what else this machine has is not touched.`
    : `Everything happens in a virtual machine with OpenZFS ${defaultZfs()}, which takes about 20 seconds to start.`,
);
const machine = await openPools();

/** Shows a command, runs it, shows what it prints. */
async function show(command: string): Promise<void> {
  say(`$ ${command}`);
  const { stdout, stderr } = await machine.run(command);
  for (const line of `${stderr}${stdout}`.trimEnd().split("\n")) if (line !== "") say(`    ${line}`);
}

try {
  await show("zfs version");

  chapter("the build host");
  say(
    `Pool ${TANK}. ${MNT}/build is the system's / (a git repository), ${MNT}/build/usr its /usr (a dataset of its own).`,
  );
  await distribution(machine, "build-host");
  await show("bundle keygen --no-password -o /etc/zferry/release");
  await show("bundle snapshot R1");

  chapter("the site, far away and without a network");
  say(
    `Pool ${RPOOL}. ${MNT}/site is its /, with changes of its own; ${MNT}/site/usr is its /usr, from release R1, read-only.`,
  );
  await distribution(machine, "site");
  await machine.run("install -D -m 644 /etc/zferry/release.pub /etc/zferry/keys/release.pub");
  await show(`git -C ${MNT}/site log --oneline`);
  await show(`grep -n of- ${MNT}/site/etc/sshd_config`);

  for (const number of [2, 3]) {
    const [base, target] = [`R${number - 1}`, `R${number}`];
    const file = `/tmp/${target}.bundle`;
    chapter(`release ${target}`);
    say(
      "The build host updates its packages and makes a release: a commit, a tag, snapshots of both datasets at once.",
    );
    await distribution(machine, `change ${number}`);
    await show(`bundle snapshot ${target} -m "packages of release ${number}"`);
    say("One signed file holds the whole difference:");
    await show(`bundle create --base ${base} --target ${target} -o ${file}`);
    say(`The file travels. At the site, is it whole, and from us?`);
    await show(`bundle verify ${file}`);
    await show(`bundle install ${file}`);
    say("/usr is, byte for byte, what the build host has:");
    await show(
      `diff <(${machine.checkout}/test/lab/distribution.sh fingerprint ${MNT}/build/usr/.zfs/snapshot/${target}) ` +
        `<(${machine.checkout}/test/lab/distribution.sh fingerprint ${MNT}/site/usr) && echo identical`,
    );
    say("/ has the release's changes and the site's own:");
    await show(`grep -n of- ${MNT}/site/etc/sshd_config`);
    await show(`git -C ${MNT}/site log --oneline --graph -4`);
  }

  chapter("where the site is now");
  await show("bundle status");
  await show("bundle install /tmp/R3.bundle");
  chapter("done");
  say("To look around in a virtual machine with ZFS: npm run lab");
} finally {
  await machine.close();
}
