"""Mistral 7B, with its window of 4,096 tokens, on TPU v5e-256.

On every host:

    python -m experiments.pretrain.run --config=configs/pretrain/mistral_7b.py
        --workdir=runs/pretrain/mistral_7b --distributed

Planned: not yet.
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
