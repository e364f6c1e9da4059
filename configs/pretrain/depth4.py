"""Our own family on one dial: `model.depth` sets all that follows from size.

    python -m experiments.pretrain.run --config=configs/pretrain/depth4.py
        --workdir=runs/pretrain/depth4 --config.model.depth=4

Width, heads and MLP follow from the depth (`lm.model.depth`); so do batch and
learning rate (`lm.model.recipe`) as long as they are 0 here.
"""

from configs.pretrain import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = tiny.get_config()
  c.model = dict(depth=4)
  c.batch = 0
  c.optimizer.learning_rate = 0.0
  c.steps = 2000
  return c
