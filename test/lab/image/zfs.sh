#!/usr/bin/env bash
# Usage: zfs.sh SUITE, in a chroot made from base.sh's tarball, with /proc mounted.
# Installs OpenZFS from SUITE, which compiles it, and leaves the image's files in /image.
set -euo pipefail
suite=$1
export DEBIAN_FRONTEND=noninteractive INITRD=No
kernel=$(ls /lib/modules)
mkdir -p /image

apt-get update
apt-get install -y --no-install-recommends -t "$suite" zfs-dkms zfsutils-linux zfs-initramfs
printf 'zfs-%s\nzfs-kmod-%s\n' \
  "$(dpkg-query -W -f '${Version}' zfsutils-linux)" "$(modinfo -k "$kernel" -F version zfs)" >/image/zfs-version
cp "/boot/vmlinuz-$kernel" /image/vmlinuz
# Inside is the kernel proper, compressed by xz. QEMU boots it as it is (PVH), 4 s sooner under emulation.
start=$(LC_ALL=C grep -abo $'\xfd7zXZ' /image/vmlinuz | awk -F : 'NR == 1 { print $1 }')
xz -dc --single-stream < <(tail -c "+$((start + 1))" /image/vmlinuz) >/image/vmlinux
mkinitramfs -o /image/initrd-zfs.gz "$kernel" # boots a system that lies on a pool: root=zfs:POOL/DATASET

# The guest's own initramfs mounts the root read-only under a tmpfs, and goes on with test/lab/guest/init.
initrd=$(mktemp -d)
mkdir -p "$initrd"/{bin,modules,proc,sys,dev,lower,upper,root}
cp /bin/busybox "$initrd/bin/"
ln -s busybox "$initrd/bin/sh"
number=10
for module in virtio_pci virtio_blk squashfs overlay 9pnet_virtio 9p; do
  modprobe -S "$kernel" --show-depends "$module"
done | awk '/^insmod/ && !seen[$2]++ { print $2 }' | while read -r file; do
  number=$((number + 1)) # they are loaded in this order
  cp "$file" "$initrd/modules/$number-${file##*/}"
done
cat >"$initrd/init" <<'INIT'
#!/bin/sh
/bin/busybox --install -s /bin
echo "lab: the kernel runs"
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
grep -q lab.probe /proc/cmdline && poweroff -f
for module in /modules/*; do insmod "$module"; done
mount -t squashfs -o ro /dev/vda /lower
mount -t tmpfs -o size=80% tmpfs /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root
mkdir /root/lab
mount -t 9p -o ro,trans=virtio,version=9p2000.L lab /root/lab
for folder in proc sys dev; do mount --move "/$folder" "/root/$folder"; done
exec switch_root /root /lab/init
INIT
chmod +x "$initrd/init"
(cd "$initrd" && find . | cpio -o -H newc --quiet | gzip -1) >/image/initrd.gz

mksquashfs / /image/rootfs.sqfs -comp zstd -Xcompression-level 3 -noappend -quiet -no-progress -wildcards \
  -e 'proc/*' 'sys/*' 'dev/*' 'tmp/*' 'vmlinuz*' boot image \
  usr/src usr/include usr/lib/gcc var/lib/apt/lists var/cache/apt var/lib/dkms
