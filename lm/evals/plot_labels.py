"""Writes labels beside points of a figure, where they hide the least."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Where a label may stand from its point, right and up; the first is the best.
_SIDES = ((-1, 1), (1, 1), (0, 1), (-1, 0), (1, 0), (-1, -1), (1, -1), (0, -1))
_GAPS = ((6.0, 4.0), (6.0, 11.0), (13.0, 4.0), (6.0, 19.0))  # Points.
_OVERLAP = 1000.0  # What lying on another label costs, in pixels of ink.


def place(
    figure: Any, labels: Mapping[Any, Sequence[tuple[float, float, str, str]]],
    *, fontsize: float = 9.5,
) -> None:
  """Writes labels, none on another or out of its axes if there is a place.

  Args:
    figure: finished but for these: where its axes lie is worked out here.
    labels: for each axes its (x, y, text, colour), x and y as data.
    fontsize: in points.
  """
  figure.draw_without_rendering()
  pixel = figure.dpi / 72  # Of a point.
  for ax, mine in labels.items():
    ink_M2, frame = _ink(ax), ax.bbox.get_points()
    taken: list[np.ndarray] = []  # Boxes, [[left, bottom], [right, top]].
    for x, y, text, colour in sorted(mine, key=lambda label: -label[1]):
      size = np.array([0.72 * len(text), 0.85]) * fontsize * pixel
      point = ax.transData.transform((x, y))
      boxes = [_box(point, size, side, np.multiply(gap, pixel))
               for gap in _GAPS for side in _SIDES]
      costs = [_cost(box, ink_M2, taken, frame) + 0.1 * rank
               for rank, box in enumerate(boxes)]
      taken.append(boxes[int(np.argmin(costs))])
      ax.annotate(
          text, (x, y), xytext=(taken[-1].mean(0) - point) / pixel,
          textcoords="offset points", ha="center", va="center_baseline",
          color=colour, fontsize=fontsize, weight="semibold", in_layout=False)


def _box(point, size, side, gap) -> np.ndarray:
  centre = point + np.array(side) * (size / 2 + gap)
  return np.stack([centre - size / 2, centre + size / 2])


def _cost(box, ink_M2, taken, frame) -> float:
  """Pixels of ink under a box, and much for a label or the frame's edge."""
  hidden = np.all((ink_M2 > box[0]) & (ink_M2 < box[1]), axis=1).sum()
  hits = sum(bool(np.all((box[0] < b[1]) & (b[0] < box[1]))) for b in taken)
  outside = np.any(box[0] < frame[0]) or np.any(box[1] > frame[1])
  return hidden + _OVERLAP * (hits + bool(outside))


def _ink(ax) -> np.ndarray:
  """[M, 2] pixels, two apart, along all that is drawn with lines."""
  paths = [line.get_xydata() for line in ax.lines]
  paths += [segment for collection in ax.collections
            for segment in getattr(collection, "get_segments", list)()]
  found = []
  for path in paths:
    at = ax.transData.transform(path)
    for a, b in zip(at, at[1:]):
      share = np.linspace(0, 1, 2 + int(np.hypot(*(b - a)) / 2))[:, None]
      found.append(a + share * (b - a))
    found.append(at)
  return np.concatenate(found) if found else np.zeros((0, 2))
