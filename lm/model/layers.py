"""RMSNorm, rotary positions and the SwiGLU block."""

import functools

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from lm import sharding
from lm.model.config import ModelConfig
from lm.model.dot import activation_dtype, compute_dtype, dot

# The residual stream, and what a layer works on.
ACTIVATION = ("batch", "sequence", None)
WHOLE = ("batch", "length", None)


def kernel_init(fan_in: int, scale: float = 1.0):
  """Normal with standard deviation scale / sqrt(fan_in)."""
  return nn.initializers.normal(scale * fan_in ** -0.5)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def rms_norm(x, scale, eps, dtype):
  """RMSNorm (1910.07467) in float32, over the last axis; gives `dtype`."""
  return _rms_norm_forward(x, scale, eps, dtype)[0]


def _rms_norm_forward(x, scale, eps, dtype):
  y = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
  return (y * inverse * scale).astype(dtype), (x, scale, inverse)


def _rms_norm_backward(eps, dtype, saved, g):
  del eps, dtype
  x, scale, inverse = saved
  y, g = x.astype(jnp.float32) * inverse, g.astype(jnp.float32)
  d_scale = jnp.sum(g * y, axis=tuple(range(x.ndim - 1)))
  g = g * scale
  dx = inverse * (g - y * jnp.mean(g * y, axis=-1, keepdims=True))
  return dx.astype(x.dtype), d_scale.astype(scale.dtype)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


class RMSNorm(nn.Module):
  """RMSNorm over D with a learnt scale; gives the compute dtype."""
  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD):
    c = self.config
    scale = self.param("scale", nn.initializers.ones, (c.d_model,))
    return rms_norm(x_BTD, sharding.shard(scale, None), c.norm_eps,
                    compute_dtype(c.dtype))


def rope_table(config: ModelConfig, positions_BT):
  """cos and sin [B, T, H/2], float32, of the rotary angles (2104.09864).

  With `rope_scaling`, wavelengths longer than the original context are
  stretched by `factor`, short ones kept, those between blended (Llama 3.1).
  """
  half = config.head_dim // 2
  freq = config.rope_theta ** -(jnp.arange(half, dtype=jnp.float32) / half)
  if config.rope_scaling is not None:
    factor, low, high, original = config.rope_scaling
    turns = original * freq / (2 * jnp.pi)
    blend = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    freq = freq * (blend + (1 - blend) / factor)
  angle = positions_BT[..., None].astype(jnp.float32) * freq
  table = jnp.cos(angle), jnp.sin(angle)
  if sharding.platform() == "cpu":
    # XLA:CPU would compute both again wherever they are used, but no product
    # (and it drops optimization barriers too early).
    table = tuple(y @ jnp.eye(half) for y in table)
  return table


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rope(x_BTNH, table, dtype):
  """Rotates the halves of the head dimension by the angles of `table`.

  Written as a reversal of an axis of two rather than as a concatenation, which
  a CPU would not vectorise; on a TPU, whose vectors are as long as a head, as a
  product with a signed permutation. The gradient is the inverse rotation.
  """
  b, t, n, h = x_BTNH.shape
  if sharding.platform() != "cpu":
    cos, sin = (jnp.concatenate([y, y], -1)[:, :, None] for y in table)
    swap_HJ = np.eye(h, k=-(h // 2)) - np.eye(h, k=h // 2)
    x_BTNH = x_BTNH.astype(dtype)
    swapped = jnp.einsum("BTNH,JH->BTNJ", x_BTNH, jnp.asarray(swap_HJ, dtype),
                         preferred_element_type=jnp.float32)
    return (x_BTNH * cos + swapped * sin).astype(dtype)
  cos, sin = (y[:, :, None, None, :] for y in table)
  sin = sin * jnp.array([-1.0, 1.0])[:, None]
  x = x_BTNH.astype(jnp.float32).reshape(b, t, n, 2, h // 2)
  y = x * cos + jax.lax.rev(x, (3,)) * sin
  return y.astype(dtype).reshape(b, t, n, h)


def _rope_backward(dtype, saved, g):
  del dtype
  (cos, sin), like = saved
  return rope(g, (cos, -sin), like.dtype), None


rope.defvjp(
    lambda x, table, dtype: (
        rope(x, table, dtype), (table, jnp.zeros((0,), x.dtype))),
    _rope_backward)


class Mlp(nn.Module):
  """SwiGLU: down(silu(gate(x)) * up(x)) (2002.05202)."""
  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD):
    c = self.config
    init = kernel_init(c.d_model)
    gate = self.param("gate", init, (c.d_model, c.d_mlp))
    up = self.param("up", init, (c.d_model, c.d_mlp))
    down = self.param(
        "down", kernel_init(c.d_mlp, (2 * c.num_layers) ** -0.5),
        (c.d_mlp, c.d_model))
    hidden = ("batch", "length", "mlp")
    wide = functools.partial(
        dot, dtype=activation_dtype(c.dtype), ring=c.ring)
    x_BTD = sharding.shard(x_BTD, *WHOLE)
    gate_BTF = wide(x_BTD, gate, layout=(None, "mlp"), out=hidden)
    up_BTF = wide(x_BTD, up, layout=(None, "mlp"), out=hidden)
    gate_BTF = checkpoint_name(gate_BTF, "mlp_gate")
    up_BTF = checkpoint_name(up_BTF, "mlp_up")
    h_BTF = _swiglu(gate_BTF, up_BTF, compute_dtype(c.dtype))
    return wide(h_BTF, down, layout=("mlp", None), out=ACTIVATION)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _swiglu(gate, up, dtype):
  """silu(gate) * up; each direction is one pass, nothing else is saved."""
  gate = gate.astype(jnp.float32)
  return (gate * jax.nn.sigmoid(gate) * up).astype(dtype)


def _swiglu_backward(dtype, saved, g):
  del dtype
  gate, up = saved
  x, g = gate.astype(jnp.float32), g.astype(jnp.float32)
  # Not by `sigmoid`: XLA would keep that of the forward pass for this one, and
  # write it to memory.
  s = 0.5 + 0.5 * jnp.tanh(0.5 * x)
  d_gate = g * up * s * (1 + x * (1 - s))
  return d_gate.astype(gate.dtype), (g * x * s).astype(up.dtype)


_swiglu.defvjp(
    lambda gate, up, dtype: (_swiglu(gate, up, dtype), (gate, up)),
    _swiglu_backward)
