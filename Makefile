# The long words a person would have to remember. `make` alone lists them.
# Everything runs in .venv, which is made from requirements.lock when it is missing or out of date.

PYTHON ?= python3
CORES  ?= 2
# TORCH=system keeps the torch and torchvision that $(PYTHON) has (a CPU build, a cluster's module)
# in place of the 5 GB of CUDA build that the lock brings on Linux.
TORCH  ?= lock

BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Snakemake starts four seconds faster with bytecode.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help env demo report bench ablation benchmark doctor prune export try-slurm check test test-slow test-slurm rehearsal lint docs lock clean-env
.DELETE_ON_ERROR:

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

env: .venv/package.stamp ## make or renew .venv (PYTHON=python3.12 chooses another Python)

demo: export OMP_NUM_THREADS = 1
demo: env ## real digits on the CPU, from data to tables and report
	$(BIN)/snakemake --cores $(CORES) all --config suite=demo
	@$(MAKE) --no-print-directory data/scratch/report-demo.html
	@echo
	@echo "report for a browser   data/tables/demo/report.html"
	@echo "tables and figures     data/tables/demo/"
	@echo "generators             data/runs/"
	@echo "how it was run         data/scratch/report-demo.html"

# SUITE=bench opens that of another suite. On a machine without a browser the path is printed.
report: data/tables/$(or $(SUITE),demo)/report.html ## open the page of a suite in a browser (SUITE=demo)
	@echo "$(CURDIR)/$<"
	@$(or $(shell command -v xdg-open || command -v open),true) $< > /dev/null 2>&1 || true

data/tables/%/report.html: env
	@OMP_NUM_THREADS=1 $(BIN)/snakemake --quiet --cores $(CORES) $@ --config suite=$*

bench: export OMP_NUM_THREADS = 1
bench: env ## every method on the digits, within an hour; continues where it was stopped
	$(BIN)/snakemake --cores $(CORES) all --config suite=bench
	@echo
	@echo "report for a browser   data/tables/bench/report.html"
	@echo "tables and figures     data/tables/bench/"

# STUDY=central makes one study and what it needs; without it all of them and the suite's own tables.
ablation: export OMP_NUM_THREADS = 1
ablation: env ## what the Embedding Loss does and why, study by study: hours; STUDY=central makes one
	$(BIN)/snakemake --cores $(CORES) $(if $(STUDY),data/tables/ablation/$(STUDY).md,all) --config suite=ablation
	@echo
	@echo "a table, a page and a picture for each study   data/tables/ablation/"

benchmark: env ## what the Embedding Loss costs of an iteration, by ensemble, kernel and batch: some minutes
	$(BIN)/python benchmarks/embedding.py

data/scratch/report-demo.html: data/tables/demo/main.csv
	@mkdir -p $(@D)
	$(BIN)/snakemake --cores $(CORES) all --config suite=demo --report $@
	@touch $@

test: env ## the tests that every change must pass, on two cores
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder

# Two workers have two cores: threads of a library's own would wait for each other.
check test test-slow: export OMP_NUM_THREADS = 1

check: env ## one test for each promise of the README, between two edits: at most 90 seconds
	@$(BIN)/python tests/check.py

doctor: env ## what would stop a suite on this machine: GPU, disk, files, Slurm, locks (SUITE=paper)
	@$(BIN)/python -m eldistill doctor $(SUITE)

prune: env ## results that no suite of params.yaml names; REMOVE=yes removes them
	@$(BIN)/python -m eldistill prune $(if $(filter yes,$(REMOVE)),--remove)

export: env ## a folder to give away: make export RUN=digits/di/el/0
	@$(BIN)/python -m eldistill export $(RUN)

try-slurm: env ## a Slurm on this machine, and `snakemake --profile slurm all` of the suite smoke in a fresh clone
	$(BIN)/python tests/slurm/cluster.py

test-slow: env ## those that take minutes, an hour in all
	$(BIN)/python -m pytest -m slow

test-slurm: env ## a Slurm of their own, from a clone to tables, and other people's clusters: 6 minutes
	$(BIN)/python -m pytest -m "slurm and not slow" -rs

rehearsal: env ## the whole chain on a Slurm of its own, from an address to a FID, then DVC: at most 10 minutes
	$(BIN)/python tests/slurm/rehearsal.py

lint: env ## ruff, snakefmt and Snakemake's own lint, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

# Sphinx comes with the environment. Warnings are errors, and every page is read anew. Nothing is fetched.
docs: env ## the site of docs/ with the API out of the docstrings, in data/scratch/docs
	@rm -rf docs/reference data/scratch/docs
	$(BIN)/python -m sphinx -W --keep-going -E -q -b html -d data/scratch/docs-cache docs data/scratch/docs
	@echo "open data/scratch/docs/index.html"

lock: ## compile requirements.lock anew (needs uv; delete the file first to take newer releases)
	uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  --all-extras pyproject.toml requirements.in -o requirements.lock

clean-env: ## remove .venv
	rm -rf .venv

# What the lock says, hashes checked, and nothing else.
.venv/lock.stamp: requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit( \
	  "eldistill needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d: name another with make PYTHON=..." % v)'
	$(PYTHON) -m venv --clear $(if $(filter system,$(TORCH)),--system-site-packages) .venv
ifeq ($(TORCH),system)
	awk '/^[a-z]/ {keep = !/^(torch|torchvision|triton|nvidia-.*|cuda-.*)==/} keep' $< > .venv/requirements.txt
else
	cp $< .venv/requirements.txt
endif
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --require-hashes -r .venv/requirements.txt
	@touch $@

# This package; the imports prove that the environment works, and leave the bytecode that the steps need.
.venv/package.stamp: .venv/lock.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -c 'import cleanfid.fid, dvc.cli, matplotlib.pyplot, pandas, sklearn, snakemake.cli, torch, torchvision'
	@touch $@
