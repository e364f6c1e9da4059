"""The expander: samples thoughts for whole frontiers, reads and judges them."""

from collections.abc import Callable, Hashable, Sequence
import dataclasses

import jax
import numpy as np

from lm.data import chat
from lm.search import tree as tree_lib
from lm.search.budget import Cost, Meter
from lm.search.result import Node, Problem, Result
from lm.search.writer import Writer, Written


@dataclasses.dataclass(frozen=True)
class Thoughts:
  """New thoughts for an evaluator: R of each of P problems.

  Attributes:
    expand: the search that they belong to.
    tree: with them in it, their states and scores not yet.
    meter: takes what an evaluator costs.
    reserve: tokens of each problem's budget to leave alone.
    nodes_PR: where they are in the trees; -1: idle.
    states: [P][R], what each claims; None: unreadable, or idle.
    value_PR: scalar-head logits.
    weakest_PR: the lowest of the path.
    log_prob_PR: of the path.
  """
  expand: "Expand"
  tree: tree_lib.Tree
  meter: Meter
  reserve: int
  nodes_PR: np.ndarray
  states: list[list[Hashable | None]]
  value_PR: np.ndarray
  weakest_PR: np.ndarray
  log_prob_PR: np.ndarray


# Scores [P, R]; higher is better.
Evaluate = Callable[[Thoughts], np.ndarray]


