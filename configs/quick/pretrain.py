"""Pre-training as short as it gets: `make demo QUICK=1`, and the tests.

    python -m experiments.pretrain.run --config=configs/quick/pretrain.py
        --workdir=runs/quick/pretrain

Under 15 seconds; the model has learnt next to nothing.
"""

from configs.demo import pretrain
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = pretrain.get_config()
  c.steps = 20
  c.batch = 8
  c.length = 128
  c.model = dict(size="nano", num_layers=2, d_mlp=192)
  c.vocab.size = 800
  c.data.sources.text.share = 0.03  # Of the documents.
  c.data.sources.text.holdout = 0.05
  c.data.sources.games.count = 1000
  c.optimizer.warmup = 5
  c.log_every = 10
  c.evaluate = dict(every=0, batches=2)
  c.checkpoint.every = 0
  return c
