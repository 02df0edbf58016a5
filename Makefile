# `make serve` and `make test` work on a fresh machine with Python 3.11+; the rest is for development.
# PYTHON=python3.12 picks the interpreter, ARGS="port=8000" goes to toka, TORCH=torch==2.11.0 picks PyTorch.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: serve install install-dev metric-tools test test-slow lint format clean

serve: install
	$(BIN)/toka $(ARGS)

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tokasaurus needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# PyTorch goes first: installed as a dependency of something else, it may come as a much larger build.
$(VENV)/.torch: $(VENV)/bin/python
	$(BIN)/pip install --quiet $(TORCH)
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.torch
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed

test: install-dev
	$(BIN)/python -m pytest -m "not slow and not gpu" $(ARGS)

test-slow: install-dev
	$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

# promtool and statsd, in the virtual environment: tests that run them are skipped otherwise.
metric-tools: install-dev
	scripts/fetch_metric_tools.sh

lint: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
