"""Outcome values: will this state end in success?"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm.objectives import common
from lm.objectives.next_token import Apply, LossFn, token_terms
from lm.types import Batch, Output, UserError


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Of the head's probability of success; labels may be probabilities."""
  return jax.nn.softplus(logits) - labels * logits


def squared_error(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Of the head's probability (Brier 1950), as AlphaGo's value (2016)."""
  return jnp.square(jax.nn.sigmoid(logits) - labels)


LOSSES = {"cross_entropy": cross_entropy, "squared_error": squared_error}


def outcome_value(apply: Apply) -> LossFn:
  """Sigmoid cross-entropy of the scalar head against outcome labels.

  The batch carries `extra["values_BT"]` (labels or probabilities in [0, 1])
  and `extra["value_weights_BT"]` (0 where there is no label).
  """
  def loss_fn(params, batch, rng):
    del rng
    loss, metrics = value_terms(apply(params, batch), batch)
    return loss, {"loss": loss, **metrics}
  return loss_fn


def next_token_and_value(
    apply: Apply, *, value_weight: float = 1.0, z_loss: float = 0.0,
    value_loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
) -> LossFn:
  """Both losses from one forward pass: `token + value_weight * value`.

  `loss` among the metrics is that of the tokens alone; see `value_loss`.
  """
  def loss_fn(params, batch, rng):
    del rng
    output = apply(params, batch)
    loss, metrics = token_terms(output, batch, z_loss=z_loss)
    value, value_metrics = value_terms(output, batch, value_loss)
    return loss + value_weight * value, {**metrics, **value_metrics}
  return loss_fn


def value_terms(
    output: Output, batch: Batch, value_loss=cross_entropy
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The value loss and metrics of a forward pass already made."""
  if output.values_BT is None:
    raise UserError("the model has no scalar head: set model.scalar_head=True")
  if "values_BT" not in batch.extra:
    raise UserError("the batch carries no extra['values_BT'] to learn from")
  name = "value_weights_BT"
  logits_BT = output.values_BT.astype(jnp.float32)
  labels_BT = batch.extra["values_BT"].astype(jnp.float32)
  losses_BT = value_loss(logits_BT, labels_BT)
  right_BT = ((logits_BT > 0) == (labels_BT > 0.5)).astype(jnp.float32)
  loss = common.share(batch, losses_BT, name)
  return loss, {
      "value_loss": loss,
      "value_accuracy": common.share(batch, right_BT, name),
      "value_tokens": jnp.sum(common.field(batch, name).astype(jnp.float32)),
  }
