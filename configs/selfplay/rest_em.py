"""ReST-EM on Game of 24: many samples, every round from the beginning.

    python -m experiments.selfplay.run --config=configs/selfplay/rest_em.py
        --workdir=runs/selfplay/rest_em/0
"""

from configs.selfplay import game24
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = game24.get_config()
  c.play = dict(kind="self_consistency", n=32)
  c.start = "formats"
  c.labels = "outcome"
  return c
