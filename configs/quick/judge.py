"""The quick road's fifth stage: the value head learns from own games.

    python -m experiments.value.run --config=configs/quick/judge.py
        --workdir=runs/quick/judge
"""

from configs.quick import value
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = value.get_config()
  c.init = "runs/quick/value"
  c.steps = 10
  c.data.sources.games.rate = 0.5
  c.data.sources.games.sound = 0.3
  c.data.sources.attempts = dict(
      kind="dialogues", rate=0.5, path="runs/quick/attempts/attempts.jsonl",
      holdout=0.0)
  c.optimizer.learning_rate = 3e-3
  return c
