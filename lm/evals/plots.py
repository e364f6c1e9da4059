"""The figures: losses, accuracy against the cost of thinking, reliability.

Save them with `save`, or show `png(figure)` in a notebook.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np

from lm.evals import curves
from lm.evals import plot_labels
from lm.evals import plot_style
from lm.evals.plot_style import (
    AXIS, INK, MUTED, PALETTE, RAMP, STYLE, png, save, svg,
)
from lm.types import UserError

__all__ = ["FAMILIES", "frontier", "losses", "png", "reliability", "save",
           "smooth", "svg", "thinking"]

# A family has a marker of its own too: nothing depends on colour alone.
FAMILIES = {
    "tot_value": ("#0072b2", "o", "tree of thoughts, value head"),
    "tot_log_prob": ("#d55e00", "s", "tree of thoughts, log-probability"),
    "tot_random": ("#8a8f98", "X", "tree of thoughts, random values"),
    "best_of_n": ("#009e73", "^", "best of N by value"),
    "self_consistency": ("#b5648f", "D", "self-consistency vote"),
    "greedy": ("#1c1e21", "P", "greedy"),
    "token_beam": ("#8c6d31", "v", "beam search over tokens"),
    "best_first": ("#56b4e9", ">", "best-first search"),
    "depth_first": ("#e69f00", "<", "depth-first search"),
    "mcts": ("#6a51a3", "*", "Monte-Carlo tree search"),
    "stream": ("#4d7c0f", "h", "search written as text"),
    "revision": ("#9f1239", "p", "revision of its own answer"),
}
_SPARE = (("#0f766e", "d"), ("#a8509f", "8"), ("#7c4a3a", "H"),
          ("#4b5563", "o"))
_AXES = {"generated_tokens": "generated tokens per problem",
         "flops": "FLOPs per problem", "seconds": "seconds per problem"}


def losses(
    stages: Mapping[str, Sequence[Mapping[str, Any]]], *,
    keys: Mapping[str, str] | None = None,
) -> Any:
  """A panel for each stage: its loss and, if there is one, the held-out loss.

  Args:
    stages: for each stage's name the rows of its metrics.jsonl; held-out
      losses are there as `eval/KEY`.
    keys: which number of a stage to draw, where it is not `loss`.

  Raises:
    UserError: no stage has a loss.
  """
  keys = {name: (keys or {}).get(name, "loss") for name in stages}
  stages = {name: rows for name, rows in stages.items()
            if any(keys[name] in r for r in rows)}
  if not stages:
    raise UserError("no metrics with a loss to draw: has training begun?")
  import matplotlib
  figure, axes = plot_style.figure(3.4 * len(stages), 2.9,
                                   columns=len(stages))
  with matplotlib.rc_context(STYLE):
    for ax, colour, (name, rows) in zip(axes, _cycle(PALETTE, len(stages)),
                                        stages.items()):
      steps, values = _series(rows, keys[name])
      ax.plot(steps, values, color=colour, lw=0.8, alpha=0.35)
      ax.plot(steps, smooth(values), color=colour, lw=1.8, label="training")
      x, held_out = _series(rows, f"eval/{keys[name]}")
      if x.size:
        ax.plot(x, held_out, color=INK, lw=1.0, marker="o", ms=4, ls="--",
                label="held out")
        ax.legend(loc="best")
      ax.set_title(name)
      ax.set_xlabel("step")
      ax.set_xlim(0, None)
      # The first steps of a fresh model would squeeze everything else.
      shown = np.concatenate([smooth(values)[len(values) // 50:], held_out])
      low, high = shown.min(), np.percentile(shown, 99)
      margin = max(0.08 * (high - low), 1e-3)
      ax.set_ylim(max(0.0, low - margin), high + margin)
    axes[0].set_ylabel("loss (nats)")
  return figure


def _cycle(items: Sequence[Any], n: int) -> list[Any]:
  return [items[i % len(items)] for i in range(n)]


def _series(rows: Sequence[Mapping[str, Any]], key: str):
  """(steps, values) of the rows that have `key`, as float64."""
  found = [(r["step"], r[key]) for r in rows if key in r]
  return np.array(found, np.float64).reshape(-1, 2).T


def smooth(values: Any, *, width: float | None = None) -> np.ndarray:
  """A centred Gaussian average; at the ends over what there is.

  Args:
    values: [N].
    width: standard deviation in points; by default a sixtieth of N.
  """
  values = np.asarray(values, np.float64)
  width = max(1.0, len(values) / 60) if width is None else width
  reach = min(len(values) - 1, math.ceil(3 * width))
  kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
  inside = slice(reach, reach + len(values))
  total = np.convolve(values, kernel)[inside]
  return total / np.convolve(np.ones_like(values), kernel)[inside]


def thinking(
    methods: Sequence[Mapping[str, Any]], *,
    costs: Sequence[str] = ("generated_tokens",),
    labels: bool = True, title: str | None = None,
) -> Any:
  """Accuracy against the cost of an answer, log axis, with intervals.

  Args:
    methods: rows as in `lm.evals.curves`.
    costs: a panel for each: generated_tokens, flops or seconds.
    labels: write the best accuracy of each family beside its point.
    title: above the figure.

  Raises:
    UserError: there is no row, or an unknown cost.
  """
  if not methods:
    raise UserError("no method to draw: run experiments/search first")
  import matplotlib
  figure, axes = plot_style.figure(1.2 + 5.6 * len(costs), 4.9,
                                   columns=len(costs))
  with matplotlib.rc_context(STYLE):
    best = [_panel(ax, methods, cost) for ax, cost in zip(axes, costs)]
    axes[0].set_ylabel("problems solved")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center",
                  ncols=min(3, len(names)), columnspacing=1.8,
                  handletextpad=0.5)
    if title:
      figure.suptitle(title, x=0.01, ha="left", weight="semibold",
                      fontsize=12.5)
    if labels:
      plot_labels.place(figure, dict(zip(axes, best)))
  return figure


def _panel(ax, methods, cost: str) -> list[tuple[float, float, str, str]]:
  """Draws the families; returns the label of each one's best point."""
  best = []
  families = curves.curves(methods, cost=cost)
  spare = iter(_cycle(_SPARE, len(families)))
  for family, rows in families.items():
    colour, marker, name = FAMILIES.get(family) or (*next(spare), family)
    x, y = _points(ax, rows, cost, color=colour, marker=marker, lw=1.7,
                   label=name)
    top = int(np.argmax(y))
    if y[top] > 0:
      best.append((x[top], y[top], f"{100 * y[top]:.0f}%", colour))
  _scales(ax, methods, cost)
  return best


