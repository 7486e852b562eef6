#!/usr/bin/env bash
# npm run bench [-- OPTIONS]: zferry against what people use instead; npm run bench -- --help tells the options.
set -euo pipefail
cd "$(dirname "$0")/../.."
source test/run/setup.sh
install_modules
need_packages minisign=minisign zstd=zstd openssl=openssl tar=tar
npm run --silent build
exec npx --no-install tsx test/bench/bench.ts "$@"
