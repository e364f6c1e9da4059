"""Llama 2 7B on 16 slices of TPU v5e-256: 4,096 chips.

On every host of all slices:

    python -m experiments.pretrain.run
        --config=configs/pretrain/llama2_7b_16slices.py
        --workdir=runs/pretrain/llama2_7b_16slices --distributed

Planned: not yet.
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