def _points(ax, rows, cost: str, **look):
  """Draws rows with their intervals; returns their (costs, accuracies)."""
  x = np.array([r[cost] for r in rows], np.float64)
  y = np.array([r["accuracy"] for r in rows], np.float64)
  low, high = np.array([r["interval"] for r in rows], np.float64).T
  if np.any(x <= 0):
    name = rows[int(np.argmin(x))].get("name", "a row")
    raise UserError(f"{cost} of {name} is not above 0, which a log axis needs")
  ax.errorbar(
      x, y, yerr=np.maximum(0, [y - low, high - y]), elinewidth=1.0,
      capsize=2.5, markeredgecolor="white", markeredgewidth=0.7,
      ms=_marker_size(look["marker"]), **look)
  return x, y


def _marker_size(marker: str) -> float:
  """Points; what is thin needs more of them to look as large."""
  return {"P": 8.5, "X": 8.0, "*": 10.5}.get(marker, 6.5)


def _scales(ax, methods, cost: str) -> None:
  """A log axis of costs that holds all rows, and one of shares."""
  ax.set_xscale("log")
  ax.set_xlabel(f"{_AXES[cost]} (log scale)")
  ax.set_ylim(0, 1.04)
  ax.set_yticks(np.arange(0, 1.01, 0.2),
                [f"{n}%" for n in range(0, 101, 20)])
  every = np.array([m[cost] for m in methods], np.float64)
  ax.set_xlim(every.min() / 1.5, every.max() * 1.5)
  if cost == "generated_tokens":
    ticks = _ticks(every.min() / 1.5, every.max() * 1.5)
    ax.set_xticks(ticks, [f"{t:,.0f}" for t in ticks])
    ax.minorticks_off()


def frontier(
    methods: Sequence[Mapping[str, Any]], *, title: str | None = None,
) -> Any:
  """Accuracy against FLOPs for several models on one axis.

  A colour for each model, a marker for each family. The line is a model's upper
  envelope; what lies below it is pale.

  Args:
    methods: rows as in `lm.evals.curves`, with "parameters", and with "size",
      a name, where models have equally many.
    title: above the figure.

  Raises:
    UserError: there is no row.
  """
  if not methods:
    raise UserError("no method to draw: search with several model sizes first")
  import matplotlib
  from matplotlib.lines import Line2D
  models = sorted(dict.fromkeys(map(_model, methods)), key=lambda m: m[0])
  shades = _shades(len(models))
  alike = len({m[0] for m in models}) < len(models)
  spare = iter(_cycle(_SPARE, len(methods)))
  looks = {family: FAMILIES.get(family) or (*next(spare), family)
           for family in curves.curves(methods)}
  figure, (ax,) = plot_style.figure(8.6, 5.4)
  with matplotlib.rc_context(STYLE):
    for model, colour in zip(models, shades):
      mine = [m for m in methods if _model(m) == model]
      best = curves.frontier(mine, cost="flops")
      ax.plot([m["flops"] for m in best], [m["accuracy"] for m in best],
              color=colour, lw=2.2, zorder=3)
      for row in mine:
        on_top = any(row is m for m in best)
        _points(ax, [row], "flops", color=colour, ls="none",
                marker=looks[row["family"]][1], alpha=1.0 if on_top else 0.35,
                zorder=4 if on_top else 2)
    _scales(ax, methods, "flops")
    ax.set_ylabel("problems solved")
    of_models = [Line2D([], [], color=c, lw=2.6,
                        label=f"{name}, {_count(n)}" if alike else _count(n))
                 for (n, name), c in zip(models, shades)]
    of_families = [
        Line2D([], [], color=MUTED, ls="none", marker=marker, label=name,
               ms=_marker_size(marker), markeredgecolor="white",
               markeredgewidth=0.7)
        for _, marker, name in looks.values()]
    figure.legend(handles=of_families, loc="outside lower center",
                  ncols=min(3, len(of_families)), columnspacing=1.8,
                  handletextpad=0.3)
    figure.legend(handles=of_models[::-1], title="parameters",
                  loc="outside right upper", alignment="left",
                  title_fontsize=9.5)
    if title:
      figure.suptitle(title, x=0.01, ha="left", weight="semibold",
                      fontsize=12.5)
  return figure


