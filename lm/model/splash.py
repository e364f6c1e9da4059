"""Causal attention by the TPU's splash kernels, for training and prefill.

The kernels never write the scores to memory, skip the blocks that lie above
the diagonal or outside of the window (not those between two segments), and
compute the weights again in the backward pass. What they save for that, output
and log-normaliser, is named "attention": a rematerialisation policy that saves
"q", "k", "v" and "attention" runs the forward kernel once.
"""

import functools
import math

import jax
from jax.experimental.pallas.ops.tpu import splash_attention as splash
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np

from lm import sharding
from lm.types import UserError

LANES = 128  # The kernels want blocks in multiples of the vector's width.


def attend(q_BTNH, k_BKSH, v_BKSH, segments_BT, segments_BS, *,
           window: int | None = None, interpret: bool = False):
  """Causal grouped-query attention inside segments, without a cache.

  Over a context axis each shard computes the rows of its queries against all
  keys, which are gathered. Later rows see more keys, so the shards first
  exchange half of their rows (`row_order`), and the outputs back: all then do
  equal work, where else the last would do 2 - 1 / shards times the mean.

  Args:
    q_BTNH: queries, already scaled, of any head size; below 128 they cost what
      128 costs.
    k_BKSH, v_BKSH: keys and values of the same rows (S = T), best sharded by
      length over context; whole ones are cut and gathered again.
    segments_BT, segments_BS: int32, the segment of each query and key, whose
      positions rise from row to row. Padding (0) sees padding.
    window: how many keys a query sees, itself included; by default all.
    interpret: run on any backend, slowly.

  Returns:
    [B, T, N, H] in the dtype of the queries.

  Raises:
    UserError: a length that is not `supported`.
  """
  _, t, _, h = q_BTNH.shape
  if not supported(t):
    raise UserError(
        f"the attention kernel takes multiples of {_multiple(t)} tokens, not"
        f" {t}: change the length, or use the reference attention")
  axis, shards = _context(t)
  kernel = make_kernel(t, h * q_BTNH.dtype.itemsize, shards=shards,
                       window=window, interpret=interpret)
  local = functools.partial(_local, axis=axis)
  args = (jnp.swapaxes(q_BTNH, 1, 2), k_BKSH, v_BKSH, segments_BT,
          segments_BS)
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty:
    # Heads of one group stay together, as in `Attention`.
    group = sharding.spec(("kv_heads",), (k_BKSH.shape[1],))[0]
    heads, kv_heads = ("heads", "kv_heads") if group else (None, None)
    keys = ("batch", kv_heads, "length", None)
    names = (("batch", heads, "length", None), keys, keys, ("batch", "length"),
             ("batch", None))
    specs = tuple(map(sharding.spec, names, (x.shape for x in args)))
    kernel_specs = kernel.manual_sharding_spec(
        NamedSharding(mesh, P(None, axis)))
    kernel, *args = jax.sharding.reshard(
        (kernel, *args), (kernel_specs, *specs))
    local = jax.shard_map(local, in_specs=(kernel_specs, *specs),
                          out_specs=specs[0], check_vma=False)
  return jnp.swapaxes(local(kernel, *args), 1, 2)


def _local(kernel, q_BNTH, k_BKSH, v_BKSH, segments_BT, segments_BS, *, axis):
  """What one device computes, with its part of `kernel`'s mask."""
  if axis:
    k_BKSH, v_BKSH = (jax.lax.all_gather(x, axis, axis=2, tiled=True)
                      for x in (k_BKSH, v_BKSH))
  q_BNTH = _exchange(q_BNTH, 2, axis)
  segments = splash.SegmentIds(_exchange(segments_BT, 1, axis), segments_BS)
  b, n, t, h = q_BNTH.shape
  q_BKGTH = q_BNTH.reshape(b, k_BKSH.shape[1], -1, t, h)
  # Mapped over kv heads rather than one kernel for all: mapped dimensions may
  # run on both cores of a chip (v4, v5p), the backward kernels' own may not.
  grouped = jax.vmap(kernel, (0, 0, 0, None))
  out_BKGTH = jax.vmap(grouped)(q_BKGTH, k_BKSH, v_BKSH, segments)
  return _exchange(out_BKGTH.reshape(b, n, t, h), 2, axis)


