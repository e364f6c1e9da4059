"""Thoughts that claim the same state stay apart.

    lm ablate configs/ablations/search --seeds 3
"""

from configs.ablations.search import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = base.get_config()
  c.methods.tot.merge = False
  return c
