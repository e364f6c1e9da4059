"""Step beam on Countdown under the value head of the policy's own trunk.

    lm ablate configs/ablations/trunk --seeds 3

Question: is a value trunk of its own worth reading every path twice? Needs
`make thinkers`, and a critic a seed (configs/thinkers/critic.py).
"""

from configs.ablations.search import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = base.get_config()
  c.metric = ("accuracy", "flops")
  return c
