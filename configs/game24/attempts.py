"""The game24 road's fourth stage: the model plays training games itself.

    python -m experiments.attempts.run --config=configs/game24/attempts.py
        --workdir=runs/game24/attempts
"""

from configs.attempts import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = tiny.get_config()
  c.init = "runs/game24/value"
  return c
