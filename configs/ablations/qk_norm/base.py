"""With QK-norm: what the house's own family has.

    lm ablate configs/ablations/qk_norm --seeds 3

Question: does RMS-normalising queries and keys help a small model at the
demo's learning rate? Some 8 minutes on two cores for three seeds; results:
RESULTS.md.
"""

from configs.demo import pretrain
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = pretrain.get_config()
  c.model = dict(size="nano", qk_norm=True)
  c.batch = 16
  c.steps = 100
  c.evaluate.every = 0
  c.checkpoint.every = 0
  c.data.folder = "runs/ablations/qk_norm/data"
  c.experiment = "experiments.pretrain.run"
  c.metric = "bits_per_byte"
  c.expect = dict(bits_per_byte=(2.40, 2.47))
  return c
