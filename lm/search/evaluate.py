"""Evaluators: how promising is a thought? Higher is better.

Each is `evaluate(nodes, rng) -> scores`, given all candidates of one problem at
one depth. None sees the target, a solver or a rule of the game.
"""

from collections.abc import Callable, Sequence

import numpy as np

from lm.search.tree import Node

Evaluate = Callable[[Sequence[Node], np.random.Generator], np.ndarray]


def value_head(nodes: Sequence[Node], rng: np.random.Generator) -> np.ndarray:
  """The trained scalar head's logit of success: that of the weakest line.

  A slip that the head saw when it was made is not forgiven because what
  follows is sound (the minimum over steps of 2312.08935, section 3.4).
  """
  del rng
  return np.array([n.weakest for n in nodes])


def last_value(nodes: Sequence[Node], rng: np.random.Generator) -> np.ndarray:
  """The scalar head's logit after the last line only."""
  del rng
  return np.array([n.value for n in nodes])


def log_prob(nodes: Sequence[Node], rng: np.random.Generator) -> np.ndarray:
  """The policy's own log-probability of the path so far."""
  del rng
  return np.array([n.log_prob for n in nodes])


def random(nodes: Sequence[Node], rng: np.random.Generator) -> np.ndarray:
  """A control that knows nothing."""
  return rng.random(len(nodes))


EVALUATORS: dict[str, Evaluate] = {
    "value": value_head, "last_value": last_value, "log_prob": log_prob,
    "random": random,
}
