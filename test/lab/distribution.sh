#!/usr/bin/env bash
# A small rolling-release distribution, for the tests and the demonstration.
#   distribution.sh build-host          makes tank/BUILD/gentoo (/mnt/build) and tank/BUILD/gentoo/usr, as of release R1
#   distribution.sh site [NAME]         makes rpool/SYSTEM/USR/gentoo and a / of its own (/mnt/site), both from release R1;
#                                       with a NAME, another site: rpool/NAME/USR/gentoo and /mnt/NAME
#   distribution.sh change N            changes /mnt/build as an update to release N (2, 3 or 4) would
#   distribution.sh fingerprint FOLDER  prints all that must be the same in two copies of a dataset
# The pools are there already; TANK and RPOOL are their names, if they are not tank and rpool, and MNT is instead of /mnt.
set -euo pipefail
tank=${TANK:-tank}
rpool=${RPOOL:-rpool}
mnt=${MNT:-/mnt}

# binary NAME SEED KIB: a program that no compressor makes smaller than it is, and that differs from seed to seed
binary() {
  perl -e 'srand $ARGV[0]; print "\x7fELF"; print pack "L", rand 2**32 for 1 .. $ARGV[1] * 256' "$2" "$3" >"$1.new"
  chmod --reference="$1" "$1.new" 2>/dev/null || chmod 755 "$1.new"
  mv "$1.new" "$1"
}

build_host() {
  zfs create -p -o "mountpoint=$mnt/build" -o xattr=sa -o acltype=posixacl "$tank/BUILD/gentoo"
  zfs create "$tank/BUILD/gentoo/usr"
  cd "$mnt/build"
  git init --quiet .
  chmod 700 .git
  git config user.name builder
  git config user.email builder@example.org
  printf '/usr\n/var/tmp\n/.zfs\n' >.gitignore
  mkdir -p etc/conf.d etc/init.d etc/ssl/private var/tmp
  ln -s usr/bin bin
  printf 'root:x:0:0:root:/root:/bin/bash\ndaemon:x:2:2:daemon:/sbin:/bin/false\n' >etc/passwd
  printf 'root:x:0:\ndaemon:x:2:\nwheel:x:10:root\n' >etc/group
  { echo '# sshd configuration'; seq -f 'Option%02g value' 1 30; } >etc/sshd_config
  echo 'keymap="us"' >etc/conf.d/keymaps
  echo 'clock="UTC"' >etc/conf.d/hwclock
  printf '#!/bin/sh\necho start\n' >etc/init.d/net
  chmod 755 etc/init.d/net
  echo 'old daemon, configuration' >etc/oldd.conf
  ln -s ../usr/share/zoneinfo/UTC etc/localtime

  mkdir -p usr/bin usr/lib usr/share/doc usr/share/zoneinfo
  for tool in ls cp sshd ping su; do binary usr/bin/$tool 1 40; done
  chmod 4755 usr/bin/su
  setcap cap_net_raw+ep usr/bin/ping
  binary usr/lib/libc.so.6 1 700
  ln -s libc.so.6 usr/lib/libc.so
  ln usr/bin/ls usr/bin/dir
  for n in $(seq 60); do echo "documentation $n" >usr/share/doc/$n.txt; done
  echo UTC0 >usr/share/zoneinfo/UTC
  git add --all
  git commit --quiet -m 'the first system'
}

