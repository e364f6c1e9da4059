"""How time grows with what is asked for: its exponent, which should be 1.

    python benchmarks/growth.py

A training step with 1, 2, 4 and 8 times as many tokens, and about as many times
the parameters; a tree search with 1 to 32 times the tokens. Each is measured a
few times in turn, so that a drifting machine hits all sizes; the fastest of
each counts. Time ~ size ** exponent, fitted by least squares of the logarithms.
"""

from collections.abc import Callable, Mapping
import math
import sys
import time

import jax
import numpy as np

from lm import search
from lm import sharding
import nodes
import training

_TRIES = 4
# By name: (model, rows, length), each about twice the one before.
_TOKENS = {rows: (training.SHAPES["1M"][0], rows, 128)
           for rows in (16, 32, 64, 128)}
_PARAMETERS = {
    layers: (dict(d_model=256, num_layers=layers, num_heads=4, num_kv_heads=4,
                  head_dim=64, d_mlp=704, vocab_size=256), 16, 128)
    for layers in (2, 4, 8, 16)}


def fit(name: str, calls: Mapping[float, Callable[[], object]]) -> None:
  """Prints the exponent of the time in the keys of `calls`."""
  best = dict.fromkeys(calls, math.inf)
  for i in range(1 + _TRIES):
    for size, call in calls.items():
      start = time.perf_counter()
      call()
      if i:  # The first compiles.
        best[size] = min(best[size], time.perf_counter() - start)
  x, y = (np.log(list(v)) for v in (best.keys(), best.values()))
  slope, offset = np.polyfit(x, y, 1)
  r2 = 1 - np.sum((y - slope * x - offset) ** 2) / np.sum((y - y.mean()) ** 2)
  shown = ", ".join(f"{size:,.0f}: {s:.3g} s" for size, s in best.items())
  sys.stdout.write(f"{name}: exponent {slope:.3f}, R² {r2:.4f} ({shown})\n")


def main() -> None:
  training.prepare()
  with jax.set_mesh(sharding.make_mesh(dict(data=1))):
    for name, shapes in (("tokens of a step", _TOKENS),
                         ("parameters", _PARAMETERS)):
      calls = {}
      for key, shape in shapes.items():
        training.SHAPES[str(key)] = shape
        size = (shape[1] * shape[2] if shapes is _TOKENS
                else training.config_of(str(key)).num_params)
        calls[size] = training.ours(str(key))
      fit(name, calls)
  fit("tokens of a search", dict(map(_search, (1, 2, 4, 8, 16, 32))))


def _search(times: int):
  """(tokens a problem, a search): wider by `times`."""
  strategy = search.tree_of_thoughts(5, (8 * times, 2 * times, times))
  problems = [nodes.Anything(i) for i in range(25)]

  def call():
    return search.solve(strategy, nodes.writer(), problems, jax.random.key(0))

  return call()[0].cost.generated_tokens, call


if __name__ == "__main__":
  main()
