#!/usr/bin/env bash
# Usage: image.sh SUITE
# Builds the lab's guest image with the OpenZFS of a Debian suite, bookworm or bookworm-backports, unless it was built
# before, and prints the QEMU to run it with and its folder: vmlinux, initrd.gz, rootfs.sqfs, zfs-version; vmlinuz and
# initrd-zfs.gz are for systems that boot from a pool. Needs root to build. Environment: ZFERRY_LAB_CACHE, ZFERRY_LAB_MIRROR.
set -euo pipefail
parts=$(cd "$(dirname "$0")/image" && pwd)
cache=${ZFERRY_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/zferry/lab}

say() { echo "lab: $*" >&2; }
die() { say "$@" && exit 1; }

# hash TEXT FILE...: 16 hex digits for what a part of the image is made from
hash() { (echo "$1" && cat "${@:2}") | sha256sum | cut -c 1-16; }

# timed WHAT COMMAND...: runs a step; its output is shown only if it fails
timed() {
  local started=$SECONDS output
  say "$1"
  output=$("${@:2}" 2>&1) || { tail -n 40 <<<"$output" >&2 && die "failed after $((SECONDS - started)) s: $1"; }
  say "  done in $((SECONDS - started)) s"
}

# private COMMAND...: runs it in a mount namespace of its own, so that no mount is left, however it ends
private() { unshare --mount "$@"; }

need_packages() { # COMMAND=PACKAGE...
  local missing=() pair
  for pair; do command -v "${pair%=*}" >/dev/null || missing+=("${pair#*=}"); done
  ((${#missing[@]})) || return 0
  if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
    die "the lab needs Debian's packages. Run this first:
  sudo apt-get install ${missing[*]}"
  fi
  timed "installing ${missing[*]}" \
    flock /run/zferry-apt.lock bash -c 'apt-get update && apt-get install -y --no-install-recommends "$@"' install "${missing[@]}"
}

# shellcheck disable=SC2016 # the dollars are for apt
mirror() {
  local listed=(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian') found
  found=${ZFERRY_LAB_MIRROR:-$("${listed[@]}" | sed -n 1p)}
  [[ $found ]] || { flock /run/zferry-apt.lock apt-get update >&2 && found=$("${listed[@]}" | sed -n 1p); }
  [[ $found ]] || die "apt knows no mirror of Debian: set ZFERRY_LAB_MIRROR to one"
  echo "$found"
}

# shellcheck disable=SC2016 # the dollars are for the inner shell
compile() { # SUITE
  mkdir "$building/root" &&
    tar -C "$building/root" -xf "$base" &&
    cp /etc/resolv.conf "$building/root/etc/resolv.conf" &&
    cp "$parts/zfs.sh" "$building/root/tmp/zfs.sh" &&
    private bash -c 'mount -t proc proc "$0/proc" && exec chroot "$0" bash /tmp/zfs.sh "$1"' "$building/root" "$1"
}

suite=${1:-}
[[ $suite == bookworm || $suite == bookworm-backports ]] || die "usage: image.sh bookworm|bookworm-backports"
[[ $(uname -m) == x86_64 ]] || die "the lab needs an x86-64 machine, this is $(uname -m)"
need_packages qemu-system-x86_64=qemu-system-x86 sfdisk=fdisk sqfstar=squashfs-tools mmdebstrap=mmdebstrap
base=$cache/base-$(hash amd64 "$parts/base.sh").tar
image=$cache/$suite-$(hash "$suite ${base##*/}" "$parts/zfs.sh")
qemu=$cache/qemu-$(hash amd64 "$parts/qemu.sh")

# locked: nobody else builds while this shell lives; makes $building, an empty folder
building=$cache/building # may be there from a build that was interrupted
locked() {
  mkdir -p "$cache"
  exec 9>"$cache/lock"
  flock -n 9 || { say "waiting for another build to end" && flock 9; }
  rm -rf --one-file-system "$building"
  mkdir "$building"
}

is_bookworm() { grep -qx VERSION_CODENAME=bookworm /etc/os-release; }

if [[ ! -d $image ]]; then
  ((EUID == 0)) || die "building an image needs root, once:
  sudo env ZFERRY_LAB_CACHE='$cache' '$0' $suite"
  locked
  if [[ ! -f $base ]]; then
    from=$(mirror)
    timed "making Debian bookworm with a kernel and a compiler (about 2 minutes, once)" \
      private env TMPDIR="$building" "$parts/base.sh" "$from" "$building/base.tar"
    mv "$building/base.tar" "$base"
  fi
  if [[ ! -d $image ]]; then
    timed "compiling OpenZFS of $suite (about 6 minutes, once)" compile "$suite"
    chown -R "${SUDO_UID:-0}:${SUDO_GID:-0}" "$building/root/image"
    mv "$building/root/image" "$image"
    say "built $(head -n 1 "$image/zfs-version")"
  fi
  rm -rf --one-file-system "$building"
  exec 9>&-
fi

# Without it all works, in twice the time.
if is_bookworm && [[ ! -d $qemu && -w $cache ]]; then
  locked
  # Another one may have fetched it meanwhile.
  if [[ ! -d $qemu ]]; then
    from=$(mirror)
    if timed "fetching the QEMU of bookworm-backports" "$parts/qemu.sh" "$from" "$building/qemu"; then
      mv "$building/qemu" "$qemu"
    else
      say "going on with this machine's QEMU, which is slower"
    fi
  fi
  rm -rf --one-file-system "$building"
fi
[[ ! -d $qemu ]] || PATH=$qemu:$PATH
command -v qemu-system-x86_64
echo "$image"
