#!/usr/bin/env bash
# npm run soak: power cuts in the middle of installs, for hours. SOAK_CUTS is their number (500), SOAK_SEED what they are chosen
# by, ZFERRY_LAB_ZFS the version of ZFS (2.3).
set -euo pipefail
cd "$(dirname "$0")/../.."
source test/run/setup.sh
install_modules
npm run --silent build
npx --no-install tsx test/lab/lab.ts --build "${ZFERRY_LAB_ZFS:-2.3}"
export SOAK_CUTS=${SOAK_CUTS:-500} ZFERRY_LAB_ZFS=${ZFERRY_LAB_ZFS:-2.3}
run_vitest soak --project lab test/lab/power.test.ts "$@"
