"""STaR on word problems: one attempt each, hints for what was not solved.

    python -m experiments.selfplay.run --config=configs/selfplay/star.py
        --workdir=runs/selfplay/star/0

Without hints: --config.rationalize=False.
"""

from configs.selfplay import game24
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = game24.get_config()
  c.task = "words"
  c.dials = dict()
  c.play = dict(kind="self_consistency", n=1)
  c.start = "formats"
  c.rationalize = True
  c.pool = 3000
  c.per_round = 2000
  c.labels = "outcome"
  c.training.length = 192  # Prompts have some 60 tokens.
  c.training.batch = 40
  c.evaluate = dict(split="validation", problems=100, b=5, k=(8, 2, 1))
  return c
