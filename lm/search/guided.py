"""Strategies that choose, thought by thought, where to look next."""

import dataclasses
import math

import numpy as np

from lm.search import tree as tree_lib
from lm.search.expand import pick
from lm.search.result import Result
from lm.search.strategies import (
    by_depth, conclude, depths, positive, reserve,
)
from lm.search.tree import KEPT, MERGED, OPEN, PRUNED
from lm.types import UserError


@dataclasses.dataclass(frozen=True)
class Agenda:
  """The most promising open thoughts are continued, again and again.

  Attributes:
    k: samples of each; one number, or one for each depth.
    depth_first: the deepest come first, then the best; else simply the best.
    width: thoughts continued at a time.
    prune: thoughts less likely to succeed are given up.
    accept: a leaf at least as likely to succeed ends the search.
    expansions: rounds at most.
    prefix: put before each prompt.

  Likelihoods are the sigmoid of the evaluator's score.
  """
  k: int | tuple[int, ...]
  depth_first: bool = False
  width: int = 1
  prune: float = 0.0
  accept: float = 0.5
  expansions: int = 24
  prefix: str = ""

  def __post_init__(self):
    positive(k=self.k, width=self.width, expansions=self.expansions)
    for name in ("prune", "accept"):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(f"{name}={getattr(self, name)}: a probability, between"
                        " 0 and 1")

  def nodes(self, num_thoughts: int) -> int:
    first = by_depth(self.k, 0)
    later = max((by_depth(self.k, d) for d in range(1, num_thoughts)),
                default=0)
    return first + (self.expansions - 1) * self.width * later

  def __call__(self, tree, expand, evaluate, meter) -> list[Result]:
    least, enough = _logit(self.prune), _logit(self.accept)
    leaf_P1 = expand.num_thoughts_P[:, None]
    now_PW = np.zeros((len(leaf_P1), 1), np.int32)
    for _ in range(self.expansions):
      tree, new_PR = expand(
          tree, _several(now_PW, tree, self.k), evaluate, meter,
          reserve=reserve(expand))
      if (new_PR < 0).all():
        break
      tree = tree_lib.mark(tree, now_PW, status=KEPT)
      open_PC = np.asarray(tree.status_PC) == OPEN
      depth_PC, score_PC = np.asarray(tree.depth_PC), np.asarray(tree.score_PC)
      leaves_PC = open_PC & (depth_PC == leaf_P1)
      done_P1 = (leaves_PC & (score_PC >= enough)).any(axis=1, keepdims=True)
      among_PC = open_PC & ~leaves_PC & (score_PC >= least) & ~done_P1
      keys = (depth_PC, score_PC) if self.depth_first else (score_PC,)
      now_PW = np.asarray(tree_lib.best(among_PC, *keys, count=self.width))
    return conclude(tree, expand, evaluate, meter)


def depth_first(k, *, prune: float = 0.1, accept: float = 0.5,
                expansions: int = 24) -> Agenda:
  """ToT-DFS (2305.10601, algorithm 2): down, and back where hope is lost."""
  return Agenda(depths(k), depth_first=True, prune=prune, accept=accept,
                expansions=expansions)


def best_first(k, *, width: int = 1, accept: float = 0.5,
               expansions: int = 24) -> Agenda:
  """The best open thought next, whatever its depth, as in A*."""
  return Agenda(depths(k), width=width, accept=accept, expansions=expansions)


@dataclasses.dataclass(frozen=True)
class Mcts:
  """Monte-Carlo tree search with PUCT (Silver et al. 2017, 1712.01815).

  Each simulation goes down by `tree.descend` to a thought without children,
  continues it `k` times, and backs up the best child's probability of success
  (a leaf backs up its own, a dead end 0). Thoughts instead of moves, the
  model's samples instead of all moves, as in TS-LLM (2309.17179).

  Attributes:
    k: samples of a thought; one number, or one for each depth.
    simulations: at most.
    c: weight of the prior against the value.
    answers: how many leaves are written out; the best answer is given.
    prefix: put before each prompt.
  """
  k: int | tuple[int, ...]
  simulations: int = 24
  c: float = 1.0
  answers: int = 1
  prefix: str = ""

  def __post_init__(self):
    positive(k=self.k, simulations=self.simulations, answers=self.answers)
    if self.c < 0:
      raise UserError(f"c={self.c}: must not be negative")

  def nodes(self, num_thoughts: int) -> int:
    return Agenda(self.k, expansions=self.simulations).nodes(num_thoughts)

  def __call__(self, tree, expand, evaluate, meter) -> list[Result]:
    leaf_P = expand.num_thoughts_P
    for _ in range(self.simulations):
      now_P = np.asarray(tree_lib.descend(tree, self.c))
      at_leaf_P = pick(tree.depth_PC, now_P[:, None])[:, 0] == leaf_P
      # All that it led to has merged elsewhere: leave it, not write it again.
      spent_P = (now_P > 0) & (pick(tree.status_PC, now_P[:, None])[:, 0]
                               == KEPT) & ~at_leaf_P
      tree = tree_lib.mark(tree, np.where(spent_P, now_P, -1)[:, None],
                           status=PRUNED)
      now_P1 = np.where(at_leaf_P | spent_P, -1, now_P)[:, None]
      tree, new_PR = expand(
          tree, _several(now_P1, tree, self.k), evaluate, meter,
          reserve=reserve(expand))
      if (meter.left(reserve(expand)) <= 0).all():
        break
      grown_P = (new_PR >= 0).any(axis=1)
      # One that merged lives on elsewhere; its promise is as good.
      alive_PR = (new_PR >= 0) & np.isin(
          pick(tree.status_PC, new_PR), (OPEN, MERGED))
      best_P = np.where(alive_PR, pick(tree.score_PC, new_PR),
                        -np.inf).max(axis=1)
      own_P = pick(tree.score_PC, now_P[:, None])[:, 0]
      value_P = _sigmoid(np.where(at_leaf_P, own_P, best_P))
      tree = tree_lib.backup(
          tree, np.where(at_leaf_P | grown_P, now_P, -1),
          value_P.astype(np.float32))
      lives_P = alive_PR.any(axis=1)
      for status, which_P in ((KEPT, grown_P & lives_P),
                              (PRUNED, grown_P & ~lives_P & (now_P > 0))):
        tree = tree_lib.mark(tree, np.where(which_P, now_P, -1)[:, None],
                             status=status)
    return conclude(tree, expand, evaluate, meter, answers=self.answers)


def mcts(k, *, simulations: int = 24, c: float = 1.0, answers: int = 1) -> Mcts:
  """Monte-Carlo tree search; see `Mcts`."""
  return Mcts(depths(k), simulations=simulations, c=c, answers=answers)


def _several(nodes_PW, tree, k) -> np.ndarray:
  """Each node as often as its depth has samples: [P, W max k], -1 idle."""
  depth_PW = pick(tree.depth_PC, nodes_PW)
  times_PW = np.vectorize(lambda d: by_depth(k, int(d)), otypes=[int])(depth_PW)
  times_PW = np.where(nodes_PW < 0, 0, times_PW)
  most = max(1, int(times_PW.max()))
  rows = np.where(np.arange(most) < times_PW[..., None], nodes_PW[..., None],
                  -1)
  return rows.reshape(len(nodes_PW), -1)


def _logit(p: float) -> float:
  if p in (0, 1):
    return math.inf if p else -math.inf
  return math.log(p / (1 - p))


def _sigmoid(x: np.ndarray) -> np.ndarray:
  return 1 / (1 + np.exp(-np.clip(x, -60, 60)))
