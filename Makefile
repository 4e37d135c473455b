# The suite's commands; `make` alone lists them.

PYTHON ?= python3
CORES ?= all
# Processes of the test run; each imports torch and takes about 2 GiB.
WORKERS ?= 2

BIN := .venv/bin
# No solver: its start for every choice would cost more than the choice gains.
SNAKEMAKE := $(BIN)/snakemake --cores $(CORES) --scheduler greedy
SOURCES := lorasp tests
RULES := Snakefile $(wildcard workflow/rules/*.smk)

.DEFAULT_GOAL := help
.PHONY: help smoke mini simulated reproduce bench check test test-slow container lock clean

help: ## list these commands
	@awk -F ':.*## ' '/^[.a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

.venv/.complete: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "error: lorasp needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is" \
		"$$($(PYTHON) --version 2>&1); name another: make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation -e .
	touch $@

.venv: .venv/.complete ## make the environment, as requirements.lock pins it

# One process imports torch and forks for each of the many short jobs.
smoke mini: .venv/.complete
	$(BIN)/lorasp serve -- $(SNAKEMAKE) --config scale=$@
	@echo "The report: reports/$@/report.html"

smoke: ## every path on tiny random models: minutes, its scores mean nothing
mini: ## small real models and text on two CPU cores: up to two hours

simulated: .venv/.complete ## memory and operations at the paper's scale, without a GPU: minutes
	$(BIN)/lorasp serve -- $(SNAKEMAKE) simulated

reproduce: .venv/.complete ## the paper itself: needs GPUs and the Hugging Face hub
	$(SNAKEMAKE)
	@echo "The report: reports/paper/report.html"

bench: .venv/.complete ## speed and size beside PEFT, lm-eval and others: about half an hour, two cores
	$(BIN)/lorasp bench all --out reports/bench

check: .venv/.complete ## formatting, lint and types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/snakefmt --check $(RULES)
	$(BIN)/snakemake --lint

test: check ## check, and every test but the slow ones
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not slow"

test-slow: .venv/.complete ## the slow tests: the container, whole workflow runs
	$(BIN)/pytest -m slow

container: ## build the image lorasp with podman (CONTAINER_ARGS: more arguments)
	podman build $(CONTAINER_ARGS) --tag lorasp --file containers/Containerfile .

# Only torch stays as it is: its newest build may be several gigabytes for another CUDA.
lock: ## pin again what pyproject.toml asks for
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet "$$(grep ^torch== requirements.lock)" '.[suite,dev]'
	build/lock/bin/python -m pip freeze --all --exclude pip --exclude lorasp > build/frozen.txt
	{ grep '^#' requirements.lock; sed 's/+[a-z0-9.]*$$//' build/frozen.txt \
		| grep -Ev '^(nvidia-([^m]|m[^l])|cuda|triton)'; } > build/requirements.lock
	mv build/requirements.lock requirements.lock

clean: ## remove the environment and the caches; data, results and reports stay
	rm -rf .venv build lorasp.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
