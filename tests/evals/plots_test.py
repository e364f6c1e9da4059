"""What is on the figures: points, intervals, scales; and what is refused."""

import io
import subprocess
import sys

import fabricated
from lm.evals import curves
from lm.evals import plots
from lm.types import UserError
from matplotlib import image
import numpy as np
import pytest


def test_thinking_shows_every_method_and_its_interval():
  methods = fabricated.methods()
  figure = plots.thinking(methods, costs=("generated_tokens", "flops"))
  assert len(figure.axes) == 2
  for ax, cost in zip(figure.axes, ("generated_tokens", "flops")):
    assert ax.get_xscale() == "log"
    drawn, bars = set(), set()
    for container in ax.containers:  # One for each family.
      line, _, (segments,) = container
      drawn |= set(zip(*map(tuple, line.get_data())))
      bars |= {tuple(np.round(s[:, 1], 6)) for s in segments.get_segments()}
    assert drawn == {(m[cost], m["accuracy"]) for m in methods}
    assert bars == {tuple(np.round(m["interval"], 6)) for m in methods}
    low, high = ax.get_xlim()
    assert all(low < m[cost] < high for m in methods)
    assert ax.get_ylim()[0] == 0


def labels_of(figure, ax):
  """The boxes, in pixels, of the accuracies that are written in an axes."""
  figure.draw_without_rendering()
  return [t.get_window_extent() for t in ax.texts]


def test_labels_of_equal_points_do_not_overlap():
  # Six families that end in the same place, at the right end of the axes.
  names = list(plots.FAMILIES)[:6]
  methods = [dict(m, family=name, accuracy=a, interval=[a - 0.03, a + 0.03])
             for name, a in zip(names, (0.94, 0.95, 0.95, 0.96, 0.94, 0.99))
             for m in fabricated.methods()[:1]]
  figure = plots.thinking(methods, costs=("generated_tokens", "flops"))
  for ax in figure.axes:
    boxes = labels_of(figure, ax)
    assert len(boxes) == 6
    for i, a in enumerate(boxes):
      assert ax.bbox.x0 <= a.x0 and a.x1 <= ax.bbox.x1
      assert ax.bbox.y0 <= a.y0 and a.y1 <= ax.bbox.y1
      assert not any(a.overlaps(b) for b in boxes[:i])
  assert not plots.thinking(methods, labels=False).axes[0].texts


def test_a_label_stands_beside_its_point_and_off_the_lines():
  rising = [dict(fabricated.methods()[0], accuracy=a, generated_tokens=t,
                 interval=[a - 0.1, a + 0.1])
            for a, t in ((0.2, 10), (0.5, 100))]
  figure = plots.thinking(rising)
  ax, = figure.axes
  (box,) = labels_of(figure, ax)
  x, y = ax.transData.transform((100, 0.5))
  near = 40 * figure.dpi / 72
  assert abs(box.x0 - x) < near and abs(box.y0 - y) < near
  assert not box.contains(x, y)
  assert box.x1 < x or box.x0 > x  # Not on the interval.


def sizes():
  """Two sizes: 20 and 50 % on the frontier of the small, 10 % below it."""
  def row(parameters, family, solved, flops):
    return {"name": family, "family": family, "parameters": parameters,
            "accuracy": solved, "interval": [solved - 0.05, solved + 0.05],
            "flops": flops, "generated_tokens": flops / parameters / 2,
            "seconds": 1.0}
  return [row(1e6, "greedy", 0.2, 1e8), row(1e6, "mcts", 0.1, 2e8),
          row(1e6, "mcts", 0.5, 4e8), row(4.2e6, "greedy", 0.4, 4e8)]


def test_frontier_joins_the_best_of_each_size():
  figure = plots.frontier(sizes())
  ax, = figure.axes
  assert ax.get_xscale() == "log"
  lines = [line.get_xydata().tolist() for line in ax.lines
           if line.get_linestyle() == "-"]
  assert lines == [[[1e8, 0.2], [4e8, 0.5]], [[4e8, 0.4]]]
  points = {}
  for container in ax.containers:  # One for each row.
    line, _, (segments,) = container
    (x, y), = line.get_xydata()
    points[x, y] = (line.get_color(), line.get_marker(), line.get_alpha())
    (low, high), = [s[:, 1] for s in segments.get_segments()]
    assert (low, high) == pytest.approx((y - 0.05, y + 0.05))
  colour, marker, alpha = points[2e8, 0.1]
  assert marker == plots.FAMILIES["mcts"][1] and alpha < 1
  assert points[1e8, 0.2] == (colour, plots.FAMILIES["greedy"][1], 1.0)
  assert points[4e8, 0.4][0] != colour
  families, parameters = (
      [t.get_text() for t in legend.get_texts()] for legend in figure.legends)
  assert families == ["greedy", "Monte-Carlo tree search"]
  assert parameters == ["4.2M", "1M"]
  with pytest.raises(UserError, match="no method"):
    plots.frontier([])


