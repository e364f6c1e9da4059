"""A small model from the text that Python carries, mixed with games of 24.

    python -m experiments.pretrain.run --config=configs/pretrain/tiny.py
        --workdir=runs/pretrain/tiny

Any folder of .txt, .md, .py or .jsonl (or .gz) instead of the built-in text:
--config.data.sources.text.path=FOLDER. Wall time and result: see
experiments/pretrain/README.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.steps = 1000
  c.batch = 32  # Rows.
  c.length = 256  # Tokens of a row.
  c.microbatches = 1
  c.mesh = dict(data=1, fsdp=-1, context=1, tensor=1)
  c.compiler_options = ""  # Of the TPU compiler: "NAME=VALUE NAME=VALUE".
  c.z_loss = 0.0
  c.model = dict(size="nano")
  c.vocab = dict(path="", size=2048, game24_symbols=True)
  c.data = dict(
      folder="",  # Of prepared data; "" is WORKDIR/data.
      sources=dict(
          text=dict(kind="text", rate=0.8, path="builtin", holdout=0.01,
                    share=1.0),
          games=dict(kind="game24", rate=0.2, count=40_000, seed=0,
                     holdout=0.04)))
  c.optimizer = dict(
      name="adamw", learning_rate=4e-3, schedule="cosine", warmup=50, end=0.1,
      b2=0.95, weight_decay=0.1, clip=1.0)
  c.log_every = 50
  c.evaluate = dict(every=250, batches=6)
  c.checkpoint = dict(every=250, keep_last=2, keep_best=0)
  return c
