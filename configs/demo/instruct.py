"""The demo's second stage: instruction tuning.

    python -m experiments.instruct.run --config=configs/demo/instruct.py
        --workdir=runs/demo/instruct

`make demo` runs it; expected wall time and result are in its report.
"""

from configs.instruct import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = tiny.get_config()
  c.init = "runs/demo/pretrain"
  c.steps = 50
  c.data.sources.games.count = 20_000
  c.optimizer = dict(
      name="muon", learning_rate=3e-3, schedule="cosine", warmup=10, end=0.05,
      weight_decay=0.05, clip=1.0, dtype="bfloat16")
  c.log_every = 20
  return c
