# Every target makes its own .venv when there is none; PYTHON names the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Two OpenMP threads that spin on a busy machine make a step many times slower than one thread.
TEST_ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: quickstart demo test test-slow check help

help:
	@echo "make quickstart   scenes -> train -> evaluate -> report, in runs/quickstart"
	@echo "make demo         the web page over scenes; IMAGES=folder over your pictures, MODEL=folder with your model"
	@echo "make test         the fast tests"
	@echo "make test-slow    the tests that train for minutes"
	@echo "make check        ruff check and ruff format --check"

# The stamp is written last, so an interrupted installation is done again.
$(STAMP): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e ".[test]"
	touch $(STAMP)

quickstart: $(STAMP)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/cir-cot quickstart --out runs/quickstart

# Trains the quickstart's model first where there is none; MODEL and IMAGES take a checkpoint and pictures of your own.
# An index belongs to one checkpoint: name another INDEX for another MODEL.
MODEL ?= runs/quickstart/model
INDEX ?= runs/demo
SCENES := runs/quickstart/scenes
demo: $(STAMP)
	test -f $(MODEL)/retriever.json || $(MAKE) quickstart
	OMP_WAIT_POLICY=PASSIVE $(BIN)/cir-cot index --model $(MODEL) --out $(INDEX) \
	  $(if $(IMAGES),--images $(IMAGES),--images $(SCENES)/images --gallery $(SCENES)/gallery.iid.txt)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/cir-cot demo --model $(MODEL) --index $(INDEX)

test: $(STAMP)
	$(TEST_ENV) $(BIN)/pytest

test-slow: $(STAMP)
	$(TEST_ENV) $(BIN)/pytest -m slow

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
