"""What thinking is worth: doublings of tokens against doublings of parameters.

A row is one method of one model size, as a plain dict:

    {"parameters", "family", "accuracy", "flops", "outcomes"}

with FLOPs per problem and outcomes [S, N], 0 or 1 for each seed and problem.
All rows are of the same N problems; the seeds of one size are its own training
runs, so they are drawn again apart from those of another size.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from lm.evals import curves
from lm.types import UserError

Row = Mapping[str, Any]
# None stands for a bound that is infinite, which JSON cannot write.
Interval = tuple[float | None, float | None]


@dataclasses.dataclass(frozen=True)
class Trade:
  """The fit logit(accuracy) = a + b log2(parameters) + c log2(tokens).

  Attributes:
    family: of methods.
    intercept: a.
    per_parameters: b, what a doubling of parameters adds at equal tokens.
    per_tokens: c, what a doubling of thinking tokens adds at equal parameters.
    worth: b / c, the doublings of thinking tokens that replace a doubling of
      parameters; None if more thinking does not help (c <= 0). Either doubling
      doubles the FLOPs of an answer, so below 1 thinking is the cheaper.
    interval: of `worth`; None is a bound beyond every number.
    r2: the share of the logits' variance that the fit explains.
    points: rows below saturation.
    sizes: different numbers of parameters among them.
  """
  family: str
  intercept: float
  per_parameters: float
  per_tokens: float
  worth: float | None
  interval: Interval
  r2: float
  points: int
  sizes: int


@dataclasses.dataclass(frozen=True)
class Crossing:
  """Where a small model that thinks overtakes a large one that does not.

  Attributes:
    flops: per problem, of the small model.
    interval: of `flops`; an upper bound of None: some resamples never reach it.
    ratio: of `flops` to the large model's greedy FLOPs; below 1 the small one
      is the cheaper.
    ratio_interval: of `ratio`.
    reached: the share of resamples that reach it.
  """
  flops: float
  interval: Interval
  ratio: float
  ratio_interval: Interval
  reached: float


def fits(rows: Sequence[Row], **kwargs) -> dict[str, Trade]:
  """`fit` of each family that has enough points; see there.

  Families with too few (greedy has one a size) are left out.

  Raises:
    UserError: none has enough.
  """
  families: dict[str, list[Row]] = {}
  for row in rows:
    families.setdefault(row["family"], []).append(row)
  found, refused = {}, ["there is no row"]
  for family, mine in families.items():
    try:
      found[family] = fit(mine, **kwargs)
    except _TooFew as e:
      refused.append(str(e))
  if not found:
    raise UserError(refused[-1])
  return found


def fit(
    rows: Sequence[Row], *, saturation: float = 0.97, level: float = 0.95,
    samples: int = 2000, seed: int = 0,
) -> Trade:
  """Fits one family's accuracy to its parameters and its thinking.

  The train-time / test-time trade of Jones 2021 (2104.03113, section 4) and
  Snell et al. 2024 (2408.03314, section 7). Thinking is counted in tokens, as
  FLOPs / (2 parameters). Least squares on logits, which are clipped half a
  problem away from 0 and 1.

  Args:
    rows: of one family and several sizes.
    saturation: rows as accurate as this, or as far from any success, are left
      out, where a logit says little. Chosen once, not in every resample.
    level: coverage of the bootstrap interval, over seeds and problems.
    samples: of the bootstrap.
    seed: of the bootstrap.

  Raises:
    UserError: fewer than 2 sizes or 4 points between the extremes, sizes that
      all think equally much, or rows that do not fit together.
  """
  _check(rows)
  if len(names := {row["family"] for row in rows}) > 1:
    raise UserError(f"rows of {len(names)} families ({', '.join(sorted(names))}"
                    "): fit one at a time, or use fits")
  family = rows[0]["family"]
  rows = [row for row in rows
          if 1 - saturation < row["accuracy"] < saturation]
  sizes = len({row["parameters"] for row in rows})
  if sizes < 2 or len(rows) < 4:
    raise _TooFew(
        f"{family}: {len(rows)} points of {sizes} sizes are between"
        f" {1 - saturation:g} and {saturation:g}: at least 4 of 2 sizes are"
        " needed, search with more sizes or budgets")
  parameters = np.array([row["parameters"] for row in rows], np.float64)
  flops = np.array([row["flops"] for row in rows], np.float64)
  # Centred, so that the conditioning is that of the points, not of their units.
  x_R2 = np.log2([parameters, flops / (2 * parameters)]).T
  centre = x_R2.mean(0)
  design_R3 = np.column_stack([np.ones(len(rows)), x_R2 - centre])
  if np.linalg.matrix_rank(design_R3, tol=0.1) < 3:  # Of a doubling.
    raise _TooFew(f"{family}: size and thinking change together, so their worth"
                  " cannot be told apart: give each size several budgets")
  solve_3R = np.linalg.pinv(design_R3)

  y_R = _logits(rows, np.array([[row["accuracy"]] for row in rows]))[:, 0]
  mean, b, c = solve_3R @ y_R
  residual_R = y_R - design_R3 @ (mean, b, c)
  spread = np.square(y_R - y_R.mean()).sum()
  drawn_RK = _resampled(rows, samples, seed)
  _, b_K, c_K = solve_3R @ _logits(rows, drawn_RK)
  return Trade(
      family, float(mean - centre @ (b, c)), float(b), float(c),
      float(b / c) if c > 0 else None,
      # Where thinking does not help, no amount of it is worth a doubling.
      _interval(np.divide(b_K, c_K, out=np.full(samples, np.inf),
                          where=c_K > 0), level),
      float(1 - np.square(residual_R).sum() / spread) if spread else 1.0,
      len(rows), sizes)


def crossing(
    small_rows: Sequence[Row], large_rows: Sequence[Row], *,
    level: float = 0.95, samples: int = 2000, seed: int = 0,
) -> Crossing | None:
  """The FLOPs at which the small model's search equals the large one's greedy.

  Along the upper envelope of the small model's rows, between two of its points
  linear in log FLOPs. The envelope chooses among methods by the same outcomes
  that it is read from, which flatters it a little: give one family's rows for
  a choice made beforehand.

  Args:
    small_rows: of the small model, greedy too if it is to begin there.
    large_rows: of the large one; only its row of family "greedy" counts.
    level: coverage of the bootstrap intervals, over seeds and problems.
    samples: of the bootstrap.
    seed: of the bootstrap.

  Returns:
    The crossing; None if the small model never gets there.

  Raises:
    UserError: other than one size on each side, other than one greedy row of
      the large one, or rows that do not fit together.
  """
  greedy = [row for row in large_rows if row["family"] == "greedy"]
  if len(greedy) != 1:
    raise UserError(f"{len(greedy)} greedy rows of the large model: give one")
  _check([*small_rows, *greedy])
  sizes = sorted({row["parameters"] for row in small_rows})
  if len(sizes) != 1 or sizes[0] >= greedy[0]["parameters"]:
    raise UserError(
        f"small rows of {', '.join(f'{n:,}' for n in sizes) or 'no'} parameters"
        f" against {greedy[0]['parameters']:,}: give rows of one smaller model")
  rows = [*sorted(small_rows, key=lambda row: row["flops"]), *greedy]
  log_flops = np.log([row["flops"] for row in rows[:-1]])
  accuracy_R1 = np.array([[row["accuracy"]] for row in rows])
  point = _reach(accuracy_R1[:-1], log_flops, accuracy_R1[-1])[0]
  if not math.isfinite(point):
    return None
  drawn_RK = _resampled(rows, samples, seed)
  flops_K = np.exp(_reach(drawn_RK[:-1], log_flops, drawn_RK[-1]))
  of_large = greedy[0]["flops"]
  return Crossing(
      float(np.exp(point)), _interval(flops_K, level),
      float(np.exp(point) / of_large), _interval(flops_K / of_large, level),
      float(np.isfinite(flops_K).mean()))


class _TooFew(UserError):
  """One family's points are too few or too alike to fit."""


