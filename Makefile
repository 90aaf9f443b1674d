# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check format test-base model-repository clean

demo: $(VENV)/.installed  ## exports the mini preset, starts Triton, asks it, stops it
	$(BIN)/cmt demo

test: $(VENV)/.installed  ## every test, on the real Triton
	$(BIN)/pytest

test-base: $(VENV)/.installed  ## the full-size preset too: minutes and 6 GB of memory
	$(BIN)/pytest -m base

check: $(VENV)/.installed  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint server/Dockerfile

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

model-repository: $(VENV)/.installed  ## writes model_repository/ from the contract
	$(BIN)/python -m cmt_pipeline.reference model_repository

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .cmt .pytest_cache .mypy_cache .ruff_cache .hypothesis
