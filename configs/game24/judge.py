"""The game24 road's fifth stage: the value head learns from own games.

    python -m experiments.value.run --config=configs/game24/judge.py
        --workdir=runs/game24/judge
"""

from configs.game24 import value
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = value.get_config()
  c.init = "runs/game24/value"
  c.steps = 240
  c.data.sources.games.rate = 0.5
  c.data.sources.games.sound = 0.3
  c.data.sources.attempts = dict(
      kind="dialogues", rate=0.5, path="runs/game24/attempts/attempts.jsonl",
      holdout=0.0)
  c.optimizer.learning_rate = 3e-3
  return c