def _check(rows: Sequence[Row]) -> None:
  """Refuses rows that are not of the same problems, or are no rows."""
  if not rows:
    raise UserError("there is no row: search with several model sizes first")
  shapes: dict[float, tuple[int, ...]] = {}
  for row in rows:
    size, outcomes = row["parameters"], np.asarray(row["outcomes"], np.float64)
    name = f"{row['family']} of {size:,} parameters"
    if size <= 0 or row["flops"] <= 0:
      raise UserError(f"{name}, {row['flops']:g} FLOPs: both must be above 0")
    if outcomes.ndim != 2 or not outcomes.size:
      raise UserError(f"{name}: outcomes of shape {outcomes.shape}, not"
                      " [seeds, problems]")
    if abs(outcomes.mean() - row["accuracy"]) > 1e-6:
      raise UserError(f"{name}: an accuracy of {row['accuracy']:g}, but its"
                      f" outcomes have a mean of {outcomes.mean():g}")
    if outcomes.shape != shapes.setdefault(size, outcomes.shape):
      raise UserError(f"{name}: outcomes of shape {outcomes.shape} beside"
                      f" {shapes[size]}: give the same seeds for every method")
  if len(counts := {n for _, n in shapes.values()}) > 1:
    raise UserError(f"outcomes of {sorted(counts)} problems: every size must"
                    " answer the same ones")


