#!/usr/bin/env bash
# Usage: qemu.sh MIRROR FOLDER
# Unpacks the QEMU of bookworm-backports into FOLDER, for a machine with bookworm: where all is emulated, it starts a process
# in a third of the time that bookworm's own takes. The machine's packages stay as they are. FOLDER/qemu-system-x86_64 runs it.
set -euo pipefail
mirror=$1 folder=$2
mkdir -p "$folder/apt/sources" "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial" "$folder/root"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] $mirror bookworm-backports main" >"$folder/apt/sources/backports.list"
options=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$folder/apt/sources"
  -o "Dir::State::lists=$folder/apt/lists" -o "Dir::Cache=$folder/apt/cache" -o APT::Sandbox::User=)
cd "$folder/apt"
apt-get "${options[@]}" update
apt-get "${options[@]}" download qemu-system-x86 qemu-system-common qemu-system-data seabios
for package in *.deb; do dpkg-deb --extract "$package" "$folder/root"; done
cd "$folder"
rm -r apt
cat >qemu-system-x86_64 <<'RUN'
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
exec "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
RUN
chmod +x qemu-system-x86_64
./qemu-system-x86_64 --version
