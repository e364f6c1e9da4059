"""Llama 2 7B on 128 chips of TPU v4 (v4-256).

On every host:

    python -m experiments.pretrain.run --config=configs/pretrain/llama2_7b_v4.py
        --workdir=runs/pretrain/llama2_7b_v4 --distributed

4 rows of 4,096 tokens a chip.

Planned (modelled; jax 0.10.2, libtpu 0.0.42.1) for v4:4x4x8 (v4-256): 16.22
of 30.75 GiB; 4.52 s a step, 3,627 tokens/s/chip, 57 % MFU; compute binds.
1.99T tokens in 49.7 days, 153,000 chip-hours, $491,000 at list price.
"""

from configs.pretrain import llama2_7b
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = llama2_7b.get_config()
  c.steps = 950_000
  c.batch = 512
  c.length = 4096
  c.plan = dict(topology="v4:4x4x8", slices=1)
  c.model.ring = 4
  return c