class Expand:
  """`expand(tree, nodes_PR, evaluate, meter) -> (tree, where the new are)`.

  Every node mentioned in `nodes_PR` gets one more thought for each mention. The
  trees are on the device; texts, and the states that they claim, are read and
  kept here.

  Args:
    writer: the model.
    problems: to be solved together.
    key: of all samples.
    capacity: most nodes of a tree, the root included.
    prefix: put before each prompt.

  Attributes:
    asked: what the model was asked of a problem's state, and its verdict.
  """

  def __init__(self, writer: Writer, problems: Sequence[Problem],
               key: jax.Array, *, capacity: int, prefix: str = ""):
    self.writer, self.problems = writer, problems
    self._key, self._calls = key, 0
    self.prompts = encode(writer.vocab, [prefix + p.prompt() for p in problems])
    self.memory, self.costs = writer.start(
        self.prompts, jax.random.fold_in(key, 0), capacity=capacity)
    self.num_thoughts_P = np.array([p.num_thoughts for p in problems])
    self.rng = np.random.default_rng(
        np.asarray(jax.random.key_data(jax.random.fold_in(key, 0))))
    self.asked: dict[tuple[int, Hashable], float] = {}
    self._texts: list[list[str]] = [[""] for _ in problems]
    self._states: list[list[Hashable]] = [[None] for _ in problems]
    self._numbers: list[dict[tuple, int]] = [{} for _ in problems]
    self.tree = tree_lib.empty(len(problems), capacity, writer.line_tokens)

  def next_key(self) -> jax.Array:
    self._calls += 1
    return jax.random.fold_in(self._key, self._calls)

  def __call__(self, tree: tree_lib.Tree, nodes_PR, evaluate: Evaluate,
               meter: Meter, *, merge: bool = True, reserve: int = 0):
    """The tree with new thoughts, and where they are: [P, R], -1 none.

    Args:
      tree: the trees.
      nodes_PR: what to continue; -1 none.
      evaluate: judges the new thoughts.
      meter: what may still be spent.
      merge: whether thoughts that claim one state merge.
      reserve: tokens of each problem's budget to leave alone.
    """
    left_P = meter.left(reserve)
    nodes_PR = np.where(left_P[:, None] > 0, nodes_PR, -1)
    slots_PR = np.asarray(tree_lib.slots(tree, nodes_PR))
    nodes_PR = np.where(slots_PR < 0, -1, nodes_PR)
    if (nodes_PR < 0).all():
      return tree, slots_PR
    self.memory, out = self.writer.grow(
        self.memory, nodes_PR, slots_PR, left_P, self.next_key(),
        depth=_deepest(tree, nodes_PR))
    meter.charge(out.costs)
    tree = tree_lib.add(tree, nodes_PR, slots_PR, out.tokens_PRM, out.num_PR,
                        out.log_probs_PR, out.values_PR)
    states = self._read(slots_PR, out)
    scores_PR = evaluate(Thoughts(
        self, tree, meter, reserve, slots_PR, states, out.values_PR,
        pick(tree.weakest_PC, slots_PR), pick(tree.log_prob_PC, slots_PR)))
    # A state that comes later is another one: fewer thoughts are left to it.
    depth_PR = pick(tree.depth_PC, slots_PR)
    numbers_PR = np.array([
        [-1 if s is None else self._numbers[p].setdefault(
            (depth, s), len(self._numbers[p]))
         for depth, s in zip(depth_PR[p].tolist(), row, strict=True)]
        for p, row in enumerate(states)], np.int32)
    return tree_lib.settle(
        tree, slots_PR, numbers_PR, np.asarray(scores_PR, np.float32),
        merge=merge), slots_PR

  def _read(self, slots_PR, out: Written) -> list[list[Hashable | None]]:
    """Remembers texts and states of new nodes; the states, as [P][R]."""
    found = []
    for p, problem in enumerate(self.problems):
      row: list[Hashable | None] = []
      for slot, text in zip(slots_PR[p], out.texts[p], strict=True):
        row.append(None if slot < 0 else problem.read(text))
        if slot >= 0:  # Slots are dealt in this order.
          self._texts[p].append(text)
          self._states[p].append(row[-1])
      found.append(row)
    return found

  def finish(self, tree: tree_lib.Tree, nodes_PR, meter: Meter, *,
             greedy: bool = True, closing: bool = False,
             max_tokens: int | None = None,
             reserve: int = 0) -> Written:
    """Writes the nodes (-1: none) out to their answers.

    `closing`: it is the last thing to do, late or not.
    """
    left_P = meter.left(reserve, closing=closing)
    nodes_PR = np.where(left_P[:, None] > 0, nodes_PR, -1)
    out = self.writer.finish(
        self.memory, nodes_PR, left_P, self.next_key(),
        depth=_deepest(tree, nodes_PR), greedy=greedy, max_tokens=max_tokens)
    meter.charge(out.costs)
    return out

  def path_text(self, tree, p: int, node: int) -> str:
    """All thoughts up to a node; `tree` is on the host."""
    lines = []
    while node > 0:
      lines.append(self._texts[p][node])
      node = int(tree.parent_PC[p, node])
    return "".join(lines[::-1])

  def result(self, tree, p: int, cost: Cost, *, leaf: int = -1, end: str = "",
             answer: str | None = None) -> Result:
    """What problem `p` leaves: its transcript, and `end` after node `leaf`.

    `tree` is on the host (`jax.device_get`).
    """
    nodes = []
    for i in range(1, int(tree.count_P[p])):
      parent = int(tree.parent_PC[p, i])
      nodes.append(Node(
          parent=parent - 1 if parent else None,
          depth=int(tree.depth_PC[p, i]), text=self._texts[p][i],
          state=self._states[p][i],
          **{name: float(getattr(tree, f"{name}_PC")[p, i]) for name in (
              "log_prob", "prior", "value", "weakest", "score", "total")},
          status=tree_lib.STATUS[int(tree.status_PC[p, i])],
          visits=int(tree.visits_PC[p, i])))
    path: list[int] = []
    while leaf > 0:
      path.append(leaf - 1)
      leaf = int(tree.parent_PC[p, leaf])
    path.reverse()
    whole = "".join(nodes[i].text for i in path) + end
    return Result(answer, whole, cost, nodes, path)


def encode(vocab, prompts: Sequence[str]) -> list[list[int]]:
  """Each as the user's turn, up to where the assistant answers."""
  return [chat.encode_prompt(vocab, [{"role": "user", "content": p}])
          for p in prompts]


def pick(x_PC, nodes_PR) -> np.ndarray:
  """On the host, the numbers at nodes (-1: any)."""
  return np.take_along_axis(
      np.asarray(x_PC), np.maximum(nodes_PR, 0), axis=1)


def _deepest(tree: tree_lib.Tree, nodes_PR) -> int:
  return int(pick(tree.depth_PC, nodes_PR).max())
