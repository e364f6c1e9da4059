"""The demo's first stage: vocabulary and pre-training.

    python -m experiments.pretrain.run --config=configs/demo/pretrain.py
        --workdir=runs/demo/pretrain

`make demo` runs it; expected wall time and result are in its report.
"""

from configs.pretrain import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = tiny.get_config()
  c.steps = 80
  c.model = dict(size="micro")
  c.data.sources.games.count = 20_000
  c.optimizer = dict(
      name="muon", learning_rate=5e-3, schedule="cosine", warmup=20, end=0.05,
      weight_decay=0.05, clip=1.0, dtype="bfloat16")
  c.evaluate.every = 40
  c.log_every = 20
  return c
