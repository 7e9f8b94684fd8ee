# Every target first creates a virtual environment in .venv with the versions of constraints.txt.
# Needs Python 3.11 or newer (for another one than python3: make PYTHON=python3.12 ...) and a C++ compiler.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: train test test-all benchmark compile-report lint docs notebook

train: $(READY)  ## train the demo preset on synthetic scenes, evaluate it, draw predicted masks
	$(BIN)/python train.py $(ARGS)

# One thread per process: the processes already use all CPUs.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal -p no:benchmark

test: $(READY)  ## the tests that every change must pass
	$(TEST) -m "not slow" $(ARGS)

test-all: $(READY)  ## all tests, slow ones included
	$(TEST) $(ARGS)

benchmark: $(READY)  ## parity and speed
	$(BIN)/python -m pytest -q -s benchmarks/ $(ARGS)

compile-report: $(READY)  ## compile every tile of every kernel for every architecture, without a GPU
	$(BIN)/python -m benchmarks.compile_report --json benchmarks/results/compile.json $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## build the documentation in build/site; it needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

notebook: $(READY)  ## run docs/notebook.ipynb and keep its outputs
	$(BIN)/python docs/tools/notebook.py

# Built without isolation, with a current Cython: the pinned one stops at Python 3.12, and pip applies no
# constraints to isolated builds.
PIP := $(BIN)/python -m pip install -c constraints.txt
CRF := $(PIP) cython setuptools wheel && CYTHON_FORCE_REGEN=1 $(PIP) --no-build-isolation pydensecrf2

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	  "cmsa_fast needs Python 3.11 or newer; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12 ..." \
	  % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(PIP) --quiet -e '.[benchmark,dev]'
	@if ! command -v c++ >/dev/null; then \
	  echo "There is no C++ compiler: the dense CRF (pydensecrf2) is not installed."; \
	elif ! { $(CRF); } >.venv/pydensecrf2.log 2>&1; then \
	  echo "pydensecrf2 did not build (see .venv/pydensecrf2.log): the dense CRF is not installed."; \
	fi
	@touch $@
