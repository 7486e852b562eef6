#!/usr/bin/env bash
# npm test [-- VITEST ARGUMENTS]: everything that needs no ZFS. Installs what is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
source test/run/setup.sh
install_modules
install_tools

npm run --silent build
npm run --silent types &
types=$!
npm run --silent lint
wait "$types"
run_vitest node-"$(node -p 'process.versions.node')" --project unit --project cli "$@"
echo "Left out: the tests on real ZFS. They need a virtual machine, which takes some minutes to build: npm run test:lab"
