"""Token log-probabilities without the logits of all tokens at once.

The float32 logits of a token take 128 kB with a vocabulary of 32,000; what one
layer keeps of it takes 8 kB with 4,096 dimensions in bfloat16. Here a device
makes logits a chunk of its tokens at a time, and once more in the backward
pass, for the time of one more product.
"""

import dataclasses
import functools
import math

import jax
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lm import masked
from lm import sharding
from lm.model.dot import dot, sum_gradient

CHUNK_BYTES = 256 * 2**20


def token_log_probs(
    x_BTD: jax.Array, kernel_DV: jax.Array, targets_BT: jax.Array, *,
    vocab_size: int, logit_cap: float | None = None,
    chunk_bytes: int = CHUNK_BYTES, ring: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """`masked.token_log_probs` of the logits, which are never held at once.

  A device cuts its tokens into the fewest chunks of equal size whose float32
  logits (of its part of the vocabulary) take at most `chunk_bytes`, and fills
  the last one up with zeros; one chunk is no loop. The gradient of the kernel
  is summed over chunks in float32, over devices in the dtype of `x_BTD`.

  Args:
    x_BTD: final activations in the compute dtype.
    kernel_DV: the head as it is stored; gathered in the dtype of `x_BTD`.
    targets_BT: int32.
    vocab_size: the ids from here on are padding, with a logit of -1e9.
    logit_cap: c of c * tanh(logits / c), or None.
    chunk_bytes: what the logits of a chunk may take. Each chunk also reads and
      writes the gradient of the kernel, which outlasts its product if it has
      less than a thousand tokens (on v5e).

  Returns:
    Log-probability of each target and the log-normaliser, both float32 [B, T].
  """
  head = _Head(
      vocab_size=vocab_size, logit_cap=logit_cap, chunk_bytes=chunk_bytes,
      ring=ring, tokens=sharding.spec(("batch", "length"), targets_BT.shape),
      kernel=sharding.spec(("embed", "vocab"), kernel_DV.shape))
  # Out here, so that each gradient leaves in the layout its array came in.
  return _token_log_probs(
      sharding.shard(x_BTD, "batch", "length", None),
      sharding.shard(kernel_DV, "embed", "vocab"),
      sharding.shard(targets_BT, "batch", "length"), head)


def fits(tokens_BT, padded_vocab: int) -> bool:
  """Whether a device's float32 logits of all tokens are one chunk at most."""
  layout = sharding.spec(("batch", "length", "vocab"),
                         (*tokens_BT.shape, padded_vocab))
  mesh = jax.sharding.get_abstract_mesh()
  parts = math.prod(mesh.shape[a] for e in layout for a in _axes(e))
  return 4 * tokens_BT.size * padded_vocab <= CHUNK_BYTES * parts


@dataclasses.dataclass(frozen=True)
class _Head:
  """What is known when the program is traced.

  Attributes:
    vocab_size: without padding.
    logit_cap: or None.
    chunk_bytes: what the logits of a chunk may take.
    ring: how gradients are summed.
    tokens: how [B, T] lies on the mesh.
    kernel: how [D, V] does.
  """

  vocab_size: int
  logit_cap: float | None
  chunk_bytes: int
  ring: int | None
  tokens: P
  kernel: P

  @property
  def embed_axes(self) -> tuple[str, ...]:
    return _axes(self.kernel[0])

  @property
  def vocab_axes(self) -> tuple[str, ...]:
    return _axes(self.kernel[1])

  @property
  def hidden(self) -> P:
    return P(*self.tokens, None)

  def gathered(self, kernel_DV, dtype):
    """The kernel of all dimensions of D, and the ids of its columns."""
    kernel_DV = lax.all_gather(
        kernel_DV.astype(dtype), self.embed_axes, axis=0, tiled=True)
    size = kernel_DV.shape[1]
    first = lax.axis_index(self.vocab_axes) * size
    return kernel_DV, first + jnp.arange(size, dtype=jnp.int32)

  def logits(self, products_MV, ids_V):
    """What `Transformer.logits` makes of the same products."""
    logits_MV = products_MV
    if self.logit_cap is not None:
      logits_MV = self.logit_cap * jnp.tanh(logits_MV / self.logit_cap)
    return jnp.where(ids_V < self.vocab_size, logits_MV, -1e9)


def _axes(entry):
  """The mesh axes of one entry of a spec."""
  return entry if isinstance(entry, tuple) else (entry,) if entry else ()


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _token_log_probs(x_BTD, kernel_DV, targets_BT, head):
  return _forward(x_BTD, kernel_DV, targets_BT, head)[0]


def _forward(x_BTD, kernel_DV, targets_BT, head):
  local = _on_devices(
      functools.partial(_local_forward, head),
      (head.hidden, head.kernel, head.tokens), (head.tokens, head.tokens))
  out = local(x_BTD, kernel_DV, targets_BT)
  return out, (x_BTD, kernel_DV, targets_BT, out[1])


def _backward(head, saved, grads):
  local = _on_devices(
      functools.partial(_local_backward, head),
      (head.hidden, head.kernel, *3 * (head.tokens,), head.tokens),
      (head.hidden, head.kernel))
  dx_BTD, dw_DV = local(*saved, *grads)
  return dx_BTD, dw_DV, None


_token_log_probs.defvjp(_forward, _backward)


def _on_devices(local, in_specs, out_specs):
  """`local` on each device's part of the arrays."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return local
  return jax.shard_map(
      local, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _local_forward(head, x_BTD, kernel_DV, targets_BT):
  kernel_DV, ids_V = head.gathered(kernel_DV, x_BTD.dtype)

  def chunk(_, tokens):
    x_MD, targets_M = tokens
    logits_MV = head.logits(dot(x_MD, kernel_DV, dtype=jnp.float32), ids_V)
    hits = targets_M[:, None] == ids_V
    picked_M = jnp.sum(jnp.where(hits, logits_MV, 0.0), axis=-1)
    return None, (picked_M, masked.logsumexp(logits_MV))

  _, (picked_BT, log_z_BT) = _in_chunks(
      chunk, None, (x_BTD, targets_BT), head.chunk_bytes // (4 * ids_V.size))
  # Of the device's part of the vocabulary so far.
  top_BT = lax.pmax(log_z_BT, head.vocab_axes)
  sums_BT = lax.psum(jnp.exp(log_z_BT - top_BT), head.vocab_axes)
  log_z_BT = top_BT + jnp.log(sums_BT)
  return lax.psum(picked_BT, head.vocab_axes) - log_z_BT, log_z_BT


def _local_backward(head, x_BTD, kernel_DV, targets_BT, log_z_BT, g_BT, g_z_BT):
  stored = kernel_DV.dtype
  kernel_DV, ids_V = head.gathered(kernel_DV, x_BTD.dtype)

  def chunk(dw_DV, tokens):
    x_MD, targets_M, log_z_M, g_M, g_z_M = tokens
    logits_MV, pull = jax.vjp(
        lambda products_MV: head.logits(products_MV, ids_V),
        dot(x_MD, kernel_DV, dtype=jnp.float32))
    probs = jnp.exp(logits_MV - log_z_M[:, None])
    hits = targets_M[:, None] == ids_V
    d_MV, = pull(
        probs * (g_z_M - g_M)[:, None] + jnp.where(hits, g_M[:, None], 0.0))
    d_MV = d_MV.astype(x_MD.dtype)
    dw_DV += dot(_transposed(x_MD), d_MV, dtype=jnp.float32)
    return dw_DV, dot(d_MV, kernel_DV.T)

  dw_DV, dx_BTD = _in_chunks(
      chunk, jnp.zeros(kernel_DV.shape, jnp.float32),
      (x_BTD, targets_BT, log_z_BT, g_BT, g_z_BT),
      head.chunk_bytes // (4 * ids_V.size))
  dw_DV = sum_gradient(
      dw_DV, head.tokens, (None, head.kernel[1]), head.kernel,
      dtype=x_BTD.dtype, ring=head.ring)
  return lax.psum(dx_BTD, head.vocab_axes), dw_DV.astype(stored)


def _transposed(x_MD):
  if sharding.platform() == "cpu":
    # As in `dot`: written out, or the product misses the matrix unit.
    return with_layout_constraint(x_MD.T, Layout((0, 1)))
  return x_MD.T


def _in_chunks(body, carry, arrays, most):
  """`lax.scan` of `body` over chunks of at most `most` tokens.

  Args:
    body: (carry, chunks) -> (carry, outputs): [M, ...] of M tokens.
    carry: the first.
    arrays: [B, T, ...] of all tokens.
    most: how many tokens a chunk may have; one at the least.

  Returns:
    The last carry and the outputs [B, T, ...].
  """
  b, t = arrays[0].shape[:2]
  chunks = -(-b * t // max(1, most))
  rows = -(-b * t // chunks)

  def cut(x):
    x = x.reshape(b * t, *x.shape[2:])
    fill = ((0, chunks * rows - b * t),) + ((0, 0),) * (x.ndim - 1)
    return jnp.pad(x, fill).reshape(chunks, rows, *x.shape[1:])

  def join(x):
    x = x.reshape(chunks * rows, *x.shape[2:])[:b * t]
    return x.reshape(b, t, *x.shape[1:])

  arrays = jax.tree.map(cut, arrays)
  if chunks == 1:
    carry, out = body(carry, jax.tree.map(lambda x: x[0], arrays))
    out = jax.tree.map(lambda x: x[None], out)
  else:
    carry, out = lax.scan(body, carry, arrays)
  return carry, jax.tree.map(join, out)
