# make demo and make test do all the set-up they need; Python 3.11 or newer, pip and make are enough (uv is used if there).

PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null)
BIN := .venv/bin
READY := .venv/.ready
READY_BENCH := .venv/.ready-bench
READY_BROWSER := .venv/.ready-browser
READY_FIREFOX := .venv/.ready-firefox
BROWSER_TESTS := tests/serve/browser
READY_NPM := $(BROWSER_TESTS)/node_modules/.package-lock.json
DBT := .venv-dbt
READY_DBT := $(DBT)/.ready
CHROMIUM := chromium chromium-browser google-chrome
LOCK_OPTIONS := --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links

ifeq ($(UV),)
ENVIRONMENT := $(PYTHON) -m venv
install = $(1)/python -m pip install --quiet --disable-pip-version-check
else
ENVIRONMENT := $(UV) venv --quiet --python $(PYTHON)
install = $(UV) pip install --quiet --python $(1)/python
endif
INSTALL := $(call install,$(BIN))

# a process that may not keep what it compiled compiles all modules, and each of the tests' processes does
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test bench bench-scale bench-cluster lint format lock clean
.DELETE_ON_ERROR:

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 15

setup: $(READY) ## the virtual environment .venv, with what the lock names

demo: $(READY) ## real image-caption vectors, taken in and asked in SQL
	$(BIN)/clipql demo

test: $(READY) $(READY_BROWSER) $(READY_FIREFOX) $(READY_NPM) $(READY_DBT) ## the tests; the page is tried in Chromium and Firefox and judged by axe-core, the server by dbt; the browsers and npm are installed where apt-get can
	$(BIN)/python tests/run.py $(ARGS)

bench: $(READY) $(READY_BENCH) ## side by side with peers; writes docs/benchmarks.md (ARGS="--only exact" for a part)
	$(BIN)/python -m bench.run $(ARGS)

bench-scale: $(READY) $(READY_BENCH) ## growth from 1 to 30 million rows, searched in 60 MB a million; two hours, 60 GB of disk; writes docs/scale.md
	$(BIN)/python -m bench.scale $(ARGS)

bench-cluster: $(READY) ## shards on a Ray of several nodes on this machine (ARGS="--only overhead" for a part)
	$(BIN)/python -m bench.cluster $(ARGS)

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY) ## put the code in ruff's form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: ## resolve pyproject.toml anew into the lock files; needs uv
	uv pip compile --upgrade $(LOCK_OPTIONS) --extra dev pyproject.toml -o requirements.lock
	uv pip compile --upgrade $(LOCK_OPTIONS) --extra dev --extra bench -c requirements.lock pyproject.toml -o requirements-bench.lock
	uv pip compile --upgrade $(LOCK_OPTIONS) --extra dev --extra annoy -c requirements.lock pyproject.toml -o requirements-annoy.lock
	uv pip compile --upgrade $(LOCK_OPTIONS) --no-strip-extras --group dbt -o requirements-dbt.lock

clean: ## what make made: environment, caches, benchmark data
	rm -rf .venv $(DBT) build dist bench/data *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find clipql tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# Annoy has no wheels, so it is left out where there is no C++ compiler; its tests are then skipped
$(READY): requirements.lock requirements-annoy.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"$(PYTHON) is Python {v[0]}.{v[1]}: clipql needs 3.11 or newer; name one with make PYTHON=…")'
	@echo "setting up .venv, which takes about a minute without uv"
	test -x $(BIN)/python || $(ENVIRONMENT) .venv
	$(INSTALL) --require-hashes -r requirements.lock
	$(INSTALL) --no-deps --no-build-isolation -e .
	if command -v c++ >/dev/null; then $(INSTALL) --require-hashes --no-build-isolation -r requirements-annoy.lock; fi
	$(BIN)/python -m clipql.cli.kernels_ahead
	@touch $@

$(READY_BROWSER):
	@for name in $(CHROMIUM); do command -v $$name >/dev/null && exit 0; done; \
	echo "installing Chromium, in which the page is tested"; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null || \
	{ echo "no Chromium: install one of $(CHROMIUM)"; exit 1; }
	@mkdir -p .venv && touch $@

# the one test that uses Firefox is skipped, and says so, where there is none
$(READY_FIREFOX): $(READY_BROWSER)
	@command -v firefox-esr >/dev/null || command -v firefox >/dev/null || { echo "installing Firefox, in which the page is tested, too"; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends firefox-esr >/dev/null; } || \
	echo "no Firefox: its test is skipped; install firefox-esr"
	@mkdir -p .venv && touch $@

# npm is asked for the versions that the lock file has, checked by their hashes
$(READY_NPM): $(BROWSER_TESTS)/package-lock.json
	@command -v npm >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends npm >/dev/null; } || \
	{ echo "no npm: install it, with which axe-core and puppeteer-core come"; exit 1; }
	npm ci --prefix $(BROWSER_TESTS) --ignore-scripts --no-audit --no-fund --silent
	@touch $@

$(READY_DBT): requirements-dbt.lock
	test -x $(DBT)/bin/python || $(ENVIRONMENT) $(DBT)
	$(call install,$(DBT)/bin) --require-hashes -r requirements-dbt.lock
	@touch $@

$(READY_BENCH): requirements-bench.lock $(READY)
	$(INSTALL) --require-hashes -r requirements-bench.lock
	@touch $@
