"""How the figures look, and how they are written.

Matplotlib is imported when a figure is made. Figures are free of pyplot's
global state: save them with `save`, or show `png(figure)` in a notebook.
"""

import io
import os
import pathlib
from typing import Any

from lm.types import UserError

# Okabe and Ito's palette, safe for colour-blind readers.
PALETTE = ("#0072b2", "#009e73", "#d55e00", "#b5648f", "#56b4e9", "#e69f00")
# From light to dark as models grow, so that grey keeps their order.
RAMP = ("#e9a23b", "#d9573f", "#8f2d72", "#1f1e5a")
INK, MUTED, RULE, AXIS = "#1c1e21", "#5f6670", "#e3e5e9", "#9aa0a8"
STYLE = {
    "font.family": ["Inter", "Helvetica Neue", "Arial", "Liberation Sans",
                    "DejaVu Sans", "sans-serif"],
    "font.size": 10.5, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": AXIS, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 11.5, "axes.titleweight": "semibold",
    "axes.titlelocation": "left", "axes.titlepad": 10.0,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
    "grid.color": RULE, "grid.linewidth": 0.8,
    "xtick.color": AXIS, "ytick.color": AXIS,
    "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "legend.frameon": False, "legend.fontsize": 9.5,
    "figure.facecolor": "white", "savefig.facecolor": "white",
    "svg.hashsalt": "lm", "svg.fonttype": "path",
}


def figure(
    width: float, height: float, *, rows: int = 1, columns: int = 1, **grid
) -> tuple[Any, list[Any]]:
  """(figure, its axes) in the house style; `grid` as of `subplots`."""
  import logging

  import matplotlib
  from matplotlib.figure import Figure
  # Not every machine has every font of the list; that is what it is for.
  logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
  with matplotlib.rc_context(STYLE):
    made = Figure(figsize=(width, height), layout="constrained")
    axes = made.subplots(rows, columns, squeeze=False, **grid)
  return made, list(axes.flat)


def png(figure: Any, *, dpi: int = 160) -> bytes:
  """The figure as a PNG file's bytes."""
  return _bytes(figure, "png", dpi=dpi)


def svg(figure: Any) -> str:
  """The figure as an SVG file's text; letters are outlines."""
  return _bytes(figure, "svg", metadata={"Date": None}).decode()


def _bytes(figure, kind: str, **kwargs) -> bytes:
  import matplotlib
  buffer = io.BytesIO()
  with matplotlib.rc_context(STYLE):
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
