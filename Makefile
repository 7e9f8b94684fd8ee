# Every target sets itself up: a virtual environment in .venv with the versions of constraints.txt.
# Needs Python 3.11 or newer (another one than python3: make PYTHON=python3.12 ...) and a C++ compiler.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: train test test-all benchmark compile-report lint

train: $(READY)  ## train the demo preset on the embedded scenes, evaluate it, draw pictures
	$(BIN)/python train.py $(ARGS)

# One thread for each process: threads of several processes wait for one another.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal -p no:benchmark

test: $(READY)  ## what a change must pass
	$(TEST) -m "not slow" $(ARGS)

test-all: $(READY)  ## everything
	$(TEST) $(ARGS)

benchmark: $(READY)  ## parity and speed
	$(BIN)/python -m pytest -q -s benchmarks/ $(ARGS)

compile-report: $(READY)  ## compile every tile of every kernel for every architecture, without a GPU
	$(BIN)/python -m benchmarks.compile_report --json benchmarks/results/compile.json $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	  "cmsa_fast needs Python 3.11 or newer; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12 ..." \
	  % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[benchmark,dev]'
	@touch $@
