"""Strategies: `strategy(tree, expand, evaluate, meter) -> a Result for each`.

All problems are worked on at once, so that the device stays full. Every
strategy gives exactly one answer per problem, counts every sampled token, and
stays within the meter's budget. `solve` runs one.
"""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import math
import time
from typing import Protocol

import jax
import numpy as np

from lm.search import tree as tree_lib
from lm.search.budget import UNLIMITED, Budget, Cost, Meter
from lm.search.evaluate import OF_VALUES, evaluator, of_states
from lm.search.expand import Evaluate, Expand, Thoughts, pick
from lm.search.result import End, Problem, Result
from lm.search.tree import KEPT, OPEN, Tree
from lm.search.writer import Writer, Written
from lm.types import UserError


class Strategy(Protocol):
  """A way to think."""

  @property
  def prefix(self) -> str:
    """Put before each prompt."""
    ...

  def nodes(self, num_thoughts: int) -> int:
    """Most thoughts that a tree will hold."""
    ...

  def __call__(self, tree: Tree, expand: Expand, evaluate: Evaluate,
               meter: Meter) -> list[Result]:
    ...


def solve(
    strategy: Strategy, writer: Writer, problems: Sequence[Problem],
    key: jax.Array, *, evaluate: str | Evaluate = "value",
    budget: Budget = UNLIMITED,
) -> list[Result]:
  """One answer to each problem, all worked on together.

  Args:
    strategy: how to think.
    writer: the model.
    problems: what to solve.
    key: of all samples.
    evaluate: who judges thoughts: a name of `EVALUATORS`, or a function.
    budget: of each problem.

  Raises:
    UserError: an evaluator that is unknown, does not fit the problems or needs
      a scalar head that the model has not; a budget that the prompt exceeds.
  """
  if isinstance(evaluate, str):
    if (evaluate in OF_VALUES
        and not writer.has_values and strategy.nodes(1)):
      raise UserError(f"evaluator {evaluate} needs a model with a value head:"
                      " train one with experiments.value, or use log_prob")
    evaluate = evaluator(evaluate, problems)
  if not problems:
    raise UserError("there is no problem to solve: give at least one")
  start, depth = time.perf_counter(), max(p.num_thoughts for p in problems)
  expand = Expand(writer, problems, key, capacity=1 + strategy.nodes(depth),
                  prefix=strategy.prefix)
  dearest = max(writer.dearest, getattr(evaluate, "dearest", 0.0))
  meter = Meter(budget, expand.costs, flops_per_token=dearest, start=start)
  meter.charge([Cost() for _ in problems], step=False)
  return strategy(expand.tree, expand, evaluate, meter)


def positive(**numbers) -> None:
  """Refuses settings that are not whole numbers from 1."""
  for name, value in numbers.items():
    values = value if isinstance(value, tuple) else (value,)
    if not values or not all(
        isinstance(v, int) and not isinstance(v, bool) and v >= 1
        for v in values):
      raise UserError(f"{name}={value}: must be a whole number, at least 1")


def by_depth(k: int | tuple[int, ...], depth: int) -> int:
  """One number for all depths, or one for each; the last goes on."""
  return k if isinstance(k, int) else k[min(depth, len(k) - 1)]


def depths(k: int | Sequence[int]) -> int | tuple[int, ...]:
  """One number for all depths, or one for each, as strategies keep it."""
  return k if isinstance(k, int) else tuple(k)


