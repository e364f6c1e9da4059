"""Causal grouped-query attention over segments, with or without a cache."""

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from lm import sharding
from lm.model import layers
from lm.model.config import ModelConfig
from lm.model.dot import dot


def make_mask(q_positions_BT, q_segments_BT, k_positions_BS, k_segments_BS,
              window=None):
  """Which keys a query sees: its own segment's, up to its own position.

  Returns:
    bool [B, T, S]. Keys of segment 0 are padding and never seen.
  """
  q, k = q_positions_BT[:, :, None], k_positions_BS[:, None, :]
  seen = (k <= q) & (q_segments_BT[:, :, None] == k_segments_BS[:, None, :])
  seen &= k_segments_BS[:, None, :] > 0
  if window is not None:
    seen &= q - k < window
  return seen


def attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS):
  """Reference attention; softmax in float32. Returns [B, T, N, H]."""
  b, t, n, h = q_BTNH.shape
  kv = k_BSKH.shape[2]
  grouped = ("batch", "length", "kv_heads", None, None)
  q_BTKGH = jax.lax.reshape(
      q_BTNH, (b, t, kv, n // kv, h),
      out_sharding=sharding.out_spec(grouped, (b, t, kv, n // kv, h)))
  scores = jnp.einsum(
      "BTKGH,BSKH->BKGTS", q_BTKGH * h ** -0.5, k_BSKH,
      preferred_element_type=jnp.float32)
  scores = jnp.where(mask_BTS[:, None, None], scores, -1e30)
  probs = jax.nn.softmax(scores, axis=-1).astype(v_BSKH.dtype)
  out = jnp.einsum(
      "BKGTS,BSKH->BTKGH", probs, v_BSKH, preferred_element_type=jnp.float32)
  shape = (b, t, n, h)
  return jax.lax.reshape(
      out.astype(q_BTNH.dtype), shape,
      out_sharding=sharding.out_spec(("batch", "length", "kv_heads", None),
                                     (b, t, kv, h)))


class Attention(nn.Module):
  """Projects, rotates, attends, projects back.

  kv heads that do not divide the tensor axis replicate, and the query heads
  with them (heads of one group stay together).
  """
  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD, *, table, mask_BTS, kv=None, layer=None,
               cursor=None):
    c = self.config
    d, n, k, h = c.d_model, c.num_heads, c.num_kv_heads, c.head_dim
    init = layers.kernel_init(d)
    wq = self.param("q", init, (d, n, h))
    wk = self.param("k", init, (d, k, h))
    wv = self.param("v", init, (d, k, h))
    wo = self.param(
        "o", layers.kernel_init(n * h, (2 * c.num_layers) ** -0.5), (n, h, d))

    group = sharding.spec(("kv_heads",), (k,))[0]  # None: replicated.
    heads = "heads" if group is not None else None
    kv_heads = "kv_heads" if group is not None else None
    q_BTNH = dot(x_BTD, sharding.shard(wq, None, heads, None),
                 out=("batch", "length", heads, None))
    k_BTKH = dot(x_BTD, sharding.shard(wk, None, kv_heads, None),
                 out=("batch", "length", kv_heads, None))
    v_BTKH = dot(x_BTD, sharding.shard(wv, None, kv_heads, None),
                 out=("batch", "length", kv_heads, None))
    if c.qk_norm:
      ones = nn.initializers.ones
      q_scale = self.param("q_norm", ones, (h,))
      k_scale = self.param("k_norm", ones, (h,))
      q_BTNH = layers.rms_norm(q_BTNH, q_scale, c.norm_eps)
      k_BTKH = layers.rms_norm(k_BTKH, k_scale, c.norm_eps)
    q_BTNH = checkpoint_name(layers.rope(q_BTNH, table), "q")
    k_BTKH = checkpoint_name(layers.rope(k_BTKH, table), "k")
    v_BTKH = checkpoint_name(v_BTKH, "v")

    whole = ("batch", None, kv_heads, None)
    if kv is None:
      k_BSKH, v_BSKH = (sharding.shard(y, *whole) for y in (k_BTKH, v_BTKH))
    else:
      start = (layer, 0, cursor, 0, 0)
      kv = tuple(
          jax.lax.dynamic_update_slice(
              full, sharding.shard(new, *whole)[None], start)
          for full, new in zip(kv, (k_BTKH, v_BTKH), strict=True))
      k_BSKH, v_BSKH = (
          jax.lax.dynamic_index_in_dim(full, layer, keepdims=False)
          for full in kv)
    out_BTNH = attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS)
    out_BTD = dot(out_BTNH, sharding.shard(wo, heads, None, None), 2,
                  out=layers.ACTIVATION)
    return out_BTD, kv
