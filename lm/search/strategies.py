"""Strategies: `strategy(writer, problems, key) -> a Result for each problem`.

All problems are worked on at once, so that the device stays full. Every
strategy gives exactly one answer per problem and counts every sampled token.
"""

from collections import Counter
from collections.abc import Callable, Sequence
import dataclasses

import jax
import numpy as np

from lm.data import chat
from lm.search.evaluate import EVALUATORS, Evaluate
from lm.search.expand import Writer, Written
from lm.search.tree import Node, Problem, Result, path_to
from lm.types import UserError

Strategy = Callable[[Writer, Sequence[Problem], jax.Array], list[Result]]


def _start(writer: Writer, problems, key):
  prompts = [
      chat.encode_prompt(
          writer.vocab, [{"role": "user", "content": p.prompt()}])
      for p in problems]
  return writer.start(prompts, key)


@dataclasses.dataclass(frozen=True)
class Samples:
  """n whole answers, one chosen without a value: by vote, or the only one.

  Attributes:
    n: answers per problem.
    choose: 'vote' (self-consistency, 2203.11171), 'log_prob', or 'first'.
    greedy: the likeliest tokens instead of samples (n = 1).
  """
  n: int = 1
  choose: str = "first"
  greedy: bool = False

  def __post_init__(self):
    if self.n < 1:
      raise UserError(f"n={self.n}: sample at least one answer")
    if self.choose not in ("vote", "log_prob", "first"):
      raise UserError(f"choose={self.choose!r}: use vote, log_prob or first")

  def __call__(self, writer, problems, key) -> list[Result]:
    state, costs = _start(writer, problems, key)
    rows = np.repeat(np.arange(len(problems)), self.n)
    _, out = writer.write(state, rows, jax.random.fold_in(key, 1), line=False,
                          greedy=self.greedy)
    results = []
    for p, problem in enumerate(problems):
      mine = range(p * self.n, (p + 1) * self.n)
      for i in mine:
        costs[p].add(out.costs[i])
      answers = {i: problem.read_answer(out.texts[i]) for i in mine}
      readable = [i for i in mine if answers[i] is not None]
      best = self._best(readable, answers, out)
      results.append(Result(
          answers.get(best), out.texts[mine[0] if best is None else best],
          costs[p]))
    return results

  def _best(self, readable, answers, out):
    if not readable:
      return None
    if self.choose == "log_prob":
      return max(readable, key=lambda i: out.log_probs_B[i])
    if self.choose == "vote":
      votes = Counter(answers[i] for i in readable)
      return max(readable, key=lambda i: votes[answers[i]])
    return readable[0]


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
    evaluate: scores the candidates.
    merge: whether equal states merge.
    answers: how many leaves are written out; the best answer is given.
  """
  b: int
  k: int | tuple[int, ...]
  evaluate: Evaluate
  merge: bool = True
  answers: int = 1

  def __post_init__(self):
    ks = (self.k,) if isinstance(self.k, int) else self.k
    if self.b < 1 or not ks or min(ks) < 1 or self.answers < 1:
      raise UserError(f"b={self.b}, k={self.k}, answers={self.answers}: each"
                      " must be at least 1")

  def _k(self, depth: int) -> int:
    if isinstance(self.k, int):
      return self.k
    return self.k[min(depth, len(self.k) - 1)]

  def __call__(self, writer, problems, key) -> list[Result]:
    # A decoder state holds the rows of its last thought only, so problems of
    # different depth are searched one depth after the other.
    by_depth: dict[int, list[int]] = {}
    for i, problem in enumerate(problems):
      by_depth.setdefault(problem.num_thoughts, []).append(i)
    if len(by_depth) > 1:
      results = {}
      for depth, mine in sorted(by_depth.items()):
        results |= zip(mine, self(writer, [problems[i] for i in mine],
                                  jax.random.fold_in(key, 1000 + depth)))
      return [results[i] for i in range(len(problems))]
    rng = np.random.default_rng(
        np.asarray(jax.random.key_data(jax.random.fold_in(key, 0))))
    state, costs = _start(writer, problems, key)
    trees: list[list[Node]] = [[] for _ in problems]
    frontier = [[(None, p)] for p in range(len(problems))]  # (node, row)
    for depth in range(problems[0].num_thoughts):
      jobs = [(p, node, row) for p in range(len(problems))
              for node, row in frontier[p] for _ in range(self._k(depth))]
      if not jobs:
        break
      kept = 1 if depth == 0 else self.b
      state, out = writer.write(
          state, [row for _, _, row in jobs],
          jax.random.fold_in(key, depth + 1),
          capacity=len(problems) * kept * self._k(depth))
      for i, (p, parent, _) in enumerate(jobs):
        costs[p].add(out.costs[i])
        trees[p].append(_grow(trees[p], parent, out, i, problems[p].read))
      for p, tree in enumerate(trees):
        frontier[p] = self._select(tree, depth + 1, rng)
    return self._answer(
        writer, problems, state, trees, frontier, costs, key, rng)

  def _select(self, nodes: list[Node], depth: int, rng):
    """Drops, merges and prunes the thoughts of one depth: [(node, row)]."""
    new = [i for i, n in enumerate(nodes) if n.depth == depth]
    scores = self.evaluate([nodes[i] for i in new], rng)
    for i, score in zip(new, scores, strict=True):
      nodes[i].score = float(score)
      nodes[i].status = "unreadable" if nodes[i].state is None else "pruned"
    best: dict = {}
    for i in sorted(new, key=lambda i: -nodes[i].score):
      if nodes[i].status == "unreadable":
        continue
      state = nodes[i].state if self.merge else i
      if state in best:
        nodes[i].status = "merged"
      else:
        best[state] = i
    chosen = list(best.values())[:self.b]
    for i in chosen:
      nodes[i].status = "kept"
    return [(i, nodes[i].row) for i in chosen]

  def _answer(self, writer, problems, state, trees, frontier, costs, key, rng):
    jobs = [(p, node, row) for p in range(len(problems))
            for node, row in frontier[p][:self.answers]]
    written: list[list[Node]] = [[] for _ in problems]
    if jobs:
      _, out = writer.write(
          state, [row for _, _, row in jobs], jax.random.fold_in(key, 99),
          line=False, greedy=True, capacity=len(problems) * self.answers)
      for i, (p, node, _) in enumerate(jobs):
        costs[p].add(out.costs[i])
        written[p].append(
            _grow(trees[p], node, out, i, problems[p].read_answer))
    results = []
    for nodes, ends, cost in zip(trees, written, costs, strict=True):
      if not ends:
        results.append(Result(None, "", cost, nodes))
        continue
      scores = self.evaluate(ends, rng)
      best = max(range(len(ends)),
                 key=lambda i: (ends[i].state is not None, scores[i]))
      path = path_to(nodes, ends[best].parent)
      whole = "".join(nodes[i].text for i in path) + ends[best].text
      results.append(Result(ends[best].state, whole, cost, nodes, path))
    return results


def _grow(nodes: list[Node], parent: int | None, out: Written, i: int,
          read: Callable) -> Node:
  """Row `i` of what was written, as a thought that continues `parent`."""
  text, value = out.texts[i], float(out.values_B[i])
  log_prob, weakest, depth = float(out.log_probs_B[i]), value, 1
  if parent is not None:
    before = nodes[parent]
    log_prob += before.log_prob
    weakest, depth = min(value, before.weakest), before.depth + 1
  return Node(parent, depth, text, read(text), log_prob, value, weakest, row=i)


def best_of_n(n: int, *, evaluate: str = "value") -> Beam:
  """n independent answers, the one that the evaluator likes best."""
  return Beam(n, (n, 1), _evaluator(evaluate), merge=False, answers=n)


def tree_of_thoughts(b: int, k, *, evaluate: str = "value") -> Beam:
  """The paper's search; `evaluate` is a name of `EVALUATORS`."""
  return Beam(b, k if isinstance(k, int) else tuple(k), _evaluator(evaluate))


def _evaluator(name: str) -> Evaluate:
  if name not in EVALUATORS:
    raise UserError(
        f"unknown evaluator {name!r}: use one of {', '.join(EVALUATORS)}")
  return EVALUATORS[name]
