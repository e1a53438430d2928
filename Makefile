# Everything a newcomer needs: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed

.PHONY: help quickstart test lint check format clean

help:
	@echo "make quickstart  environment, install, the first study, its report"
	@echo "make test        every test, with all optional parts"
	@echo "make check       ruff, mypy, and the tests that take seconds"
	@echo "make format      ruff format"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "dse needs Python 3.11 or newer: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt \
		-e '.[dev,artifacts,browse,dashboard,firmware,postgresql,ray,tflite,vela]'
	@touch $(VENV)/.base $@

quickstart: $(VENV)/.base
	@rm -f out/quickstart.db out/quickstart.db-wal out/quickstart.db-shm && mkdir -p out
	$(BIN)/dse run studies/quickstart.yaml --storage sqlite:///out/quickstart.db \
		--report out/quickstart

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not browser'

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) out build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
