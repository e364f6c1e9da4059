"""Mistral 7B, with its window of 4,096 tokens, on TPU v5e-256.

On every host:

    python -m experiments.pretrain.run --config=configs/pretrain/mistral_7b.py
        --workdir=runs/pretrain/mistral_7b --distributed

Planned (modelled; jax 0.10.2, libtpu 0.0.42.1) for v5e:16x16 (v5litepod-256):
7.10 of 15.75 GiB; 3.32 s a step, 2,467 tokens/s/chip, 59 % MFU; compute
binds. 524B tokens in 9.61 days, 59,000 chip-hours, $70,800 at list price.
"""

from configs.pretrain import llama2_7b
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = llama2_7b.get_config()
  c.batch = 256
  c.length = 8192
  c.steps = 250_000
  c.model.size = "mistral-7b"
  return c
