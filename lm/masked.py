"""Masked statistics and the float32 cross-entropy, safe on sharded logits."""

import jax
import jax.numpy as jnp

from lm import sharding


def mean(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean of `x` where `mask` (any weights of the same shape) is positive."""
  mask = mask.astype(jnp.float32)
  return jnp.sum(x * mask) / jnp.maximum(jnp.sum(mask), 1e-8)


def std(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Standard deviation of `x` under `mask`."""
  return jnp.sqrt(mean(jnp.square(x - mean(x, mask)), mask))


def logsumexp(logits: jax.Array) -> jax.Array:
  """logsumexp over the last axis in float32, also when it is sharded."""
  logits = logits.astype(jnp.float32)
  top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  return jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1)) + top[..., 0]


def token_log_probs(logits_BTV: jax.Array, targets_BT: jax.Array):
  """Log-probability of each target and the log-normaliser, both float32 [B, T].

  A gather from vocabulary-sharded logits is refused by explicit meshes; a
  one-hot contraction fuses into the same pass and needs none.
  """
  logits_BTV = logits_BTV.astype(jnp.float32)
  log_z_BT = logsumexp(logits_BTV)
  vocab = jnp.arange(logits_BTV.shape[-1], dtype=jnp.int32)
  vocab = sharding.shard(vocab, "vocab")
  hit = targets_BT[..., None] == vocab
  picked_BT = jnp.sum(jnp.where(hit, logits_BTV, 0.0), axis=-1)
  return picked_BT - log_z_BT, log_z_BT
