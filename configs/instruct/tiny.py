"""The small model learns to answer: games, documentation, small talk.

    python -m experiments.instruct.run --config=configs/instruct/tiny.py
        --workdir=runs/instruct/tiny --config.init=runs/pretrain/tiny

Small talk is the package chatterbot-corpus; without it the rest is used.
Dialogues of your own: a source of kind "dialogues" whose path is a .jsonl file.
Wall time and result: see experiments/instruct/README.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.init = "runs/pretrain/tiny"  # The working folder of the stage before.
  c.steps = 500
  c.batch = 64
  c.length = 128
  c.microbatches = 1
  c.mesh = dict(data=1, fsdp=-1, context=1, tensor=1)
  c.compiler_options = ""  # Of the TPU compiler: "NAME=VALUE NAME=VALUE".
  c.z_loss = 0.0
  c.data = dict(
      folder="",
      sources=dict(
          games=dict(kind="game24", rate=0.55, count=40_000, seed=0,
                     holdout=0.04),
          documentation=dict(kind="documentation", rate=0.4, holdout=0.05),
          talk=dict(kind="chatterbot", rate=0.05, holdout=0.05,
                    optional=True)))
  c.optimizer = dict(
      name="adamw", learning_rate=2e-3, schedule="cosine", warmup=25, end=0.1,
      b2=0.95, weight_decay=0.1, clip=1.0)
  c.log_every = 50
  c.evaluate = dict(every=0, batches=6, questions=50, max_tokens=80)
  c.checkpoint = dict(every=250, keep_last=2, keep_best=0)
  return c
