# Two commands on a fresh machine: `make quickstart` and `make test`. Both make the same .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# One OpenMP thread per process: hosts are processes, and bits depend on the number of threads.
export OMP_NUM_THREADS := 1

# Programs without which tests fail instead of being skipped: REQUIRE=chromium,prometheus.
export REQUIRE ?=

.PHONY: help quickstart install test test-all lint clean

help:
	@echo "make quickstart   make .venv, install raygrad, run the main job"
	@echo "make test         make .venv, install, run the tests (about half an hour on two cores)"
	@echo "                  REQUIRE=chromium,prometheus: where they are missing, tests fail instead of being skipped"
	@echo "make test-all     the tests that take longer, too"
	@echo "make lint         format check, lint, types"
	@echo "make clean        remove .venv and what tools left"

quickstart: $(VENV)/installed
	$(BIN)/raygrad run

install: $(VENV)/installed-dev

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "not slow and not gpu" $(ARGS)

test-all: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "raygrad needs Python 3.11, 3.12 or 3.13; this is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
