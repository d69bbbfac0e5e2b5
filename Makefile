# Two commands do all the set-up: `make train` and `make test`. They need Python >= 3.11 and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?=
PARALLEL ?= --numprocesses auto --maxprocesses 4 --dist worksteal

# In a locale of ASCII alone Python 3.11 cannot start from an environment in a folder such as ü.
ifneq (,$(filter ANSI% US-ASCII,$(shell locale charmap 2>/dev/null)))
export LC_ALL := C.UTF-8
endif

.PHONY: train test test-slow test-gpu lint format docs clean

train: $(INSTALLED) ## train the default model on the embedded digits; with settings: make train ARGS="sde=ve"
	$(BIN)/python -m sde_diffusion.train $(ARGS)

test: lint ## linters, types, import layers and the quick tests, a process a core
	$(BIN)/python -m pytest $(PARALLEL)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-slow: $(INSTALLED) ## the long tests too
	$(BIN)/python -m pytest $(PARALLEL) -m "slow and not gpu"

test-gpu: $(INSTALLED) ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs ## a site of README.md, docs/, benchmarks/ and the docstrings: build/site/index.html
	rm -rf build/pages
	mkdir -p build/pages
	cp -r README.md docs benchmarks build/pages
	$(BIN)/zensical build --clean --strict

$(VENV)/.docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $(VENV)/.docs

# Installed anew when the project file or the pinned versions change.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
