# Sourced by each script of this folder: a temporary folder, its packages, clean-up, and the verdict at the end.
#
#   run_python [PACKAGE==VERSION]... <<'PYTHON'     runs the program in an environment that has these packages only
#   run_node [PACKAGE@VERSION]... <<'JAVASCRIPT'    the same for Node
#   skip REASON                                     ends the script with 77: a program or version is not there
#
# A program ends the processes that it starts (nats_servers.py, browsers.mjs), also at SIGTERM, and listens on free ports.
# Everything is in "$folder", also what the programs write to the temporary directory, and is removed at the end. Only
# `make findings` has a folder of its own for the packages, FINDINGS_PACKAGES, for as long as it runs: scripts with the same
# packages share one environment in it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(mktemp -d)
export TMPDIR=$folder
installing=

finish() {
  local status=$?
  trap - EXIT
  rm -rf "$folder" ${installing:+"$installing"}
  case $status in
    0) echo "Verdict: as the header says." ;;
    77) echo "Verdict: not there." ;;
    130 | 143) echo "Verdict: none, ended by a signal." ;;
    *) echo "Verdict: changed (status $status)." ;;
  esac
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

skip() {
  echo "$*" >&2
  exit 77
}

install_python() {
  python3 -m venv "$1" && "$1/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}"
}

install_node() {
  mkdir "$1" && npm install --prefix "$1" --silent --no-audit --no-fund "${@:2}"
}

# Sets `packages` to the folder with the packages. Usage: find_packages python|node VERSION PACKAGE...
find_packages() {
  local name
  name=$(printf '+%s' "${@:2}")
  packages=${FINDINGS_PACKAGES:-$folder/packages}/$1${name//\//_}
  [ ! -d "$packages" ] || return 0
  mkdir -p "$(dirname "$packages")"
  installing=$packages.$$
  "install_$1" "$installing" "${@:3}" >&2 || skip "cannot install ${*:3}"
  # Only now it has its name: an installation that breaks off is not used.
  mv "$installing" "$packages"
  installing=
}

run_python() {
  local program python=python3
  command -v python3 > /dev/null || skip "needs Python"
  if [ "$#" -gt 0 ]; then
    find_packages python "$(python3 -c 'import platform; print(platform.python_version())')" "$@"
    python=$packages/bin/python
  fi
  program=$(mktemp -d)/finding.py
  cat > "$program"
  PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1 "$python" "$program"
}

run_node() {
  local program
  command -v node > /dev/null && command -v npm > /dev/null || skip "needs Node"
  program=$(mktemp -d)/finding.mjs
  cat > "$program"
  ln -s "$here/browsers.mjs" "$(dirname "$program")"
  if [ "$#" -gt 0 ]; then
    find_packages node "$(node --version)" "$@"
    ln -s "$packages/node_modules" "$(dirname "$program")"
  fi
  node "$program"
}
