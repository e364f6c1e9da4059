"""Llama 2 70B on TPU v6e-256.

On every host:

    python -m experiments.pretrain.run
        --config=configs/pretrain/llama2_70b_v6e.py
        --workdir=runs/pretrain/llama2_70b_v6e --distributed

Planned: not yet.
"""

from configs.pretrain import llama2_70b
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = llama2_70b.get_config()
  c.steps = 320_000
  c.batch = 1536
  c.plan = dict(topology="v6e:16x16", slices=1)
  # Slow to compile (minutes), and worth it: a tenth of the compute.
  c.compiler_options = c.compiler_options.replace("32768", "65536")
  c.model.remat = "offload"
  c.model.ring = 16
  return c
