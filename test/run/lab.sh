#!/usr/bin/env bash
# npm run test:lab [-- VITEST ARGUMENTS]: the tests on real ZFS, all versions side by side; ZFERRY_LAB_ZFS names one.
set -euo pipefail
cd "$(dirname "$0")/../.."
source test/run/setup.sh
install_modules
need_packages mkfs.vfat=dosfstools mkfs.exfat=exfatprogs nginx=nginx-light
npm run --silent build
if [[ ${ZFERRY_LAB_LOCAL:-} == 1 || (-z ${ZFERRY_LAB_LOCAL:-} && -e /dev/zfs && $EUID == 0) ]]; then
  echo "testing on this machine's own ZFS, on pools in files; ZFERRY_LAB_LOCAL=0 tests 2.1 and 2.3 in virtual machines,"
  echo "and what needs them: power cuts, boot environments, and a system that runs from what is replaced"
  only_guests=()
  for suite in chain copy dist dracut-openrc environment-install environments guest live merge power prune shared trial; do only_guests+=(--exclude "test/lab/$suite.test.ts"); done
  run_vitest lab-local --project lab "${only_guests[@]}" "$@"
  exit
fi

read -ra versions <<<"${ZFERRY_LAB_ZFS:-2.1 2.3}"
for version in "${versions[@]}"; do npx tsx test/lab/lab.ts --build "$version"; done

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
declare -A jobs
declare -A LEFT_TO_OTHERS=(
  [2.1]="between copy dracut-openrc environment-install environments faults merge prune shared undo"
  [2.3]="chain dist gentoo guest live power resume root stops story trial"
)
# An emulated machine with two processors keeps two of this one busy, and a good part of it in vain.
(($(nproc) >= 2 * ${#versions[@]})) || export ZFERRY_LAB_CPUS=${ZFERRY_LAB_CPUS:-1}
for version in "${versions[@]}"; do
  echo "testing on ZFS $version; its output follows when it has ended"
  # Each has half: all that one would have takes twice as long as a run of everything may.
  others=()
  if ((${#versions[@]} > 1)); then
    for suite in ${LEFT_TO_OTHERS[$version]}; do others+=(--exclude "test/lab/$suite.test.ts"); done
  fi
  ZFERRY_LAB_ZFS=$version run_vitest "lab-$version" --project lab "${others[@]}" "$@" >"$logs/$version" 2>&1 &
  jobs[$version]=$!
done
status=0
for version in "${versions[@]}"; do
  wait "${jobs[$version]}" || status=1
  echo "--- ZFS $version"
  cat "$logs/$version"
done
exit $status
