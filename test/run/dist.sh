#!/usr/bin/env bash
# npm run dist [-- --key FILE -o FOLDER]: zferry with its node, in one file for sites that have neither npm nor a compiler.
set -euo pipefail
cd "$(dirname "$0")/../.."
source test/run/setup.sh
install_modules
need_packages readelf=binutils
npm run --silent types
exec npx --no-install tsx test/dist/dist.ts "$@"
