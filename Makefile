# Every target does its own set-up: `.ci/setup` finds or makes .venv and installs into it when the requirements changed.
.DEFAULT_GOAL := help
.PHONY: help setup quickstart systems test test-all lint format wheel clean

PYTHON := .venv/bin/python
ARGS ?=
OFFLINE := HF_HUB_OFFLINE=1 GRADIO_ANALYTICS_ENABLED=False MPLBACKEND=Agg OMP_NUM_THREADS=1

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s%s\n", $$1, $$2 }' Makefile

setup:  ## make .venv and install into it, if need be
	@.ci/setup

quickstart: setup  ## train, evaluate and show unimoe-tiny on all six modalities (ARGS="..." passes options)
	@# One thread: its matrices are too small to share, and the figures do not depend on the number of cores.
	@MPLBACKEND=Agg OMP_NUM_THREADS=1 $(PYTHON) -m training.quickstart $(ARGS)

systems: setup  ## write docs/systems.md from the entries
	@$(PYTHON) -m zoo.cli show --all --markdown > docs/systems.md.part
	@mv docs/systems.md.part docs/systems.md

test: setup  ## the test suite without the slow tests (ARGS="..." passes options to pytest)
	@$(OFFLINE) $(PYTHON) -m pytest -n 2 -m "not slow" $(ARGS)

test-all: setup  ## the whole test suite
	@$(OFFLINE) $(PYTHON) -m pytest -n 2 $(ARGS)

lint: setup  ## ruff and mypy, changing nothing
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

format: setup  ## sort imports and format, in place
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .

wheel: setup  ## dist/moezoo-*.whl
	@$(PYTHON) -m build --wheel --no-isolation

clean:  ## remove what builds and checks leave behind; .venv and outputs stay
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	@find . -path ./.venv -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
