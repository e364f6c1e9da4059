"""Thoughts sampled at temperature 2, not 1.

    lm ablate configs/ablations/search --seeds 3
"""

from configs.ablations.search import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = base.get_config()
  c.temperature = 2.0
  return c
