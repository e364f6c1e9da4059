"""The grid as short as it gets: two methods on twelve problems of each task.

    python -m experiments.search.run --config=configs/search/grid_quick.py
        --workdir=runs/grid_quick/large/0 --config.init=runs/thinkers/large/0

Under a minute on two cores; says that everything runs, and no more.
"""

from configs.search import grid
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = grid.get_config()
  c.trees = 1
  c.answer = "tot_128"
  kept = ("greedy", "tot_128")
  c.methods = {name: c.methods[name].to_dict() for name in kept}
  c.tasks = {name: {**task, "methods": kept}
             for name, task in grid.tasks(12).items()}
  return c
