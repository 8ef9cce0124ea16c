# City Paths: `make help` lists the targets. Everything runs in .venv, which make builds itself.

# size: small (default), medium or full; a report is of the medium run unless told otherwise.
ifneq (,$(filter report,$(MAKECMDGOALS)))
SIZE ?= medium
endif
SIZE ?= small
SEED ?= 0
PYTHON ?= python3
# Chapters that do not need each other run side by side, one thread each: results depend on threads.
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
ONE := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1
export OMP_WAIT_POLICY ?= PASSIVE

PY := .venv/bin/python
RUN := data/executed/$(SIZE)-seed$(SEED)
REPORT := reports/$(SIZE)$(if $(filter-out 0,$(SEED)),-seed$(SEED))
TINY := data/executed/nbval-tiny
NBVAL := --nbval-lax --nbval-sanitize-with lib/tests/nbval.cfg --nbval-current-env --nbval-cell-timeout 600 -p no:randomly
NOTEBOOKS := $(sort $(wildcard notebooks/[0-9][0-9]-*.ipynb))
EXECUTED := $(NOTEBOOKS:notebooks/%=$(RUN)/%)
# Command lines and the benchmark change no result, nor does the place where it is made.
ASIDE := data/workers
SOURCES := $(filter-out $(ASIDE:%=lib/citypaths/%.py),$(wildcard lib/citypaths/*.py lib/citypaths/*/*.py lib/studies/*/*.py))

.DEFAULT_GOAL := help
.PHONY: help run executed test references soak lab report lint tables strip bench clean

help: ## list the targets
	@echo "make TARGET [SIZE=small|medium|full] [SEED=0] [PYTHON=python3]"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1#\2/p' Makefile | awk -F'#' '{printf "%-9s %s\n", $$1, $$2}'

run: .venv/.ready ## execute the notebooks that are out of date, at SIZE and SEED, on JOBS cores
	@$(ONE) $(MAKE) --no-print-directory -j $(JOBS) executed SIZE=$(SIZE) SEED=$(SEED)

executed: $(EXECUTED)
	@echo "Up to date: $(words $(EXECUTED)) notebooks in $(RUN)"

test: .venv/.ready ## test the package, then run every notebook on a tiny graph
	@echo "== package, notebooks' hygiene, environment files"
	@OMP_NUM_THREADS=1 $(PY) -m pytest lib/tests -n auto --dist loadfile
	@echo "== notebooks, cell by cell, at size tiny"
	@rm -rf $(TINY)
	@$(PY) -m commands.notebooks prepare -p size tiny --references lib/tests/references $(NOTEBOOKS) $(TINY)
	@$(ONE) CITYPATHS_REPORTS=$(CURDIR)/$(TINY)/reports $(PY) -m pytest $(NBVAL) $(TINY)/0[1-3]-*.ipynb
	@$(ONE) CITYPATHS_REPORTS=$(CURDIR)/$(TINY)/reports $(PY) -m pytest $(NBVAL) -n auto --dist loadfile $(filter-out $(TINY)/01-% $(TINY)/02-% $(TINY)/03-% %-scoreboard.ipynb,$(NOTEBOOKS:notebooks/%=$(TINY)/%))
	@$(ONE) CITYPATHS_REPORTS=$(CURDIR)/$(TINY)/reports $(PY) -m pytest $(NBVAL) $(TINY)/*-scoreboard.ipynb

references: ## record what the compared cells print at size tiny, after a change that is meant
	@$(MAKE) --no-print-directory run SIZE=tiny SEED=0
	$(PY) -m commands.notebooks reference data/executed/tiny-seed0 notebooks lib/tests/references

soak: .venv/.ready ## kill everything at random moments (half an hour); the log is data/soak.log
	@rm -f data/soak.log
	$(PY) -m pytest lib/tests/test_kills.py -m slow

lab: .venv/.ready ## open the notebooks in JupyterLab
	$(PY) -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks $(LAB)

report: run ## publish a run in reports/: Markdown, ledger, figures, tables (SIZE=medium)
	$(PY) -m commands.notebooks report $(RUN) $(REPORT)
	$(PY) -m studies.scoreboard.tables $(SIZE) $(SEED)

lint: .venv/.ready ## check style with ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

tables: .venv/.ready ## generate the READMEs' tables from the ledger
	$(PY) -m studies.scoreboard.tables

strip: .venv/.ready ## remove outputs from the notebooks, before a commit
	$(PY) -m commands.notebooks strip $(NOTEBOOKS)

bench: .venv/.ready ## measure speed and memory against peers; writes reports/bench.md
	$(PY) -m bench

clean: ## remove executed notebooks and caches; datasets, checkpoints, reports and .venv stay
	rm -rf data/executed build .pytest_cache .ruff_cache .hypothesis
	find lib notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# The chain: each notebook reads what the ones before it wrote.
$(RUN)/%.ipynb: notebooks/%.ipynb $(SOURCES) .venv/.ready
	@$(PY) -m commands.notebooks run $< $@ -p size $(SIZE) -p seed $(SEED)

$(RUN)/02-shortest-path-dataset.ipynb: $(RUN)/01-city-dag.ipynb
$(RUN)/03-rnn-baselines.ipynb: $(RUN)/02-shortest-path-dataset.ipynb
$(RUN)/04-test-time-recurrence.ipynb: $(RUN)/02-shortest-path-dataset.ipynb
$(RUN)/05-search.ipynb: $(RUN)/03-rnn-baselines.ipynb
$(RUN)/06-iterative-refinement.ipynb: $(RUN)/03-rnn-baselines.ipynb
$(RUN)/07-external-memory.ipynb: $(RUN)/03-rnn-baselines.ipynb
$(RUN)/08-learning-or-memorizing.ipynb: $(RUN)/02-shortest-path-dataset.ipynb

# The environment: conda or mamba where there is one (CITYPATHS_VENV=pip: not even then), else venv
# and pip. An existing .venv is kept and updated by whichever made it.
.venv/.ready: pyproject.toml environment.yml constraints.txt
	@conda=$$(command -v mamba || command -v conda || true); \
	if [ "$(CITYPATHS_VENV)" = pip ] || [ -f .venv/pyvenv.cfg ]; then conda=; fi; \
	if [ -n "$$conda" ]; then \
	  echo "== .venv with $$conda (several minutes the first time)"; \
	  export CONDA_ALWAYS_YES=true MAMBA_ALWAYS_YES=true; \
	  if [ -d .venv/conda-meta ]; then "$$conda" env update -p .venv -f environment.yml --prune; \
	  else "$$conda" env create -p .venv -f environment.yml; fi || exit 1; \
	else \
	  if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	    for python in $(PYTHON) python3.13 python3.12 python3.11 none; do \
	      $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	    done; \
	    if [ $$python = none ]; then \
	      echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python" >&2; exit 1; fi; \
	    echo "== .venv with $$python and pip (a few minutes)"; \
	    $$python -m venv .venv || exit 1; \
	  fi; \
	  $(PY) -m pip install $(if $(CI),--quiet) -c constraints.txt -e ".[dev]" || exit 1; \
	fi
	@touch $@
# The scoreboard reads the rows of all the others.
$(RUN)/11-scoreboard.ipynb: $(RUN)/03-rnn-baselines.ipynb $(filter-out %-scoreboard.ipynb,$(EXECUTED))
