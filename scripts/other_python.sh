#!/usr/bin/env bash
# other_python.sh VERSION: the tests that need no servers, and those of fork and loops, on a second Python, where there is one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=$1

if [[ $(.venv/bin/python -V) == "Python $version."* ]]; then exit 0; fi
if ! python=$(scripts/find_python.sh "$version"); then
  echo "python $version: left out, no such interpreter found (for example: pyenv install $version)"
  exit 0
fi
scripts/venv.sh ".venv-$version" "$python" test
folders=()
for folder in tests/unit tests/property tests/contract; do
  if compgen -G "$folder/test_*.py" >/dev/null || compgen -G "$folder/*/test_*.py" >/dev/null; then
    folders+=("$folder")
  fi
done
# What differs from Python to Python: fork, and how other loops and greenlets live with asyncio.
folders+=(tests/integration/test_httpx_{fork,loops}.py)
echo "python $version: ${folders[*]}"
".venv-$version/bin/python" -m pytest -q -r fE -p no:cacheprovider -n "${PYTEST_WORKERS:-2}" --dist loadgroup "${folders[@]}"
