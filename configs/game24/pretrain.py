"""The strong run, first stage: text and games.

    python -m experiments.pretrain.run --config=configs/game24/pretrain.py
        --workdir=runs/game24/pretrain

`make game24` runs all stages for three seeds. Wall time and result: see
experiments/search/README.md.
"""

from configs.demo import pretrain as demo
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = demo.get_config()
  c.steps = 80
  c.evaluate.every = 60
  return c
