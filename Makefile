# Every target is one or two commands that you can read and run alone. PYTHON names the interpreter that makes the environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_HOME ?= $(CURDIR)/.mdp-demo

.PHONY: install demo dev test lint types layers tools pytest bench lock clean

install: $(VENV)/installed

$(VENV)/installed: requirements.lock setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

## The whole thing on simulated data: about two minutes, no key, no network beyond the package index.
demo: install
	$(BIN)/mdp demo --home $(DEMO_HOME)

## The same on live data from Yahoo (no key): a small universe's last five sessions, then schedules and the gap sensor keep it up.
dev: install
	$(BIN)/mdp up
	$(BIN)/mdp universe load examples/universe.csv
	-$(BIN)/mdp backfill --all --interval 1m --interval 1h --interval 1d --last 5
	$(BIN)/mdp coverage --totals
	@echo "Dagster's UI: http://127.0.0.1:3000 (or MDP_DAGSTER_URL); what is missing: $(BIN)/mdp gaps --explain; to stop: $(BIN)/mdp down"

## What CI runs.
test: lint types layers pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

layers: install
	$(BIN)/lint-imports

## Prometheus, its promtool, the Blackbox Exporter and Chromium, for the tests of alerts, dashboards and pages.
tools:
	@deploy/install_tools.sh

pytest: install tools
	$(BIN)/pytest

## Side-by-side measurements; tables on the screen, JSON under benchmarks/results.
bench: install
	$(BIN)/python benchmarks/run.py

## Compile the lock from setup.py's ranges.
lock:
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile setup.py --extra dev --universal --python-version 3.11 --no-emit-index-url --no-header --upgrade -q -o requirements.lock

clean:
	rm -rf $(VENV) .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
