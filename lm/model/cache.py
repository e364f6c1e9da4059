"""The key/value cache: an immutable struct of slots.

All rows write to the same slots, from `cursor` on, whatever their length: a
slot carries its own position and whether it holds a token at all. So ragged
prompts, rows that stopped early and forked branches need no per-row scatter,
and the attention mask is the one of training (segments and positions).
"""

from flax import struct
import jax
import jax.numpy as jnp

from lm import sharding
from lm.model.config import ModelConfig
from lm.model.dot import compute_dtype

_KV = (None, "batch", None, "kv_heads", None)


@struct.dataclass
class Cache:
  """Keys and values of all layers, S slots per row.

  Attributes:
    k_LBSKH: keys, rotated, in the compute dtype.
    v_LBSKH: values.
    positions_BS: int32 position of the token in each slot.
    segments_BS: int32, 1 where the slot holds a token, 0 where it is empty.
    cursor: int32 scalar, the next slot to write.
  """

  k_LBSKH: jax.Array
  v_LBSKH: jax.Array
  positions_BS: jax.Array
  segments_BS: jax.Array
  cursor: jax.Array

  @property
  def slots(self) -> int:
    return self.k_LBSKH.shape[2]


def empty(config: ModelConfig, batch: int, slots: int) -> Cache:
  """A cache of `slots` empty slots for `batch` rows."""
  shape = (config.num_layers, batch, slots, config.num_kv_heads,
           config.head_dim)
  dtype = compute_dtype(config.dtype)
  zeros = lambda: sharding.shard(jnp.zeros(shape, dtype), *_KV)
  ints = lambda: sharding.shard(
      jnp.zeros((batch, slots), jnp.int32), "batch", None)
  return Cache(zeros(), zeros(), ints(), ints(), jnp.zeros((), jnp.int32))


def fork(cache: Cache, rows: jax.Array) -> Cache:
  """The cache whose row i is the old row `rows[i]` ([B'] int32)."""
  def take(x, axis):
    names = _KV if x.ndim == 5 else ("batch", None)
    shape = x.shape[:axis] + rows.shape + x.shape[axis + 1:]
    index = (slice(None),) * axis + (rows,)
    return x.at[index].get(
        out_sharding=sharding.out_spec(names, shape), mode="clip")
  return cache.replace(
      k_LBSKH=take(cache.k_LBSKH, 1), v_LBSKH=take(cache.v_LBSKH, 1),
      positions_BS=take(cache.positions_BS, 0),
      segments_BS=take(cache.segments_BS, 0),
  )


def resize(cache: Cache, slots: int) -> Cache:
  """The cache with more slots (or fewer: those past the cursor are dropped)."""
  def one(x, axis):
    if slots <= x.shape[axis]:
      return jax.lax.slice_in_dim(x, 0, slots, axis=axis)
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, slots - x.shape[axis])
    return jnp.pad(x, pad)
  return cache.replace(
      k_LBSKH=one(cache.k_LBSKH, 2), v_LBSKH=one(cache.v_LBSKH, 2),
      positions_BS=one(cache.positions_BS, 1),
      segments_BS=one(cache.segments_BS, 1),
  )
