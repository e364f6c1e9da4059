"""Accuracy with intervals, and accuracy against what the thinking cost.

A report's row for one method is a plain dict:

    {"name", "label", "family", "accuracy", "interval": [low, high],
     "generated_tokens", "flops", "seconds", "n"}

with tokens, FLOPs and seconds per problem. Only NumPy; drawing is in `plots`.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np

from lm.types import UserError

Z95 = 1.959963984540054  # The normal quantile of a two-sided 95 % interval.
# From no second thought to guided ones; last, those that the model writes
# itself.
FAMILIES = ("greedy", "self_consistency", "best_of_n", "tot_random",
            "tot_log_prob", "tot_value", "token_beam", "best_first",
            "depth_first", "mcts", "stream", "revision")
_COSTS = ("generated_tokens", "flops", "seconds")


def wilson(successes: float, n: int, *, z: float = Z95) -> tuple[float, float]:
  """The score interval of a proportion (Wilson 1927, JASA 22:209).

  Unlike p +- z sqrt(p(1-p)/n) it stays inside [0, 1] and does not collapse at
  0 or n successes.
  """
  if n < 1 or not 0 <= successes <= n:
    raise UserError(f"{successes} successes of {n}: there must be at least one"
                    " trial, and no more successes than trials")
  p, z2 = successes / n, z * z
  centre = (p + z2 / (2 * n)) / (1 + z2 / n)
  half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
  # At the ends the bound is 0 or 1 exactly; rounding says otherwise.
  return (0.0 if successes == 0 else centre - half,
          1.0 if successes == n else centre + half)


def bootstrap(
    values: Any, *, level: float = 0.95, samples: int = 10_000, seed: int = 0,
) -> tuple[float, float]:
  """The percentile interval of the mean, resampling every axis.

  Args:
    values: [S] one number a seed, or [S, N] an outcome for each seed and
      problem: then both seeds and problems are drawn again (the pigeonhole
      bootstrap, 0712.1111), and the interval speaks of new seeds and of new
      problems. With few seeds it is narrow: it cannot invent a spread that
      three numbers do not show.
    level: coverage.
    samples: of the bootstrap.
    seed: of the bootstrap.
  """
  values = np.asarray(values, np.float64)
  if values.ndim not in (1, 2) or not values.size:
    raise UserError(f"bootstrap over values of shape {values.shape}: give [S]"
                    " or [S, N] with at least one of each")
  rng = np.random.default_rng(seed)
  weights_KS = drawn_shares(rng, samples, values.shape[0])
  if values.ndim == 1:
    means_K = weights_KS @ values
  else:
    weights_KN = drawn_shares(rng, samples, values.shape[1])
    means_K = resampled_means(values, weights_KS, weights_KN)
  tail = 50 * (1 - level)
  low, high = np.percentile(means_K, [tail, 100 - tail])
  return float(low), float(high)


def drawn_shares(rng: np.random.Generator, samples: int, n: int) -> np.ndarray:
  """[K, n], how often each of n is drawn with replacement n times, over n."""
  return rng.multinomial(n, np.full(n, 1 / n), size=samples) / n


def resampled_means(values_SN: Any, weights_KS: Any, weights_KN: Any
                    ) -> np.ndarray:
  """[K], the mean outcome of each draw of seeds and of problems."""
  return np.einsum("ks,sn,kn->k", weights_KS, values_SN, weights_KN,
                   optimize=True)


def difference(a: Any, b: Any, **kwargs) -> tuple[float, float, float]:
  """(mean, low, high) of a - b, paired by seed and by problem.

  Args:
    a: outcomes [S] or [S, N]; b: those of the other method, the same seeds and
      problems.
    **kwargs: of `bootstrap`.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape:
    raise UserError(f"outcomes of shapes {a.shape} and {b.shape} are not pairs:"
                    " compare the same seeds and problems")
  return (float(np.mean(a - b)), *bootstrap(a - b, **kwargs))


def row(
    name: str, correct: Sequence[bool], *, label: str, family: str,
    generated_tokens: Sequence[float], flops: Sequence[float], seconds: float,
) -> dict[str, Any]:
  """The report's row of one method and one seed.

  Args:
    name: unique among methods.
    correct: whether each problem was solved.
    label: for people.
    family: methods that differ only in how much they think.
    generated_tokens: of each problem.
    flops: of each problem.
    seconds: for all problems together.
  """
  n = len(correct)
  if not n == len(generated_tokens) == len(flops):
    raise UserError(f"{name}: {n} outcomes, {len(generated_tokens)} counts of"
                    f" tokens and {len(flops)} of FLOPs: one of each a problem")
  solved = sum(map(bool, correct))
  return {
      "name": name, "label": label, "family": family,
      "accuracy": solved / n,
      "interval": list(wilson(solved, n)),
      "generated_tokens": float(np.mean(generated_tokens)),
      "flops": float(np.mean(flops)), "seconds": seconds / n, "n": n,
  }


