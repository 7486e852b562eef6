#!/usr/bin/env bash
# npm run test:nodes [-- VITEST ARGUMENTS]: the unit and command-line tests on other versions of node, which npm's
# registry has as packages; ZFERRY_NODES names them. Left out is what takes minutes and depends on git,
# or has a node of its own.
set -euo pipefail
cd "$(dirname "$0")/../.."
source test/run/setup.sh
install_modules
install_tools
npm run --silent build
cache=${XDG_CACHE_HOME:-$HOME/.cache}/zferry
package=node-linux-$(node -p process.arch)
left_out=()
suites=(cli/resolve cli/size dist/dist install/resolve "root/!(install)" trust/minisign-tool)
for suite in "${suites[@]}"; do left_out+=(--exclude "test/$suite.test.ts"); done
for major in ${ZFERRY_NODES:-22 24}; do
  folder=$cache/node-$major
  if [[ ! -x $folder/node_modules/$package/bin/node ]]; then
    echo "installing node $major" >&2
    npm install --prefix "$folder" --no-audit --no-fund --silent "$package@$major" >&2
  fi
  PATH=$folder/node_modules/$package/bin:$PATH
  run_vitest "node-$(node -p 'process.versions.node')" --project unit --project cli "${left_out[@]}" "$@"
done
