# Everything a newcomer needs is two commands: `make demo` and `make test`.
# VENV may name another environment, JOBS the processes that test (`make test` takes one more, as
# half of its tests wait for a database, a queue or a browser), PYTEST_ARGS more arguments,
# SCHEDULES how many there are of `make chaos`.
# The loops, from the shortest: `make quick` while writing, `make test` before a push, `make chaos`
# before a release.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PYTEST_ARGS ?=
SCHEDULES ?= 200
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# uv is installed into the environment itself: nothing outside this folder is touched.
# Bytecode is compiled at once: importing torch and timm without it takes 18 s instead of 6.
UV := UV_COMPILE_BYTECODE=1 UV_PROJECT_ENVIRONMENT=$(abspath $(VENV)) VIRTUAL_ENV= $(abspath $(BIN))/uv

# Rooms whose unit tests train networks or diagnose them, and needs that `make quick` does without.
TRAIN := demo diagnosis exports source training
QUICK := not slow and not postgres and not browser

# What `make chaos` runs: all schedules and faults, and more kills and larger networks of other tests.
AGAIN := tests/chaos tests/acceptance/test_kills.py tests/unit/training/test_method_contract.py \
	tests/acceptance/test_finalize.py::test_kills_change_nothing_and_the_test_set_is_read_once \
	tests/acceptance/test_diagnose.py::test_a_diagnosis_killed_again_and_again_ends_as_one_left_alone

# Files compiled once serve all the processes that tests start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo quick test chaos check lint format types imports lock wheel clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## Make .venv with the locked dependencies (5 GB, mostly torch)

$(STAMP): pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python >= 3.11 is needed, got " + sys.version.split()[0] + "; say which with make PYTHON=python3.12")'
	@echo "== environment $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install "uv>=0.9,<1"
	@echo "== dependencies from uv.lock (torch is large: minutes where nothing is cached)"
	$(UV) sync --frozen --inexact
	@touch $@

demo: $(STAMP)  ## Search a small texture task with two workers, on any machine, in minutes
	$(BIN)/nbtl-search demo

quick: $(STAMP)  ## Run the unit tests that need no database, browser or training (2 minutes)
	$(BIN)/pytest tests/unit $(TRAIN:%=--ignore=tests/unit/%) -m "$(QUICK)" -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

test: $(STAMP)  ## Run all tests
	$(BIN)/pytest -n $$(($(JOBS) + 1)) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

chaos: $(STAMP)  ## Kill workers and Postgres by 200 seeded schedules, and commit every single fault
	NBTL_CHAOS_SCHEDULES=$(SCHEDULES) $(BIN)/pytest $(AGAIN) -n $(JOBS) --dist load -rP $(PYTEST_ARGS)

check: lint types imports test  ## Run what CI runs: ruff, mypy, import-linter, pytest

lint: $(STAMP)  ## Run ruff's linter and look at the format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(STAMP)  ## Let ruff mend and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(STAMP)  ## Run mypy (strict)
	$(BIN)/mypy

imports: $(STAMP)  ## Check the floors and the two columns
	$(BIN)/lint-imports

lock: $(STAMP)  ## Write uv.lock anew from pyproject.toml, with PyPI as the only index
	$(UV) lock --default-index https://pypi.org/simple

wheel: $(STAMP)  ## Build the wheel into dist/
	$(UV) build --wheel

clean:  ## Remove the environment, caches and builds
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
