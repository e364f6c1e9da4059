"""Intervals against published and simulated values; aggregation by hand."""

from lm.evals import curves
from lm.types import UserError
import numpy as np
import pytest


def test_wilson_against_published_values():
  # Newcombe 1998 (10.1002/(SICI)1097-0258(19980430)17:8<857), table I,
  # method 3: 81/263, 15/148, 0/20, 1/29.
  for (x, n), (low, high) in {
      (81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605),
      (0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718)}.items():
    assert curves.wilson(x, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_solves_its_equation_and_keeps_to_the_unit_interval():
  for x, n in ((3, 10), (88, 100), (1, 2)):
    for bound in curves.wilson(x, n):
      # The bounds are where the score test just rejects.
      z = (x / n - bound) / np.sqrt(bound * (1 - bound) / n)
      assert abs(z) == pytest.approx(curves.Z95)
  assert curves.wilson(0, 7)[0] == 0.0 and curves.wilson(7, 7)[1] == 1.0


@pytest.mark.parametrize("x, n", [(1, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_proportion(x, n):
  with pytest.raises(UserError):
    curves.wilson(x, n)


def test_bootstrap_has_the_coverage_that_it_claims():
  rng = np.random.default_rng(0)
  hits = sum(low <= 0.3 <= high for low, high in (
      curves.bootstrap(rng.normal(0.3, 1.0, 40), samples=500, seed=i)
      for i in range(300)))
  assert 0.90 <= hits / 300 <= 0.98


def test_bootstrap_of_two_axes_is_wider_than_of_either():
  rng = np.random.default_rng(1)
  # Seeds differ and puzzles differ: both are sources of doubt.
  values_SN = (rng.random((5, 1)) + rng.random((1, 30)))
  both = np.diff(curves.bootstrap(values_SN))
  assert both > np.diff(curves.bootstrap(values_SN.mean(1)))
  assert both > np.diff(curves.bootstrap(values_SN.mean(0)))


def test_bootstrap_is_deterministic_and_exact_for_constants():
  assert curves.bootstrap([0.5, 0.5, 0.5]) == pytest.approx((0.5, 0.5))
  assert curves.bootstrap([0, 1, 1], seed=3) == curves.bootstrap(
      [0, 1, 1], seed=3)
  with pytest.raises(UserError, match="shape"):
    curves.bootstrap([])


def test_difference_is_paired():
  rng = np.random.default_rng(2)
  a = rng.random(50)
  mean, low, high = curves.difference(a + 0.1, a)
  assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1))
  with pytest.raises(UserError, match="pairs"):
    curves.difference([1, 2], [1, 2, 3])


def row(name, solved, tokens, family="tot_value"):
  return curves.row(name, [True] * solved + [False] * (10 - solved),
                    label=name, family=family, generated_tokens=[tokens] * 10,
                    flops=[tokens * 1e6] * 10, seconds=5.0)


def test_row():
  found = curves.row(
      "a", [True, False, True, True], label="A", family="f",
      generated_tokens=[10, 20, 30, 40], flops=[1, 2, 3, 4], seconds=2.0)
  assert found == {
      "name": "a", "label": "A", "family": "f", "accuracy": 0.75,
      "interval": list(curves.wilson(3, 4)), "generated_tokens": 25.0,
      "flops": 2.5, "seconds": 0.5, "n": 4}
  with pytest.raises(UserError, match="one of each"):
    curves.row("a", [True], label="", family="", generated_tokens=[],
               flops=[1], seconds=1)


def test_over_seeds():
  one = [row("a", 5, 100), row("b", 1, 10)]
  two = [row("b", 3, 20), row("a", 9, 200)]  # Another order.
  a, b = curves.over_seeds([one, two])
  assert (a["name"], b["name"]) == ("a", "b")
  assert a["accuracy"] == pytest.approx(0.7)
  assert a["accuracies"] == [0.5, 0.9] and a["generated_tokens"] == 150
  assert a["interval"] == pytest.approx([0.5, 0.9])  # Of two: their range.
  assert b["generated_tokens"] == 15
  solved = [True] * 5 + [False] * 5
  a, b = curves.over_seeds([one, two], {"a": [solved] * 2, "b": [solved] * 2})
  assert a["interval"] == list(curves.bootstrap([solved] * 2))
  assert a["interval"][1] - a["interval"][0] > 0.4  # Ten problems are few.
  (only, _) = curves.over_seeds([one])
  assert only["interval"] == list(curves.wilson(5, 10))
  with pytest.raises(UserError, match="b"):
    curves.over_seeds([one, one[:1]])
  with pytest.raises(UserError, match="at least one"):
    curves.over_seeds([])


def test_curves_are_sorted_by_cost():
  rows = [row("a", 5, 100), row("g", 1, 5, "greedy"), row("b", 3, 50)]
  found = curves.curves(rows)
  assert [(k, [r["name"] for r in v]) for k, v in found.items()] == [
      ("greedy", ["g"]), ("tot_value", ["b", "a"])]
  with pytest.raises(UserError, match="generated_tokens"):
    curves.curves(rows, cost="tokens")


def test_ordered_by_family_then_tokens():
  rows = [row("z", 5, 1, "new"), row("s", 5, 1, "stream"),
          row("m", 5, 1, "mcts"), row("v2", 5, 20), row("v1", 5, 10),
          row("r", 5, 90, "tot_random"), row("g", 5, 99, "greedy")]
  assert [r["name"] for r in curves.ordered(rows)] == [
      "g", "r", "v1", "v2", "m", "s", "z"]


def test_best_within_a_budget():
  rows = [row("a", 5, 100), row("b", 3, 50), row("c", 3, 40)]
  assert curves.best_within(rows, 99)["name"] == "c"  # As good, and cheaper.
  assert curves.best_within(rows, 100)["name"] == "a"
  assert curves.best_within(rows, 1e7, cost="flops") is None


def test_frontier_holds_what_no_cheaper_row_equals():
  rows = [row("d", 5, 90), row("c", 4, 50), row("b", 3, 50), row("a", 4, 70),
          row("e", 5, 100), row("f", 1, 60)]
  assert [r["name"] for r in curves.frontier(rows)] == ["c", "d"]
  assert [r["name"] for r in curves.frontier(rows, cost="flops")] == ["c", "d"]
  with pytest.raises(UserError, match="dollars"):
    curves.frontier(rows, cost="dollars")


def test_table():
  import io
  import rich.console
  console = rich.console.Console(width=120, file=io.StringIO())
  rows = [row("a", 5, 1234), row("b", 3, 50)]
  console.print(curves.table(rows, title="Games"))
  text = console.file.getvalue()
  assert "Games" in text
  line = next(x for x in text.splitlines() if "50.0%" in x)
  assert [cell.strip() for cell in line.split("│")][1:-1] == [
      "a", "50.0%", "23.7% – 76.3%", "1,234", "1,234", "0.500"]
