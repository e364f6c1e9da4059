"""The demo's third stage: the value head, and many more games.

    python -m experiments.value.run --config=configs/demo/value.py
        --workdir=runs/demo/value

`make demo` runs it; expected wall time and result are in its report.
"""

from configs.value import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = tiny.get_config()
  c.init = "runs/demo/instruct"
  c.steps = 200
  c.data.sources.games.count = 60_000
  c.optimizer = dict(
      name="muon", learning_rate=5e-3, schedule="cosine", warmup=20, end=0.05,
      weight_decay=0.05, clip=1.0, dtype="bfloat16")
  c.evaluate.every = 100
  c.checkpoint.every = 100
  return c
