#!/usr/bin/env bash
# What a Gentoo system has in / besides /usr, in small: what portage writes, what OpenRC reads, and the database of packages.
#   gentoo.sh first     makes it in the current folder
#   gentoo.sh update    changes it as an update of the world does
set -euo pipefail
categories=(app-shells dev-libs net-misc sys-apps sys-libs)

# package CATEGORY NAME VERSION: its entry in the database of packages
package() {
  local folder=var/db/pkg/$1/$2-$3
  mkdir -p "$folder"
  echo "$1" >"$folder/CATEGORY"
  echo "$2-$3" >"$folder/PF"
  seq -f "obj /usr/share/$2/%g d41d8cd98f00b204e9800998ecf8427e 1700000000" 40 >"$folder/CONTENTS"
  echo "$(cksum <<<"$1/$2-$3" | cut -d ' ' -f 1)" >"$folder/BUILD_TIME"
  echo 'amd64 elibc_glibc kernel_linux' >"$folder/USE"
}

first() {
  mkdir -p etc/{conf.d,env.d,init.d,runlevels/{boot,default,sysinit},portage/{package.use,repos.conf}} var/lib/portage
  printf 'COMMON_FLAGS="-O2 -pipe"\nUSE="acl -X"\n\nMAKEOPTS="-j4"\n\nACCEPT_LICENSE="@FREE"\n' >etc/portage/make.conf
  ln -s ../../var/db/repos/gentoo/profiles/default/linux/amd64/23.0 etc/portage/make.profile
  printf '[gentoo]\nlocation = /var/db/repos/gentoo\n' >etc/portage/repos.conf/gentoo.conf
  for service in cronie hostname localmount metalog netmount; do
    printf '#!/sbin/openrc-run\n# version 1\ndepend() {\n\tneed localmount\n}\n' >etc/init.d/$service
    chmod 755 etc/init.d/$service
    printf '# %s\n\nrc_need=""\n\n# more\n' $service >etc/conf.d/$service
  done
  for link in boot/hostname boot/localmount default/cronie default/metalog default/netmount; do
    ln -s "/etc/init.d/${link#*/}" "etc/runlevels/$link"
  done
  echo 'LDPATH="/usr/lib/gcc/13"' >etc/env.d/04gcc
  head -c 20000 /dev/zero | tr '\0' '\1' >etc/ld.so.cache
  for category in "${categories[@]}"; do for n in $(seq 12); do package "$category" "package$n" 1.0; done; done
  printf 'app-shells/package1\nsys-apps/package2\n' >var/lib/portage/world
  chown 0:250 etc/portage/package.use var/lib/portage
  chmod 2775 var/lib/portage
}

update() {
  for n in 1 5 9; do
    for category in "${categories[@]}"; do
      rm -r "var/db/pkg/$category/package$n-1.0"
      package "$category" "package$n" 1.1
    done
  done
  sed -i 's/^# version 1/# version 2/' etc/init.d/*
  # One service is replaced by another, in its runlevel too.
  rm etc/init.d/metalog etc/conf.d/metalog etc/runlevels/default/metalog
  printf '#!/sbin/openrc-run\n# version 1\n' >etc/init.d/sysklogd
  chmod 755 etc/init.d/sysklogd
  ln -s /etc/init.d/sysklogd etc/runlevels/default/sysklogd
  ln -sfn ../../var/db/repos/gentoo/profiles/default/linux/amd64/23.0/split-usr etc/portage/make.profile
  sed -i 's/-O2/-O3/' etc/portage/make.conf
  sed -i 's/^# more/# yet more/' etc/conf.d/hostname
  mv etc/env.d/04gcc etc/env.d/04gcc-x86_64
  head -c 21000 /dev/zero | tr '\0' '\2' >etc/ld.so.cache
  echo 'sys-libs/package3' >>var/lib/portage/world
}

"$1"
