"""A thinker of 0.9M parameters for Countdown alone, from nothing.

    python -m experiments.value.run --config=configs/thinkers/countdown.py
        --workdir=runs/thinkers/countdown/0

A third of it is drill: sums, differences, products and quotients of which the
results are learnt. Then configs/search/countdown.py. One seed: 53 minutes on a
core, 87 % of problems with held-out targets (experiments/search/README.md).
"""

from configs.thinkers import large
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = large.get_config()
  c.steps = 8000
  sources = c.data.sources
  for name in list(sources):
    if name not in ("facts", "countdown"):
      del sources[name]
  sources.facts.update(rate=0.35, count=100_000)
  sources.countdown.update(rate=0.65, count=150_000, sound=0.3)
  c.evaluate.every = 1600
  c.checkpoint.every = 400
  return c
