"""Llama 2 7B on rows of 32,768 tokens, on TPU v5e-256.

On every host:

    python -m experiments.pretrain.run
        --config=configs/pretrain/llama2_7b_32k.py
        --workdir=runs/pretrain/llama2_7b_32k --distributed

The length of a row is shared by 4 chips: each works on its part of the
queries against all keys, which are gathered.

Planned (modelled; jax 0.10.2, libtpu 0.0.42.1) for v5e:16x16 (v5litepod-256):
6.14 of 15.75 GiB; 7.59 s a step, 1,079 tokens/s/chip, 36 % MFU; attention
binds. 524B tokens in 22 days, 135,000 chip-hours, $162,000 at list price.
"""

from configs.pretrain import llama2_7b
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = llama2_7b.get_config()
  c.batch = 64
  c.length = 32_768
  c.steps = 250_000
  c.mesh = dict(data=1, fsdp=64, context=4, tensor=1)
  c.model = dict(
      size="llama2-7b", max_length=32_768, rope_theta=500_000.0, remat="full",
      ring=None, attention="auto")
  return c
