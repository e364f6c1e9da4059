"""Thoughts judged by the policy's own log-probability.

    lm ablate configs/ablations/value_head --seeds 3
"""

from configs.ablations.value_head import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = base.get_config()
  c.methods.tot.evaluate = "log_prob"
  c.expect = dict(accuracy=(0.70, 0.92))
  return c
