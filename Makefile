# crossdock: every command that a person or CI needs. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= $(firstword $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p; done))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
SCENARIO ?= install-large
MINUTES ?= 60
FUZZ_SECONDS ?= 600

.PHONY: help
help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: tools
tools:
	@missing=0; \
	need() { echo "make: $$1" >&2; missing=1; }; \
	[ -n "$(PYTHON)" ] || need "Python 3.11 or newer is missing: install it (Debian: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3"; \
	command -v git >/dev/null || need "git is missing: install it (Debian: apt-get install git)"; \
	[ -z "$(PYTHON)" ] || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || need "$(PYTHON) has no venv module: install it (Debian: apt-get install python3-venv)"; \
	exit $$missing

$(STAMP): requirements.lock pyproject.toml | tools
	@echo "setting up $(VENV) (once per change of requirements.lock)"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: setup
setup: $(STAMP) ## install the dependencies into .venv

.PHONY: lab-binaries
lab-binaries: $(STAMP)
	@$(BIN)/python -m tests.lab build

.PHONY: demo
demo: lab-binaries ## start a real control plane and registry, install the example packages, show each step
	@$(BIN)/python -m tests.demo

.PHONY: test
test: lint types arch $(STAMP) ## lint, types, import law, unit and integration tests on a real control plane
	@$(BIN)/python -m tests.lab build --with helm
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: unit
unit: $(STAMP) ## the tests that need no control plane
	@$(BIN)/python -m pytest -n $(WORKERS) -m "not lab"

.PHONY: lint
lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: types
types: $(STAMP)
	@$(BIN)/mypy

.PHONY: arch
arch: $(STAMP)
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

.PHONY: invariants
invariants: $(STAMP) ## print which tests show which promise of the Kubernetes machinery
	@$(BIN)/python -m tests.invariants

.PHONY: format
format: $(STAMP) ## format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: bench
bench: lab-binaries ## measure: SCENARIO=install-large (default), real-packages, controller (all of watch, queue, store-memory, idle), idle-profile
	@$(BIN)/python -m tests.bench $(SCENARIO)

.PHONY: fuzz
fuzz: $(STAMP) ## inputs that nobody would write, for all that reads what others send: FUZZ_SECONDS=600
	@$(BIN)/python -m pytest -n $(WORKERS) tests/fuzz --fuzz-seconds $(FUZZ_SECONDS)

.PHONY: soak
soak: lab-binaries ## an hour of churn and faults on a real control plane: MINUTES=60, SEED= to repeat one
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

.PHONY: lab
lab: lab-binaries ## start a real control plane and registry, and leave it up until Ctrl-C
	@$(BIN)/python -m tests.lab up --dir $${LAB_DIR:-$$(mktemp -d)}

.PHONY: lock
lock: $(STAMP) ## pin all dependencies again, with hashes, into requirements.lock
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate --quiet --upgrade -o requirements.lock

.PHONY: clean
clean: ## remove what make made here (not the lab's binaries in the user's cache folder)
	@rm -rf $(VENV) build dist bench-results .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
