"""The demo's first stage: vocabulary and pre-training.

    python -m experiments.pretrain.run --config=configs/demo/pretrain.py
        --workdir=runs/demo/pretrain

`make demo` runs it; expected wall time and result are in its report.
"""

from configs.pretrain import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = tiny.get_config()
  c.steps = 500
  return c
