"""The tree on the device against a slow one, over a thousand random trees."""

import jax
from lm.search import tree as tree_lib
import numpy as np
import pytest
from tests.search.slow_tree import SlowTree

TOKENS = 3
# (trees at a time, capacity, samples at a time, rounds).
SHAPES = [(250, 12, 4, 5), (250, 30, 6, 6), (250, 2, 3, 3), (250, 22, 5, 7)]
# The same sums in the same order, but in float32: of these fields.
SUMS = ("log_prob", "total")


def check(tree, slow):
  """Every array is exactly what the slow trees say; `SUMS` to 1e-6."""
  tree = jax.device_get(tree)
  np.testing.assert_array_equal(
      tree.count_P, [len(s.nodes) for s in slow])
  for name in slow[0].nodes[0]:
    found = getattr(tree, f"{name}_PC" + "M" * (name == "tokens"))
    want = np.zeros_like(found)
    if name == "state":
      want -= 1
    for p, s in enumerate(slow):
      want[p, :len(s.nodes)] = [n[name] for n in s.nodes]
    if name in SUMS:
      np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-6,
                                 err_msg=name)
    else:
      np.testing.assert_array_equal(found, want, err_msg=name)


def frontier(rng, slow, samples):
  """Any nodes, some of them several times, and idle rows among them."""
  nodes = rng.integers(0, len(slow.nodes), samples)
  return np.where(rng.random(samples) < 0.25, -1, nodes)


def rounded(rng, shape, step=0.5):
  """Floats with many ties, exact in float32."""
  return (rng.integers(-6, 4, shape) * step).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("merge", [True, False])
def test_does_what_the_slow_tree_does(shape, merge):
  problems, capacity, samples, rounds = shape
  rng = np.random.default_rng(capacity)
  tree = tree_lib.empty(problems, capacity, TOKENS)
  slow = [SlowTree(capacity, TOKENS) for _ in range(problems)]
  merged = full = 0
  for _ in range(rounds):
    parents = np.stack([frontier(rng, s, samples) for s in slow])
    slots = np.asarray(tree_lib.slots(tree, parents))
    np.testing.assert_array_equal(slots, [
        s.slots(row) for s, row in zip(slow, parents)])
    full += np.sum((parents >= 0) & (slots < 0))
    parents = np.where(slots < 0, -1, parents)
    tokens = rng.integers(0, 9, (problems, samples, TOKENS)).astype(np.int32)
    num = rng.integers(0, TOKENS + 1, (problems, samples)).astype(np.int32)
    prior = rng.normal(size=(problems, samples)).astype(np.float32)
    value, scores = rounded(rng, slots.shape), rounded(rng, slots.shape)
    states = rng.integers(-1, 6, slots.shape).astype(np.int32)
    tree = tree_lib.add(tree, parents, slots, tokens, num, prior, value)
    for s, *rows in zip(slow, parents, slots, tokens, num, prior, value):
      s.add(*rows)
    check(tree, slow)
    tree = tree_lib.settle(tree, slots, states, scores, merge=merge)
    for s, *rows in zip(slow, slots, states, scores):
      s.settle(*rows, merge)
    check(tree, slow)
    merged += np.sum(np.asarray(tree.status_PC) == tree_lib.MERGED)

    open_PC = np.asarray(tree.status_PC) == tree_lib.OPEN
    for names in ["score"], ["depth", "score"]:
      keys = [np.asarray(getattr(tree, f"{n}_PC")) for n in names]
      for count in (1, 4, capacity + 3):
        found = np.asarray(tree_lib.best(open_PC, *keys, count=count))
        np.testing.assert_array_equal(found, [
            s.best(open_PC[p], [k[p] for k in keys], count)
            for p, s in enumerate(slow)])
    chosen = np.asarray(tree_lib.best(open_PC, *keys, count=2))
    tree = tree_lib.mark(tree, chosen, status=tree_lib.KEPT)
    gone = np.where(rng.random((problems, 1)) < 0.3, rng.integers(
        0, capacity, (problems, 1)), -1)
    gone = np.where(gone < np.asarray(tree.count_P)[:, None], gone, -1)
    gone = np.where(gone == 0, -1, gone)
    tree = tree_lib.mark(tree, gone, status=tree_lib.PRUNED)
    for p, s in enumerate(slow):
      s.mark(chosen[p], tree_lib.KEPT)
      s.mark(gone[p], tree_lib.PRUNED)
    check(tree, slow)

    for c in (0.0, 1.0, 2.5):
      found = np.asarray(tree_lib.descend(tree, c))
      np.testing.assert_array_equal(found, [s.descend(c) for s in slow])
      ends = np.where(rng.random(problems) < 0.2, -1, found)
      worth = rng.random(problems).astype(np.float32)
      tree = tree_lib.backup(tree, ends, worth)
      for s, end, value in zip(slow, ends, worth):
        s.backup(end, value)
      check(tree, slow)
  assert (merged > 0) == (merge and capacity > 2)
  assert full > 0  # Some trees were full.


def test_puct_by_hand():
  """Two children, priors 0.8 and 0.2; values as in the docstring's formula."""
  tree = tree_lib.empty(1, 3, 1)
  slots = tree_lib.slots(tree, np.array([[0, 0]]))
  prior = np.log(np.array([[0.8, 0.2]], np.float32))
  tree = tree_lib.add(tree, np.array([[0, 0]]), slots, np.zeros((1, 2, 1), int),
                      np.ones((1, 2), int), prior, prior)
  # Chances of success of 0.5 and 0.75.
  tree = tree_lib.settle(
      tree, slots, np.array([[0, 1]]),
      np.array([[0.0, np.log(3.0)]], np.float32), merge=True)
  # Not visited: by the chance alone.
  assert int(tree_lib.descend(tree, 1.0)[0]) == 2
  tree = tree_lib.backup(tree, np.array([2]), np.array([0.75], np.float32))
  # 0.5 + 0.8 * 1 / 1 = 1.3 beats 0.75 + 0.2 * 1 / 2 = 0.85; not at c = 0.3:
  # 0.74 against 0.78.
  assert int(tree_lib.descend(tree, 1.0)[0]) == 1
  assert int(tree_lib.descend(tree, 0.3)[0]) == 2
  np.testing.assert_array_equal(tree.visits_PC, [[1, 0, 1]])
  np.testing.assert_array_equal(tree.total_PC, [[0.75, 0.0, 0.75]])
