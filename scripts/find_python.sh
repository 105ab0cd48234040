#!/usr/bin/env bash
# find_python.sh [VERSION]: prints the path of a Python that runs: of VERSION, or else 3.11 or newer.
set -euo pipefail
wanted=${1:-}

suits() {
  "$1" - "$wanted" 2>/dev/null <<'PY'
import sys

wanted = sys.argv[1]
found = "%d.%d" % sys.version_info[:2]
sys.exit(0 if (found == wanted if wanted else sys.version_info >= (3, 11)) else 1)
PY
}

shopt -s nullglob
if [[ -n $wanted ]]; then
  candidates=("python$wanted" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$wanted".*/bin/python "/opt/python/$wanted/bin/python")
else
  candidates=(${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14)
fi
for candidate in "${candidates[@]}"; do
  if suits "$candidate"; then
    # the real interpreter, not a shim that may decide otherwise elsewhere
    "$candidate" -c 'import sys; print(sys.executable)'
    exit 0
  fi
done
exit 1
