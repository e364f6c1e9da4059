"""Self-play as short as it gets, on short word problems: for the tests.

    python -m experiments.selfplay.run --config=configs/selfplay/quick.py
        --workdir=runs/selfplay/quick

Under a minute; nothing is learnt.
"""

from configs.selfplay import game24
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = game24.get_config()
  c.task = "words"
  c.dials = dict(steps=2, distractors=3)
  c.model = dict(d_model=32, num_layers=1, num_heads=2, num_kv_heads=2,
                 head_dim=16, d_mlp=64, max_length=256, tied=True,
                 qk_norm=True)
  c.rounds = 2
  c.formats = dict(count=400, steps=60)
  c.play = dict(kind="whole_tree", k=(8, 1), evaluate="value")
  c.pool = 60
  c.per_round = 30
  c.batch = 30
  c.training.steps = 2
  c.training.batch = 8
  c.training.length = 256  # It writes anything yet.
  c.training.optimizer.warmup = 1
  c.evaluate = dict(split="validation", problems=4, b=2, k=(4, 2))
  return c