def over_seeds(
    reports: Sequence[Sequence[Mapping[str, Any]]],
    outcomes: Mapping[str, Any] | None = None, **kwargs
) -> list[dict[str, Any]]:
  """One row for each method from the rows of several seeds.

  Accuracy and costs are means. The interval of one seed stays Wilson's over
  problems; of several it is the bootstrap's over seeds and, if `outcomes` are
  given, over problems. `accuracies` keeps the seeds' own.

  Args:
    reports: for each seed the rows of its methods; the same methods.
    outcomes: for each method's name [S, N], whether each problem was solved.
    **kwargs: of `bootstrap`.
  """
  if not reports:
    raise UserError("no report to aggregate: give at least one")
  names = [r["name"] for r in reports[0]]
  tables = [{r["name"]: r for r in rows} for rows in reports]
  for rows, table in zip(reports, tables, strict=True):
    if len(table) != len(rows):
      raise UserError("two rows of one report have the same name")
    if set(table) != set(names):
      odd = ", ".join(sorted(set(table) ^ set(names)))
      raise UserError(f"the reports are of different methods ({odd}): give one"
                      " search config's reports")
  found = []
  for name in names:
    mine = [t[name] for t in tables]
    accuracies = [float(r["accuracy"]) for r in mine]
    merged = dict(mine[0], accuracies=accuracies,
                  accuracy=float(np.mean(accuracies)))
    for cost in _COSTS:
      merged[cost] = float(np.mean([r[cost] for r in mine]))
    if len(mine) > 1:
      drawn = accuracies if outcomes is None else outcomes[name]
      merged["interval"] = list(bootstrap(drawn, **kwargs))
    found.append(merged)
  return found


def ordered(methods: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """The rows by family (unknown ones last), then by tokens."""
  known = {family: i for i, family in enumerate(FAMILIES)}
  return sorted(methods, key=lambda m: (
      known.get(m["family"], len(known)), m["family"],
      m["generated_tokens"]))


def _check_cost(cost: str) -> None:
  if cost not in _COSTS:
    raise UserError(f"cost={cost!r}: use one of {', '.join(_COSTS)}")


def curves(
    methods: Sequence[Mapping[str, Any]], *, cost: str = "generated_tokens",
) -> dict[str, list[Mapping[str, Any]]]:
  """The rows of each family in the order of `cost`."""
  _check_cost(cost)
  families: dict[str, list[Mapping[str, Any]]] = {}
  for method in ordered(methods):
    families.setdefault(method["family"], []).append(method)
  return {family: sorted(rows, key=lambda r: r[cost])
          for family, rows in families.items()}


def best_within(
    methods: Sequence[Mapping[str, Any]], budget: float, *,
    cost: str = "generated_tokens",
) -> Mapping[str, Any] | None:
  """The most accurate row whose `cost` a problem is at most `budget`."""
  _check_cost(cost)
  affordable = [m for m in methods if m[cost] <= budget]
  return max(affordable, key=lambda m: (m["accuracy"], -m[cost]), default=None)


def frontier(
    methods: Sequence[Mapping[str, Any]], *, cost: str = "generated_tokens",
) -> list[Mapping[str, Any]]:
  """The rows, by cost, that are more accurate than every cheaper one."""
  _check_cost(cost)
  found: list[Mapping[str, Any]] = []
  for row in sorted(methods, key=lambda m: (m[cost], -m["accuracy"])):
    if not found or row["accuracy"] > found[-1]["accuracy"]:
      found.append(row)
  return found


def table(methods: Sequence[Mapping[str, Any]], *, title: str = "") -> Any:
  """The rows of methods as a `rich` table for the screen."""
  import rich.table
  shown = rich.table.Table(title=title or None, title_style="bold")
  shown.add_column("method")
  for name in ("solved", "95% interval", "tokens", "MFLOP", "seconds"):
    shown.add_column(name, justify="right")
  for m in ordered(methods):
    low, high = m["interval"]
    shown.add_row(
        m["label"], f"{m['accuracy']:.1%}", f"{low:.1%} – {high:.1%}",
        f"{m['generated_tokens']:,.0f}", f"{m['flops'] / 1e6:,.0f}",
        f"{m['seconds']:.3f}")
  return shown
