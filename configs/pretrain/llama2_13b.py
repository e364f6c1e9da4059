"""Llama 2 13B on 512 chips of TPU v5p (v5p-1024).

On every host:

    python -m experiments.pretrain.run --config=configs/pretrain/llama2_13b.py
        --workdir=runs/pretrain/llama2_13b --distributed

Planned: not yet.
"""

from configs.pretrain import llama2_70b
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = llama2_70b.get_config()
  c.model.size = "llama2-13b"
  return c
