"""A 34B of the Llama 2 family on TPU v6e-256.

On every host:

    python -m experiments.pretrain.run
        --config=configs/pretrain/llama2_34b_v6e.py
        --workdir=runs/pretrain/llama2_34b_v6e --distributed

Planned (modelled; jax 0.10.2, libtpu 0.0.42.1) for v6e:16x16 (v6e-256): 15.19
of 31.25 GiB; 14.1 s a step, 1,737 tokens/s/chip, 40 % MFU; compute binds.
2.01T tokens in 52.4 days, 322,000 chip-hours, $869,000 at list price.
"""

from configs.pretrain import llama2_70b_v6e
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = llama2_70b_v6e.get_config()
  c.model.size = "llama2-34b"
  c.compiler_options = c.compiler_options.replace("65536", "32768")
  return c
