# Needs Python >= 3.11, git and make; everything else is fetched into .cache/ and .venv/ on first use.
# The targets are what CI runs (.ci/run).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

RUN     := .venv/bin
STAMP   := .venv/.synced
WORKERS ?= 2

.PHONY: help setup demo demo-bus test lint bench soak requirements mutants docs clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(STAMP) ## the environment of this checkout, from the lock

$(STAMP): pyproject.toml uv.lock tools/bootstrap
	@tools/bootstrap
	@touch $(STAMP)

demo: $(STAMP) ## the standard library made answerable by actors that are killed half-way, at most two minutes
	@$(RUN)/groundplane demo

demo-bus: $(STAMP) ## a trading desk whose leader is killed, embedded and then on NATS, at most a minute
	@$(RUN)/python examples/trading_desk/demo.py

test: $(STAMP) ## every test: the fast ones in parallel, then those that kill things one after the other
	@tools/run-tests $(WORKERS)

lint: $(STAMP) ## ruff, mypy --strict, import contracts
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy
	$(RUN)/lint-imports --no-cache

bench: $(STAMP) ## benchmarks beside the raw client and a peer, as Markdown and JSON
	$(RUN)/python -m benchmarks

soak: $(STAMP) ## the fault tests with many rounds on both stacks, and the table of what was survived (hours)
	@$(RUN)/python tools/soak.py $(ARGS)

requirements: $(STAMP) ## every requirement, clause by clause, with the tests that prove it
	@$(RUN)/python tools/requirements.py $(ARGS)

mutants: $(STAMP) ## the product broken in named ways; the tests must notice each
	@$(RUN)/python tools/mutants.py $(ARGS)

docs: $(STAMP) ## the documentation, built strictly into site/
	@$(RUN)/python tools/requirements.py --missing > /dev/null
	@$(RUN)/python tools/reference.py
	$(RUN)/zensical build --strict --clean

clean: ## remove what the other targets made
	rm -rf .venv .cache site docs/reference/generated docs/reference/requirements.md
