"""The value head learns from the model's own games, half of the time.

    python -m experiments.value.run --config=configs/value/judge.py
        --workdir=runs/judge/tiny --config.init=runs/value/tiny

After experiments.attempts; wall time and result: see
experiments/value/README.md.
"""

from configs.value import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = tiny.get_config()
  c.init = "runs/value/tiny"
  c.steps = 300
  c.data.sources.games.rate = 0.5
  c.data.sources.games.sound = 0.3
  c.data.sources.attempts = dict(
      kind="dialogues", rate=0.5, path="runs/attempts/tiny/attempts.jsonl",
      holdout=0.0)
  c.optimizer.learning_rate = 1e-3
  return c
