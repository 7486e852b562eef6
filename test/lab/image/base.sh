#!/usr/bin/env bash
# Usage: base.sh MIRROR TARBALL
# Debian bookworm with a stock kernel and what compiles modules for it: the same for every version of OpenZFS.
set -euo pipefail
mirror=$1 tarball=$2

packages=(
  linux-image-amd64 linux-headers-amd64 dkms gcc libc6-dev make # to compile the modules
  busybox-static cpio kmod squashfs-tools                       # to make the image
  systemd-sysv                                                  # for systems booted from a pool
  acl attr dosfstools e2fsprogs fdisk git iproute2 jq less libcap2-bin minisign nano procps python3-minimal
  rsync strace udev xz-utils zstd
)
# INITRD=No: the kernel's own initramfs is made once, when it can hold zfs.
INITRD=No mmdebstrap --variant=minbase --include="$(IFS=,; echo "${packages[*]}")" \
  --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  bookworm "$tarball" "deb $mirror bookworm main contrib" "deb $mirror bookworm-backports main contrib"
