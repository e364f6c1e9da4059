"""Thinking time against accuracy with the strong run's model.

    python -m experiments.search.run --config=configs/search/game24.py
        --workdir=runs/game24/0/search --config.init=runs/game24/0/judge

`make game24` runs it for three seeds; results in experiments/search/README.md.
"""

from configs.search import demo
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = demo.get_config()
  c.init = "runs/game24/{seed}/judge"
  return c