def _resampled(rows: Sequence[Row], samples: int, seed: int) -> np.ndarray:
  """[R, K] accuracies under draws of problems, and of each size's seeds."""
  rng = np.random.default_rng(seed)
  shapes = {row["parameters"]: np.shape(row["outcomes"]) for row in rows}
  problems = next(iter(shapes.values()))[1]
  weights_KN = curves.drawn_shares(rng, samples, problems)
  weights_KS = {size: curves.drawn_shares(rng, samples, seeds)
                for size, (seeds, _) in sorted(shapes.items())}
  return np.stack([curves.resampled_means(
      np.asarray(row["outcomes"], np.float64), weights_KS[row["parameters"]],
      weights_KN) for row in rows])


def _logits(rows: Sequence[Row], accuracy_RK: np.ndarray) -> np.ndarray:
  half = 0.5 / np.shape(rows[0]["outcomes"])[1]
  p = np.clip(accuracy_RK, half, 1 - half)
  return np.log(p / (1 - p))


def _reach(accuracy_RK, log_flops_R, target_K) -> np.ndarray:
  """[K] log FLOPs where the envelope reaches the target; inf if it does not.

  Rows are in the order of FLOPs.
  """
  best_RK = np.maximum.accumulate(accuracy_RK)
  columns = np.arange(best_RK.shape[1])
  there = best_RK >= target_K - 1e-12  # Sums of weights are not exact.
  after_K = there.argmax(0)
  # The cheapest row as good as the one before: where the envelope turns up.
  low_K = best_RK[np.maximum(after_K - 1, 0), columns]
  before_K = (best_RK >= low_K).argmax(0)
  high_K = best_RK[after_K, columns]
  share_K = np.divide(target_K - low_K, high_K - low_K,
                      out=np.ones(len(columns)), where=high_K > low_K)
  start_K, end_K = log_flops_R[before_K], log_flops_R[after_K]
  between_K = start_K + np.clip(share_K, 0, 1) * (end_K - start_K)
  return np.where(there.any(0), between_K, np.inf)


def _interval(values_K: np.ndarray, level: float) -> Interval:
  """The percentile interval; percentiles are of the sample, which has inf."""
  tail = (1 - level) / 2
  low = float(np.quantile(values_K, tail, method="lower"))
  high = float(np.quantile(values_K, 1 - tail, method="higher"))
  return (low if math.isfinite(low) else None,
          high if math.isfinite(high) else None)
