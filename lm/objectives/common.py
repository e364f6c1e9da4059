"""Weighted means that add up over microbatches.

Every loss and metric is a *share*: a weighted sum over the rows at hand,
divided by the total weight of the whole batch. When a step splits its batch it
puts those totals into `batch.extra["totals"]`; losses, metrics and gradients
of the microbatches then simply add up to those of the full batch.
"""

import jax
import jax.numpy as jnp

from lm.types import Batch


def field(batch: Batch, name: str) -> jax.Array:
  """The batch's field `name`, of its own or of `extra`."""
  own = getattr(batch, name, None)
  return batch.extra[name] if own is None else own


def totals(batch: Batch) -> dict[str, jax.Array]:
  """The summed weight of each field named `*weights_BT` (or `*weights_B`)."""
  names = ["weights_BT", *batch.extra]
  return {name: jnp.sum(field(batch, name).astype(jnp.float32))
          for name in names if name.endswith(("weights_BT", "weights_B"))}


def total(batch: Batch, name: str = "weights_BT") -> jax.Array:
  """Total weight over the whole batch that these rows are a part of."""
  known = batch.extra.get("totals", {})
  if name in known:
    return known[name]
  return jnp.sum(field(batch, name).astype(jnp.float32))


def share(
    batch: Batch, values: jax.Array, name: str = "weights_BT"
) -> jax.Array:
  """These rows' part of the weighted mean of `values` over the whole batch.

  Args:
    batch: the rows.
    values: float32, shaped like the weights.
    name: the weights' field; it must end in `weights_BT` or `weights_B`.
  """
  weights = field(batch, name).astype(jnp.float32)
  return jnp.sum(weights * values) / jnp.maximum(total(batch, name), 1e-8)
