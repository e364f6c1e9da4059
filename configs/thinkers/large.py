"""A thinker of 0.9M parameters: policy and value of four tasks, from nothing.

    python -m experiments.value.run --config=configs/thinkers/large.py
        --workdir=runs/thinkers/large/0

`make thinkers` trains all sizes and seeds and draws the curves; what is known
of it so far: experiments/search/README.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.model = dict(d_model=128, num_layers=4, num_heads=2, num_kv_heads=2,
                 head_dim=64, d_mlp=352, max_length=512, tied=True,
                 qk_norm=True)
  c.digits = True  # Embeddings of numbers begin as sums of their digits'.
  c.steps = 4000
  c.batch = 32
  c.length = 128
  c.microbatches = 1
  c.mesh = dict(data=1, fsdp=-1, context=1, tensor=1)
  c.compiler_options = ""  # Of the TPU compiler: "NAME=VALUE NAME=VALUE".
  c.z_loss = 0.0
  c.value_weight = 1.0
  rows = lambda task, rate, what="values", count=40_000, **more: dict(
      kind="problems", task=task, what=what, rate=rate, count=count, seed=0,
      holdout=0.04, **more)
  # Nothing above 199 on the way: a small model can learn to add these, and 97 %
  # of the problems that can be solved can be solved so.
  few = dict(dials=dict(largest=199))
  c.data = dict(folder="runs/thinkers/data", sources=dict(
      facts=rows("countdown", 0.26, "facts", 60_000, **few),
      countdown=rows("countdown", 0.28, count=100_000, sound=0.3, **few),
      game24=rows("game24", 0.12, sound=0.3, dials=dict(largest=99)),
      words=rows("words", 0.1, dials=dict(steps=2)),
      star_graph=rows("star_graph", 0.14, dials=dict(arms=3, length=3)),
      streams=rows("countdown", 0.04, "streams", 20_000, **few),
      revisions=rows("countdown", 0.03, "revisions", 20_000, **few),
      verdicts=rows("countdown", 0.03, "verdicts", 20_000, **few)))
  c.optimizer = dict(
      name="muon", learning_rate=5e-3, schedule="cosine", warmup=20, end=0.05,
      weight_decay=0.05, clip=1.0, dtype="bfloat16")
  c.log_every = 50
  c.evaluate = dict(every=2000, batches=8)
  c.checkpoint = dict(every=500, keep_last=2, keep_best=0)
  return c