@dataclasses.dataclass(frozen=True)
class Samples:
  """n whole answers, one chosen without a value: by vote, or the only one.

  Attributes:
    n: answers per problem.
    choose: 'vote' (self-consistency, 2203.11171), 'log_prob', or 'first'.
    greedy: the likeliest tokens instead of samples (n = 1).
    prefix: put before each prompt.
    max_tokens: of an answer; None: the writer's.
  """
  n: int = 1
  choose: str = "first"
  greedy: bool = False
  prefix: str = ""
  max_tokens: int | None = None

  def __post_init__(self):
    positive(n=self.n, max_tokens=self.max_tokens or 1)
    if self.max_tokens == 0:
      raise UserError("max_tokens=0: allow at least 1")
    if self.choose not in ("vote", "log_prob", "first"):
      raise UserError(f"choose={self.choose!r}: use vote, log_prob or first")

  def nodes(self, num_thoughts: int) -> int:
    del num_thoughts
    return 0

  def __call__(self, tree, expand, evaluate, meter) -> list[Result]:
    del evaluate
    # Rows go on side by side: more than can be paid for would all be cut.
    each = self.max_tokens or expand.writer.answer_tokens
    roots_PR = affordable(np.zeros((len(expand.problems), self.n), np.int32),
                          meter.left(closing=True), each)
    out = expand.finish(tree, roots_PR, meter, greedy=self.greedy,
                        closing=True, max_tokens=self.max_tokens)
    return whole_answers(expand, out, meter, self.choose)


def whole_answers(expand: Expand, out: Written, meter: Meter, choose: str
                  ) -> list[Result]:
  """The results of texts that were written from the prompt; see `Samples`."""
  results = []
  for p, problem in enumerate(expand.problems):
    answers = [problem.read_answer(text) for text in out.texts[p]]
    best = _best(answers, out.log_probs_PR[p], choose)
    ends = [End(None, text, answer)
            for text, answer in zip(out.texts[p], answers, strict=True)]
    results.append(Result(answers[best], out.texts[p][best], meter.costs[p],
                          ends=ends))
  return results


def _best(answers, log_probs, choose: str) -> int:
  readable = [i for i, a in enumerate(answers) if a is not None]
  if choose == "log_prob":
    return max(readable, key=lambda i: log_probs[i], default=0)
  if choose == "vote":
    votes = Counter(answers[i] for i in readable)
    return max(readable, key=lambda i: votes[answers[i]], default=0)
  return readable[0] if readable else 0


def greedy() -> Samples:
  """System 1: the likeliest tokens, no second thought."""
  return Samples(greedy=True)


def self_consistency(n: int) -> Samples:
  """n samples, the answer given most often."""
  return Samples(n, choose="vote")


@dataclasses.dataclass(frozen=True)
class Beam:
  """Tree of thoughts, breadth first (ToT-BFS, 2305.10601, algorithm 1).

  At each depth every kept thought is continued `k` times; unreadable thoughts
  are dropped, those that claim the same state are merged, and the best `b` are
  kept. The best leaves are then written out to their answers, greedily.

  Attributes:
    b: thoughts kept at each depth.
    k: samples of each; one number, or one for each depth.
    merge: whether equal states merge.
    answers: how many leaves are written out; the best answer is given.
    prefix: put before each prompt.
  """
  b: int
  k: int | tuple[int, ...]
  merge: bool = True
  answers: int = 1
  prefix: str = ""

  def __post_init__(self):
    positive(b=self.b, k=self.k, answers=self.answers)

  def nodes(self, num_thoughts: int) -> int:
    return sum(self._width(d) * by_depth(self.k, d)
               for d in range(num_thoughts))

  def _width(self, depth: int) -> int:
    """Most thoughts that are kept at a depth, the prompt's being 0."""
    return min(self.b, math.prod(by_depth(self.k, d) for d in range(depth)))

  def __call__(self, tree, expand, evaluate, meter) -> list[Result]:
    frontier_PB = np.zeros((len(expand.problems), 1), np.int32)
    for depth in range(int(expand.num_thoughts_P.max())):
      on_P = expand.num_thoughts_P > depth
      nodes_PR = np.repeat(np.where(on_P[:, None], frontier_PB, -1),
                           by_depth(self.k, depth), axis=1)
      tree, _ = expand(tree, nodes_PR, evaluate, meter, merge=self.merge,
                       reserve=reserve(expand))
      at_PC = (np.asarray(tree.status_PC) == OPEN) & (
          np.asarray(tree.depth_PC) == depth + 1)
      frontier_PB = np.asarray(
          tree_lib.best(at_PC, tree.score_PC, count=self._width(depth + 1)))
      tree = tree_lib.mark(tree, frontier_PB, status=KEPT)
    return conclude(tree, expand, evaluate, meter, answers=self.answers)


