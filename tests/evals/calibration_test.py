"""Scores of predicted probabilities, against numbers worked out by hand."""

from lm.evals import calibration
from lm.types import Batch, Output, UserError
import numpy as np
import pytest


def test_scores_of_a_hand_table():
  found = calibration.scores(
      np.array([0.9, 0.95, 0.2, 0.45]), np.array([1.0, 0.0, 0.0, 1.0]))
  assert found["accuracy"] == 0.5
  assert found["success_share"] == 0.5
  assert found["brier"] == pytest.approx(
      (0.1**2 + 0.95**2 + 0.2**2 + 0.55**2) / 4)
  # Bins: {0.9, 0.95} mean 0.925 against 0.5; {0.2} against 0; {0.45}
  # against 1.
  assert found["calibration_error"] == pytest.approx(
      (2 * 0.425 + 0.2 + 0.55) / 4)


def test_certain_and_right_is_perfect_and_wrong_is_worst():
  labels = np.array([1.0, 0.0, 1.0])
  good = calibration.scores(labels, labels)
  bad = calibration.scores(1 - labels, labels)
  assert (good["accuracy"], good["brier"], good["calibration_error"]) == (
      1, 0, 0)
  assert (bad["accuracy"], bad["brier"], bad["calibration_error"]) == (0, 1, 1)


def batch() -> Batch:
  """Two examples in the first row, one in the second; 3 + 1 + 2 labels."""
  segments = np.array([[1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 0, 0]], np.int32)
  weights = np.array([[0, 1, 1, 1, 0, 1], [0, 1, 0, 1, 0, 0]], np.float32)
  values = np.array([[0, 1, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0]], np.float32)
  zero = np.zeros_like(segments)
  return Batch(zero, zero, weights, segments, zero,
               extra={"values_BT": values, "value_weights_BT": weights})


def test_lines_are_numbered_within_their_example():
  one = batch()
  lines = calibration.line_numbers(one)
  assert lines[one.extra["value_weights_BT"] > 0].tolist() == [
      1, 2, 3, 1, 1, 2]


def test_only_labelled_positions_count():
  one = batch()
  # Right at every label but the first row's second; absurd elsewhere.
  sign = np.where(one.extra["values_BT"] > 0, 1.0, -1.0)
  sign[0, 2] *= -1
  logits = np.where(one.extra["value_weights_BT"] > 0, 30 * sign, 99.0)
  evaluate = calibration.values(
      lambda params, batch: Output(None, None, params["logits"]), [one])
  found = evaluate({"logits": logits})
  assert found["accuracy"] == pytest.approx(5 / 6)
  assert found["accuracy_line1"] == 1
  assert found["accuracy_line2"] == 0.5
  assert found["accuracy_line3"] == 1
  assert found["success_share"] == pytest.approx(4 / 6)


def test_pairs_are_the_labelled_positions_in_order():
  one = batch()
  logits = np.where(one.extra["value_weights_BT"] > 0,
                    np.arange(12.0).reshape(2, 6) - 5, 99.0)
  gather = calibration.pairs(
      lambda params, batch: Output(None, None, params["logits"]), [one, one])
  predicted, labels, lines = gather({"logits": logits})
  assert predicted == pytest.approx(2 * [
      1 / (1 + np.exp(-x)) for x in (-4.0, -3.0, -2.0, 0.0, 2.0, 4.0)])
  assert labels.tolist() == 2 * [1, 1, 0, 1, 0, 1]
  assert lines.tolist() == 2 * [1, 2, 3, 1, 1, 2]


def test_bins_of_a_hand_table():
  count, predicted, labels = calibration.binned(
      np.array([0.0, 0.24, 0.25, 0.6, 1.0]), np.array([0, 1, 1, 0, 1]), bins=4)
  assert count.tolist() == [2, 1, 1, 1]  # 1.0 belongs to the last.
  assert predicted == pytest.approx([0.24, 0.25, 0.6, 1.0])
  assert labels.tolist() == [1, 1, 0, 1]


def test_nothing_to_predict_is_an_error():
  with pytest.raises(UserError, match="no outcome"):
    calibration.values(lambda params, batch: None, [])({})
