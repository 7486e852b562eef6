#!/usr/bin/env bash
# Usage: minimal-root.sh TREE FOLDER SCRIPT
# Runs a script in a system that has nothing but a shell, readlink, glibc and the compiler's libraries, and the tree, which is
# mounted read-only at /opt/zf 1: no network, no home, no folder to write to but /work (FOLDER/work), an empty environment.
set -euo pipefail
tree=$1 root=$2 script=$3
mkdir -p "$root"/{bin,dev,proc,tmp,work,"opt/zf 1"}
programs=("$tree/bin/node" "$tree/lib/zstd-napi.node")
for name in sh readlink; do
  program=$(readlink -f "$(command -v "$name")")
  cp "$program" "$root/bin/$name"
  programs+=("$program")
done
mapfile -t libraries < <(ldd "${programs[@]}" | sed -n 's,^.*[[:space:]]\(/[^ ]*\) (0x.*,\1,p' | sort -u)
cp -L --parents "${libraries[@]}" "$root"
touch "$root/dev/null"
# shellcheck disable=SC2016 # the dollars are for the inner shell
exec unshare --mount --net --pid --fork bash -euc '
  mount -t proc proc "$1/proc"
  mount --bind /dev/null "$1/dev/null"
  mount --bind "$2" "$1/opt/zf 1"
  mount -o remount,ro,bind "$1/opt/zf 1"
  exec env -i "$(command -v chroot)" "$1" /bin/sh -euc "$3"' inner "$root" "$tree" "$script"
