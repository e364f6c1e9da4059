"""Lines are worth the share of attempts through them that were right.

    lm ablate configs/ablations/labels --seeds 3
"""

from configs.ablations.labels import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = base.get_config()
  c.labels = "mean"
  return c
