# What people type. `make run` and `make test` work from a fresh clone on Debian or Ubuntu with Python 3.11 and make.

PYTHON ?= python3
BIN := .venv/bin
# Commands that need root; empty for root itself.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo "sudo -E env PATH=$$PATH")

# What takes longest comes first, so that the workers end together.
SUITES := tests/system tests/conformance tests/contract tests/unit

.PHONY: run setup test test-slow check format docs lock clean

run: setup  ## Set up, build the image, start haneul, launch an instance and ask it who it is
	$(SUDO) $(BIN)/haneul quickstart

setup: .venv/installed  ## System packages and the virtual environment; nothing to do costs nothing
	@scripts/packages

.venv/installed: requirements.lock pyproject.toml
	@scripts/packages
	@scripts/venv $(PYTHON)

.clients/installed: tests/clients/requirements.lock tests/clients/collection.lock tests/clients/node/package-lock.json
	@scripts/clients $(PYTHON)

test: setup .clients/installed  ## Linters, types, and every test but the slow ones; real guests boot, in a network of their own
	@scripts/packages shellcheck
	scripts/lint
	$(SUDO) scripts/test $(SUITES) -m "not slow"

test-slow: setup .clients/installed  ## What needs longer
	$(SUDO) $(BIN)/python -m tests.nested.recipe
	$(SUDO) scripts/test $(SUITES) -m slow

check: .venv/installed  ## Linters, types, the direction of imports, the dependencies' licences and known vulnerabilities
	@scripts/packages shellcheck
	scripts/lint
	$(BIN)/python -m pytest -q tests/unit/test_imports.py
	$(BIN)/python scripts/audit

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed  ## The tables of operations and of generations
	$(BIN)/python scripts/operations
	$(BIN)/python scripts/generations

lock: .venv/installed  ## Choose versions anew and write the requirements.lock files
	$(BIN)/uv pip compile -q --upgrade --python-version 3.11 tests/clients/requirements.in --generate-hashes --universal --no-header -o tests/clients/requirements.lock
	$(BIN)/uv pip compile -q --upgrade --group dev --group lock pyproject.toml --generate-hashes --universal --no-header -o requirements.lock

clean:
	rm -rf .venv .clients build .pytest_cache .mypy_cache .ruff_cache .hypothesis
