"""Llama 2 7B on 16 slices of TPU v5e-256: 4,096 chips.

On every host of all slices:

    python -m experiments.pretrain.run
        --config=configs/pretrain/llama2_7b_16slices.py
        --workdir=runs/pretrain/llama2_7b_16slices --distributed

Planned (modelled; jax 0.10.2, libtpu 0.0.42.1) for 16 x v5e:16x16
(v5litepod-256): 8.37 of 15.75 GiB; 2.65 s a step, 3,091 tokens/s/chip, 65 %
MFU; compute binds. 537B tokens in 0.491 days, 48,200 chip-hours, $57,900 at
list price.
"""

from configs.pretrain import llama2_7b_2slices
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = llama2_7b_2slices.get_config()
  c.batch = 16_384
  c.steps = 16_000
  c.mesh.data = 16
  c.plan.slices = 16
  return c
