"""What a search leaves behind: a tree of thoughts, one answer, and its cost."""

from collections.abc import Hashable
import dataclasses
from typing import Any, Protocol


class Problem(Protocol):
  """What a search may know of a problem: how to ask, and how to read.

  `read` is about form only; whether a thought is true is the model's business.
  """

  num_thoughts: int

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
    row: where the decoder holds it.
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
  row: int = -1


@dataclasses.dataclass
class Cost:
  """What an answer took, counted the same way for every strategy.

  Attributes:
    generated_tokens: every sampled token, merged and unreadable ones too.
    forward_tokens: those and the prompt's.
    flops: of all forward passes, heads included.
  """

  generated_tokens: int = 0
  forward_tokens: int = 0
  flops: float = 0.0

  def add(self, other: "Cost") -> None:
    for field in dataclasses.fields(self):
      name = field.name
      setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclasses.dataclass
class Result:
  """One answer to one problem.

  Attributes:
    answer: the expression as the model wrote it, or None.
    text: the text that ends in it.
    cost: all that was spent.
    nodes: the tree, for a search; empty for plain sampling.
    path: indices of the nodes that the answer goes through.
  """

  answer: str | None
  text: str
  cost: Cost
  nodes: list[Node] = dataclasses.field(default_factory=list)
  path: list[int] = dataclasses.field(default_factory=list)

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
