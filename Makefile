# Every target works from a fresh clone with nothing installed: the first one makes .venv and installs into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= demo
MINUTES ?= 30

.PHONY: install demo test test-slow soak fuzz fuzz-coverage overload lint clean

install: $(STAMP)

# The stamp lies inside the environment, so that removing .venv is all it takes to start over.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'error: Python 3.11 or newer is needed; choose one with `make PYTHON=/path/to/python3.11`' >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]" -c constraints.txt
	touch $@

demo: $(STAMP)
	$(BIN)/mlb-batch demo $(DEMO)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# Jobs on a real S3 server with a fault every few seconds: `make soak MINUTES=30`.
soak: $(STAMP)
	$(BIN)/python tests/soak.py --minutes $(MINUTES)

# Mutants of real videos (of ../shared/videos, where those are) through the reader; goes on where it was stopped.
fuzz: $(STAMP)
	$(BIN)/python tests/fuzz.py fuzz

# The same hunt, led by what our code does with a mutant; needs a package of its own.
fuzz-coverage: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[fuzz]" -c constraints.txt
	$(BIN)/python tests/fuzz_coverage.py fuzz-coverage

# 50,000 tiny videos and 20 of three hours: memory, spilling and rate.
overload: $(STAMP)
	$(BIN)/python tests/overload.py overload

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info
