"""The one matrix product of the model: bfloat16 in, float32 accumulation.

Forward and backward: the cotangent is cast too, so all three products of a
layer run on the matrix unit. Where the hardware has no fast bfloat16 the
compute dtype is float32 (`compute_dtype`).
"""

import functools
import math

import jax
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lm import sharding


@functools.cache
def _fast_bfloat16_on_cpu() -> bool:
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as f:
      flags = f.read()
  except OSError:
    return False
  return "amx_bf16" in flags or "avx512_bf16" in flags


def compute_dtype(name: str):
  """The dtype of matmul inputs: 'float32', 'bfloat16', or 'auto'."""
  if name == "auto":
    slow = sharding.platform() == "cpu" and not _fast_bfloat16_on_cpu()
    name = "float32" if slow else "bfloat16"
  return jnp.dtype(name)


def activation_dtype(name: str):
  """The dtype that products come out in, and the residual stream's.

  A TPU rounds to the compute dtype inside the product; on a CPU that would be
  one more pass over memory, so activations stay float32 there.
  """
  if sharding.platform() == "cpu":
    return jnp.dtype(jnp.float32)
  return compute_dtype(name)


def one_cpu() -> bool:
  """Whether the program is for one CPU device."""
  mesh = jax.sharding.get_abstract_mesh()
  return sharding.platform() == "cpu" and (mesh.empty or mesh.size == 1)


def _spec(x):
  """The partition of a traced array, or None when no mesh is set."""
  if jax.sharding.get_abstract_mesh().empty:
    return None
  return jax.typeof(x).sharding.spec


def _general(x, y, contract, out):
  if sharding.platform() == "cpu" and not one_cpu():
    # XLA:CPU refuses some bfloat16 products ("DotThunk: BF16 x BF16 = F32").
    # Pretended devices are for trying a mesh, not for speed.
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
  return lax.dot_general(
      x, y, (contract, ((), ())), preferred_element_type=jnp.float32,
      out_sharding=out,
  )


def _summed(x, y, contract, out, dtype):
  """The product in `dtype`; on TPU what devices add to it travels so too."""
  axes = set(_axes(_spec(x)[i] for i in contract[0])) if out else set()
  if not axes or sharding.platform() == "cpu":
    return _general(x, y, contract, out).astype(dtype)
  whole = [tuple(a for a in _axes([e]) if a not in axes) for e in out]
  parts = _general(x, y, contract, P(*(e or None for e in whole),
                                     unreduced=axes))
  return jax.sharding.reshard(parts.astype(dtype), out)


def _weight_gradient_cpu(x_MC, g_MO):
  # XLA:CPU folds transposes into a product, which then misses the matrix unit
  # (or is refused); a layout constraint makes it write them out (3x sooner).
  x_CM = with_layout_constraint(x_MC.T, Layout((0, 1)))
  dw = _general(x_CM, g_MO, ((1,), (0,)), None)
  return with_layout_constraint(dw, Layout((0, 1)))


def dot(x, w, num_contract: int = 1, *, layout=(), out=(), dtype=None,
        ring: int | None = None):
  """Contracts the last dimensions of `x` with the first of `w`.

  The kernel is cast and then gathered to the layout it is worked with; its
  gradient goes back the same way, summed over the devices in
  the dtype of `x` on TPU, in float32 on CPU.

  Args:
    x: [B, T, *C] activations in the compute dtype.
    w: [*C, *O] a kernel (float32; cast to the dtype of `x`).
    num_contract: how many dimensions C has.
    layout: dimension names of the kernel while it is worked with.
    out: dimension names of the result (see `sharding.AxisRules`).
    dtype: of the result; by default that of `x` (accumulation is float32).
    ring: see `sharding.reduce_scatter`.

  Returns:
    [B, T, *O].
  """
  shape = x.shape[:-num_contract] + w.shape[num_contract:]
  out = sharding.out_spec(out, shape) if out else None
  return _dot(x, w, num_contract, layout, out, jnp.dtype(dtype or x.dtype),
              ring)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5, 6))
def _dot(x, w, num_contract, layout, out, dtype, ring):
  return _forward(x, w, num_contract, layout, out, dtype, ring)[0]


