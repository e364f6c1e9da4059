"""Instruction tuning as short as it gets: `make demo QUICK=1`, and the tests.

    python -m experiments.instruct.run --config=configs/quick/instruct.py
        --workdir=runs/quick/instruct

Under 15 seconds; the model has learnt next to nothing.
"""

from configs.demo import instruct
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = instruct.get_config()
  c.init = "runs/quick/pretrain"
  c.steps = 20
  c.batch = 8
  c.data.sources.games.count = 1000
  c.optimizer.warmup = 5
  c.log_every = 10
  c.evaluate = dict(every=0, batches=2, questions=8, max_tokens=48)
  c.checkpoint.every = 0
  return c
