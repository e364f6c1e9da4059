"""Planted trades are found again; crossings are those worked out by hand."""

from lm.evals import trade
from lm.types import UserError
import numpy as np
import pytest

A, B, C = -14.5, 0.6, 0.4  # Planted: a doubling of parameters is worth 1.5.
SIZES, TOKENS = (2**19, 2**21, 2**23), (64, 256, 1024)


def row(outcomes, *, parameters, flops, family="best_of_n"):
  outcomes = np.asarray(outcomes, float)
  return {"parameters": parameters, "family": family, "flops": flops,
          "accuracy": outcomes.mean(), "outcomes": outcomes}


def planted(outcomes_of, *, b=B, c=C, **kwargs):
  """A row for each size and budget; `outcomes_of` its probability."""
  return [row(outcomes_of(1 / (1 + np.exp(-A - b * np.log2(size)
                                          - c * np.log2(tokens)))),
              parameters=size, flops=2.0 * size * tokens, **kwargs)
          for size in SIZES for tokens in TOKENS]


def constant(p):
  return np.full((2, 50), p)


def counted(solved, n=100):
  return [[1] * solved + [0] * (n - solved)]


def test_an_exact_plane_is_found_exactly():
  found = trade.fit(planted(constant))
  assert (found.intercept, found.per_parameters, found.per_tokens) == (
      pytest.approx((A, B, C)))
  assert found.worth == pytest.approx(1.5) and found.r2 == pytest.approx(1)
  assert found.interval == pytest.approx((1.5, 1.5))
  assert (found.points, found.sizes, found.family) == (9, 3, "best_of_n")


def test_the_interval_covers_as_often_as_it_says():
  rng, hits, widths = np.random.default_rng(0), 0, []
  for i in range(100):
    # A problem is as hard for every size: the logits move together.
    hard_N = rng.normal(0, 0.5, 100)
    found = trade.fit(planted(lambda p, hard_N=hard_N: rng.random((3, 100)) < (
        1 / (1 + np.exp(-np.log(p / (1 - p)) - hard_N)))), samples=200, seed=i)
    low, high = found.interval
    hits += low <= 1.5 <= high
    widths.append(high - low)
  assert 88 <= hits and 0.1 < np.median(widths) < 1.5


def test_points_near_none_and_all_are_left_out():
  rows = planted(constant)
  full = row(np.ones((2, 50)), parameters=SIZES[0], flops=1e12)
  assert trade.fit([*rows, full]) == trade.fit(rows)
  none = row(np.zeros((2, 50)), parameters=SIZES[0], flops=2.0 * SIZES[0])
  assert trade.fit([*rows, none]) == trade.fit(rows)


def test_thinking_that_does_not_help_replaces_nothing():
  rng = np.random.default_rng(1)
  draw = lambda p: rng.random((3, 100)) < p
  found = trade.fit(planted(draw, b=0.7, c=-0.2))
  assert found.per_tokens < 0 and found.worth is None
  assert found.interval[1] is None


def test_families_apart_and_greedy_left_out():
  greedy = [row(constant(0.2 + 0.1 * i), parameters=size, flops=60.0 * size,
                family="greedy") for i, size in enumerate(SIZES)]
  tree = planted(constant, b=0.5, c=0.5, family="tot_value")
  found = trade.fits([*tree, *greedy, *planted(constant)])
  assert list(found) == ["tot_value", "best_of_n"]
  assert found["tot_value"].worth == pytest.approx(1.0)
  with pytest.raises(UserError, match="greedy: 3 points"):
    trade.fits(greedy)


@pytest.mark.parametrize("change, words", [
    (lambda rows: [], "no row"),
    (lambda rows: rows[:3], "3 points of 1 sizes"),
    (lambda rows: rows[1:4], "3 points of 2 sizes"),
    (lambda rows: [*rows, dict(rows[0], family="mcts")], "2 families"),
    (lambda rows: [dict(r, flops=64.0 * r["parameters"]) for r in rows],
     "several budgets"),
    (lambda rows: [dict(rows[0], accuracy=0.9), *rows[1:]], "accuracy of 0.9"),
    (lambda rows: [dict(rows[0], flops=0), *rows[1:]], "above 0"),
    (lambda rows: [dict(rows[0], outcomes=rows[0]["outcomes"][0]), *rows[1:]],
     "shape"),
    (lambda rows: [dict(rows[0], outcomes=rows[0]["outcomes"][:1]), *rows[1:]],
     "same seeds"),
    (lambda rows: [*rows[:6], *(dict(r, outcomes=r["outcomes"][:, :9])
                                for r in rows[6:])], "same ones"),
])
def test_refuses_what_cannot_be_fitted(change, words):
  with pytest.raises(UserError, match=words):
    trade.fit(change(planted(constant)))


def small(*points):
  return [row(counted(solved), parameters=1e6, flops=flops)
          for flops, solved in points]


def large(solved, flops=2e6):
  return [row(counted(solved), parameters=4e6, flops=flops, family="greedy"),
          row(counted(99), parameters=4e6, flops=9e9)]  # Its search: unused.


def test_crossing_by_hand():
  # From 20 at 1e6 to 60 at 1e8, past a worse one: 40 is half way, at 1e7.
  rows = small((1e8, 60), (1e7, 10), (1e6, 20))
  found = trade.crossing(rows, large(40))
  assert found.flops == pytest.approx(1e7)
  assert found.ratio == pytest.approx(5.0)
  low, high = found.interval
  assert 1e6 < low < 1e7 < high < 1e8 and found.reached == 1
  assert found.ratio_interval == pytest.approx((low / 2e6, high / 2e6))
  # A cheap point as good as the dear one moves it to the left.
  better = trade.crossing([*rows, *small((1e7, 60))], large(40))
  assert better.flops == pytest.approx(10 ** 6.5)


def test_crossing_at_the_first_point_and_never():
  rows = small((1e6, 20), (1e8, 60))
  assert trade.crossing(rows, large(10)).flops == pytest.approx(1e6)
  assert trade.crossing(rows, large(60)).flops == pytest.approx(1e8)
  assert trade.crossing(rows, large(61)) is None


def test_crossing_draws_the_same_problems_for_both():
  # The very problems that the large one solves: level in every resample.
  found = trade.crossing(small((1e6, 20), (1e8, 60)), large(60))
  assert found.reached == 1
  assert found.interval[1] == pytest.approx(1e8)
  # As many, but others: a matter of chance.
  others = row(1 - np.array(counted(40)), parameters=1e6, flops=1e8)
  found = trade.crossing([*small((1e6, 20)), others], large(60))
  assert 0.3 < found.reached < 0.8 and found.interval[1] is None


@pytest.mark.parametrize("small_rows, large_rows, words", [
    (small((1e6, 20)), large(40)[1:], "0 greedy rows"),
    (small((1e6, 20)), large(40)[:1] * 2, "2 greedy rows"),
    ([], large(40), "no parameters"),
    ([*small((1e6, 20)), *large(40)], large(40), "one smaller model"),
])
def test_crossing_refuses(small_rows, large_rows, words):
  with pytest.raises(UserError, match=words):
    trade.crossing(small_rows, large_rows)
