"""A critic beside the large thinker: its shape, trained to judge above all.

    python -m experiments.value.run --config=configs/thinkers/critic.py
        --workdir=runs/critics/0

For configs/ablations/trunk: a value trunk of its own against one shared with
the policy. `make thinkers` does not train it.
"""

from configs.thinkers import large
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = large.get_config()
  c.value_weight = 10.0
  return c
