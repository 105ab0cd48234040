# `make demo` and `make test` work as the first command after a clone; everything they need, they make.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Two workers: the tests mostly wait for servers, and those need processor time as well.
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=
# The folders the linters and the formatter look at.
SOURCES := $(wildcard meshlib tests examples plugins scripts) docs/conf.py docs/_extensions
export PYTEST_WORKERS

.PHONY: help demo test check docs lint format typecheck imports unit components bench soak kernel-cluster kernel-qemu clean venv venv-dev

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv:
	@python=$$(scripts/find_python.sh) || { echo "Python 3.11 or newer is needed (or: make PYTHON=/path/to/it)"; exit 1; }; \
	scripts/venv.sh .venv "$$python"

venv-dev:
	@python=$$(scripts/find_python.sh) || { echo "Python 3.11 or newer is needed (or: make PYTHON=/path/to/it)"; exit 1; }; \
	scripts/venv.sh .venv "$$python" dev

demo: venv ## real traffic over real local servers, in under a minute; no cluster, no privileges
	@.venv/bin/python -m meshlib demo

test: venv-dev check docs components ## everything: linters, types, unit and integration tests
	@scripts/other_python.sh 3.13
	@echo "pytest: all of tests/"
	@.venv/bin/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup $(PYTEST_ARGS)

unit: venv-dev ## only the tests that need no servers
	@.venv/bin/python -m pytest -q -n $(PYTEST_WORKERS) --dist loadgroup -m "not kube and not dns" $(PYTEST_ARGS)

check: lint typecheck imports ## linters, types and the layering, without tests

lint: venv-dev ## ruff: rules and formatting
	@.venv/bin/ruff check $(SOURCES)
	@.venv/bin/ruff format --check $(SOURCES)

format: venv-dev ## let ruff repair what it can
	@.venv/bin/ruff check --fix $(SOURCES)
	@.venv/bin/ruff format $(SOURCES)

typecheck: venv-dev ## mypy --strict
	@.venv/bin/mypy

imports: venv-dev ## the layers of docs/how-it-works.md
	@.venv/bin/lint-imports

docs: venv-dev ## the pages as a site in build/docs; a warning is an error
	@scripts/docs.sh

components: ## the real servers for the tests, cached (Kubernetes is built from source once, about five minutes)
	@tests/components/install.sh

bench: ## figures, each against something in the same run
	@python=$$(scripts/find_python.sh) || { echo "Python 3.11 or newer is needed (or: make PYTHON=/path/to/it)"; exit 1; }; \
	scripts/venv.sh .venv "$$python" dev bench
	@tests/components/install.sh bench
	@.venv/bin/python -m tests.bench

soak: venv-dev ## ten minutes of churn with 200 endpoints: memory, threads and descriptors must stay flat
	@GRPC_VERBOSITY=ERROR .venv/bin/python -m tests.soak

.PHONY: walk
walk: venv-dev components ## Monday to Friday: a service tries meshlib, off to on and back, on a real cluster (root)
	@.venv/bin/python -m tests.walk

.PHONY: versions
versions: venv-dev ## the clients against the oldest and the newest supported httpx, httpx2 and grpcio
	@scripts/versions.sh

kernel-cluster: venv-dev components ## the agent beside kube-proxy on one cluster, in a guest with ipvs (root; about five minutes)
	@MESHLIB_GUEST_CLUSTER=1 .venv/bin/python -m pytest tests/kernel/uml/test_agent_end_to_end.py \
		tests/kernel/uml/test_agent_against_kube_proxy.py $(PYTEST_ARGS)

kernel-qemu: venv-dev ## ipvs with its companion table, in a stock Debian kernel under qemu (root; about three minutes)
	@MESHLIB_QEMU_PYTHON=.venv/bin/python tests/kernel/qemu/run.sh $(PYTEST_ARGS)

clean: ## virtual environments and caches of this folder (the built components stay)
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