def _exchange(x, dim, axis):
  """Swaps the later half of a shard's rows with its mirror; undoes itself."""
  if axis is None:
    return x
  last = jax.lax.axis_size(axis) - 1
  early, late = jnp.split(x, 2, dim)
  late = jax.lax.ppermute(late, axis, [(i, last - i) for i in range(last + 1)])
  return jnp.concatenate([early, late], dim)


def row_order(length: int, shards: int) -> np.ndarray:
  """int32 [length]: the rows as they lie on the shards after the exchange.

  Shard i held pieces 2i and 2i + 1 of 2 * shards; it now holds 2i and the
  mirror image of that, 2 * shards - 1 - 2i.
  """
  pieces = np.arange(length, dtype=np.int32).reshape(shards, 2, -1)
  return np.stack([pieces[:, 0], pieces[::-1, 1]], axis=1).reshape(-1)


def supported(length: int) -> bool:
  """Whether the kernels can cut so many tokens, on the mesh that is set."""
  return length % _multiple(length) == 0


def _multiple(length):
  return LANES * _pieces(_context(length)[1])


def _pieces(shards):
  return 2 * shards if shards > 1 else 1


def _context(length):
  """The mesh axis that shards so many tokens, or None, and its size."""
  axis = sharding.spec(("length",), (length,))[0]
  mesh = jax.sharding.get_abstract_mesh()
  return axis, mesh.shape[axis] if axis else 1


def block_sizes(length: int, head_bytes: int, *,
                shards: int = 1) -> splash.BlockSizes:
  """How many queries and keys are on chip at a time: what divides, up to most.

  A block of queries reads all keys, so that a byte of them serves as many
  multiplications as the block has rows: 1024 feed the matrix unit of every chip
  (v6e wants 560), and fit the 16 MiB that the compiler grants a kernel on v4 if
  a head takes 256 bytes (128 numbers in bfloat16). Half for twice the bytes.

  One fused backward kernel does 5 products where two do 7, but writes its
  gradient of the queries once for each block of keys: up to four times.

  Args:
    length: of the keys, and of the queries of all shards.
    head_bytes: what one head of one query takes.
    shards: over how many shards the queries lie.
  """
  most = 1024 >> max(0, (head_bytes - 1).bit_length() - 8)
  q, kv = math.gcd(length // _pieces(shards), most), math.gcd(length, most)
  compute = math.gcd(kv, 512)
  kv_dkv = math.gcd(length, 2 * most)
  fused = length // kv_dkv <= 4
  return splash.BlockSizes(
      block_q=q, block_kv=kv, block_kv_compute=compute,
      block_q_dkv=math.gcd(q, 512), block_kv_dkv=kv_dkv,
      block_kv_dkv_compute=compute, block_q_dq=None if fused else q,
      block_kv_dq=None if fused else compute, use_fused_bwd_kernel=fused)


def make_kernel(length: int, head_bytes: int, *, shards: int = 1,
                window: int | None = None, interpret: bool = False):
  """The kernel of one group of heads, with the mask of all shards' rows."""
  shape = (length, length)
  mask = (splash.CausalMask(shape) if window is None
          else splash.LocalMask(shape, (window - 1, 0), 0))
  mask.q_sequence = row_order(length, shards)
  return splash.make_splash_mqa(
      splash.MultiHeadMask([mask]),  # One for all heads.
      block_sizes=block_sizes(length, head_bytes, shards=shards),
      head_shards=1, q_seq_shards=shards,
      residual_checkpoint_name="attention", interpret=interpret)
