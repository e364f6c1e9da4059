"""Held-out loss in bits per byte, comparable between vocabularies."""

from collections.abc import Callable, Iterable
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import masked
from lm.train.step import shard_batch
from lm.types import Batch, Output, Params, UserError


def bits_per_byte(
    apply: Callable[[Params, Batch], Output],
    batches: Callable[[], Iterable[Batch]] | Iterable[Batch],
    bytes_V: np.ndarray,
) -> Callable[[Params], dict[str, float]]:
  """An evaluation of held-out text, for the `Evaluate` hook.

  Args:
    apply: one forward pass.
    batches: held-out batches, or a function that yields them anew each time.
    bytes_V: how many bytes of text each token stands for (`token_bytes`).

  Returns:
    `params -> {"bits_per_byte", "loss"}`; the loss in nats per token. Both
    count the targets with positive weight.
  """
  table_V = np.asarray(bytes_V, np.float32)

  @jax.jit
  def one(params, batch, bytes_BT):
    log_probs_BT, _ = masked.target_log_probs(
        apply(params, batch), batch.targets_BT)
    mask_BT = (batch.weights_BT > 0).astype(jnp.float32)
    return jnp.stack([-jnp.sum(log_probs_BT * mask_BT), jnp.sum(mask_BT),
                      jnp.sum(bytes_BT * mask_BT)])

  def evaluate(params):
    sums = []
    for batch in batches() if callable(batches) else batches:
      bytes_BT = table_V[np.asarray(batch.targets_BT)]
      batch = batch.replace(extra={**batch.extra, "bytes_BT": bytes_BT})
      batch = shard_batch(batch)
      sums.append(one(params, batch, batch.extra["bytes_BT"]))
    if not sums:
      raise UserError("the held-out data is empty: give more of it")
    nats, tokens, size = np.sum(jax.device_get(sums), axis=0, dtype=np.float64)
    if not tokens or not size:
      raise UserError("the held-out data holds no text to predict")
    return {"bits_per_byte": nats / math.log(2) / size, "loss": nats / tokens}

  return evaluate


def token_bytes(vocab: Any) -> np.ndarray:
  """Bytes of text that each token of a vocabulary stands for, float32 [V].

  Special tokens stand for none: they mark the text and are no part of it.

  Args:
    vocab: of `lm.data.vocab`.
  """
  sizes = [0 if i in vocab.special_ids else len(vocab.token_bytes(i))
           for i in range(vocab.size)]
  return np.asarray(sizes, np.float32)
