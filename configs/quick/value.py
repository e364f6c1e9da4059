"""The value head as short as it gets: `make demo QUICK=1`, and the tests.

    python -m experiments.value.run --config=configs/quick/value.py
        --workdir=runs/quick/value

Under 15 seconds; the head has learnt next to nothing.
"""

from configs.demo import value
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = value.get_config()
  c.init = "runs/quick/instruct"
  c.steps = 20
  c.batch = 16
  c.data.sources.games.count = 3000
  c.optimizer.warmup = 5
  c.log_every = 10
  c.evaluate = dict(every=0, batches=2)
  c.checkpoint.every = 0
  return c
