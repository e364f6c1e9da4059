"""How good are predicted probabilities of success, and how well calibrated?"""

from collections.abc import Callable, Sequence

import jax
from jax.experimental import multihost_utils
import numpy as np

from lm.train import shard_batch
from lm.types import Batch, Output, Params, UserError


def pairs(
    apply: Callable[[Params, Batch], Output], batches: Sequence[Batch]
) -> Callable[[Params], tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """What the scalar head predicts of held-out outcomes, and what they were.

  Args:
    apply: one forward pass.
    batches: with `extra["values_BT"]` and `["value_weights_BT"]`; each process
      gives its own rows.

  Returns:
    `params -> (predicted, labels, lines)`, each [n] over all labels:
    probabilities of success, the outcomes of 0 and 1, and the label's number
    within its example, from 1. The first two are what `scores` and
    `plots.reliability` take.

  Raises:
    UserError: when called, if no batch has a label.
  """
  predict = jax.jit(lambda params, batch: apply(params, batch).values_BT)

  def gather(params):
    logits, labels, lines = [], [], []
    for batch in batches:
      outputs_BT = _whole(predict(params, shard_batch(batch)))
      mask_BT = _whole(batch.extra["value_weights_BT"]) > 0
      logits.append(outputs_BT[mask_BT])
      labels.append(_whole(batch.extra["values_BT"])[mask_BT])
      lines.append(_whole(line_numbers(batch))[mask_BT])
    if not labels or not sum(map(len, labels)):
      raise UserError("the held-out data has no outcome to predict: draw more"
                      " games, or hold out a larger share")
    logits, labels, lines = map(np.concatenate, (logits, labels, lines))
    return 1 / (1 + np.exp(-logits.astype(np.float64))), labels, lines

  return gather


def values(
    apply: Callable[[Params, Batch], Output], batches: Sequence[Batch]
) -> Callable[[Params], dict[str, float]]:
  """An evaluation of the scalar head on held-out outcomes.

  Args:
    apply: one forward pass.
    batches: as of `pairs`.

  Returns:
    `params -> {name: number}`: those of `scores`, for all labels and, as
    `accuracy_line1` etc., the accuracy on the 1st, 2nd, ... label of each
    example, since late ones are easier.
  """
  gather = pairs(apply, batches)

  def evaluate(params):
    predicted, labels, lines = gather(params)
    found = scores(predicted, labels)
    right = (predicted > 0.5) == (labels > 0.5)
    for line in range(1, int(lines.max()) + 1):
      found[f"accuracy_line{line}"] = float(right[lines == line].mean())
    return found

  return evaluate


def _whole(x: jax.typing.ArrayLike) -> np.ndarray:
  """The rows of all processes."""
  if jax.process_count() > 1:
    x = multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(x)


def scores(
    predicted: np.ndarray, labels: np.ndarray, *, bins: int = 10
) -> dict[str, float]:
  """Accuracy at 0.5, Brier score, calibration error and the share of successes.

  Args:
    predicted: [n] probabilities.
    labels: [n] of 0 and 1.
    bins: of equal width, for the expected calibration error (Naeini et al.
      2015; Guo et al. 2017, 1706.04599, equation 3).
  """
  predicted, labels = np.asarray(predicted), np.asarray(labels)
  count, predicted_sum, label_sum = binned(predicted, labels, bins=bins)
  return {
      "accuracy": float(((predicted > 0.5) == (labels > 0.5)).mean()),
      "brier": float(np.square(predicted - labels).mean()),
      "calibration_error": float(
          np.abs(predicted_sum - label_sum).sum() / count.sum()),
      "success_share": float(labels.mean()),
  }


def binned(
    predicted: np.ndarray, labels: np.ndarray, *, bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """([bins] count, sum of the predicted, sum of the labels) by predicted."""
  where = np.minimum((np.asarray(predicted) * bins).astype(int), bins - 1)
  return tuple(np.bincount(where, weights, minlength=bins)
               for weights in (None, predicted, labels))


def line_numbers(batch: Batch) -> np.ndarray:
  """[B, T], at each label its number within its example, from 1."""
  labelled = np.asarray(batch.extra["value_weights_BT"]) > 0
  segments = np.asarray(batch.segments_BT)
  count = np.cumsum(labelled, axis=1)
  starts = np.diff(segments, axis=1, prepend=-1) != 0
  before = np.maximum.accumulate(
      np.where(starts, count - labelled, 0), axis=1)
  return count - before