def affordable(nodes_PR, left_P, each: int) -> np.ndarray:
  """The first nodes of each problem that its tokens last for; at least one."""
  count_P1 = np.maximum(1, left_P // each)[:, None]
  return np.where(np.arange(nodes_PR.shape[1]) < count_P1, nodes_PR, -1)


def reserve(expand: Expand) -> int:
  """Tokens set aside for writing an answer out."""
  return 2 * expand.writer.line_tokens


def conclude(tree: Tree, expand: Expand, evaluate: Evaluate, meter: Meter, *,
             answers: int = 1) -> list[Result]:
  """Writes out the best of the deepest thoughts, and takes the best answer."""
  alive_PC = (np.asarray(tree.status_PC) == OPEN) | (
      np.asarray(tree.status_PC) == KEPT)
  leaves_PR = np.asarray(tree_lib.best(
      alive_PC, tree.depth_PC, tree.score_PC, count=answers))
  # Never a shallower one beside the deepest.
  depth_PR = pick(tree.depth_PC, leaves_PR)
  leaves_PR = affordable(
      np.where(depth_PR == depth_PR[:, :1], leaves_PR, -1),
      meter.left(closing=True), reserve(expand))
  out = expand.finish(tree, leaves_PR, meter, closing=True)
  found: list[list] = [[p.read_answer(t) for t in row] for p, row in zip(
      expand.problems, out.texts, strict=True)]
  if of_states(evaluate) or answers == 1:
    scores_PR = pick(tree.score_PC, leaves_PR)
  else:
    scores_PR = evaluate(Thoughts(
        expand, tree, meter, 0, leaves_PR, found, out.values_PR,
        np.minimum(pick(tree.weakest_PC, leaves_PR), out.values_PR),
        pick(tree.log_prob_PC, leaves_PR) + out.log_probs_PR))
  host = jax.device_get(tree)
  results = []
  for p, row in enumerate(found):
    r = max(range(len(row)), key=lambda r: (
        row[r] is not None, leaves_PR[p, r] >= 0, scores_PR[p, r]))
    result = expand.result(
        host, p, meter.costs[p], leaf=int(leaves_PR[p, r]),
        end=out.texts[p][r], answer=row[r])
    result.ends = [
        End(int(leaf) - 1 if leaf else None, text, answer)
        for leaf, text, answer in zip(leaves_PR[p], out.texts[p], row,
                                      strict=True) if leaf >= 0]
    results.append(result)
  return results


def best_of_n(n: int) -> Beam:
  """n independent answers, the one that the evaluator likes best."""
  return Beam(n, (n, 1), merge=False, answers=n)


def tree_of_thoughts(b: int, k) -> Beam:
  """The paper's search: step-level beam."""
  return Beam(b, depths(k))


@dataclasses.dataclass(frozen=True)
class WholeTree:
  """Every sample of every thought, to its answer: nothing pruned or merged.

  One answer is given, as ever; all of them are among the result's ends.
  `k` is as of `Beam`.
  """
  k: int | tuple[int, ...]
  prefix: str = ""

  def __post_init__(self):
    positive(k=self.k)

  def _beam(self, num_thoughts: int) -> Beam:
    every = math.prod(by_depth(self.k, d) for d in range(num_thoughts))
    return Beam(every, self.k, merge=False, answers=every)

  def nodes(self, num_thoughts: int) -> int:
    return self._beam(num_thoughts).nodes(num_thoughts)

  def __call__(self, tree, expand, evaluate, meter) -> list[Result]:
    beam = self._beam(int(expand.num_thoughts_P.max()))
    return beam(tree, expand, evaluate, meter)


def whole_tree(k) -> WholeTree:
  """All that is sampled; see `WholeTree`."""
  return WholeTree(depths(k))
