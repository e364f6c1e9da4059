"""Llama 2 13B on 512 chips of TPU v5p (v5p-1024).

On every host:

    python -m experiments.pretrain.run --config=configs/pretrain/llama2_13b.py
        --workdir=runs/pretrain/llama2_13b --distributed

Planned (modelled; jax 0.10.2, libtpu 0.0.42.1) for v5p:8x8x8 (v5p-1024):
35.48 of 95.74 GiB; 4.7 s a step, 3,487 tokens/s/chip, 62 % MFU; compute
binds. 2.01T tokens in 13.1 days, 160,000 chip-hours, $674,000 at list price.
"""

from configs.pretrain import llama2_70b
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = llama2_70b.get_config()
  c.model.size = "llama2-13b"
  return c
