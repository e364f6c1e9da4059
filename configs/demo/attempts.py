"""The demo road's fourth stage: the model plays training games itself.

    python -m experiments.attempts.run --config=configs/demo/attempts.py
        --workdir=runs/demo/attempts
"""

from configs.attempts import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = tiny.get_config()
  c.init = "runs/demo/value"
  c.samples = 8
  return c
