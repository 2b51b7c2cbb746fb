# make run    the example app on http://127.0.0.1:8000 with its upstream beside it
# make fleet  four workers that share a limit and a circuit through Valkey, on one screen, for half a minute
# make test   every check, the tests last
#
# Both set up what they need in .venv; PYTHON names the interpreter to make it with (3.11 or newer).

PYTHON ?= python3
PORT ?= 8000
UPSTREAM_PORT ?= 8001
WAREHOUSE_PORT ?= 8002

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.NOTPARALLEL:
.PHONY: bench soak run fleet test lint types layers httpx-suite pytest coverage format clean

run: $(VENV)/.example-installed
	@exec $(BIN)/python -m example_app --port $(PORT) --upstream-port $(UPSTREAM_PORT) --warehouse-port $(WAREHOUSE_PORT)

fleet: $(VENV)/.dev-installed
	@exec $(BIN)/python -m example_app.fleet

test: lint types layers httpx-suite pytest

lint: $(VENV)/.dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev-installed
	$(BIN)/mypy --strict fastapi_http_client pytest_fastapi_http_client.py example_app tests/typing
	@$(BIN)/pyright --version || { echo "pyright could not be fetched: its first run needs an npm registry" >&2; exit 1; }
	$(BIN)/pyright

layers: $(VENV)/.dev-installed
	$(BIN)/lint-imports --no-logo

httpx-suite: $(VENV)/.dev-installed
	$(BIN)/python tests/httpx_suite

pytest: $(VENV)/.dev-installed
	$(BIN)/python -m pytest

coverage: $(VENV)/.dev-installed
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage report

bench: $(VENV)/.bench-installed
	$(BIN)/python -m benchmarks

soak: $(VENV)/.dev-installed
	$(BIN)/python -m tests.soak

format: $(VENV)/.dev-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage dist

# -- setting up: a stamp file for each group of dependencies, renewed when pyproject.toml changes

$(VENV)/.example-installed: $(VENV)/.created pyproject.toml
	@echo "Installing the package and what the example needs ..."
	@$(INSTALL) --editable . --group example
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.created pyproject.toml
	@echo "Installing the package and the development tools ..."
	@$(INSTALL) --editable . --group dev
	@touch $@ $(VENV)/.example-installed

$(VENV)/.bench-installed: $(VENV)/.created pyproject.toml
	@echo "Installing what the benchmarks compare with ..."
	@$(INSTALL) --editable . --group bench
	@touch $@

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": set PYTHON=/path/to/python")'
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) --upgrade 'pip>=25.1'
	@touch $@
