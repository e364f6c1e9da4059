"""A 1B in a night, on one TPU v6e-8: GPT-2 grade for some hundred dollars.

On the slice's host:

    python -m experiments.pretrain.run --config=configs/pretrain/speedrun_1b.py
        --workdir=runs/pretrain/speedrun_1b --distributed

20 tokens a parameter; widths are multiples of 256, as the matrix unit is.

Planned (modelled; jax 0.10.2, libtpu 0.0.42.1) for v6e:2x4 (v6e-8): 19.67 of
31.25 GiB; 0.71 s a step, 46,121 tokens/s/chip, 32 % MFU; compute binds. 21B
tokens in 0.658 days, 126 chip-hours, $341 at list price.
"""

from configs.pretrain import llama2_7b
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = llama2_7b.get_config()
  c.steps = 80_000
  c.batch = 128
  c.length = 2048
  c.plan = dict(topology="v6e:2x4", slices=1)
  c.compiler_options = c.compiler_options.replace("32768", "65536")
  c.model = dict(
      d_model=1536, num_layers=32, num_heads=12, num_kv_heads=12, head_dim=128,
      d_mlp=4096, max_length=2048, qk_norm=True, remat="save_attention",
      ring=None, attention="auto")
  c.vocab.size = 32_768
  c.optimizer.learning_rate = 6e-4
  return c
