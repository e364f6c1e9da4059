"""Thoughts judged by a model of their own, which reads every path again.

    lm ablate configs/ablations/trunk --seeds 3
"""

from configs.ablations.trunk import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = base.get_config()
  c.critic = "runs/critics/{seed}"
  c.methods.tot.evaluate = "critic"
  return c
