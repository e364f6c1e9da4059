"""Causal grouped-query attention over segments, with or without a cache."""

import functools

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from lm import sharding
from lm.model import layers
from lm.model import splash
from lm.model.config import ModelConfig
from lm.model.dot import activation_dtype, compute_dtype, dot, one_cpu


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


# Queries of a block and most blocks of a row, on a CPU: scores then stay in its
# cache, and those of keys that lie behind the block are never made.
_BLOCK_ROWS, _MOST_BLOCKS = 128, 8


def attend(q_BTNH, k_BKSH, v_BKSH, mask_BTS):
  """Reference attention; softmax in float32.

  Args:
    q_BTNH: queries in the compute dtype, already scaled.
    k_BKSH, v_BKSH: keys and values.
    mask_BTS: bool, which keys a query sees; one that sees none averages
      some. Where T = S, no query may see a key that lies behind it.

  Returns:
    [B, T, N, H] in the compute dtype.
  """
  b, t, n, h = q_BTNH.shape
  kv = k_BKSH.shape[1]
  grouped = ("batch", "length", "kv_heads", None, None)
  shape = (b, t, kv, n // kv, h)
  q_BTKGH = jax.lax.reshape(
      q_BTNH, shape, out_sharding=sharding.out_spec(grouped, shape))
  out_BTKGH = _attend(q_BTKGH, k_BKSH, v_BKSH, mask_BTS)
  return jax.lax.reshape(
      out_BTKGH, (b, t, n, h),
      out_sharding=sharding.out_spec(("batch", "length", "kv_heads", None),
                                     (b, t, kv, h)))


def _scores(q_BTKGH, k_BKSH, mask_BTS):
  scores = jnp.einsum(
      "BTKGH,BKSH->BKGTS", q_BTKGH, k_BKSH,
      preferred_element_type=jnp.float32)
  return jnp.where(mask_BTS[:, None, None], scores, -1e30)


def _exponentials(scores):
  """A softmax before its division: weights, their sums, log-normalisers."""
  top = jnp.max(scores, axis=-1, keepdims=True)
  weights = jnp.exp(scores - top)
  total = jnp.sum(weights, axis=-1)
  return weights, total, top[..., 0] + jnp.log(total)


@jax.custom_vjp
def _attend(q_BTKGH, k_BKSH, v_BKSH, mask_BTS):
  return _attend_forward(q_BTKGH, k_BKSH, v_BKSH, mask_BTS)[0]


def _attend_forward(q_BTKGH, k_BKSH, v_BKSH, mask_BTS):
  out_BTKGH, log_z_BKGT = _blocks(q_BTKGH, k_BKSH, v_BKSH, mask_BTS)
  return out_BTKGH, (q_BTKGH, k_BKSH, v_BKSH, mask_BTS, log_z_BKGT)


def _blocks(q_BTKGH, k_BKSH, v_BKSH, mask_BTS):
  """The output and the log-normaliser [B, K, G, T], in blocks of queries."""
  length = q_BTKGH.shape[1]
  if k_BKSH.shape[2] != length or not one_cpu():
    return _whole(q_BTKGH, k_BKSH, v_BKSH, mask_BTS)
  rows = max(_BLOCK_ROWS, -(-length // _MOST_BLOCKS))
  made = []
  for start in range(0, length, rows):
    end = min(start + rows, length)
    made.append(_block(q_BTKGH[:, start:end], k_BKSH[:, :, :end],
                       v_BKSH[:, :, :end], mask_BTS[:, start:end, :end]))
  outs, log_zs = zip(*made, strict=True)
  return jnp.concatenate(outs, 1), jnp.concatenate(log_zs, 3)


def _block(q_BTKGH, k_BKSH, v_BKSH, mask_BTS):
  """As `_whole`; the queries of a group are rows of one matrix product.

  XLA:CPU refuses other bfloat16 products of small arrays.
  """
  b, t, k, g, h = q_BTKGH.shape
  q_PMH = jnp.transpose(q_BTKGH, (0, 2, 3, 1, 4)).reshape(b * k, g * t, h)
  k_PSH, v_PSH = (y.reshape(b * k, -1, h) for y in (k_BKSH, v_BKSH))
  product = functools.partial(
      jnp.einsum, preferred_element_type=jnp.float32)
  scores = product("PMH,PSH->PMS", q_PMH, k_PSH).reshape(b, k, g, t, -1)
  scores = jnp.where(mask_BTS[:, None, None], scores, -1e30)
  weights, total_BKGT, log_z_BKGT = _exponentials(scores)
  out_PMH = product(
      "PMS,PSH->PMH", weights.reshape(b * k, g * t, -1).astype(v_PSH.dtype),
      v_PSH)
  out = out_PMH.reshape(b, k, g, t, h) / total_BKGT[..., None]
  out_BTKGH = jnp.transpose(out, (0, 3, 1, 2, 4)).astype(q_BTKGH.dtype)
  return out_BTKGH, log_z_BKGT


def _whole(q_BTKGH, k_BKSH, v_BKSH, mask_BTS):
  scores = _scores(q_BTKGH, k_BKSH, mask_BTS)
  weights, total_BKGT, log_z_BKGT = _exponentials(scores)
  out_BTKGH = jnp.einsum(
      "BKGTS,BKSH->BTKGH", weights.astype(v_BKSH.dtype), v_BKSH,
      preferred_element_type=jnp.float32)
  out_BTKGH = out_BTKGH / jnp.moveaxis(total_BKGT, 3, 1)[..., None]
  out_BTKGH = out_BTKGH.astype(q_BTKGH.dtype)
  return out_BTKGH, log_z_BKGT


def _attend_backward(saved, g_BTKGH):
  """FlashAttention's backward pass (2205.14135, appendix B.2): the weights
  are computed again from the log-normaliser instead of being kept."""
  q_BTKGH, k_BKSH, v_BKSH, mask_BTS, log_z_BKGT = saved
  whole = ("batch", "kv_heads", None, None)
  spec = sharding.out_spec(whole, k_BKSH.shape)
  scores = _scores(q_BTKGH, k_BKSH, mask_BTS)
  weights = jnp.exp(scores - log_z_BKGT[..., None])
  g_BTKGH = g_BTKGH.astype(v_BKSH.dtype)
  d_weights = jnp.einsum(
      "BTKGH,BKSH->BKGTS", g_BTKGH, v_BKSH,
      preferred_element_type=jnp.float32)
  delta = jnp.sum(weights * d_weights, axis=-1, keepdims=True)
  d_scores = weights * (d_weights - delta)
  d_scores = d_scores.astype(k_BKSH.dtype)
  d_q = jnp.einsum("BKGTS,BKSH->BTKGH", d_scores, k_BKSH,
                   preferred_element_type=jnp.float32)
  d_k = jnp.einsum("BKGTS,BTKGH->BKSH", d_scores, q_BTKGH,
                   preferred_element_type=jnp.float32, out_sharding=spec)
  d_v = jnp.einsum("BKGTS,BTKGH->BKSH", weights.astype(v_BKSH.dtype), g_BTKGH,
                   preferred_element_type=jnp.float32, out_sharding=spec)
  return (d_q.astype(q_BTKGH.dtype), d_k.astype(k_BKSH.dtype),
          d_v.astype(v_BKSH.dtype), None)


_attend.defvjp(_attend_forward, _attend_backward)


def use_kernel(config: ModelConfig, length: int, *, cached: bool,
               prompt: bool = False) -> bool:
  """Whether rows of `length` attend by the TPU's kernel, or by `attend`.

  Args:
    config: of the model.
    length: of the rows; a prompt has any, the kernel takes some.
    cached: they attend to what a cache holds.
    prompt: they attend to each other, and are written to a cache.
  """
  if config.attention == "auto":
    return (sharding.platform() == "tpu" and not cached
            and splash.supported(length))
  return (config.attention == "splash" and not cached
          and (not prompt or splash.supported(length)))


class Attention(nn.Module):
  """Projects, rotates, attends, projects back.

  kv heads that do not divide the tensor axis replicate, and the query heads
  with them (heads of one group stay together).
  """
  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD, *, table, mask_BTS, segments_BT, kv=None,
               cursor=None):
    """`kv`: this layer's cached keys and values, or None; given back.

    `mask_BTS`: of `make_mask`; None to attend by the kernel (`use_kernel`).
    """
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
    dtype, wide = compute_dtype(c.dtype), activation_dtype(c.dtype)
    x_BTD = sharding.shard(x_BTD, *layers.WHOLE)

    def project(w, names, dtype):
      return dot(x_BTD, w, layout=(None, names, None), dtype=dtype,
                 out=("batch", "length", names, None), ring=c.ring)

    q_BTNH = project(wq, heads, wide)
    k_BTKH = project(wk, kv_heads, wide)
    v_BTKH = project(wv, kv_heads, dtype)
    if c.qkv_bias:
      q_BTNH = self._biased("q_bias", q_BTNH, heads)
      k_BTKH = self._biased("k_bias", k_BTKH, kv_heads)
      v_BTKH = self._biased("v_bias", v_BTKH, kv_heads)
    if c.qk_norm:
      ones = nn.initializers.ones
      q_scale = self.param("q_norm", ones, (h,))
      k_scale = self.param("k_norm", ones, (h,))
      q_BTNH = layers.rms_norm(q_BTNH, q_scale, c.norm_eps, wide)
      k_BTKH = layers.rms_norm(k_BTKH, k_scale, c.norm_eps, wide)
    scaled = tuple(y * h ** -0.5 for y in table)  # Rather than all scores.
    q_BTNH = checkpoint_name(layers.rope(q_BTNH, scaled, dtype), "q")
    k_BTKH = checkpoint_name(layers.rope(k_BTKH, table, dtype), "k")
    v_BTKH = checkpoint_name(v_BTKH, "v")

    k_BKSH, v_BKSH = (jnp.swapaxes(y, 1, 2) for y in (k_BTKH, v_BTKH))
    new = tuple(sharding.shard(y, "batch", kv_heads, None, None)
                for y in (k_BKSH, v_BKSH))
    if kv is not None:
      kv = tuple(
          jax.lax.dynamic_update_slice(
              old, y.astype(old.dtype), (0, 0, cursor, 0))
          for old, y in zip(kv, new, strict=True))
    if mask_BTS is None:
      out_BTNH = splash.attend(q_BTNH, k_BKSH, v_BKSH, segments_BT,
                               segments_BT, window=c.window)
    elif kv is None or mask_BTS.shape[1] == mask_BTS.shape[2]:
      out_BTNH = attend(q_BTNH, *new, mask_BTS)  # Among themselves.
    else:
      out_BTNH = attend(q_BTNH, *kv, mask_BTS)
    return self._out(out_BTNH, wo, heads), kv

  def _biased(self, name, x_BTNH, heads):
    """Adds a bias of each head, in float32; gives the dtype of `x_BTNH`."""
    bias_NH = self.param(name, nn.initializers.zeros, x_BTNH.shape[2:])
    bias_NH = sharding.shard(bias_NH, heads, None)  # As the heads lie.
    return (x_BTNH + bias_NH.astype(jnp.float32)).astype(x_BTNH.dtype)

  def _out(self, x_BTNH, wo, heads):
    c = self.config
    return dot(x_BTNH, wo, 2, layout=(heads, None, None), ring=c.ring,
               out=layers.ACTIVATION, dtype=activation_dtype(c.dtype))
