"""Thoughts judged by the value head: the weakest line of the path counts.

    lm ablate configs/ablations/value_head --seeds 3

Question: is it the value head that makes the search work? The same models
(those of `make game24`, one a seed), the same b and k, another judge. About 2
minutes on two cores; results: RESULTS.md.
"""

from configs.search import demo
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = demo.get_config()
  c.init = "runs/game24/{seed}/judge"
  c.answer = "tot"
  c.methods = dict(tot=dict(kind="tot", b=5, k=demo.WIDE, evaluate="value"))
  c.experiment = "experiments.search.run"
  c.metric = "accuracy"
  c.expect = dict(accuracy=(0.85, 0.97))
  return c
