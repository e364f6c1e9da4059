"""The strong run, last stage: value head and many more games.

    python -m experiments.value.run --config=configs/game24/value.py
        --workdir=runs/game24/value

Wall time and result: see experiments/search/README.md.
"""

from configs.value import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = tiny.get_config()
  c.init = "runs/game24/instruct"
  c.steps = 4000
  c.data.sources.games.count = 300_000
  c.optimizer.learning_rate = 3e-3
  c.optimizer.warmup = 100
  c.evaluate.every = 500
  return c
