# Every target makes its own .venv when there is none; PYTHON names the interpreter it is made with. Installed are the
# versions of constraints.txt, only by test-newest the newest that setup.cfg admits, in a .venv-newest.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
NEWEST := .venv-newest/bin
# Two OpenMP threads that spin on a busy machine make a step many times slower than one thread.
TEST_ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: quickstart demo test test-slow test-newest check docs help

help:
	@echo "make quickstart   scenes -> train -> evaluate -> report, in runs/quickstart"
	@echo "make demo         the web page over scenes; IMAGES=folder over your pictures, MODEL=folder with your model"
	@echo "make test         the fast tests"
	@echo "make test-slow    the tests that train for minutes"
	@echo "make test-newest  the fast tests with the newest versions of all packages, in .venv-newest"
	@echo "make check        ruff check, ruff format --check, and mypy over the library"
	@echo "make docs         the site of the documentation, in build/site; a dead link ends it"

# The stamp is written last, so an interrupted installation is done again.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[test]"
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
	OMP_WAIT_POLICY=PASSIVE $(BIN)/cir-cot demo --model $(MODEL) --index $(INDEX) \
	  $(if $(IMAGES),,--examples $(SCENES)/records.iid.jsonl)

# PYTEST_ADDOPTS="-n 2 --dist loadfile" make test: two files at a time, on a machine with two idle cores.
test: $(STAMP)
	$(TEST_ENV) $(BIN)/pytest

test-slow: $(STAMP)
	$(TEST_ENV) $(BIN)/pytest -m slow

# What is the newest changes from day to day, so there is no stamp.
test-newest:
	test -x $(NEWEST)/python || $(PYTHON) -m venv .venv-newest
	$(NEWEST)/python -m pip install --upgrade --upgrade-strategy eager -e ".[test]"
	$(NEWEST)/python -m pip list
	$(TEST_ENV) $(NEWEST)/pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

# .venv/.docs is written last, as .venv/.installed is.
DOCS := .venv/.docs
$(DOCS): $(STAMP)
	$(BIN)/python -m pip install -c constraints.txt -e ".[docs]"
	touch $(DOCS)

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
