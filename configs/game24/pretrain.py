"""The strong run, first stage: 3.7M parameters on text and games.

    python -m experiments.pretrain.run --config=configs/game24/pretrain.py
        --workdir=runs/game24/pretrain

Wall time and result: see experiments/search/README.md.
"""

from configs.pretrain import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = tiny.get_config()
  c.steps = 600
  c.model = dict(size="micro")
  c.data.sources.games.count = 100_000
  c.optimizer.learning_rate = 3e-3
  return c
