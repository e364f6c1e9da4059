"""A 34B of the Llama 2 family on TPU v6e-256.

On every host:

    python -m experiments.pretrain.run
        --config=configs/pretrain/llama2_34b_v6e.py
        --workdir=runs/pretrain/llama2_34b_v6e --distributed

Planned: not yet.
"""

from configs.pretrain import llama2_70b_v6e
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = llama2_70b_v6e.get_config()
  c.model.size = "llama2-34b"
  c.compiler_options = c.compiler_options.replace("65536", "32768")
  return c
