"""Llama 2 70B on 512 chips of TPU v5p (v5p-1024).

On every host:

    python -m experiments.pretrain.run --config=configs/pretrain/llama2_70b.py
        --workdir=runs/pretrain/llama2_70b --distributed

4 rows of 4,096 tokens a chip; queries, keys, values and the attention kernel's
output are saved for the backward pass, the rest is computed again.

Planned (modelled; jax 0.10.2, libtpu 0.0.42.1) for v5p:8x8x8 (v5p-1024):
75.51 of 95.74 GiB; 22.4 s a step, 731 tokens/s/chip, 68 % MFU; compute binds.
2.01T tokens in 62.2 days, 765,000 chip-hours, $3,210,000 at list price.
"""

from configs.pretrain import llama2_7b
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = llama2_7b.get_config()
  c.steps = 240_000
  c.batch = 2048
  c.length = 4096
  c.plan = dict(topology="v5p:8x8x8", slices=1)
  c.model = dict(
      size="llama2-70b", remat="save_attention", ring=8, attention="auto")
  c.optimizer.learning_rate = 1.5e-4
  return c
