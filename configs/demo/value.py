"""The demo's third stage: the value head.

    python -m experiments.value.run --config=configs/demo/value.py
        --workdir=runs/demo/value

`make demo` runs it; expected wall time and result are in its report.
"""

from configs.value import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = tiny.get_config()
  c.init = "runs/demo/instruct"
  c.steps = 1500
  return c
