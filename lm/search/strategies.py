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
from lm.search.expand import Writer
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
  """n whole answers, one chosen: by value, by vote, or the only one.

  Attributes:
    n: answers per problem.
    choose: 'value' (best-of-N by the scalar head), 'vote' (self-consistency,
      2203.11171), 'log_prob', or 'first'.
    greedy: the likeliest tokens instead of samples (n = 1).
  """
  n: int = 1
  choose: str = "first"
  greedy: bool = False

  def __post_init__(self):
    if self.n < 1:
      raise UserError(f"n={self.n}: sample at least one answer")
    if self.choose not in ("value", "vote", "log_prob", "first"):
      raise UserError(
          f"choose={self.choose!r}: use value, vote, log_prob or first")

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
    if self.choose == "value":
      return max(readable, key=lambda i: out.values_B[i])
    if self.choose == "log_prob":
      return max(readable, key=lambda i: out.log_probs_B[i])
    if self.choose == "vote":
      votes = Counter(answers[i] for i in readable)
      return max(readable, key=lambda i: votes[answers[i]])
    return readable[0]


def greedy() -> Samples:
  """System 1: the likeliest tokens, no second thought."""
  return Samples(greedy=True)


def best_of_n(n: int) -> Samples:
  """n samples, the one that the value head likes best."""
  return Samples(n, choose="value")


def self_consistency(n: int) -> Samples:
  """n samples, the answer given most often."""
  return Samples(n, choose="vote")


@dataclasses.dataclass(frozen=True)
class Beam:
  """Tree of thoughts, breadth first (ToT-BFS, 2305.10601, algorithm 1).

  At each depth every kept thought is continued `k` times; unreadable thoughts
  are dropped, those that claim the same state are merged, and the best `b` are
  kept. The best leaf is then written out to its answer, greedily.

  Attributes:
    b: thoughts kept at each depth.
    k: samples of each; one number, or one for each depth.
    evaluate: scores the candidates.
    merge: whether equal states merge.
  """
  b: int
  k: int | tuple[int, ...]
  evaluate: Evaluate
  merge: bool = True

  def __post_init__(self):
    ks = (self.k,) if isinstance(self.k, int) else self.k
    if self.b < 1 or not ks or min(ks) < 1:
      raise UserError(f"b={self.b}, k={self.k}: both must be at least 1")

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
        before = 0.0 if parent is None else trees[p][parent].log_prob
        trees[p].append(Node(
            parent, depth + 1, out.texts[i], problems[p].read(out.texts[i]),
            before + float(out.log_probs_B[i]), float(out.values_B[i]),
            row=i))
      for p, tree in enumerate(trees):
        frontier[p] = self._select(tree, depth + 1, rng)
    return self._answer(writer, problems, state, trees, frontier, costs, key)

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

  def _answer(self, writer, problems, state, trees, frontier, costs, key):
    leaves = [f[0] if f else None for f in frontier]
    rows = [leaf[1] for leaf in leaves if leaf is not None]
    texts = iter(())
    if rows:
      _, out = writer.write(state, rows, jax.random.fold_in(key, 99),
                            line=False, greedy=True, capacity=len(problems))
      texts = iter(zip(out.texts, out.costs, strict=True))
    results = []
    for problem, nodes, leaf, cost in zip(
        problems, trees, leaves, costs, strict=True):
      if leaf is None:
        results.append(Result(None, "", cost, nodes))
        continue
      text, spent = next(texts)
      cost.add(spent)
      path = path_to(nodes, leaf[0])
      whole = "".join(nodes[i].text for i in path) + text
      results.append(
          Result(problem.read_answer(text), whole, cost, nodes, path))
    return results


def tree_of_thoughts(b: int, k, *, evaluate: str = "value") -> Beam:
  """The paper's search; `evaluate` is 'value', 'log_prob' or 'random'."""
  if evaluate not in EVALUATORS:
    raise UserError(
        f"unknown evaluator {evaluate!r}: use one of {', '.join(EVALUATORS)}")
  return Beam(b, k if isinstance(k, int) else tuple(k), EVALUATORS[evaluate])
