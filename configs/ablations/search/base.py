"""Step beam on Countdown: b=5, k=25,2,2, merged, judged by the value head.

    lm ablate configs/ablations/search --seeds 3

Question: what does each part of the search do? The same models (`make
thinkers`, one a seed), the same 100 problems with targets that training never
saw, one change a cell.
"""

from configs.search import demo
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = demo.get_config()
  c.init = "runs/thinkers/large/{seed}"
  c.task = "countdown"
  c.split = "test_targets"
  c.temperature = 1.0
  c.min_p = 0.02
  c.batch = 50
  c.answer = "tot"
  c.methods = dict(tot=dict(
      kind="tot", b=5, k=(25, 2, 2), merge=True, evaluate="value"))
  c.experiment = "experiments.search.run"
  c.metric = ("accuracy", "generated_tokens")
  return c
