# Sourced by the commands of package.json: makes a fresh machine ready.

# need_packages COMMAND=PACKAGE...: installs Debian's packages for commands that are missing, or names them and ends
need_packages() {
  local missing=() pair
  for pair; do command -v "${pair%=*}" >/dev/null || missing+=("${pair#*=}"); done
  ((${#missing[@]})) || return 0
  if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
    echo "zferry needs these programs here. On Debian:
  sudo apt-get install ${missing[*]}
elsewhere, the packages that have: ${missing[*]}" >&2
    exit 1
  fi
  echo "installing Debian's packages ${missing[*]}" >&2
  # The lab's images may be built meanwhile: test/lab/image.sh.
  flock /run/zferry-apt.lock bash -c 'apt-get update && apt-get install -y --no-install-recommends "$@"' install "${missing[@]}" >&2
}

# install_modules: npm's packages as the lock file has them, unless they are there
install_modules() {
  need_packages node=nodejs npm=npm git=git g++=g++ make=make python3=python3
  if [[ ! -f node_modules/.package-lock.json || package-lock.json -nt node_modules/.package-lock.json ]]; then
    echo "installing npm's packages (about a minute: zstd's binding is compiled)" >&2
    npm ci --no-audit --no-fund >&2
    touch node_modules/.package-lock.json
  fi
}

# install_tools: what the tests compare with
install_tools() {
  need_packages minisign=minisign zstd=zstd setfattr=attr setfacl=acl setcap=libcap2-bin flock=util-linux \
    systemd-analyze=systemd busybox=busybox-static mkfs.ext4=e2fsprogs losetup=mount \
    nginx=nginx-light openssl=openssl chromium=chromium
}

# run_vitest NAME ARGUMENTS...: also writes ZFERRY_REPORTS/NAME.json, if there is such a folder
run_vitest() {
  local report=()
  [[ -z ${ZFERRY_REPORTS:-} ]] || report=(--reporter=default --reporter=json "--outputFile.json=$ZFERRY_REPORTS/$1.json")
  node node_modules/vitest/vitest.mjs run "${report[@]}" "${@:2}"
}
