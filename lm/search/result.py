"""What a search knows of a problem, and what it leaves behind."""

from collections.abc import Hashable
import dataclasses
from typing import Any, Protocol

from lm.search.budget import Cost


class Problem(Protocol):
  """What a search may know of a problem: how to ask, and how to read.

  `read` is about form only; whether a thought is true is the model's business.
  """

  @property
  def num_thoughts(self) -> int:
    """Thoughts before the answer."""
    ...

  def prompt(self) -> str:
    """The user's turn."""
    ...

  def read(self, line: str) -> Hashable | None:
    """The state a thought claims to lead to; None if it is unreadable."""
    ...

  def read_answer(self, text: str) -> str | None:
    """The answer that a text gives, or None."""
    ...


@dataclasses.dataclass
class Node:
  """One thought, kept or not.

  Attributes:
    parent: index of the node it continues; None at depth 1.
    depth: thoughts so far, this one included.
    text: the line as the model wrote it.
    state: what it claims to lead to; None: unreadable, dropped.
    log_prob: of the path's tokens under the model.
    value: scalar-head logit after the line.
    weakest: the lowest value of the path, this line's included.
    score: what the evaluator gave.
    status: 'kept', 'pruned', 'merged' or 'unreadable'.
    prior: log-probability of the line alone.
    visits: how often a value was backed up through it.
    total: the sum of those values.
  """

  parent: int | None
  depth: int
  text: str
  state: Hashable | None
  log_prob: float
  value: float
  weakest: float
  score: float = 0.0
  status: str = "pruned"
  prior: float = 0.0
  visits: int = 0
  total: float = 0.0


@dataclasses.dataclass
class End:
  """An answer that was written out: after which node, the text, what it says.

  `leaf` is an index of the nodes; None: after the prompt.
  """

  leaf: int | None
  text: str
  answer: str | None


@dataclasses.dataclass
class Result:
  """One answer to one problem.

  Attributes:
    answer: as the model wrote it, or None.
    text: the text that ends in it.
    cost: all that was spent.
    nodes: the tree, for a search; empty for plain sampling.
    path: indices of the nodes that the answer goes through.
    ends: every answer that was written, this one among them.
  """

  answer: str | None
  text: str
  cost: Cost
  nodes: list[Node] = dataclasses.field(default_factory=list)
  path: list[int] = dataclasses.field(default_factory=list)
  ends: list[End] = dataclasses.field(default_factory=list)

  def to_dict(self) -> dict[str, Any]:
    """Plain JSON values."""
    return dataclasses.asdict(self)


def path_to(nodes: list[Node], index: int | None) -> list[int]:
  """Indices from the first thought to `index`."""
  path = []
  while index is not None:
    path.append(index)
    index = nodes[index].parent
  return path[::-1]
