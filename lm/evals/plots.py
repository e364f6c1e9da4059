"""The figures: loss curves, and accuracy against what the thinking cost.

Matplotlib is imported when a figure is made. Figures are free of pyplot's
global state: save them with `save`, or show `png(figure)` in a notebook.
"""

from collections.abc import Mapping, Sequence
import io
import math
import os
import pathlib
from typing import Any

import numpy as np

from lm.evals import curves
from lm.types import UserError

# Okabe and Ito's palette, safe for colour-blind readers; a family also has a
# marker of its own, so that nothing depends on colour alone.
FAMILIES = {
    "tot_value": ("#0072b2", "o", "tree of thoughts, value head"),
    "tot_log_prob": ("#d55e00", "s", "tree of thoughts, log-probability"),
    "tot_random": ("#8a8f98", "X", "tree of thoughts, random values"),
    "best_of_n": ("#009e73", "^", "best of N by value"),
    "self_consistency": ("#b5648f", "D", "self-consistency vote"),
    "greedy": ("#1c1e21", "P", "greedy"),
}
_SPARE = (("#56b4e9", "v"), ("#e69f00", "<"), ("#6a51a3", ">"),
          ("#8c6d31", "h"))
_STAGES = ("#0072b2", "#009e73", "#d55e00", "#b5648f", "#56b4e9", "#e69f00")
_INK, _MUTED, _RULE = "#1c1e21", "#5f6670", "#e3e5e9"
_AXES = {"generated_tokens": "generated tokens per puzzle",
         "flops": "FLOPs per puzzle", "seconds": "seconds per puzzle"}
_STYLE = {
    "font.family": ["Inter", "Helvetica Neue", "Arial", "Liberation Sans",
                    "DejaVu Sans", "sans-serif"],
    "font.size": 10.5, "text.color": _INK, "axes.labelcolor": _INK,
    "axes.edgecolor": "#9aa0a8", "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 11.5, "axes.titleweight": "semibold",
    "axes.titlelocation": "left", "axes.titlepad": 10.0,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
    "grid.color": _RULE, "grid.linewidth": 0.8,
    "xtick.color": "#9aa0a8", "ytick.color": "#9aa0a8",
    "xtick.labelcolor": _MUTED, "ytick.labelcolor": _MUTED,
    "legend.frameon": False, "legend.fontsize": 9.5,
    "figure.facecolor": "white", "savefig.facecolor": "white",
    "svg.hashsalt": "lm", "svg.fonttype": "path",
}


def _figure(width: float, height: float, columns: int = 1):
  """(figure, its axes) in the house style."""
  import logging

  import matplotlib
  from matplotlib.figure import Figure
  # Not every machine has every font of the list; that is what it is for.
  logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
  return figure, list(axes)


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
  figure, axes = _figure(3.4 * len(stages), 2.9, len(stages))
  with matplotlib.rc_context(_STYLE):
    for ax, colour, (name, rows) in zip(axes, _cycle(_STAGES, len(stages)),
                                        stages.items()):
      steps, values = _series(rows, keys[name])
      ax.plot(steps, values, color=colour, lw=0.8, alpha=0.35)
      ax.plot(steps, smooth(values), color=colour, lw=1.8, label="training")
      x, held_out = _series(rows, f"eval/{keys[name]}")
      if x.size:
        ax.plot(x, held_out, color=_INK, lw=1.0, marker="o", ms=4, ls="--",
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
  figure, axes = _figure(1.2 + 5.6 * len(costs), 4.9, len(costs))
  with matplotlib.rc_context(_STYLE):
    for ax, cost in zip(axes, costs):
      _panel(ax, methods, cost, labels)
    axes[0].set_ylabel("puzzles solved")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center",
                  ncols=min(3, len(names)), columnspacing=1.8,
                  handletextpad=0.5)
    if title:
      figure.suptitle(title, x=0.01, ha="left", weight="semibold",
                      fontsize=12.5)
  return figure


def _panel(ax, methods, cost: str, labels: bool) -> None:
  families = curves.curves(methods, cost=cost)
  spare = iter(_cycle(_SPARE, len(families)))
  for family, rows in families.items():
    colour, marker, name = FAMILIES.get(family) or (*next(spare), family)
    x = np.array([r[cost] for r in rows], np.float64)
    y = np.array([r["accuracy"] for r in rows], np.float64)
    low, high = np.array([r["interval"] for r in rows], np.float64).T
    if np.any(x <= 0):
      raise UserError(f"{cost} of {rows[int(np.argmin(x))]['name']} is not"
                      " above 0, which a log axis needs")
    ax.errorbar(
        x, y, yerr=np.maximum(0, [y - low, high - y]), color=colour,
        marker=marker, ms=6.5, lw=1.7, elinewidth=1.0, capsize=2.5,
        markeredgecolor="white", markeredgewidth=0.7, label=name)
    best = int(np.argmax(y))
    if labels and y[best] > 0:
      ax.annotate(f"{100 * y[best]:.0f}%", (x[best], y[best]),
                  xytext=(-6, 6), textcoords="offset points", ha="right",
                  color=colour, fontsize=9.5, weight="semibold")
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


def _ticks(low: float, high: float) -> list[float]:
  """1, 2, 5, 10, 20, ... between two bounds; fewer where there are many."""
  decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  for steps in ((1, 2, 5), (1, 3), (1,)):
    found = [s * 10.0 ** d for d in decades for s in steps
             if low <= s * 10.0 ** d <= high]
    if len(found) <= 9:
      break
  return found


def png(figure: Any, *, dpi: int = 160) -> bytes:
  """The figure as a PNG file's bytes."""
  return _bytes(figure, "png", dpi=dpi)


def svg(figure: Any) -> str:
  """The figure as an SVG file's text; letters are outlines."""
  return _bytes(figure, "svg", metadata={"Date": None}).decode()


def _bytes(figure, kind: str, **kwargs) -> bytes:
  import matplotlib
  buffer = io.BytesIO()
  with matplotlib.rc_context(_STYLE):
    figure.savefig(buffer, format=kind, **kwargs)
  return buffer.getvalue()


def save(figure: Any, path: str | os.PathLike, *, dpi: int = 160
         ) -> pathlib.Path:
  """Writes a .png or .svg file.

  Raises:
    UserError: another ending.
  """
  path = pathlib.Path(path)
  if path.suffix not in (".png", ".svg"):
    raise UserError(f"{path}: figures are written as .png or .svg")
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == ".png":
    path.write_bytes(png(figure, dpi=dpi))
  else:
    path.write_text(svg(figure), encoding="utf-8")
  return path
