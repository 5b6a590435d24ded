# make demo   distil a crystal end to end on this machine
# make test   the whole test-suite on the CPU
# Both make their own virtual environment in .venv first. `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints/dev.txt
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
export OMP_NUM_THREADS ?= $(CORES)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Bytecode is written when a module is first imported, not for every file at installation; a Python told to write
# none would compile torch and the teacher anew in every process, at ten seconds each.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL := $(BIN)/python -m pip install --quiet --quiet --no-compile -c $(CONSTRAINTS)

.PHONY: help install install-dev demo test check check-style check-types check-imports clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(VENV)/.installed ## .venv with fastff and the sevennet teacher
install-dev: $(VENV)/.installed-dev ## the same with the chgnet teacher and the development tools

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
		sys.exit(0 if v >= (3, 11) else f"error: Python {v[0]}.{v[1]} is too old, fastff needs 3.11; run make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing fastff with the sevennet teacher into $(VENV) (a few GB, one or two minutes) ..."
	@started=$$(date +%s) && \
	$(PIP_INSTALL) torch hatchling editables && \
	$(PIP_INSTALL) --no-build-isolation -e ".[sevennet]" && \
	seconds=$$(( $$(date +%s) - started )) && \
	echo "Installed in $$seconds s." && echo $$seconds > $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Adding the chgnet teacher and the development tools ..."
	@$(PIP_INSTALL) --no-build-isolation -e ".[sevennet,chgnet,dev]" && touch $@

demo: install ## label, train and bench a crystal on this machine
	$(BIN)/python examples/demo.py

test: install-dev ## the whole test-suite on the CPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist worksteal

check: check-style check-types check-imports ## style, types and import contracts

check-style: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check-types: install-dev
	$(BIN)/mypy

check-imports: install-dev
	$(BIN)/lint-imports

clean: ## remove the environment, caches and build results
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	find fastff tests examples bench train -name __pycache__ -type d -prune -exec rm -rf {} +