def test_reliability_draws_the_bins_and_writes_the_error():
  # Bins of a half: 0.1 and 0.3 against 1 of 2; 0.9 against 1 of 2.
  predicted, labels = [0.1, 0.3, 0.9, 0.9], [0, 1, 1, 0]
  figure = plots.reliability(predicted, labels, bins=2)
  ax, below = figure.axes
  line, _, (segments,) = ax.containers[0]
  np.testing.assert_allclose(line.get_xydata(), [[0.2, 0.5], [0.9, 0.5]])
  for segment in segments.get_segments():
    assert tuple(segment[:, 1]) == pytest.approx(curves.wilson(1, 2))
  assert [p.get_height() for p in below.patches] == [2, 2]
  assert [t.get_text() for t in below.texts] == ["2", "2"]
  # (2 x 0.3 + 2 x 0.4) / 4.
  assert ax.get_title(loc="left").endswith("(ECE) 0.350")
  (said,) = ax.texts
  assert "4 predictions, 50% came true" in said.get_text()
  plots.png(figure, dpi=50)


@pytest.mark.parametrize("predicted, labels, words", [
    ([], [], "at least one"), ([0.5], [1, 0], "of both"),
    ([1.5], [1], "not logits"), ([float("nan")], [1], "not logits")])
def test_reliability_refuses(predicted, labels, words):
  with pytest.raises(UserError, match=words):
    plots.reliability(predicted, labels)


def test_families_differ_without_colour():
  looks = list(plots.FAMILIES.values())
  assert len({marker for _, marker, _ in looks}) == len(looks)
  assert len({colour for colour, _, _ in looks}) == len(looks)
  assert set(plots.FAMILIES) == set(curves.FAMILIES)


def test_an_unknown_family_is_drawn_too():
  methods = [dict(m, family="new") for m in fabricated.methods()[:2]]
  figure = plots.thinking(methods)
  assert [t.get_text() for t in figure.legends[0].get_texts()] == ["new"]


@pytest.mark.parametrize("methods, costs, words", [
    ([], ("flops",), "no method"),
    (fabricated.methods(), ("dollars",), "dollars"),
    ([dict(fabricated.methods()[0], flops=0)], ("flops",), "log axis")])
def test_thinking_refuses(methods, costs, words):
  with pytest.raises(UserError, match=words):
    plots.thinking(methods, costs=costs)


def test_losses_draw_training_and_held_out():
  rows = fabricated.metrics(500, 2.0, 4.0)
  value = fabricated.metrics(500, 0.2, 0.4, key="value_loss")
  figure = plots.losses({"a": rows, "value": value, "none": []},
                        keys={"value": "value_loss"})
  assert [ax.get_title(loc="left") for ax in figure.axes] == ["a", "value"]
  raw, _, held_out = figure.axes[1].lines
  assert list(raw.get_ydata()) == [
      r["value_loss"] for r in value if "value_loss" in r]
  assert list(held_out.get_ydata()) == [
      r["eval/value_loss"] for r in value if "eval/value_loss" in r]
  with pytest.raises(UserError, match="no metrics"):
    plots.losses({"a": [{"step": 1}]})
  plots.png(plots.losses({"a": [{"step": 1, "loss": 2.0}]}))  # One point.


def test_smooth_keeps_constants_and_lines_and_calms_noise():
  np.testing.assert_allclose(plots.smooth(np.full(50, 3.0)), 3.0)
  line = np.arange(200.0)
  np.testing.assert_allclose(plots.smooth(line)[20:-20], line[20:-20])
  noise = np.random.default_rng(0).normal(size=1000)
  assert plots.smooth(noise).std() < 0.3


def test_save_writes_what_its_ending_says(tmp_path):
  figure = plots.thinking(fabricated.methods())
  path = plots.save(figure, tmp_path / "new" / "a.png", dpi=50)
  pixels = image.imread(io.BytesIO(path.read_bytes()))
  assert pixels.shape[0] > 100 and pixels.std() > 0.01
  text = plots.save(figure, tmp_path / "a.svg").read_text()
  assert text == plots.svg(figure)  # The same each time: no date, no salt.
  with pytest.raises(UserError, match="png"):
    plots.save(figure, tmp_path / "a.pdf")


def test_import_is_lazy_and_pyplot_stays_out():
  code = ("import sys; from lm.evals import plots\n"
          "assert 'matplotlib' not in sys.modules\n"
          "plots.png(plots.losses({'a': [{'step': 1, 'loss': 1.0}]}))\n"
          "assert 'matplotlib.pyplot' not in sys.modules\n")
  subprocess.run([sys.executable, "-c", code], check=True)
