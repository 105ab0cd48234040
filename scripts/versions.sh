#!/usr/bin/env bash
# versions.sh [SET...]: the tests of the clients against other versions of the libraries they wrap, each set in a virtual
# environment of its own under the cache (XDG_CACHE_HOME, default ~/.cache). All sets if none is named:
#   oldest         every dependency at the lower bound that pyproject.toml has
#   oldest-httpx2  its first release (its httpcore2 wants a younger h11 than the set before)
#   newest         what an upgrade of today gives; the only set that looks for anything new
#   unsupported    an httpx below the bounds is left alone (decision D18)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/meshlib/versions
python=$(scripts/find_python.sh)

# What the tests below and their servers import, besides the libraries in question.
tools=(h2 hypothesis pytest pytest-timeout pytest-xdist setuptools trustme)
# Every dependency at its lower bound, from the lines `"name>=version",` of pyproject.toml.
mapfile -t bounds < <(sed -n '/^dependencies = \[/,/^]/ s/^ *"\([A-Za-z0-9-]*\)>=\([0-9.]*\).*/\1==\2/p' pyproject.toml)
names=("${bounds[@]%==*}")
oldest_grpcio=$(printf '%s\n' "${bounds[@]}" | sed -n 's/^grpcio==//p')

httpx_tests=(
  tests/unit/clients_httpx tests/property/clients_httpx
  tests/integration/test_httpx_{sync,async,wires,fast,tls,fork}.py tests/unit/discovery/kubernetes/test_credentials.py
)
httpx2_tests=(tests/integration/test_httpx_{flavours,http2,scenarios}.py tests/integration/test_install_httpx.py)
grpc_tests=(
  tests/unit/clients_grpc tests/property/clients_grpc
  tests/integration/test_grpc_{differential,sync,aio,aio_interceptors,connections,silence}.py tests/integration/test_install_grpc.py
)
unsupported_tests=(tests/unit/clients_install/test_unsupported.py)

for set in "${@:-oldest oldest-httpx2 newest unsupported}"; do
  for each in $set; do
    case $each in
      oldest)
        libraries=("${bounds[@]}" "grpcio-health-checking==$oldest_grpcio" "grpcio-tools==$oldest_grpcio")
        tests=("${httpx_tests[@]}" "${grpc_tests[@]}")
        ;;
      oldest-httpx2)
        libraries=("${names[@]}" httpx2==2.0.0 httpcore2==2.0.0 grpcio-health-checking)
        tests=("${httpx2_tests[@]}")
        ;;
      newest)
        libraries=("${names[@]}" httpx2 grpcio-health-checking grpcio-tools)
        tests=("${httpx_tests[@]}" "${httpx2_tests[@]}" "${grpc_tests[@]}")
        ;;
      unsupported)
        libraries=("${names[@]}" httpx==0.23.3 httpcore==0.16.3 grpcio-health-checking)
        tests=("${unsupported_tests[@]}")
        ;;
      *) echo "versions: no such set: $each (oldest, oldest-httpx2, newest, unsupported)" >&2; exit 2 ;;
    esac
    folder=$cache/$each
    # made anew when another set of requirements or another Python is wanted; the newest changes by itself
    state=$("$python" -VV; echo "${libraries[*]} ${tools[*]}")
    if [[ $each == newest || ! -f $folder/.state || $(<"$folder/.state") != "$state" ]]; then
      [[ $each == newest && -x $folder/bin/python ]] || "$python" -m venv --clear "$folder"
      "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade "${libraries[@]}" "${tools[@]}"
      printf '%s' "$state" >"$folder/.state"
    fi
    echo "versions: $each: ${libraries[*]}"
    # libraries of other times warn about other things than those that the tests are written for
    PYTHONPATH=. "$folder/bin/python" -m pytest -q -p no:cacheprovider -r fE -n "${PYTEST_WORKERS:-2}" --dist loadgroup \
      -W ignore::DeprecationWarning "${tests[@]}"
  done
done
