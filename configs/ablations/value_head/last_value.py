"""Thoughts judged by the value head after their last line alone.

    lm ablate configs/ablations/value_head --seeds 3
"""

from configs.ablations.value_head import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = base.get_config()
  c.methods.tot.evaluate = "last_value"
  c.expect = dict(accuracy=(0.85, 0.97))
  return c
