#!/usr/bin/env bash
# npm run test:lab [-- VITEST ARGUMENTS]: the tests on real ZFS, all versions side by side; ZFERRY_LAB_ZFS names one.
set -euo pipefail
cd "$(dirname "$0")/../.."
source test/run/setup.sh
install_modules
npm run --silent build
read -ra versions <<<"${ZFERRY_LAB_ZFS:-2.1 2.3}"
for version in "${versions[@]}"; do npx tsx test/lab/lab.ts --build "$version"; done

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
declare -A jobs
for version in "${versions[@]}"; do
  echo "testing on ZFS $version; its output follows when it has ended"
  ZFERRY_LAB_ZFS=$version run_vitest "lab-$version" --project lab "$@" >"$logs/$version" 2>&1 &
  jobs[$version]=$!
done
status=0
for version in "${versions[@]}"; do
  wait "${jobs[$version]}" || status=1
  echo "--- ZFS $version"
  cat "$logs/$version"
done
exit $status
