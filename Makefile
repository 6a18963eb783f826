# make demo and make test are all that a user needs. Each target builds the virtual environment first if it is missing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PIP_FLAGS := --quiet --disable-pip-version-check

# The tests that answer in under a minute on two cores: these rooms without the files that take longest.
QUICK := $(addprefix tests/,artifact coding evaluation methods models pipeline report runs text trainer docs/test_commands_in_docs.py \
	docs/test_hooks.py test_budget.py test_fields.py test_files.py test_packaging.py)
NOT_QUICK := $(addprefix tests/,artifact/test_standalone.py coding/test_codecs.py evaluation/test_scoring.py \
	methods/test_feedback.py methods/test_slope_search.py methods/test_third_method.py methods/test_tuning.py \
	models/test_packed_model.py runs/test_recorded_commands.py runs/test_run_frontier.py text/test_prepare.py \
	text/test_stdlib_corpus.py trainer/test_model_options.py trainer/test_qat.py trainer/test_training.py trainer/test_world.py)

# The smoke subset for `make lowest`: import, pack, unpack and eval of a toy model, coder round trip, every command line.
SMOKE := tests/artifact/test_artifact.py tests/coding/test_rans.py tests/docs/test_readme.py tests/docs/test_commands_in_docs.py \
	tests/runs/test_run_frontier.py tests/test_packaging.py
# Not the lowest torch by itself: constraints-lowest.txt says why.
LOWEST_TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
LOWEST := build/lowest-torch-$(LOWEST_TORCH)

.PHONY: demo test quick fuzz faults types lowest lint docs site examples notebooks clean

demo: $(VENV)/.ready
	$(BIN)/quantlab demo $(DEMO_ARGS)

test: $(VENV)/.ready  # everything: about ten minutes
	$(PYTEST) -n auto

quick: $(VENV)/.ready  # under a minute
	$(PYTEST) -n auto -m 'not slow' $(addprefix --ignore=,$(NOT_QUICK)) $(QUICK)

fuzz: $(VENV)/.ready  # damaged files for every reader, for FUZZ_SECONDS (60) from FUZZ_SEED (0); findings are saved in build/fuzz
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python tests/fuzz/fuzz.py

faults: $(VENV)/.ready  # full disks, kills, damaged work, two writers: FAULT_ROUNDS (100) moments of a kill from FUZZ_SEED (0)
	FAULT_ROUNDS=$(or $(FAULT_ROUNDS),100) FAULT_KILLS=$(or $(FAULT_KILLS),10) $(PYTEST) -n auto tests/faults

types: $(VENV)/.ready  # mypy, strict, on the checkout
	$(BIN)/mypy -p quantlab

lowest: $(LOWEST)/.ready  # the smoke subset on the lowest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 NUMBA_CACHE_DIR=$(abspath $(LOWEST))/numba $(LOWEST)/bin/python -m pytest -o addopts= -q $(SMOKE)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(VENV)/.ready  # the site, in build/site; its search needs a server: make site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

site: docs  # the site with its search, on this machine alone, until Ctrl-C
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site 8378

examples: $(VENV)/.ready  # run the commands of README.md and docs/ and write their output back; the demo first, ten minutes in all
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python docs/examples.py

notebooks: $(VENV)/.ready  # run all anew and keep their outputs
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "quantlab needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt torch numpy
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev,docs,hf]'
	touch $@

$(LOWEST)/.ready: pyproject.toml constraints.txt constraints-lowest.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install $(PIP_FLAGS) -c constraints-lowest.txt torch==$(LOWEST_TORCH) numpy
	$(LOWEST)/bin/python -m pip install $(PIP_FLAGS) -c constraints-lowest.txt -e '.[plots,html]' pytest hypothesis triton
	touch $@

clean:
	rm -rf $(VENV) build dist demo *.egg-info
