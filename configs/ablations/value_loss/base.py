"""The value head under cross-entropy: the medium thinker.

    lm ablate configs/ablations/value_loss --seeds 3

Question: does it matter for its judgement how the head is scored in training?
"""

from configs.thinkers import medium
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = medium.get_config()
  c.value_loss = "cross_entropy"
  c.experiment = "experiments.value.run"
  c.metric = ("brier", "calibration_error")
  return c
