"""Thoughts judged at random: the control.

    lm ablate configs/ablations/value_head --seeds 3
"""

from configs.ablations.value_head import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = base.get_config()
  c.methods.tot.evaluate = "random"
  c.expect = dict(accuracy=(0.12, 0.30))
  return c