def _model(row: Mapping[str, Any]) -> tuple[float, str]:
  return row["parameters"], row.get("size", "")


def _shades(n: int) -> list[Any]:
  """n colours from light to dark, for sizes from small to large."""
  from matplotlib.colors import LinearSegmentedColormap
  ramp = LinearSegmentedColormap.from_list("sizes", RAMP)
  return [ramp(x) for x in np.linspace(0, 1, n)] if n > 1 else [ramp(0.6)]


def _count(n: float) -> str:
  """1.2M for 1,234,567."""
  for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
    if n >= unit:
      return f"{n / unit:.3g}{letter}"
  return f"{n:g}"


def reliability(predicted: Any, labels: Any, *, bins: int = 10) -> Any:
  """A reliability diagram (Guo et al. 2017, 1706.04599, figure 1).

  For each bin the mean prediction against the share that came true, with its
  Wilson interval; below, how many predictions the bin holds.

  Args:
    predicted: [n] probabilities, as from `calibration.pairs`.
    labels: [n] of 0 and 1.
    bins: of equal width.

  Raises:
    UserError: there is no prediction, not one label each, or one outside
      [0, 1].
  """
  predicted = np.asarray(predicted, np.float64)
  labels = np.asarray(labels, np.float64)
  if predicted.ndim != 1 or predicted.shape != labels.shape or not labels.size:
    raise UserError(f"predictions of shape {predicted.shape} and labels of"
                    f" {labels.shape}: give [n] of both, at least one")
  if not np.all((predicted >= 0) & (predicted <= 1)):
    raise UserError("predictions outside [0, 1]: give probabilities, not"
                    " logits")
  import matplotlib
  from lm.evals import calibration
  scores = calibration.scores(predicted, labels, bins=bins)
  count, predicted_sum, label_sum = calibration.binned(
      predicted, labels, bins=bins)
  full = count > 0
  x, share = predicted_sum[full] / count[full], label_sum[full] / count[full]
  low, high = np.array([curves.wilson(k, int(n)) for k, n in zip(
      label_sum[full], count[full])]).T
  colour, centres = PALETTE[0], (np.arange(bins) + 0.5) / bins
  figure, (ax, below) = plot_style.figure(
      5.0, 6.1, rows=2, sharex=True, height_ratios=(3.4, 1))
  with matplotlib.rc_context(STYLE):
    ax.plot([0, 1], [0, 1], color=AXIS, lw=1.0, ls=(0, (4, 3)), zorder=1)
    ax.vlines(x, x, share, color=PALETTE[2], lw=7, alpha=0.22, zorder=2)
    ax.errorbar(x, share, yerr=np.maximum(0, [share - low, high - share]),
                color=colour, marker="o", ms=6.5, lw=1.7, elinewidth=1.0,
                capsize=2.5, markeredgecolor="white", markeredgewidth=0.7,
                zorder=3)
    ax.set_title(  # Above the axes, where no point can be.
        f"expected calibration error (ECE) {scores['calibration_error']:.3f}",
        pad=26)
    ax.annotate(
        f"{len(labels):,} predictions, {scores['success_share']:.0%} came true,"
        f" Brier score {scores['brier']:.3f}", (0, 1), xytext=(0, 10),
        xycoords="axes fraction", textcoords="offset points", color=MUTED,
        fontsize=9.5)
    below.bar(centres, count, width=0.92 / bins, color=colour, alpha=0.8)
    for centre, n in zip(centres, count):
      below.annotate(f"{n:,}", (centre, n), xytext=(0, 2), ha="center",
                     textcoords="offset points", fontsize=8, color=MUTED)
    ticks = np.arange(0, 1.01, 0.2)
    names = [f"{n}%" for n in range(0, 101, 20)]
    ax.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="came true")
    ax.set_yticks(ticks, names)
    below.set_xticks(ticks, names)
    below.set(xlabel="predicted probability of success", ylabel="predictions",
              ylim=(0, 1.18 * count.max()))
    below.set_yticks([])
    below.spines["left"].set_visible(False)
  return figure


def _ticks(low: float, high: float) -> list[float]:
  """1, 2, 5, 10, 20, ... between two bounds; fewer where there are many."""
  decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  for steps in ((1, 2, 5), (1, 3), (1,)):
    found = [s * 10.0 ** d for d in decades for s in steps
             if low <= s * 10.0 ** d <= high]
    if len(found) <= 9:
      break
  return found
