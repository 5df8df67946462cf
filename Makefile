# `make demo` and `make test` set everything up by themselves; PYTHON names the interpreter to start from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench gpu proof proof-faults proof-distributed proof-slurm proof-search proof-rest

demo: $(READY)
	$(BIN)/python train.py --recipe demo
	@echo
	@echo "Open the report in a browser: $$(ls -t runs/demo-*/report/index.html | head -n 1)"
	@echo "Then activate the environment, for resnet-cifar --help and train.py:"
	@echo "    . $(VENV)/bin/activate"

# Tests that start several processes and kill them run after the others, two at a time: they mostly wait. The longest first.
ALONE := tests/slurm tests/faults tests/distributed

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile $(ALONE:%=--ignore %)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ALONE)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck --external-sources slurm/*.sh containers/*.sh benchmarks/*.sh
	$(BIN)/hadolint containers/*.Dockerfile

# The long form of the tests that kill, interrupt and move runs, of those that run jobs of SLURM, and whatever else is left out
# of `make test`: an hour each at most. Figures go to benchmarks/results/.
proof: proof-faults proof-distributed proof-slurm proof-search proof-rest
SEARCH := tests/slurm/test_search.py
proof-faults proof-distributed proof-slurm: proof-%: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --proof tests/$* --ignore $(SEARCH)
proof-search: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --proof $(SEARCH)
proof-rest: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --proof -m 'proof_only or proof_too' $(ALONE:%=--ignore %)

bench: $(READY)
	$(BIN)/python -m benchmarks

# Nine minutes on a machine with a GPU. SOURCE is a folder of images, a hub id or `synthetic`. Where no environment can be
# made, because there is no network: `python -m benchmarks.gpu` with the packages on PYTHONPATH (see benchmarks/pack.sh).
SOURCE ?= uoft-cs/cifar10
MINUTES ?= 9
OUT ?= benchmarks/results
gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu --source $(SOURCE) --minutes $(MINUTES) --out $(OUT)

# Made again only when what it installs from has changed.
$(READY): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[trackers,tune,onnx,serve,test,dev]'
	touch $(READY)