site() { # [NAME]
  local name=${1:-site} readonly_parent=$rpool/${1:-SYSTEM}/USR
  zfs create -p -o readonly=on -o "mountpoint=$mnt/$name-usr" "$readonly_parent"
  zfs send "$tank/BUILD/gentoo/usr@R1" | zfs receive -u "$readonly_parent/gentoo"
  zfs create -p -o "mountpoint=$mnt/$name" -o canmount=on -o xattr=sa -o acltype=posixacl "$rpool/ROOT/$name"
  (cd "$mnt/build/.zfs/snapshot/R1" && tar -c --exclude=./.git --exclude=./usr --xattrs .) | tar -C "$mnt/$name" -x --xattrs -p
  zfs set "mountpoint=$mnt/$name/usr" "$readonly_parent/gentoo"
  mountpoint -q "$mnt/$name/usr" || zfs mount "$readonly_parent/gentoo"
  cd "$mnt/$name"
  git init --quiet .
  chmod 700 .git
  git config user.name admin
  git config user.email admin@example.org
  git add --all
  git commit --quiet -m 'as it was delivered'
  # What makes this site different from all others.
  sed -i 's/^Option02 .*/Option02 of-this-site/' etc/sshd_config
  echo 'keymap="de"' >etc/conf.d/keymaps
  echo '10.1.2.3 plc' >etc/hosts
  echo 'operator:x:1000:' >>etc/group
  git add --all
  git commit --quiet -m 'changes of this site'
}

change() {
  cd "$mnt/build"
  case $1 in
    2) # packages updated, one renamed, a new daemon with a user and a secret of its own
      for tool in ls sshd ping; do binary usr/bin/$tool 2 44; done
      setcap cap_net_raw,cap_net_admin+ep usr/bin/ping
      ln -f usr/bin/ls usr/bin/dir
      binary usr/lib/libc.so.7 2 720
      rm usr/lib/libc.so.6
      ln -sfn libc.so.7 usr/lib/libc.so
      mv usr/share/doc/1.txt usr/share/doc/one.txt
      rm usr/share/doc/2.txt
      sed -i 's/^Option28 .*/Option28 of-release-2/' etc/sshd_config
      sed -i '1s/^/newd:x:77:77:new daemon:\/var\/empty:\/bin\/false\n/' etc/passwd
      sed -i '1s/^/newd:x:77:\n/' etc/group
      mkdir -p etc/newd
      chmod 750 etc/newd
      chown 0:77 etc/newd
      echo 'token = "change me"' >etc/newd/secret
      chown 77:77 etc/newd/secret
      chmod 600 etc/newd/secret
      setfattr -n user.origin -v release-2 etc/newd/secret
      rm etc/oldd.conf
      ;;
    3) # a link retargeted, an executable bit, a setuid program gone, a tree moved, a file grown to several blocks
      ln -sfn ../usr/share/zoneinfo/CET etc/localtime
      echo CET-1 >usr/share/zoneinfo/CET
      chmod 644 etc/init.d/net
      chmod 755 usr/bin/su
      mkdir usr/share/man
      mv usr/share/doc usr/share/man/doc
      # Large enough for several threads.
      head -c 33554432 /dev/urandom >usr/lib/firmware.img
      binary usr/bin/cp 3 400
      echo 'clock="local"' >etc/conf.d/hwclock
      sed -i 's/^Option15 .*/Option15 of-release-3/' etc/sshd_config
      setfacl -m u:77:r etc/conf.d/hwclock
      ;;
    4) # a file becomes a link and a link a file, a folder goes, the owner of a file changes
      rm etc/localtime
      echo 'TZif' >etc/localtime
      rm etc/conf.d/hwclock
      ln -s keymaps etc/conf.d/hwclock
      chown 0:0 etc/newd/secret
      echo 'token = "changed"' >etc/newd/secret
      chmod 640 etc/newd/secret
      rm -r usr/share/man
      truncate -s 3M usr/lib/sparse.db
      printf end >>usr/lib/sparse.db
      for n in $(seq 200); do echo "message $n" >usr/lib/message.$n; done
      ;;
  esac
}

fingerprint() {
  cd "$1"
  # A snapshot's own folder has another inode number than the dataset's.
  stat -c '%A %u:%g %Y' .
  find . -mindepth 1 -path ./.zfs -prune -o -mindepth 1 -printf '%P\t%y\t%m\t%U:%G\t%s\t%l\t%n\t%i\t%T@\n' | LC_ALL=C sort
  find . -path ./.zfs -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum
  find . -path ./.zfs -prune -o -print0 | LC_ALL=C sort -z | xargs -0 -r getfattr -h -d -m - -e hex 2>/dev/null
}

"${1//-/_}" "${@:2}"
