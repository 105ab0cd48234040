#!/usr/bin/env bash
# venv.sh FOLDER PYTHON [GROUP...]: a virtual environment with this project and the named dependency groups in it.
# Does nothing when the folder is up to date with pyproject.toml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$1 python=$2
shift 2

stamp=$folder/.meshlib-${*:-runtime}
stamp=${stamp// /-}
state=$("$python" -VV; cat pyproject.toml)
if [[ -f $stamp && $(<"$stamp") == "$state" ]]; then exit 0; fi

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  # Debian splits it off.
  package=python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv
  if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    tests/components/apt_install.sh "$package"
  else
    echo "venv: $python cannot make virtual environments; install the package $package" >&2
    exit 1
  fi
fi

echo "venv: $folder, $("$python" -V), ${*:-runtime only}"
[[ -x $folder/bin/python ]] || "$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check)
groups=()
for group in "$@"; do groups+=(--group "$group"); done
# Dependency groups need pip 25.1.
if [[ ${#groups[@]} -gt 0 ]]; then "${pip[@]}" --upgrade 'pip>=25.1'; fi
"${pip[@]}" --editable . "${groups[@]}"
printf '%s' "$state" >"$stamp"
