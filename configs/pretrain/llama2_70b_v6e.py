"""Llama 2 70B on TPU v6e-256.

On every host:

    python -m experiments.pretrain.run
        --config=configs/pretrain/llama2_70b_v6e.py
        --workdir=runs/pretrain/llama2_70b_v6e --distributed

Planned (modelled; jax 0.10.2, libtpu 0.0.42.1) for v6e:16x16 (v6e-256): 19.27
of 31.25 GiB; 22.3 s a step, 1,103 tokens/s/chip, 51 % MFU; compute binds.
2.01T tokens in 82.5 days, 507,000 chip-hours, $1,370,000 at list price.
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
