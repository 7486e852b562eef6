#!/usr/bin/env bash
# Usage: dracut-openrc.sh IMAGE FOLDER
# Makes from an image's root, with Debian's packages, what boots a system in other ways than its own, in FOLDER:
#   dracut.img, dracut-plain.img   initramfs that dracut made, with OpenZFS's module; with systemd in it and without
#   dracut.tar                     dracut's files for a system that has none
#   openrc.tar                     those of OpenRC and sysvinit, which are its first process then
# Needs root and the network.
set -euo pipefail
image=$1 folder=$2
suite=$(basename "$image")
suite=${suite%-*}
((EUID == 0)) || { echo "making $folder needs root, once: sudo '$0' '$image' '$folder'" >&2 && exit 1; }

# shellcheck disable=SC2016 # the dollars are for the inner shell
inside() { # SCRIPT: in a mount namespace of its own, so that no mount is left
  unshare --mount bash -c 'mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev" && exec chroot "$0" bash -euc "$1"' "$folder/root" "$1"
}

mkdir -p "$folder"
unsquashfs -quiet -no-progress -dest "$folder/root" "$image/rootfs.sqfs"
cp /etc/resolv.conf "$folder/root/etc/resolv.conf"
mkdir -p "$folder"/root/{proc,dev,tmp,out}
chmod 1777 "$folder/root/tmp"
echo "suite=$suite" >"$folder/root/suite"

inside '
  . /suite
  export DEBIAN_FRONTEND=noninteractive INITRD=No
  printf "#!/bin/sh\nexit 101\n" >/usr/sbin/policy-rc.d
  chmod 755 /usr/sbin/policy-rc.d
  kernel=$(ls /lib/modules)
  apt-get update

  touch /before
  sleep 0.1
  apt-get install -y --no-install-recommends dracut
  apt-get install -y --no-install-recommends -t "$suite" zfs-dracut
  find /etc /usr -cnewer /before -path "*dracut*" | tar -c --no-recursion -T - -f /out/dracut.tar

  modules="base fs-lib rootfs-block shutdown udev-rules usrmount zfs"
  make() { # FILE MODULES...
    dracut --no-hostonly --no-early-microcode --gzip --kver "$kernel" --add-drivers "virtio_pci virtio_blk zfs" \
      --modules "$modules ${*:2}" "$1"
  }
  make /out/dracut.img systemd systemd-initrd dracut-systemd

  touch /before
  sleep 0.1
  apt-get install -y --no-install-recommends --allow-remove-essential openrc sysvinit-core
  find /etc /usr -cnewer /before ! -path "/etc/systemd/*" ! -path "/usr/share/*" | tar -c --no-recursion -T - -f /out/openrc.tar
  # Of Debian 12 the packages of OpenZFS and of OpenRC are not installed side by side.
  [ -e /usr/lib/dracut/modules.d/90zfs ] || apt-get install -y --no-install-recommends -t "$suite" zfs-dracut
  make /out/dracut-plain.img' >&2
mv "$folder"/root/out/* "$folder"
rm -rf --one-file-system "$folder/root"
