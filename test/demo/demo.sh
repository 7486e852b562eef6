#!/usr/bin/env bash
# npm run demo: a release's way from a build host to a site, in the lab.
set -euo pipefail
cd "$(dirname "$0")/../.."
source test/run/setup.sh
install_modules
npm run --silent build
exec npx --no-install tsx test/demo/demo.ts
