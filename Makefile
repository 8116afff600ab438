# Two commands do everything, from a bare Debian 12 with git, make and Python 3.11 (with venv):
#   make demo    a node and an archive on this machine; one synthetic study through both
#   make install what both need, alone: for a site (deploy/SITE_GUIDE.md)
#   make test    the whole test suite, against a real Orthanc, DCMTK and PostgreSQL
#
# TORCH_INDEX=URL  another index for torch. Where the usual index offers torch only with CUDA, a site
#                  without a GPU names PyTorch's index of CPU builds here and saves gigabytes.

PYTHON ?= python3
TORCH_INDEX ?=
DATA ?= ../shared/data
PROFILE ?= ci
SEED ?= 1
BIN := .venv/bin
TORCH := torch==2.13.0
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
CONSTRAINED := -c constraints.txt

.PHONY: install demo test faults lint types check train-starter benchmarks fuzz audit clean
.DEFAULT_GOAL := demo

.venv/base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' \
	    || { echo "flairnode needs Python 3.11 or newer: make PYTHON=python3.11"; exit 1; }
	@echo "installing flairnode and its dependencies into .venv (once; some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv \
	    || { echo "python3-venv is missing: as root, apt-get install python3-venv"; exit 1; }
	@$(PIP) install 'pip>=25.1'
	@$(PIP) install $(CONSTRAINED) $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@$(PIP) install $(CONSTRAINED) -e .
	@touch $@

.venv/dev: .venv/base
	@$(PIP) install $(CONSTRAINED) --group dev
	@touch $@

install: .venv/base

demo: .venv/base
	@$(BIN)/flairnode demo

test: .venv/dev
	@deploy/install_test_tools.sh
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations 12

# Every fault of docs/reliability.md, one table, exit status 1 for any loss. PROFILE=ci takes about 13
# minutes on two cores, PROFILE=long longer; SEED=N repeats a run. Some faults need root (a small disk).
faults: .venv/dev
	@deploy/install_test_tools.sh
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --profile $(PROFILE) --seed $(SEED) \
	    --json build/faults-$(PROFILE).json

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/dev
	$(BIN)/mypy

check: test lint types

# About 40 minutes on two cores; resumable. What it needs and makes: training/README.md.
train-starter: .venv/base
	$(BIN)/flairnode train starter --data $(DATA) --output build/starter

benchmarks: .venv/dev
	@for script in tests/benchmarks/bench_*.py; do PYTHONPATH=. $(BIN)/python $$script; done

# 5,000 damaged headers, pixels and conversations; a long run: python -m tests.fuzz --help
fuzz: .venv/dev
	@$(BIN)/python -m tests.fuzz --count 5000

# Known weaknesses of the pinned versions. Asks PyPI's advisories; --strict, since a version that it could
# not ask about would pass for a sound one.
audit:
	@$(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install -q pip-audit
	@.venv-audit/bin/pip-audit --strict -r constraints.txt --no-deps --disable-pip

clean:
	rm -rf .venv
