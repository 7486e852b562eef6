#!/usr/bin/env bash
# Usage: booted.sh, in a guest with the disk /dev/lab/system and the image's root at /dev/vda.
# Fills the disk with a system that boots from it: / is rpool/ROOT/one, /usr is rpool/SYSTEM/USR/one, and the job agent is
# a unit of its systemd. Only what a site needs is copied, since copying takes minutes under emulation.
set -euo pipefail
root=/mnt/new lower=/mnt/lower
kernel=$(uname -r)

zpool create -o cachefile=none -O compression=lz4 -O acltype=posixacl -O xattr=sa -O atime=off -O mountpoint=none \
  rpool /dev/lab/system
zfs create rpool/ROOT
zfs create -o mountpoint=legacy rpool/ROOT/one
zfs create -o mountpoint=legacy rpool/SYSTEM
zfs create rpool/SYSTEM/USR
zfs create rpool/SYSTEM/USR/one
mkdir -p "$lower" "$root"
mount -t squashfs -o ro /dev/vda "$lower"
mount -t zfs rpool/ROOT/one "$root"
mkdir "$root/usr"
mount -t zfs rpool/SYSTEM/USR/one "$root/usr"

# shellcheck disable=SC2046 # no module has a blank in its name
modules=$(cd "$lower" && modprobe -d "$lower" -S "$kernel" -a --show-depends \
  9p 9pnet_virtio autofs4 loop overlay squashfs virtio_blk virtio_console virtio_pci virtio_rng zfs |
  sed -n "s,^insmod $lower/\(lib/modules/[^ ]*\).*,usr/\1,p" | sort -u)
tar -C "$lower" -c \
  --exclude='./usr/lib/modules/*/*' --exclude='*.a' --exclude='*.pyc' --exclude=./usr/lib/file \
  --exclude=./usr/lib/git-core/mergetools --exclude='./usr/lib/python3*' --exclude='./usr/bin/python3*' \
  --exclude='./usr/bin/x86_64-linux-gnu-*' --exclude='./usr/bin/perl*' --exclude='./usr/lib/udev/hwdb*' \
  --exclude=./usr/share/perl --exclude=./usr/share/perl5 --exclude=./usr/share/zoneinfo --exclude=./usr/share/bash-completion \
  --exclude=./usr/lib/x86_64-linux-gnu/perl --exclude='./usr/lib/x86_64-linux-gnu/lib?san.so*' \
  --exclude='./usr/lib/x86_64-linux-gnu/libisl*' --exclude='./usr/lib/x86_64-linux-gnu/libubsan*' \
  --exclude='./usr/lib/x86_64-linux-gnu/libperl*' --exclude=./usr/lib/bfd-plugins \
  --exclude=./var/lib/dpkg --exclude=./var/cache --exclude='./var/log/*' . | tar -C "$root" -x
# shellcheck disable=SC2086 # as above
tar -C "$lower" -c $modules usr/lib/modules/"$kernel"/modules.{builtin,builtin.modinfo,order} | tar -C "$root" -x
depmod -b "$root" "$kernel"
install -D /opt/zferry/bin/node "$root/usr/lib/zferry/bin/node"
for name in node bundle zferry; do ln -s ../lib/zferry/bin/"$name" "$root/usr/bin/$name"; done

mkdir -p "$root"/{lab,zferry,host,opt/lab,opt/zferry,mnt,proc,sys,dev,run,tmp,root}
chmod 1777 "$root/tmp"
# The agent outlives /usr.
cp "$lower/usr/bin/busybox" "$root/opt/lab/busybox"
cat >"$root/etc/fstab" <<'END'
rpool/SYSTEM/USR/one /usr zfs ro 0 0
lab /lab 9p ro,trans=virtio,version=9p2000.L,msize=524288 0 0
zferry /zferry 9p ro,trans=virtio,version=9p2000.L,msize=524288 0 0
host /host 9p rw,trans=virtio,version=9p2000.L,msize=524288 0 0
jobs /run/lab 9p rw,trans=virtio,version=9p2000.L,msize=524288 0 0
END
cat >"$root/etc/systemd/system/lab.service" <<'END'
[Unit]
Description=serves the jobs of the lab
After=local-fs.target systemd-modules-load.service
[Service]
Environment=HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WorkingDirectory=/root
ExecStart=/opt/lab/busybox sh /lab/agent serve
KillMode=process
END
printf '9pnet_virtio\nvirtio_console\nvirtio_rng\nsquashfs\n' >"$root/etc/modules-load.d/lab.conf"
units=$root/etc/systemd/system
ln -s ../lab.service "$units/multi-user.target.wants/lab.service"
ln -sfn /lib/systemd/system/multi-user.target "$units/default.target"
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
  getty@tty1.service serial-getty@ttyS0.service systemd-udev-settle.service zfs-import-cache.service zfs-import-scan.service \
  zfs-volume-wait.service zfs-share.service systemd-timesyncd.service systemd-binfmt.service \
  proc-sys-fs-binfmt_misc.automount; do
  ln -sfn /dev/null "$units/$unit"
done
echo booted >"$root/etc/hostname"
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
mkdir -p "$root/var/log"

umount "$root/usr" "$root" "$lower"
zfs set mountpoint=/ canmount=noauto rpool/ROOT/one
zfs set readonly=on rpool/SYSTEM/USR
zpool set bootfs=rpool/ROOT/one rpool
zpool export rpool
