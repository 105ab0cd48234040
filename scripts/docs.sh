#!/usr/bin/env bash
# docs.sh: the pages of docs/ as a site in build/docs; any warning is an error. Needs the dependency group docs in .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Nothing is fetched: no intersphinx, no fonts. What the last build left would hide a warning, so everything is read again.
.venv/bin/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet --jobs 2 -b html docs build/docs
echo "docs: build/docs/index.html"
