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
  c.steps = 300
  return c
