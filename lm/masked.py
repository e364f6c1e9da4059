"""Masked statistics and the float32 cross-entropy, safe on sharded logits."""

import jax
import jax.numpy as jnp

from lm.types import Output


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


def target_log_probs(output: Output, targets_BT: jax.Array):
  """`token_log_probs` of a forward pass, which may have made them already."""
  if output.log_probs_BT is not None:
    return output.log_probs_BT, output.log_z_BT
  return token_log_probs(output.logits_BTV, targets_BT)


def _hits(logits_BTV, targets_BT):
  """One-hot targets: a gather from sharded logits would be refused."""
  ids = jnp.arange(logits_BTV.shape[-1], dtype=jnp.int32)
  if not jax.sharding.get_abstract_mesh().empty:
    vocab = jax.typeof(logits_BTV).sharding.spec[-1]
    ids = jax.sharding.reshard(ids, jax.sharding.PartitionSpec(vocab))
  return targets_BT[..., None] == ids


@jax.custom_vjp
def token_log_probs(logits_BTV: jax.Array, targets_BT: jax.Array):
  """Log-probability of each target and the log-normaliser, both float32 [B, T].

  The backward pass is one fused pass over the logits: softmax less one-hot.
  """
  logits_BTV = logits_BTV.astype(jnp.float32)
  log_z_BT = logsumexp(logits_BTV)
  hits = _hits(logits_BTV, targets_BT)
  picked_BT = jnp.sum(jnp.where(hits, logits_BTV, 0.0), axis=-1)
  return picked_BT - log_z_BT, log_z_BT


def _forward(logits_BTV, targets_BT):
  out = token_log_probs(logits_BTV, targets_BT)
  return out, (logits_BTV, targets_BT, out[1])


def _backward(saved, grads):
  logits_BTV, targets_BT, log_z_BT = saved
  g_BT, g_z_BT = grads
  probs = jnp.exp(logits_BTV.astype(jnp.float32) - log_z_BT[..., None])
  hits = _hits(logits_BTV, targets_BT)
  d = probs * (g_z_BT - g_BT)[..., None] + jnp.where(hits, g_BT[..., None], 0.0)
  return d.astype(logits_BTV.dtype), None


token_log_probs.defvjp(_forward, _backward)
