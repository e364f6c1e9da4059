"""The value head under the squared error of its probability.

    lm ablate configs/ablations/value_loss --seeds 3
"""

from configs.ablations.value_loss import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = base.get_config()
  c.value_loss = "squared_error"
  return c
