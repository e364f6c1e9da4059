"""A 34B of the Llama 2 family on 512 chips of TPU v5p (v5p-1024).

On every host:

    python -m experiments.pretrain.run --config=configs/pretrain/llama2_34b.py
        --workdir=runs/pretrain/llama2_34b --distributed

Planned (modelled; jax 0.10.2, libtpu 0.0.42.1) for v5p:8x8x8 (v5p-1024):
46.78 of 95.74 GiB; 11.3 s a step, 1,452 tokens/s/chip, 67 % MFU; compute
binds. 2.01T tokens in 31.3 days, 385,000 chip-hours, $1,620,000 at list
price.
"""

from configs.pretrain import llama2_70b
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = llama2_70b.get_config()
  c.model.size = "llama2-34b"
  return c
