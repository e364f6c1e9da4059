"""The one matrix product, forward and backward, against float32 autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.model.dot import compute_dtype, dot

SHAPES = {  # x, w, how many dimensions are contracted
    "down": ((2, 5, 24), (24, 40), 1),
    "heads": ((2, 5, 24), (24, 3, 8), 1),
    "merge": ((2, 5, 3, 8), (3, 8, 24), 2),
}


def case(name, dtype):
  rng = np.random.default_rng(0)
  x_shape, w_shape, n = SHAPES[name]
  x = jnp.asarray(rng.normal(size=x_shape), dtype)
  w = jnp.asarray(rng.normal(size=w_shape), jnp.float32)
  out = x_shape[:len(x_shape) - n] + w_shape[n:]
  g = jnp.asarray(rng.normal(size=out), jnp.float32)
  return x, w, n, g


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_product_and_gradients(name, dtype):
  x, w, n, g = case(name, dtype)

  @jax.jit
  def ours(x, w):
    y, pull = jax.vjp(lambda x, w: dot(x, w, n, dtype=jnp.float32), x, w)
    return y, *pull(g)

  def plain(x, w):
    y, pull = jax.vjp(lambda x, w: jnp.tensordot(x, w, n), x, w)
    return y, *pull(g)

  y, dx, dw = ours(x, w)
  assert y.dtype == jnp.float32 and dx.dtype == x.dtype
  assert dw.dtype == jnp.float32  # The gradient of a float32 master weight.
  # What the matrix unit is given are rounded inputs; all else is exact.
  rounded = lambda a: a.astype(dtype).astype(jnp.float32)
  g_rounded = rounded(g)
  want_y, _, _ = plain(rounded(x), rounded(w))
  _, pull = jax.vjp(
      lambda x, w: jnp.tensordot(x, w, n), rounded(x), rounded(w))
  want_dx, want_dw = pull(g_rounded)
  np.testing.assert_allclose(y, want_y, atol=2e-5, rtol=1e-5)
  np.testing.assert_allclose(dw, want_dw, atol=2e-5, rtol=1e-5)
  np.testing.assert_allclose(
      dx.astype(jnp.float32), rounded(want_dx), atol=2e-5,
      rtol=1e-5 if dtype == "float32" else 2 ** -7)
  # And against float32 all the way, within bfloat16's eight bits.
  exact = plain(x.astype(jnp.float32), w)
  for got, want in zip((y, dx, dw), exact):
    error = np.linalg.norm(np.asarray(got, np.float32) - want)
    limit = 1e-6 if dtype == "float32" else 6e-3
    assert error < limit * np.linalg.norm(want)


def test_accumulation_is_in_float32():
  """8191 has thirteen bits: a sum in bfloat16, or rounded to it, misses it."""
  x = jnp.ones((1, 1, 4096), jnp.bfloat16).at[0, 0, 0].set(4096)
  w = jnp.ones((4096, 2), jnp.float32)
  np.testing.assert_array_equal(
      jax.jit(lambda x, w: dot(x, w, dtype=jnp.float32))(x, w), 8191)
  # Weight gradients sum over all the tokens of a batch.
  g = jnp.ones((1, 4096, 2), jnp.float32).at[0, 0].set(4096)
  rows = jnp.ones((1, 4096, 3), jnp.bfloat16)
  _, pull = jax.vjp(
      lambda w: dot(rows, w, dtype=jnp.float32), jnp.ones((3, 2)))
  np.testing.assert_array_equal(pull(g)[0], 8191)


def test_the_result_has_the_dtype_of_the_input_by_default():
  x, w, n, _ = case("down", "bfloat16")
  assert dot(x, w, n).dtype == jnp.bfloat16
  assert compute_dtype("float32") == jnp.float32
  assert compute_dtype("bfloat16") == jnp.bfloat16
  assert compute_dtype("auto") in (jnp.float32, jnp.bfloat16)
