"""SmolLM2-135M-Instruct learns the road's dialogues, from its real weights.

    lm fetch smollm2
    lm import smollm2 --out runs/imported/smollm2
    python -m experiments.instruct.run --config=configs/instruct/smollm2.py
        --workdir=runs/instruct/smollm2
    lm export runs/instruct/smollm2 --out exported/smollm2

A few steps, to show the loop that a user comes for: real weights in, trained,
out again with tokenizer and chat template.
"""

from configs.instruct import tiny
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = tiny.get_config()
  c.init = "runs/imported/smollm2"
  c.steps = 30
  c.batch = 16
  c.length = 256
  c.optimizer.learning_rate = 2e-4
  c.optimizer.warmup = 5
  c.log_every = 5
  c.evaluate = dict(every=0, batches=4, questions=12, max_tokens=60)
  c.checkpoint.every = 15
  return c
