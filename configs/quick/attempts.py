"""The quick road's fourth stage: the model plays training games itself.

    python -m experiments.attempts.run --config=configs/quick/attempts.py
        --workdir=runs/quick/attempts
"""

from configs.attempts import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = tiny.get_config()
  c.init = "runs/quick/value"
  c.samples = 4
  c.batch = 20
  c.puzzles = 40
  return c
