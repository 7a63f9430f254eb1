# Each target is `python tools/run.py TARGET`, which also works where there is no make.
PYTHON ?= python3
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench bench-full screenshots clean-caches

help demo test lint bench bench-full screenshots clean-caches:
	@$(PYTHON) tools/run.py $@ $(ARGS)
