"""The value head of the small model: which lines of a game still lead to 24?

    python -m experiments.value.run --config=configs/value/tiny.py
        --workdir=runs/value/tiny --config.init=runs/instruct/tiny

It goes on from an instructed model (or from a pre-trained one). Wall time and
result: see experiments/value/README.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.init = "runs/instruct/tiny"  # The working folder of the stage before.
  c.steps = 1000
  c.batch = 75
  c.length = 108  # Two whole games and a first line, for instance.
  c.microbatches = 1
  c.mesh = dict(data=1, fsdp=-1, context=1, tensor=1)
  c.compiler_options = ""  # Of the TPU compiler: "NAME=VALUE NAME=VALUE".
  c.z_loss = 0.0
  c.value_weight = 1.0
  c.data = dict(
      folder="",
      sources=dict(
          games=dict(kind="game24_value", rate=1.0, count=100_000, seed=0,
                     holdout=0.04, solved=0.3, first=0.35)))
  c.optimizer = dict(
      name="adamw", learning_rate=2e-3, schedule="cosine", warmup=50, end=0.05,
      b2=0.98, weight_decay=0.05, clip=1.0)
  c.log_every = 50
  c.evaluate = dict(every=250, batches=8)
  c.checkpoint = dict(every=250, keep_last=2, keep_best=0)
  return c
