import { ACCOUNTS, BuildHost, command, file, hardLink, link } from "./hosts.js";

let made: BuildHost | undefined;

/** A build host whose release r2 has a change of every kind since r1; r3 is a small one after it. */
export const everything = (): BuildHost => (made ??= makeEverything());

function makeEverything(): BuildHost {
  const host = new BuildHost();
  host.release("r1", {
    ...ACCOUNTS,
    ".gitignore": "/usr\n/var/cache\n",
    "bin/capable": file("\x7fELF\0\x01", 0o755),
    "bin/setuid": file("\x7fELF\0\x02", 0o4755),
    "etc/attributes": file(
      "same\n",
      0o644,
      'setfattr -n user.gone -v 1 "$1"; setfattr -n user.changed -v 1 "$1"',
    ),
    "etc/becomes-file": link("config"),
    "etc/becomes-link": "a file\n",
    "etc/config": "one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n",
    "etc/dir-to-file/a": "a\n",
    "etc/dir-to-file/b/c": "c\n",
    "etc/empty-changed.d/inner": command('mkdir "$1"'),
    "etc/empty-filled.d": command('mkdir "$1"'),
    "etc/empty-gone.d/inner": command('mkdir -p "$1"'),
    "etc/empty-to-file.d/inner": command('mkdir "$1"'),
    "etc/file-to-dir": "a file\n",
    "etc/file-to-empty": "a file\n",
    "etc/filled-to-empty.d/x": "x\n",
    "etc/gone": "gone\n",
    "etc/gone.d/inner/file": "gone\n",
    "etc/kept.d/gone": "gone\n",
    "etc/kept.d/stays": "stays\n",
    "etc/linked/1": "linked\n",
    "etc/linked/2": hardLink("1"),
    "etc/linked/gone": hardLink("1"),
    "etc/linked/parted": "parted\n",
    "etc/linked/parted-too": hardLink("parted"),
    "etc/modes/data": "data\n",
    "etc/modes/script": file("#!/bin/sh\n", 0o644),
    "etc/owned": "same\n",
    "etc/private/x": file("x\n", 0o644, 'chmod 0755 "$(dirname "$1")"'),
    "etc/retarget": link("config"),
    "etc/secret": file("secret\n", 0o600),
    "etc/unchanged": "unchanged\n",
  });
  host.release("r2", {
    "bin/capable": file("\x7fELF\0\x03", 0o755, 'setcap cap_net_raw+ep "$1"'),
    "bin/new-setuid": file("\x7fELF\0\x04", 0o4711, 'chgrp 80 "$1"; chmod 6711 "$1"'),
    "bin/setuid": file("\x7fELF\0\x05", 0o755),
    "etc/acl": file("acl\n", 0o640, 'setfacl -m u:80:r "$1"'),
    "etc/acl.d/x": file("x\n", 0o640, 'setfacl -d -m u:80:rwx "$(dirname "$1")"'),
    "etc/attributes": command(
      'setfattr -x user.gone "$1"; setfattr -n user.changed -v 2 "$1"; setfattr -n "user.odd=\\\\name" -v "" "$1"',
    ),
    "etc/becomes-file": command('rm "$1"; echo file > "$1"'),
    "etc/becomes-link": link("config"),
    "etc/config": "one\ntwo\nthree\nfour\nfive\nsix\nseven\nEIGHT\n",
    "etc/dir-to-file": command('rm -r "$1"; echo file > "$1"'),
    "etc/dangling": link("/does/not/exist"),
    "etc/empty": "",
    "etc/file-to-dir": command(
      'rm "$1"; mkdir -p "$1/inner"; echo new > "$1/inner/file"; chown 80 "$1/inner"; chmod 1711 "$1/inner"',
    ),
    "etc/empty-changed.d": command('chown 80:80 "$1/inner"; chmod 2750 "$1/inner"; chmod 0711 "$1"'),
    "etc/empty-filled.d/x": "x\n",
    "etc/empty-gone.d": null,
    "etc/empty-new.d/inner": command(
      'mkdir "$1"; chgrp 80 "$1"; chmod 3770 "$1"; setfacl -d -m u:80:rwx "$1"',
    ),
    "etc/empty-to-file.d": command('rm -r "$1"; echo file > "$1"'),
    "etc/file-to-empty": command('rm "$1"; mkdir "$1"'),
    "etc/filled-to-empty.d/x": null,
    "etc/gone": null,
    "etc/gone.d": null,
    "etc/new.d/empty": command('mkdir -p "$1"; echo x > "$(dirname "$1")/x"'),
    "etc/kept.d/gone": null,
    "etc/linked/1": file("linked 2\n", 0o640, 'chgrp 80 "$1"; setfattr -n user.linked -v 1 "$1"'),
    "etc/linked/gone": null,
    "etc/linked/new.d/3": hardLink("../1"),
    "etc/linked/parted-too": command('cp -p "$1" "$1.copy"; mv "$1.copy" "$1"'),
    "etc/linked/same": hardLink("../unchanged"),
    "etc/large": Buffer.alloc(3 << 20, "large file\0"),
    "etc/modes/script": file("#!/bin/sh\n", 0o755),
    "etc/new\nline": "newline\n",
    "etc/non-utf8": command(
      'd=$(dirname "$1"); printf x > "$d/$(printf "caf\\351")"; mkdir "$d/$(printf "d\\377")"; printf y > "$d/$(printf "d\\377")/y"',
    ),
    "etc/owned": command('chown 80:80 "$1"; chmod 0600 "$1"'),
    "etc/private/x": file("x 2\n", 0o600, 'chmod 2750 "$(dirname "$1")"; chgrp 80 "$(dirname "$1")"'),
    "etc/retarget": link("empty"),
    "etc/secret": file("secret 2\n", 0o600),
    'etc/sp ace"\\': "quoted\n",
    "etc/über": "über\n",
  });
  host.release("r3", {
    "etc/config": "one\nthird release\nthree\nfour\nfive\nsix\nseven\nEIGHT\n",
    "etc/empty": null,
  });
  return host;
}
