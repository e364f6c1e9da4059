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

from lm import sharding


@functools.cache
def _fast_bfloat16() -> bool:
  if jax.default_backend() != "cpu":
    return True
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as f:
      flags = f.read()
  except OSError:
    return False
  return "amx_bf16" in flags or "avx512_bf16" in flags


def compute_dtype(name: str):
  """The dtype of matmul inputs: 'float32', 'bfloat16', or 'auto'."""
  if name == "auto":
    name = "bfloat16" if _fast_bfloat16() else "float32"
  return jnp.dtype(name)


def activation_dtype(name: str):
  """The dtype that products come out in, and the residual stream's.

  A TPU rounds to the compute dtype inside the product; on a CPU that would be
  one more pass over memory, so activations stay float32 there.
  """
  if jax.default_backend() == "cpu":
    return jnp.dtype(jnp.float32)
  return compute_dtype(name)


def _one_cpu() -> bool:
  mesh = jax.sharding.get_abstract_mesh()
  return jax.default_backend() == "cpu" and (mesh.empty or mesh.size == 1)


def _spec(x):
  """The partition of a traced array, or None when no mesh is set."""
  if jax.sharding.get_abstract_mesh().empty:
    return None
  return jax.typeof(x).sharding.spec


def _general(x, y, contract, out):
  if jax.default_backend() == "cpu" and not _one_cpu():
    # XLA:CPU refuses some bfloat16 products ("DotThunk: BF16 x BF16 = F32").
    # Pretended devices are for trying a mesh, not for speed.
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
  return lax.dot_general(
      x, y, (contract, ((), ())), preferred_element_type=jnp.float32,
      out_sharding=out,
  )


def _weight_gradient_cpu(x_MC, g_MO):
  # XLA:CPU folds transposes into a product, which then misses the matrix unit
  # (or is refused); a layout constraint makes it write them out (3x sooner).
  x_CM = with_layout_constraint(x_MC.T, Layout((0, 1)))
  dw = _general(x_CM, g_MO, ((1,), (0,)), None)
  return with_layout_constraint(dw, Layout((0, 1)))


def dot(x, w, num_contract: int = 1, *, out=(), dtype=None):
  """Contracts the last dimensions of `x` with the first of `w`.

  Args:
    x: [B, T, *C] activations in the compute dtype.
    w: [*C, *O] a kernel (float32; cast to the dtype of `x`).
    num_contract: how many dimensions C has.
    out: dimension names of the result (see `sharding.AxisRules`).
    dtype: of the result; by default that of `x` (accumulation is float32).

  Returns:
    [B, T, *O].
  """
  shape = x.shape[:-num_contract] + w.shape[num_contract:]
  out = sharding.out_spec(out, shape) if out else None
  return _dot(x, w, num_contract, out, jnp.dtype(dtype or x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _dot(x, w, num_contract, out, dtype):
  return _forward(x, w, num_contract, out, dtype)[0]


def _forward(x, w, num_contract, out, dtype):
  w_cast = w.astype(x.dtype)
  n = num_contract
  if _one_cpu():
    c = math.prod(w.shape[:n])
    y = _general(x.reshape(-1, c), w_cast.reshape(c, -1), ((1,), (0,)), None)
    y = y.reshape(x.shape[:-n] + w.shape[n:])
  else:
    lhs = tuple(range(x.ndim - n, x.ndim))
    y = _general(x, w_cast, (lhs, tuple(range(n))), out)
  # An empty array carries the kernel's dtype to the backward pass.
  return y.astype(dtype), (x, w_cast, jnp.zeros((0,), w.dtype))


def _backward(num_contract, out, dtype, saved, g):
  del out, dtype
  x, w, like = saved
  g = g.astype(x.dtype)
  n = num_contract
  if _one_cpu():
    c = math.prod(w.shape[:n])
    x_MC, g_MO = x.reshape(-1, c), g.reshape(-1, w.size // c)
    dx = _general(g_MO, w.reshape(c, -1), ((1,), (1,)), None)
    dw = _weight_gradient_cpu(x_MC, g_MO)
  else:
    lead = tuple(range(x.ndim - n))
    g_out = tuple(range(x.ndim - n, g.ndim))
    dx = _general(g, w, (g_out, tuple(range(n, w.ndim))), _spec(x))
    dw = _general(x, g, (lead, lead), _spec(w))
  return dx.reshape(x.shape).astype(x.dtype), dw.reshape(w.shape).astype(
      like.dtype)


_dot.defvjp(_forward, _backward)
