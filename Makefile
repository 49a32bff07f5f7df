# Everything runs from .venv, which `make install` fills. Start with `make smoke`.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# The pins hold for Python 3.11 (pyproject.toml says why).
PYTHON ?= $(shell command -v python3.11 || echo python3)
# cpu or gpu: which build of fbgemm. Remembered in .venv, so `make test` keeps a GPU install.
EXTRA ?= $(shell cat .venv/extra 2>/dev/null || echo cpu)
CONFIG ?= configs/smoke.yaml
BIN := .venv/bin
STAMP := .venv/installed-$(EXTRA)
# Three files of tests at once, the longest first: those of several processes wait more than they
# compute, and the short ones fill the cores at the end.
TESTS := tests/integration tests/faults tests/multiprocess tests/unit tests/contrib
AT_ONCE := -n 3 --dist loadfile --no-loadscope-reorder

MINUTES ?= 10
DEVICE ?= cuda

.PHONY: help install smoke test test-all ci-tests all-tests faults soak fuzz lint format types bench bench-check gpu-check doctor reference clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Fill .venv with the pinned packages; EXTRA=gpu for CUDA machines

$(STAMP): pyproject.toml requirements/constraints.txt requirements/no-deps.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v == (3, 11) or sys.exit("Python 3.11 is needed, $(PYTHON) is %d.%d; give another one: make install PYTHON=/path/to/python3.11" % v)'
	$(PYTHON) -m venv .venv
	rm -f .venv/installed-*
	# Both builds of fbgemm write the same folder: the other one must go first.
	[ "$$(cat .venv/extra 2>/dev/null || echo $(EXTRA))" = $(EXTRA) ] || \
	    $(BIN)/python -m pip uninstall --yes fbgemm-gpu fbgemm-gpu-cpu
	$(BIN)/python -m pip install -e ".[$(EXTRA),dev]" -c requirements/constraints.txt
	$(BIN)/python -m pip install --no-deps -r requirements/no-deps.txt
	echo $(EXTRA) > .venv/extra
	touch $@

smoke: $(STAMP)  ## Make a small training set, train 2 workers, evaluate, show the result (CPU)
	OMP_NUM_THREADS=1 $(BIN)/infnet smoke --config $(CONFIG)

test: $(STAMP)  ## What CI runs: the tests, with lint and types beside them
	@$(MAKE) --no-print-directory --jobs 3 lint types ci-tests

test-all: $(STAMP)  ## Every test, those of `make faults` and the slow ones included
	@$(MAKE) --no-print-directory --jobs 3 lint types all-tests

ci-tests:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS) $(AT_ONCE) -m "not matrix and not exhaustive"

all-tests:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS) $(AT_ONCE)

faults: $(STAMP)  ## All injected faults, those on Ray included (docs/faults.md)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults tests/multiprocess/test_resume.py \
	    tests/multiprocess/test_watchdog.py

soak: $(STAMP)  ## Faults at random for MINUTES=10, then a comparison bit for bit
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.soak --minutes $(MINUTES)

fuzz: $(STAMP)  ## Hostile inputs for all parsers, MINUTES=10 long; what finds something is kept
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzzing --minutes $(MINUTES)

lint: $(STAMP)  ## Style and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

format: $(STAMP)  ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## Check type annotations
	$(BIN)/mypy

.peers/installed: benchmarks/peer_runners/requirements.txt
	$(PYTHON) -m venv .peers
	.peers/bin/python -m pip install -r benchmarks/peer_runners/requirements.txt
	touch .peers/installed

bench: $(STAMP) .peers/installed  ## Run every script of benchmarks/ (.peers holds other systems)
	@for script in $(filter-out benchmarks/gpu_check.py benchmarks/check.py,$(wildcard benchmarks/*.py)); do \
	    echo "== $$script"; OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; \
	done

bench-check: $(STAMP) .peers/installed  ## Rerun the short benchmarks against the committed ratios
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/check.py

gpu-check: $(STAMP)  ## What was never run on a GPU, in 8 minutes at most; DEVICE=cpu tries the script
	PYTHONPATH=. $(BIN)/python benchmarks/gpu_check.py --device $(DEVICE)

# Without OMP_NUM_THREADS=1: the doctor judges the surroundings as the user has them.
doctor: $(STAMP)  ## Can this machine train? A fix for each problem
	$(BIN)/infnet doctor

reference: $(STAMP)  ## Write docs/configuration.md from the models of the run file
	$(BIN)/python -m infnet_dist.config.reference > docs/configuration.md

clean:  ## Delete .venv, caches and the smoke run's data
	rm -rf .venv .peers .infnet build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find infnet_dist ray_jobs tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