def _work(w, layout, dtype):
  """The kernel, ready to be multiplied by."""
  w = w.astype(dtype)
  return sharding.shard(w, *layout) if layout else w


def _forward(x, w, num_contract, layout, out, dtype, ring):
  del ring
  n = num_contract
  if one_cpu():
    w_cast, c = w.astype(x.dtype), math.prod(w.shape[:n])
    x_MC = x.reshape(-1, c)
    if x_MC.shape[0] == 1 and x.dtype == jnp.bfloat16:
      # Of one row XLA:CPU makes a product that takes ten times that of two.
      x_MC = jnp.concatenate([x_MC, x_MC])
    y = _general(x_MC, w_cast.reshape(c, -1), ((1,), (0,)), None)
    y = y[:math.prod(x.shape[:-n])].reshape(x.shape[:-n] + w.shape[n:])
    # An empty array carries the kernel's dtype to the backward pass.
    return y.astype(dtype), (x, w_cast, jnp.zeros((0,), w.dtype))
  lhs = tuple(range(x.ndim - n, x.ndim))
  y = _summed(x, _work(w, layout, x.dtype), (lhs, tuple(range(n))), out, dtype)
  return y, (x, w, jnp.zeros((0,), w.dtype))


def _backward(num_contract, layout, out, dtype, ring, saved, g):
  del out, dtype
  x, w, like = saved
  g = g.astype(x.dtype)
  n = num_contract
  if one_cpu():
    c = math.prod(w.shape[:n])
    x_MC, g_MO = x.reshape(-1, c), g.reshape(-1, w.size // c)
    dx = _general(g_MO, w.reshape(c, -1), ((1,), (1,)), None)
    dw = _weight_gradient_cpu(x_MC, g_MO).reshape(w.shape)
  else:
    lead = x.ndim - n
    g_out = tuple(range(lead, g.ndim))
    if _spec(x) is not None:  # The residual stream's rows lie otherwise.
      g = jax.sharding.reshard(g, P(*_spec(x)[:lead], *_spec(g)[lead:]))
    dx = _summed(g, _work(w, layout, x.dtype),
                 (g_out, tuple(range(n, w.ndim))), _spec(x), x.dtype)
    dw = _weight_gradient(x, g, n, _spec(w), ring)
  return dx.reshape(x.shape).astype(x.dtype), dw.astype(like.dtype)


def _weight_gradient(x, g, num_contract, spec, ring):
  """x^T g, summed over the devices that hold other rows, laid out as `spec`."""
  lead = tuple(range(x.ndim - num_contract))
  contract = (lead, lead)
  if spec is None:
    return _general(x, g, contract, None)
  x_spec, g_spec = _spec(x), _spec(g)
  rows, parts = x_spec[:len(lead)], (*x_spec[len(lead):], *g_spec[len(lead):])

  def local(x, g):
    dw = _general(x, g, contract, None)
    return sum_gradient(dw, rows, parts, spec, dtype=x.dtype, ring=ring)

  return jax.shard_map(local, in_specs=(x_spec, g_spec), out_specs=spec,
                       check_vma=False)(x, g)


def sum_gradient(d, rows, parts, layout, *, dtype, ring):
  """This device's part of a kernel's gradient; for use inside `shard_map`.

  Args:
    d: float32, what this device's rows add.
    rows: entries of the partition of the rows.
    parts: the partition of the kernel while it was worked with, and of `d`.
    layout: the partition of the kernel.
    dtype: on TPU sums travel in it, half the bytes; on CPU in float32.
    ring: see `sharding.reduce_scatter`.
  """
  rest = _axes(rows)
  if rest and sharding.platform() != "cpu":
    d = d.astype(dtype)
  for dimension, entry in enumerate(layout):
    for axis in _axes([entry]):
      if axis in rest:
        d = sharding.reduce_scatter(d, axis, dimension, ring=ring)
        rest.remove(axis)
      elif axis not in _axes([parts[dimension]]):  # All have the same rows.
        d = sharding.own_part(d, axis, dimension)
  return jax.lax.psum(d, tuple(rest)) if rest else d


def _axes(entries) -> list[str]:
  """The mesh axes among the entries of a partition."""
  return [a for e in entries if e is not None
          for a in (e if isinstance(e, tuple) else (e,))]


_dot.defvjp(_forward, _backward)
