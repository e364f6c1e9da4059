"""Game of 24 by imitation of an exact solver, the control of self-play.

    python -m experiments.value.run --config=configs/selfplay/imitation.py
        --workdir=runs/selfplay/imitation/0

The same model and optimizer, and as many steps as the self-play took in all its
rounds (seed 0: `steps` of its curve.json); solutions and labels are a solver's.
"""

from configs.selfplay import game24
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  other = game24.get_config()
  c = ConfigDict()
  c.seed, c.mesh, c.model = other.seed, other.mesh, other.model
  c.digits = other.digits
  for name in ("batch", "length", "microbatches", "compiler_options",
               "optimizer", "log_every"):
    c[name] = other.training[name]
  c.steps = 3033
  c.z_loss = 0.0
  c.value_weight = 1.0
  c.data = dict(folder="", sources=dict(game24=dict(
      kind="problems", task="game24", what="values", rate=1.0, count=100_000,
      seed=0, holdout=0.04, sound=0.3, dials=dict(largest=99))))
  c.evaluate = dict(every=1500, batches=8)
  c.checkpoint = dict(every=500, keep_last=2, keep_best=0)
  return c
