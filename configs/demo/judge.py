"""The demo road's fifth stage: the value head learns from own games.

    python -m experiments.value.run --config=configs/demo/judge.py
        --workdir=runs/demo/judge
"""

from configs.demo import value
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = value.get_config()
  c.init = "runs/demo/value"
  c.steps = 120
  c.data.sources.games.rate = 0.5
  c.data.sources.games.sound = 0.3
  c.data.sources.attempts = dict(
      kind="dialogues", rate=0.5, path="runs/demo/attempts/attempts.jsonl",
      holdout=0.0)
  c.optimizer.learning_rate = 3e-3
  return c
