"""How good are predicted probabilities of success, and how well calibrated?"""

from collections.abc import Callable, Sequence

import jax
from jax.experimental import multihost_utils
import numpy as np

from lm.train import shard_batch
from lm.types import Batch, Output, Params, UserError


def values(
    apply: Callable[[Params, Batch], Output], batches: Sequence[Batch]
) -> Callable[[Params], dict[str, float]]:
  """An evaluation of the scalar head on held-out outcomes.

  Args:
    apply: one forward pass.
    batches: with `extra["values_BT"]` and `["value_weights_BT"]`; each process
      gives its own rows.

  Returns:
    `params -> {name: number}`: those of `scores`, for all labels and, as
    `accuracy_line1` etc., the accuracy on the 1st, 2nd, ... label of each
    example, since late ones are easier.
  """
  predict = jax.jit(lambda params, batch: apply(params, batch).values_BT)

  def evaluate(params):
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
    found = scores(1 / (1 + np.exp(-logits.astype(np.float64))), labels)
    right = (logits > 0) == (labels > 0.5)
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
  where = np.minimum((predicted * bins).astype(int), bins - 1)
  gap = np.bincount(where, predicted - labels, minlength=bins)
  return {
      "accuracy": float(((predicted > 0.5) == (labels > 0.5)).mean()),
      "brier": float(np.square(predicted - labels).mean()),
      "calibration_error": float(np.abs(gap).sum() / len(labels)),
      "success_share": float(labels.mean()),
  }


def line_numbers(batch: Batch) -> np.ndarray:
  """[B, T], at each label its number within its example, from 1."""
  labelled = np.asarray(batch.extra["value_weights_BT"]) > 0
  segments = np.asarray(batch.segments_BT)
  count = np.cumsum(labelled, axis=1)
  starts = np.diff(segments, axis=1, prepend=-1) != 0
  before = np.maximum.accumulate(
      np.where(starts, count - labelled, 0), axis=1)
  return count - before
