# make help | make quickstart | make test
# Needs Python 3.11 or later with pip and venv. Everything is installed into .venv, versions pinned.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TRANSLATE ?= "Friday, March 13, 2026" "1,250 kilometers" "Japan, Brazil, and Kenya"

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test style

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[finetune,dev]'
	touch $@

setup: $(VENV)/.installed  ## the environment in .venv; reused by all that follows

quickstart: setup  ## train English to French on the built-in corpus, on the processor; evaluate, translate $$TRANSLATE
	$(BIN)/accelerate launch --quiet --config_file configs/accelerate/cpu.yaml scripts/train.py configs/quickstart.yaml
	@echo
	$(BIN)/python scripts/translate.py runs/quickstart $(TRANSLATE)

test: setup  ## style, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy hf_mt
	$(BIN)/python -m pytest -n 2

style: setup  ## format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
