"""AlphaZero's targets on Game of 24: the visits of Monte-Carlo tree search.

    python -m experiments.selfplay.run --config=configs/selfplay/alphazero.py
        --workdir=runs/selfplay/alphazero/0
"""

from configs.selfplay import game24
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = game24.get_config()
  c.play = dict(kind="mcts", k=(24, 4, 2), simulations=24, answers=8)
  c.targets = "visits"
  return c
