"""The key/value cache: an immutable struct of slots.

All rows write to the same slots, from `cursor` on, whatever their length: a
slot carries its own position and whether it holds a token at all. So ragged
prompts, rows that stopped early and forked branches need no per-row scatter,
and the attention mask is the one of training (segments and positions).

Each layer has arrays of its own, with the slots next to last: a step then
writes in place and attends without a transpose.
"""

from flax import struct
import jax
import jax.numpy as jnp

from lm import sharding
from lm.model.config import ModelConfig
from lm.model.dot import activation_dtype

_KV = ("batch", "kv_heads", None, None)


@struct.dataclass
class Cache:
  """Keys and values of all layers, S slots per row.

  Attributes:
    k_BKSH: for each layer, rotated keys (values of the compute dtype).
    v_BKSH: for each layer, values.
    positions_BS: int32 position of the token in each slot.
    segments_BS: int32, 1 where the slot holds a token, 0 where it is empty.
    cursor: int32 scalar, the next slot to write.
  """

  k_BKSH: tuple[jax.Array, ...]
  v_BKSH: tuple[jax.Array, ...]
  positions_BS: jax.Array
  segments_BS: jax.Array
  cursor: jax.Array

  @property
  def slots(self) -> int:
    return self.positions_BS.shape[1]


def empty(config: ModelConfig, batch: int, slots: int) -> Cache:
  """A cache of `slots` empty slots for `batch` rows."""
  shape = (batch, config.num_kv_heads, slots, config.head_dim)
  dtype = activation_dtype(config.dtype)
  layers = lambda: tuple(
      sharding.shard(jnp.zeros(shape, dtype), *_KV)
      for _ in range(config.num_layers))
  ints = lambda: sharding.shard(
      jnp.zeros((batch, slots), jnp.int32), "batch", None)
  return Cache(layers(), layers(), ints(), ints(), jnp.zeros((), jnp.int32))


def _map(cache: Cache, function) -> Cache:
  """`function(array, axis of the slots)` over all arrays."""
  every = lambda xs: tuple(function(x, 2) for x in xs)
  return cache.replace(
      k_BKSH=every(cache.k_BKSH), v_BKSH=every(cache.v_BKSH),
      positions_BS=function(cache.positions_BS, 1),
      segments_BS=function(cache.segments_BS, 1))


def fork(cache: Cache, rows: jax.Array) -> Cache:
  """The cache whose row i is the old row `rows[i]` ([B'] int32)."""
  def take(x, axis):
    names = _KV if axis == 2 else ("batch", None)
    return x.at[rows].get(
        mode="clip",
        out_sharding=sharding.out_spec(names, rows.shape + x.shape[1:]))
  return _map(cache, take)


def resize(cache: Cache, slots: int) -> Cache:
  """The cache with more slots (or fewer: those past the cursor are dropped)."""
  def one(x, axis):
    if slots <= x.shape[axis]:
      return jax.lax.slice_in_dim(x, 0, slots, axis=axis)
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, slots - x.shape[axis])
    return jnp.pad(x, pad)
  return _map(cache, one)
