"""The strong run, last stage: value head and many more games.

    python -m experiments.value.run --config=configs/game24/value.py
        --workdir=runs/game24/value

`make game24` runs all stages for three seeds. Wall time and result: see
experiments/search/README.md.
"""

from configs.demo import value as demo
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = demo.get_config()
  c.init = "runs/game24/instruct"
  c.steps = 680
  c.evaluate.every = 200
  c.checkpoint.every = 200
  c.data.sources.games.count = 150_000
  return c
