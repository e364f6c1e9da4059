"""The search as short as it gets: `make demo QUICK=1`, and the tests.

    python -m experiments.search.run --config=configs/search/quick.py
        --workdir=runs/search/quick --config.init=runs/quick/judge

One size of every method. Under 30 seconds; the models have learnt nothing.
"""

from configs.search import demo
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = demo.get_config()
  c.init = "runs/quick/judge"
  c.trees = 2
  c.answer = "tot_value_b5_k5"
  kept = ("greedy", "best_of_5", "vote_5", "tot_value_b5_k5",
          "tot_log_prob_b5_k5", "tot_random_b5_k5")
  c.methods = {name: c.methods[name] for name in kept}
  return c
