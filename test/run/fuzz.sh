#!/usr/bin/env bash
# npm run fuzz: changed bundles for the reader, then changed inputs for each codec. FUZZ_CASES is the number of bundles
# (100000), FUZZ_SECONDS the time for each codec (60), FUZZ_SEED a number (of the day).
set -euo pipefail
cd "$(dirname "$0")/../.."
source test/run/setup.sh
install_modules
npm run --silent build
seed=${FUZZ_SEED:-$(date +%Y%m%d)}
npx --no-install tsx test/fuzz/bundle.ts --cases "${FUZZ_CASES:-100000}" --seed "$seed"
npx --no-install tsx test/fuzz/codecs.ts --seconds "${FUZZ_SECONDS:-60}" --seed "$seed"
