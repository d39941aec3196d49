# Short names for long commands. `make` without a target lists them.
# All of them run in .venv, which is made from requirements.lock if it is missing or out of date.

PYTHON ?= python3
CORES  ?= 2
# TORCH=system uses the torch and torchvision of $(PYTHON) (a CPU build, or a cluster's module) instead of the CUDA build
# of the lock, which has 5 GB on Linux.
TORCH  ?= lock

BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Snakemake, matplotlib and others keep caches in the home folder. Where it cannot be written, or there is none, they go to data/.
ifneq ($(shell test -w "$$HOME" && echo yes),yes)
export XDG_CACHE_HOME ?= $(CURDIR)/data/scratch/cache
endif
ifeq ($(HOME),)
export HOME := $(CURDIR)/data/scratch
endif
# Without bytecode Snakemake starts four seconds later.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help env selftest demo report bench speed ablation avatars benchmark doctor prune export try-slurm check test test-slow test-slurm rehearsal lint docs lock clean-env
.DELETE_ON_ERROR:

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

env: .venv/package.stamp ## make or update .venv (PYTHON=python3.12 chooses another Python)

selftest: env ## sample a small generator of the package and compare its images with stored numbers: seconds
	@$(BIN)/python -m eldistill selftest

demo: export OMP_NUM_THREADS = 1
demo: env ## the demo: from the digits to tables and a report, on the CPU
	$(BIN)/snakemake --cores $(CORES) all --config suite=demo
	@$(MAKE) --no-print-directory data/scratch/report-demo.html
	@echo
	@echo "report for a browser   data/tables/demo/report.html"
	@echo "tables and figures     data/tables/demo/"
	@echo "generators             data/runs/"
	@echo "how it was run         data/scratch/report-demo.html"

# SUITE=bench opens the report of another suite. The path is printed too, for machines without a browser.
report: data/tables/$(or $(SUITE),demo)/report.html ## open the report of a suite in a browser (SUITE=demo)
	@echo "$(CURDIR)/$<"
	@$(or $(shell command -v xdg-open || command -v open),true) $< > /dev/null 2>&1 || true

data/tables/%/report.html: env
	@OMP_NUM_THREADS=1 $(BIN)/snakemake --quiet --cores $(CORES) $@ --config suite=$*

bench: export OMP_NUM_THREADS = 1
bench: env ## eight methods on the digits, within an hour; can be stopped and continued; SUITE=bench-recent has six newer ones
	$(BIN)/snakemake --cores $(CORES) all --config suite=$(or $(SUITE),bench)
	@echo
	@echo "report for a browser   data/tables/$(or $(SUITE),bench)/report.html"
	@echo "tables and figures     data/tables/$(or $(SUITE),bench)/"

speed: export OMP_NUM_THREADS = 1
speed: env ## how much sooner each arm is, at its own learning rate: hours; SUITE=speed-others or speed-recent: other methods
	$(BIN)/snakemake --cores $(CORES) $(patsubst %,data/tables/$(or $(SUITE),speed)/%.md,speed speed-control $(if $(SUITE),,budget)) --config suite=$(or $(SUITE),speed)
	@echo
	@echo "a table, a page and a picture   data/tables/$(or $(SUITE),speed)/"

# STUDY=central makes only this study and the runs that it needs. Without STUDY all studies and the tables of the suite are made.
ablation: export OMP_NUM_THREADS = 1
ablation: env ## the studies of the Embedding Loss: hours; STUDY=central makes one of them
	$(BIN)/snakemake --cores $(CORES) $(if $(STUDY),data/tables/ablation/$(STUDY).md,all) --config suite=ablation
	@echo
	@echo "a table, a page and a picture for each study   data/tables/ablation/"

avatars: datasets/avatars-32.zip ## draw the 36,000 faces of the suite colour: a minute or two; needs Node.js and npm

datasets/avatars-32.zip: data/avatars/draw.mjs data/avatars/node_modules/.package-lock.json
	@node data/avatars/draw.mjs $@

# Installs exactly the packages of the lock, with their digests checked and without running scripts of theirs.
data/avatars/node_modules/.package-lock.json: data/avatars/package-lock.json
	@command -v npm > /dev/null && found=$$(node --version 2> /dev/null) || found="no working pair of them"; \
	case "$$found" in v1[89].*|v[2-9][0-9].*) ;; *) echo "make avatars needs Node.js 18.3 or later with npm, and found $$found: \
	install the packages nodejs and npm of your system, or take them from nodejs.org" >&2; exit 2;; esac
	@npm ci --prefix data/avatars --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

benchmark: env ## the Embedding Loss's share of the time of an iteration: some minutes
	$(BIN)/python benchmarks/embedding.py

data/scratch/report-demo.html: data/tables/demo/main.csv
	@mkdir -p $(@D)
	$(BIN)/snakemake --cores $(CORES) all --config suite=demo --report $@
	@touch $@

test: env ## all tests that every change must pass, on two cores
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder

# The two workers of pytest use both cores. Libraries get one thread each, because more threads would compete for the same cores.
check test test-slow: export OMP_NUM_THREADS = 1

check: env ## a quick check: one test for each promise of the README, at most 90 seconds
	@$(BIN)/python tests/check.py

doctor: env ## check GPU, disk, files, Slurm and locks before running a suite (SUITE=paper)
	@$(BIN)/python -m eldistill doctor $(SUITE)

prune: env ## list results that no suite of params.yaml names; REMOVE=yes removes them
	@$(BIN)/python -m eldistill prune $(if $(filter yes,$(REMOVE)),--remove)

export: env ## copy a generator and its code to a folder to share: make export RUN=digits/di/el/0
	@$(BIN)/python -m eldistill export $(RUN)

try-slurm: env ## run the suite smoke in a fresh clone with a Slurm that is started on this machine
	$(BIN)/python tests/slurm/cluster.py

test-slow: env ## the slow tests: an hour in all
	$(BIN)/python -m pytest -m slow

test-slurm: env ## the tests with a Slurm that they start themselves: 6 minutes
	$(BIN)/python -m pytest -m "slurm and not slow" -rs

rehearsal: env ## rehearse a published teacher on Slurm, from download to FID, then DVC: at most 10 minutes; SHORT=1: less of it
	$(BIN)/python tests/slurm/rehearsal.py $(if $(SHORT),--short)

lint: env ## check the code with ruff, mypy, snakefmt and snakemake --lint, without changing it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

# Sphinx is part of the environment. Warnings are errors, all pages are built again, and nothing is downloaded.
docs: env ## build the site of docs/, with an API reference from the docstrings, in data/scratch/docs
	@rm -rf docs/reference data/scratch/docs
	$(BIN)/python -m sphinx -W --keep-going -E -q -b html -d data/scratch/docs-cache docs data/scratch/docs
	@echo "open data/scratch/docs/index.html"

lock: ## compile requirements.lock again (needs uv; delete the file first to take newer releases)
	uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  --all-extras pyproject.toml requirements.in -o requirements.lock

clean-env: ## remove .venv
	rm -rf .venv

# Installs exactly the packages of the lock, with their hashes checked.
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

# Installs this package. The imports check the environment, and write the bytecode of the imported packages.
.venv/package.stamp: .venv/lock.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -c 'import cleanfid.fid, dvc.cli, matplotlib.pyplot, pandas, sklearn, snakemake.cli, torch, torchvision'
	@touch $@
