"""Thoughts judged by the policy's own log-probability.

    lm ablate configs/ablations/search --seeds 3
"""

from configs.ablations.search import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = base.get_config()
  c.methods.tot.evaluate = "log_prob"
  return c
