"""A thinker of 0.2M parameters; see `large`.

    python -m experiments.value.run --config=configs/thinkers/medium.py
        --workdir=runs/thinkers/medium/0
"""

from configs.thinkers import large
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = large.get_config()
  c.model.update(d_model=64, num_layers=3, num_heads=2, num_kv_heads=2,
                 head_dim=32, d_mlp=176)
  return c
