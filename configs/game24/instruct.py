"""The strong run, second stage: instruction tuning.

    python -m experiments.instruct.run --config=configs/game24/instruct.py
        --workdir=runs/game24/instruct

`make game24` runs all stages for three seeds. Wall time and result: see
experiments/search/README.md.
"""

from configs.demo import instruct as demo
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = demo.get_config()
  c.init = "runs/game24/pretrain"
  c.steps = 50
  return c
