"""RMSNorm, rotary positions and the SwiGLU block."""

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from lm import sharding
from lm.model.config import ModelConfig
from lm.model.dot import dot

ACTIVATION = ("batch", "length", None)


def kernel_init(fan_in: int, scale: float = 1.0):
  """Normal with standard deviation scale / sqrt(fan_in)."""
  return nn.initializers.normal(scale * fan_in ** -0.5)


def rms_norm(x, scale, eps):
  """RMSNorm (1910.07467) in float32, over the last axis."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
  return (y * scale).astype(x.dtype)


class RMSNorm(nn.Module):
  """RMSNorm over D with a learnt scale."""
  eps: float

  @nn.compact
  def __call__(self, x_BTD):
    scale = self.param("scale", nn.initializers.ones, (x_BTD.shape[-1],))
    return rms_norm(x_BTD, sharding.shard(scale, None), self.eps)


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
  return jnp.cos(angle), jnp.sin(angle)


def rope(x_BTNH, table):
  """Rotates the halves of the head dimension by the angles of `table`."""
  cos, sin = (t[:, :, None, :] for t in table)
  a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return rotated.astype(x_BTNH.dtype)


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
    gate_BTF = dot(x_BTD, sharding.shard(gate, None, "mlp"), out=hidden)
    up_BTF = dot(x_BTD, sharding.shard(up, None, "mlp"), out=hidden)
    gate_BTF = checkpoint_name(gate_BTF, "mlp_gate")
    up_BTF = checkpoint_name(up_BTF, "mlp_up")
    h_BTF = jax.nn.silu(gate_BTF.astype(jnp.float32)) * up_BTF
    return dot(h_BTF.astype(x_BTD.dtype), sharding.shard(down, "mlp", None),
               out=ACTIVATION)
