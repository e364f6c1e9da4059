"""A thinker of 0.05M parameters; see `large`.

    python -m experiments.value.run --config=configs/thinkers/small.py
        --workdir=runs/thinkers/small/0
"""

from configs.thinkers import large
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = large.get_config()
  c.model.update(d_model=32, num_layers=2, num_heads=1, num_kv_heads=1,
                 head_dim=32, d_mlp=88)
  return c
