#!/usr/bin/env bash
# versions.sh [SET...]: the tests of the clients against the oldest and the newest supported libraries, each set in a
# virtual environment of its own under the cache (XDG_CACHE_HOME, default ~/.cache).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/meshlib/versions
python=$(scripts/find_python.sh)

# What the chosen tests import, besides the libraries in question.
tools=(
  cachetools click dnspython h2 hypothesis kubernetes msgspec pytest pytest-timeout pytest-xdist pyyaml rich
  setuptools trustme xxhash
)
oldest_grpc=(grpcio==1.60.0 grpcio-health-checking==1.60.0 grpcio-tools==1.60.0)
httpx_tests=(tests/integration/test_httpx_{sync,async,tls,fork}.py)
httpx2_tests=(tests/integration/test_httpx_flavours.py tests/integration/test_install_httpx.py)
grpc_tests=(tests/integration/test_grpc_differential.py tests/integration/test_install_grpc.py)

for name in "${@:-oldest-httpx oldest-httpx2 oldest-grpc newest}"; do
  for each in $name; do
    case $each in
      # httpcore 1.0.3 wants an h11 older than httpcore2's, so the two oldest flavours cannot live together
      oldest-httpx)
        libraries=(httpx==0.27.0 httpcore==1.0.3 h11==0.14.0 httptools==0.6.4 grpcio) tests=("${httpx_tests[@]}") ;;
      oldest-httpx2)
        libraries=(httpx==0.27.0 httpx2==2.0.0 httpcore2==2.0.0 httptools==0.6.4 grpcio) tests=("${httpx2_tests[@]}") ;;
      oldest-grpc) libraries=("${oldest_grpc[@]}" httpx httpx2 httptools) tests=("${grpc_tests[@]}") ;;
      newest)
        libraries=(--upgrade httpx httpx2 httptools grpcio grpcio-health-checking grpcio-tools)
        tests=("${httpx_tests[@]}" "${httpx2_tests[@]}" "${grpc_tests[@]}")
        ;;
      *) echo "versions: no such set: $each (oldest-httpx, oldest-httpx2, oldest-grpc, newest)" >&2; exit 2 ;;
    esac
    folder=$cache/$each
    [[ -x $folder/bin/python ]] || "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "${libraries[@]}" "${tools[@]}"
    echo "versions: $each: ${libraries[*]}"
    # the libraries of other times warn about other things than those that the tests are written for
    PYTHONPATH=. "$folder/bin/python" -m pytest -q -p no:cacheprovider -n "${PYTEST_WORKERS:-2}" --dist loadgroup \
      -W "ignore::DeprecationWarning" "${tests[@]}"
  done
done
