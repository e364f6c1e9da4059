"""The two tables of a transformer: embeddings in, logits out."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lm import sharding
from lm.model import layers
from lm.model.config import ModelConfig
from lm.model.dot import activation_dtype, sum_gradient


class Table(nn.Module):
  """The embedding table [V, D]; scaled so that activations start at 1."""
  config: ModelConfig

  def setup(self):
    c = self.config
    self.table = self.param(
        "table", nn.initializers.normal(c.d_model ** -0.5 if c.tied else 1.0),
        (c.padded_vocab, c.d_model))

  def __call__(self, tokens_BT):
    c = self.config
    return _look_up(self.table, tokens_BT, activation_dtype(c.dtype), c.ring)

  def kernel(self):
    return self.table.T


class Head(nn.Module):
  """The untied LM head [D, V]."""
  config: ModelConfig

  def setup(self):
    c = self.config
    self.w = self.param("kernel", layers.kernel_init(c.d_model),
                        (c.d_model, c.padded_vocab))

  def kernel(self):
    return self.w


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _look_up(table_VD, tokens_BT, dtype, ring):
  """Rows of the table, [B, T, D] in `dtype`, laid out as the residual stream.

  The gradient adds up in float32 on each device and is then summed over them
  onto the table's layout, as those of the other kernels are.
  """
  del ring
  # Gathering from a table sharded over D makes XLA rematerialise it.
  table = sharding.shard(table_VD.astype(dtype), "vocab", None)
  shape = (*tokens_BT.shape, table.shape[-1])
  out = sharding.out_spec(layers.ACTIVATION, shape)
  axis = out and jax.typeof(table).sharding.spec[0]
  if not axis:
    return table.at[tokens_BT].get(out_sharding=out, mode="clip")
  tokens_BT = sharding.shard(tokens_BT, *layers.WHOLE[:2])
  rows = jax.typeof(tokens_BT).sharding.spec

  def local(table, tokens):
    """Each row is on one device of `axis`; the others add zeros."""
    tokens = tokens - jax.lax.axis_index(axis) * table.shape[0]
    found = table.at[tokens].get(mode="fill", fill_value=0,
                                 wrap_negative_indices=False)
    if out[1] == rows[1]:
      return jax.lax.psum(found, axis)
    return jax.lax.psum_scatter(found, axis, scatter_dimension=1, tiled=True)

  return jax.shard_map(local, in_specs=(P(axis, None), rows), out_specs=out,
                       check_vma=False)(table, tokens_BT)


def _forward(table_VD, tokens_BT, dtype, ring):
  return _look_up(table_VD, tokens_BT, dtype, ring), (table_VD, tokens_BT)


def _backward(dtype, ring, saved, g_BTD):
  table_VD, tokens_BT = saved
  if jax.sharding.get_abstract_mesh().empty:
    d = jnp.zeros(table_VD.shape, jnp.float32).at[tokens_BT].add(g_BTD)
    return d.astype(table_VD.dtype), None
  g_BTD = sharding.shard(g_BTD, *layers.WHOLE)
  layout = jax.typeof(table_VD).sharding.spec
  rows = jax.typeof(g_BTD).sharding.spec[:2]
  if jax.typeof(tokens_BT).sharding.spec[:2] != rows:  # Nobody placed them.
    tokens_BT = sharding.shard(tokens_BT, *layers.WHOLE[:2])

  def local(tokens, g):
    size = table_VD.shape[0]
    if layout[0] is not None:  # This device's part of the vocabulary.
      size //= jax.lax.axis_size(layout[0])
      tokens = tokens - jax.lax.axis_index(layout[0]) * size
      tokens = jnp.where(tokens < 0, size, tokens)  # Dropped, not from the end.
    d = jnp.zeros((size, table_VD.shape[1]), jnp.float32)
    d = d.at[tokens].add(g.astype(jnp.float32), mode="drop")
    return sum_gradient(d, rows, (layout[0], None), layout, dtype=dtype,
                        ring=ring)

  d_VD = jax.shard_map(local, in_specs=(P(*rows), P(*rows, None)),
                       out_specs=layout, check_vma=False)(tokens_BT, g_BTD)
  return d_VD.astype(table_VD.dtype), None


_look_up.defvjp(_forward, _backward)
