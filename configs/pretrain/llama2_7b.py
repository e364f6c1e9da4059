"""Llama 2 7B on TPU v5e-256; planned, not run: there was no TPU to run it on.

On every host of the slice, with the text on a disk that all hosts see:

    python -m experiments.pretrain.run --config=configs/pretrain/llama2_7b.py
        --workdir=runs/pretrain/llama2_7b --distributed

4 rows of 2,048 tokens a chip, parameters and optimizer sharded over all of
them, q and k saved for the backward pass and the rest computed again.

Planned (modelled; jax 0.10.2, libtpu 0.0.42.1) for v5e:16x16 (v5litepod-256):
8.37 of 15.75 GiB; 2.62 s a step, 3,132 tokens/s/chip, 66 % MFU; compute
binds. 524B tokens in 7.57 days, 46,500 chip-hours, $55,800 at list price.
"""

from configs.pretrain import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = tiny.get_config()
  c.steps = 250_000
  c.batch = 1024
  c.length = 2048
  c.mesh = dict(data=1, fsdp=-1, context=1, tensor=1)
  c.z_loss = 1e-4
  c.plan = dict(topology="v5e:16x16", slices=1)
  c.compiler_options = (
      "xla_tpu_scoped_vmem_limit_kib=32768"
      " xla_tpu_async_collective_fusion_with_start_done_only=true")
  c.model = dict(
      size="llama2-7b", remat="save_qk", ring=16, attention="auto")
  c.vocab = dict(path="", size=32_000, game24_symbols=False)
  c.data.sources = dict(
      text=dict(kind="text", rate=1.0, path="data/text", holdout=0.001))
  c.optimizer = dict(
      name="adamw", learning_rate=3e-4, schedule="cosine", warmup=2000, end=0.1,
      b2=0.95, weight_decay=0.1, clip=1.0)
  c.evaluate = dict(every=1000, batches=8)
  c.checkpoint = dict(every=1000, keep_last=3, keep_best=1)
  return c
