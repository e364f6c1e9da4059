"""Five samples of the first thought, not 25.

    lm ablate configs/ablations/search --seeds 3
"""

from configs.ablations.search import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = base.get_config()
  c.methods.tot.k = (5, 2, 2)
  return c
