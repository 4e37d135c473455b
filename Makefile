# The suite's commands; `make` alone lists them.

PYTHON ?= python3
CORES ?= all
# Processes of the test run; each imports torch and takes about 2 GiB.
WORKERS ?= 2

# The image: cuda or cpu, and what builds it.
VARIANT ?= cuda
ENGINE ?= podman
IMAGE := lorasp:$(VARIANT)
BASE_IMAGE ?= docker.io/library/debian:bookworm-slim
# The address of this repository, without a password that may be in it.
ORIGIN = $(shell git remote get-url origin 2> /dev/null | sed 's,//[^/@]*@,//,')

BIN := .venv/bin
# No solver: its start for every choice would cost more than the choice gains.
SNAKEMAKE := $(BIN)/snakemake --cores $(CORES) --scheduler greedy
SOURCES := lorasp tests containers envs
RULES := Snakefile $(wildcard workflow/rules/*.smk)

.DEFAULT_GOAL := help
.PHONY: help smoke mini rehearse simulated reproduce bench check test test-slurm test-slow \
	container sif sbom test-containers lock clean

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

rehearse: .venv/.complete ## the paper's configuration, all of it, on a CPU with a stand-in for the hub: up to an hour
	$(BIN)/lorasp rehearse -- $(SNAKEMAKE) prepared --config scale=rehearse
	HF_HUB_OFFLINE=1 $(BIN)/lorasp serve -- $(SNAKEMAKE) --config scale=rehearse
	@echo "The report: reports/rehearse/report.html"

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

test-slurm: .venv/.complete ## the slurm profile on a real SLURM, from Debian's packages: root, 5 minutes
	tests/slurm/install.sh
	tests/slurm/cluster $(BIN)/pytest tests/slurm

test-slow: .venv/.complete ## the slow tests: whole workflow runs
	$(BIN)/pytest -m slow

# The base's digest is asked for once and kept: commit the file, and every build starts from the same.
containers/base.txt:
	skopeo inspect --format '{{.Name}}@{{.Digest}}' docker://$(BASE_IMAGE) > $@.part
	mv $@.part $@

container: $(if $(BASE),,containers/base.txt) ## build the image lorasp:cuda, or with VARIANT=cpu lorasp:cpu (BASE, ENGINE=docker, CONTAINER_ARGS)
	$(ENGINE) build --file containers/Containerfile --tag $(IMAGE) --build-arg VARIANT=$(VARIANT) \
		--build-arg BASE=$(or $(BASE),$$(cat containers/base.txt)) \
		--build-arg REVISION=$$(git describe --always --abbrev=40 --exclude '*' --dirty) \
		$(addprefix --build-arg SOURCE=,$(ORIGIN)) \
		$(CONTAINER_ARGS) .

sif: ## make containers/lorasp.sif of the image, for snakemake --sdm apptainer
	mkdir -p build && rm -f build/image.tar
	podman save --quiet --format oci-archive --output build/image.tar $(IMAGE)
	apptainer build --force --mksquashfs-args "-comp gzip -Xcompression-level 1" \
		containers/lorasp.sif oci-archive:build/image.tar
	rm build/image.tar

sbom: ## write what the image is made of to build/sbom.json (CycloneDX)
	mkdir -p build
	$(ENGINE) run --rm --entrypoint cat $(IMAGE) /opt/lorasp/sbom.json > build/sbom.json

test-containers: .venv/.complete ## build and try the image with buildah, podman and apptainer: root, 15 minutes, 10 GB
	tests/containers/install.sh
	LORASP_CONTAINERS=1 PATH="$(CURDIR)/build/apptainer/usr/bin:$$PATH" $(BIN)/pytest tests/containers

# Only torch stays as it is: its newest build may be several gigabytes for another CUDA.
lock: ## pin again what pyproject.toml asks for
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet "$$(grep ^torch== requirements.lock)" '.[suite,cluster,dev]'
	build/lock/bin/python -m pip freeze --all --exclude pip --exclude lorasp > build/frozen.txt
	{ grep '^#' requirements.lock; sed 's/+[a-z0-9.]*$$//' build/frozen.txt \
		| grep -Ev '^(nvidia-([^m]|m[^l])|cuda|triton)'; } > build/requirements.lock
	mv build/requirements.lock requirements.lock
	build/lock/bin/python envs/pin.py

clean: ## remove the environment and the caches; data, results and reports stay
	rm -rf .venv build lorasp.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
