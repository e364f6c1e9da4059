"""The paper's 100 games of 24 with a model that taught itself.

    python -m experiments.search.run --config=configs/search/selfplay.py
        --workdir=runs/selfplay/games/after/0

After experiments.selfplay; before it: --config.init=.../round-00/train. `make
selfplay` runs both, and imitation, for three seeds.
"""

from configs.search import demo
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = demo.get_config()
  c.init = "runs/selfplay/game24/{seed}/round-08/train"
  c.temperature = 1.0
  c.min_p = 0.02
  c.answer = "tot_value_b5_widest"
  kept = ("greedy", "best_of_16", "vote_16", "tot_value_b5_wide",
          "tot_value_b5_wider")
  c.methods = {name: c.methods[name] for name in kept}
  for judge in ("value", "log_prob", "random"):
    c.methods[f"tot_{judge}_b5_widest"] = demo.tot(5, (48, 8, 4), judge)
  return c
