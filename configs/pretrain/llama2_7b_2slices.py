"""Llama 2 7B on two slices of TPU v5e-256, joined by the data-centre network.

On every host of both slices:

    python -m experiments.pretrain.run
        --config=configs/pretrain/llama2_7b_2slices.py
        --workdir=runs/pretrain/llama2_7b_2slices --distributed

Parameters are sharded inside of a slice; gradients are summed between slices.

Planned (modelled; jax 0.10.2, libtpu 0.0.42.1) for 2 x v5e:16x16
(v5litepod-256): 8.37 of 15.75 GiB; 2.65 s a step, 3,091 tokens/s/chip, 65 %
MFU; compute binds. 524B tokens in 3.83 days, 47,100 chip-hours, $56,500 at
list price.
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
