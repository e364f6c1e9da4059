"""Llama 2 7B on two slices of TPU v5e-256, joined by the data-centre network.

On every host of both slices:

    python -m experiments.pretrain.run
        --config=configs/pretrain/llama2_7b_2slices.py
        --workdir=runs/pretrain/llama2_7b_2slices --distributed

Parameters are sharded inside of a slice; gradients are summed between slices.

Planned: not yet.
"""

from configs.pretrain import llama2_7b
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = llama2_7b.get_config()
  c.batch = 2048
  c.steps = 125_000
  c.mesh.data = 2
  c.plan.slices = 2
  return c
