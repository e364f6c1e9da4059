"""What is on the figures: points, intervals, scales; and what is refused."""

import io
import subprocess
import sys

import fabricated
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


def test_families_differ_without_colour():
  looks = list(plots.FAMILIES.values())
  assert len({marker for _, marker, _ in looks}) == len(looks)
  assert len({colour for colour, _, _ in looks}) == len(looks)


def test_an_unknown_family_is_drawn_too():
  methods = [dict(m, family="mcts") for m in fabricated.methods()[:2]]
  figure = plots.thinking(methods)
  assert [t.get_text() for t in figure.legends[0].get_texts()] == ["mcts"]


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
