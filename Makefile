# `make` prints the targets. Everything a target makes stays inside this folder; your home and your Python are left alone.

PROFILE ?= small
# damaged inputs of each kind that `make fuzz` tries
COUNT ?= 100000
VENV := .venv
CACHE := $(CURDIR)/.cache
# the first Python of 3.11 or newer; `make book PYTHON=/path/to/python3` chooses another
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# Stages find the environment's own programs, and every tool keeps its caches and settings in .cache.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PYTHONNOUSERSITE := 1
export PYTHONDONTWRITEBYTECODE :=
export OMP_WAIT_POLICY := passive
export HF_HUB_OFFLINE := 1
export HF_HOME := $(CACHE)/huggingface
export TORCH_HOME := $(CACHE)/torch
export XDG_CACHE_HOME := $(CACHE)/xdg/cache
export XDG_DATA_HOME := $(CACHE)/xdg/data
export XDG_STATE_HOME := $(CACHE)/xdg/state
export MPLCONFIGDIR := $(CACHE)/matplotlib
export IPYTHONDIR := $(CACHE)/ipython
export JUPYTER_CONFIG_DIR := $(CACHE)/jupyter/config
export JUPYTER_DATA_DIR := $(CACHE)/jupyter/data
export JUPYTER_RUNTIME_DIR := $(CACHE)/jupyter/runtime
export JUPYTER_PREFER_ENV_PATH := 1
export JUPYTER_PLATFORM_DIRS := 1
export DVC_GLOBAL_CONFIG_DIR := $(CACHE)/dvc/global
export DVC_SYSTEM_CONFIG_DIR := $(CACHE)/dvc/system
export DVC_SITE_CACHE_DIR := $(CACHE)/dvc/site
export DVC_NO_ANALYTICS := 1
# pip asks `rustc` for its version, which makes ~/.rustup where there is none
ifeq ($(wildcard $(HOME)/.rustup),)
export RUSTUP_HOME := $(CACHE)/rustup
endif
unexport PYTHONPATH PYTHONHOME JUPYTER_PATH

CHROMIUM := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
# Made once (hours), kept in .dvc/store, pulled. The store has the models and the benchmark of the profiles that share them.
PULLED = data.dvc detector $(shell grep -qs '^  folder: data/benchmark$$' params.yaml && echo prior generator benchmark)

.DEFAULT_GOAL := help
.PHONY: help setup data book pdf test verify bench fuzz lint clean
.DELETE_ON_ERROR:

help: ## print this list
	@echo "usage: make TARGET [PROFILE=smoke|small|caltech]"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 10

setup: $(STAMP) ## create .venv with the pinned packages (about 3 minutes and 6 GB, once)

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "anl needs Python 3.11 or newer, and no python3 on your PATH is one; install it, or" \
		"name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make an environment; on Debian:" \
		"apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@$(VENV)/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(VENV) holds no Python 3.11" \
		"or newer; remove it (rm -rf $(VENV)) and try again, with PYTHON=/path/to/python3 if need be" >&2; exit 1; }
	@echo "installing the pinned packages into $(VENV) ..."
	$(PIP) install -qq --no-cache-dir -r requirements.lock
	$(PIP) install -qq --no-cache-dir --no-deps --no-build-isolation -e .
	@touch $@

data: $(STAMP) ## fetch the photographs, models and patches from .dvc/store
	@dvc pull $(PULLED) || { echo "the data could not be fetched; where DVC names unsaved files, they were changed by" \
		"hand: delete them and run the same command again" >&2; exit 1; }

# glibc keeps freed memory for the next tensors instead of returning it to the system: scoring on a CPU is twice as fast
book bench: export MALLOC_MMAP_THRESHOLD_ := 2147483647
book bench: export MALLOC_TRIM_THRESHOLD_ := 2147483647

book: $(STAMP) ## run the pipeline and build the book
	@anl profile $(PROFILE)
	@$(MAKE) --no-print-directory data
	dvc repro
	jupyter-book build book/ -W -n --keep-going --quiet
	@echo; echo "the book: $(CURDIR)/book/_build/html/index.html"

pdf: $(STAMP) ## print the whole book into one PDF, after `make book` (needs chromium)
	@ls book/pages/*.ipynb >/dev/null 2>&1 || { echo "there is no book to print yet; run \`make book\` first" >&2; exit 1; }
	@test -n "$(CHROMIUM)" || { echo "a PDF is printed by chromium, which is not installed (Debian: apt install chromium);" \
		"or open the book in any browser and print it" >&2; exit 1; }
	jupyter-book build book/ --builder singlehtml -n --quiet
	@$(CHROMIUM) --headless --no-sandbox --disable-gpu --no-first-run --user-data-dir=$(CACHE)/chromium \
		--virtual-time-budget=60000 --no-pdf-header-footer --print-to-pdf=book/_build/anl.pdf \
		file://$(CURDIR)/book/_build/singlehtml/index.html 2>/dev/null
	@echo "the PDF: $(CURDIR)/book/_build/anl.pdf"

test: data ## run the test suite
	pytest

verify: $(STAMP) ## run the tiny profile twice in fresh clones; are the results the same?
	anl verify --profile smoke

bench: data ## measure speed and memory into results/bench.json (on an idle machine)
	anl bench

fuzz: $(STAMP) ## damage files 100,000 times each for the decoder and the manifest reader
	ANL_FUZZ=$(COUNT) pytest -n 0 tests/test_fuzz.py

lint: $(STAMP) ## check the code's style
	ruff check

clean: ## remove the built book and the tools' caches; results, runs, unfinished trainings and .venv stay
	rm -rf book/_build book/pages
	@[ ! -d .cache ] || find .cache -mindepth 1 -maxdepth 1 ! -name anl -exec rm -rf {} +
