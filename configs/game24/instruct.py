"""The strong run, second stage: instruction tuning.

    python -m experiments.instruct.run --config=configs/game24/instruct.py
        --workdir=runs/game24/instruct

Wall time and result: see experiments/search/README.md.
"""

from configs.instruct import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = tiny.get_config()
  c.init = "runs/game24/pretrain"
  c.steps = 500
  c.data.sources.games.count = 100_000
  return c
