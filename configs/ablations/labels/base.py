"""Self-play whose lines are worth whether any attempt through them was right.

    lm ablate configs/ablations/labels --seeds 3

Question: labels of the process, hard or soft (Math-Shepherd, 2312.08935), or
the attempt's own outcome?
"""

from configs.selfplay import game24
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = game24.get_config()
  c.experiment = "experiments.selfplay.run"
  c.metric = ("search", "greedy")
  return c
