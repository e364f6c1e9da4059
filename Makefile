# Every target uses one environment, .venv, which make builds by itself and
# rebuilds when setup.py changes. It needs python3 (3.11 or later) and make.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help venv demo game24 thinkers grid countdown selfplay test lint plan \
  soak peers bench build-files clean
SEEDS ?= 0 1 2
SIZES ?= small medium large
.DEFAULT_GOAL := help

help:  ## Say what there is to make.
	@grep -E '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(STAMP)  ## Build the environment.

$(STAMP): setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed: make PYTHON=python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

demo: $(STAMP)  ## From nothing to a thinking model; QUICK=1 for two minutes.
	$(BIN)/python -m experiments.demo.run $(if $(QUICK),--size=quick)

game24: $(STAMP)  ## The README's numbers: the long road for three seeds.
	@set -e; for seed in $(SEEDS); do \
	  $(BIN)/python -m experiments.demo.run --size=game24 --seed=$$seed; done
	$(BIN)/python -m experiments.search.summary \
	  $(SEEDS:%=runs/game24/%) --out=experiments/search/results

thinkers: $(STAMP)  ## Train thinkers of all sizes and seeds, then make grid.
	@set -e; for size in $(SIZES); do for seed in $(SEEDS); do \
	  $(BIN)/python -m experiments.value.run --config.seed=$$seed \
	    --config=configs/thinkers/$$size.py --workdir=runs/thinkers/$$size/$$seed; \
	  done; done
	@$(MAKE) --no-print-directory grid

grid: $(STAMP)  ## Search with every thinker at equal budgets, and compare.
	@set -e; for size in $(SIZES); do for seed in $(SEEDS); do \
	  $(BIN)/python -m experiments.search.run --config.seed=$$seed \
	    --config=configs/search/grid.py --workdir=runs/grid/$$size/$$seed \
	    --config.init=runs/thinkers/$$size/$$seed; \
	  done; done
	$(BIN)/python -m experiments.search.grid runs/grid \
	  --out=experiments/search/results/grid

countdown: $(STAMP)  ## Countdown, with targets held out, by seed.
	@set -e; for seed in $(SEEDS); do \
	  $(BIN)/python -m experiments.value.run --config.seed=$$seed \
	    --config=configs/thinkers/countdown.py \
	    --workdir=runs/thinkers/countdown/$$seed; \
	  $(BIN)/python -m experiments.search.run --config.seed=$$seed \
	    --config=configs/search/countdown.py \
	    --workdir=runs/countdown/0.9M/$$seed; done
	$(BIN)/python -m experiments.search.grid runs/countdown \
	  --out=experiments/search/results/countdown

selfplay: $(STAMP)  ## Self-play on Game of 24 and imitation, then its test games.
	@set -e; for seed in $(SEEDS); do \
	  $(BIN)/python -m experiments.selfplay.run --config.seed=$$seed \
	    --config=configs/selfplay/game24.py \
	    --workdir=runs/selfplay/game24/$$seed; \
	  $(BIN)/python -m experiments.value.run --config.seed=$$seed \
	    --config=configs/selfplay/imitation.py \
	    --workdir=runs/selfplay/imitation/$$seed; \
	  for way in before:game24/$$seed/round-00/train imitation:imitation/$$seed \
	      after:game24/$$seed/round-08/train; do \
	    $(BIN)/python -m experiments.search.run --config.seed=$$seed \
	      --config=configs/search/selfplay.py \
	      --workdir=runs/selfplay/games/$${way%%:*}/$$seed \
	      --config.init=runs/selfplay/$${way#*:}; done; done
	$(BIN)/python -m experiments.search.grid runs/selfplay/games \
	  --out=experiments/selfplay/results

lint: $(STAMP)  ## Style and types.
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint  ## Everything that can fail.
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

plan: $(STAMP)  ## Compile the pod configs for their TPUs, half an hour: docs/plans.
	$(BIN)/lm plan --record $(or $(CONFIGS),\
	  $(shell grep -l '^Planned' configs/pretrain/*.py))

soak: $(STAMP)  ## Kill a run of two processes twenty times: docs/hosts.md.
	$(BIN)/python tests/soak.py

.venv/.peers: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[test,bench]'
	touch $@

peers: .venv/.peers  ## Hold models against transformers, minutes: docs/models.md.
	$(BIN)/lm fetch smollm2
	grep -rl 'importorskip."transformers' tests \
	  | xargs $(BIN)/python -m pytest -p no:xdist $(ARGS)

bench: .venv/.peers  ## One script per figure.
	@set -e; for script in $(filter-out %/common.py %/plain.py,$(wildcard benchmarks/*.py)); \
	  do echo "== $$script"; $(BIN)/python $$script; done

build-files: $(STAMP)  ## Rewrite the Bazel BUILD files from the imports.
	$(BIN)/python tests/build_files.py

clean:  ## Remove the environment and everything built.
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
