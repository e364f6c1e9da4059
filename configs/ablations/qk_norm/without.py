"""Without QK-norm.

    lm ablate configs/ablations/qk_norm --seeds 3
"""

from configs.ablations.qk_norm import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = base.get_config()
  c.model.qk_norm = False
  c.expect = dict(bits_per_byte=(2.39, 2.46))
  return c
