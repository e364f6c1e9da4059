"""The small model plays all training games, 16 times each.

    python -m experiments.attempts.run --config=configs/attempts/tiny.py
        --workdir=runs/attempts/tiny --config.init=runs/value/tiny

Wall time and result: see experiments/attempts/README.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.mesh = dict(data=1, fsdp=-1, context=1, tensor=1)
  c.init = "runs/value/tiny"
  c.which = "last"
  c.temperature = 1.2  # More faults to learn from than the search will make.
  c.min_p = 0.0
  c.line_tokens = 16
  c.answer_tokens = 64
  c.samples = 16  # Of each game.
  c.batch = 100  # Games at a time.
  c.puzzles = 0  # 0: every training game.
  c.holdout = 0.04  # As in the other stages.
  c.sound = 0.3  # What a sound line that loses is worth as an example.
  return c
