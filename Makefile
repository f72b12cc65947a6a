# Every target makes its own .venv when there is none; PYTHON names the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Two OpenMP threads that spin on a busy machine make a step many times slower than one thread.
TEST_ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: quickstart test test-slow check help

help:
	@echo "make quickstart   scenes -> train -> evaluate -> report, in runs/quickstart"
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

test: $(STAMP)
	$(TEST_ENV) $(BIN)/pytest

test-slow: $(STAMP)
	$(TEST_ENV) $(BIN)/pytest -m slow

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
