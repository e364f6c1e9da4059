"""Masked statistics and the cross-entropy against NumPy and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import masked

B, T, V = 3, 5, 11


@pytest.fixture
def data():
  rng = np.random.default_rng(0)
  logits = (4 * rng.normal(size=(B, T, V))).astype(np.float32)
  targets = rng.integers(0, V, (B, T)).astype(np.int32)
  weights = rng.normal(size=(B, T)).astype(np.float32)
  return logits, targets, weights


def reference(logits, targets):
  log_probs = jax.nn.log_softmax(logits)
  picked = jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
  return picked, jax.scipy.special.logsumexp(logits, axis=-1)


def test_token_log_probs(data):
  logits, targets, _ = data
  got = masked.token_log_probs(logits, targets)
  for a, b in zip(got, reference(logits, targets)):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("z_weight", [0.0, 0.3])
def test_gradient_of_the_cross_entropy(data, z_weight):
  logits, targets, weights = data
  def loss(fn):
    def f(logits):
      log_probs, log_z = fn(logits, targets)
      return jnp.sum(weights * (-log_probs + z_weight * jnp.square(log_z)))
    return jax.jit(jax.value_and_grad(f))
  ours, plain = (loss(f)(logits) for f in (masked.token_log_probs, reference))
  np.testing.assert_allclose(ours[0], plain[0], rtol=1e-5)
  np.testing.assert_allclose(ours[1], plain[1], atol=1e-5)
  assert np.abs(plain[1]).max() > 0.1


def test_gradient_keeps_the_dtype_of_the_logits(data):
  logits, targets, _ = data
  low = jnp.asarray(logits, jnp.bfloat16)
  grad = jax.grad(lambda x: masked.token_log_probs(x, targets)[0].sum())(low)
  assert grad.dtype == jnp.bfloat16
  want = jax.grad(lambda x: reference(x, targets)[0].sum())(
      low.astype(jnp.float32))
  np.testing.assert_allclose(grad.astype(np.float32), want, atol=0.01)


def test_masked_vocabulary_has_no_probability_and_no_gradient(data):
  logits, targets, _ = data
  padded = np.concatenate([logits, np.full((B, T, 5), -1e9, np.float32)], -1)
  got = masked.token_log_probs(padded, targets)
  for a, b in zip(got, reference(logits, targets)):
    np.testing.assert_allclose(a, b, atol=1e-5)
  grad = jax.grad(lambda x: masked.token_log_probs(x, targets)[0].sum())(padded)
  np.testing.assert_array_equal(grad[..., V:], 0)
  assert np.isfinite(grad).all()


def test_huge_logits_do_not_overflow():
  logits = jnp.array([[[1e4, 0.0, -1e4]]])
  log_probs, log_z = masked.token_log_probs(logits, jnp.array([[0]]))
  assert (log_probs[0, 0], log_z[0, 0]) == (0.0, 1e4)
  assert masked.token_log_probs(logits, jnp.array([[2]]))[0][0, 0] == -2e4
  np.testing.assert_allclose(
      masked.logsumexp(jnp.array([-1e9, -1e9])), -1e9)


def test_mean_and_std_under_a_mask():
  x = np.array([[1.0, 5.0, 100.0], [3.0, -50.0, 7.0]], np.float32)
  mask = np.array([[1, 1, 0], [1, 0, 1]], bool)
  kept = x[mask]
  np.testing.assert_allclose(masked.mean(x, mask), kept.mean())
  np.testing.assert_allclose(masked.std(x, mask), kept.std(), rtol=1e-6)
  weights = np.array([[1, 2, 0], [0.5, 0, 0]], np.float32)
  np.testing.assert_allclose(
      masked.mean(x, weights), np.average(x, weights=weights))
  assert masked.mean(x, np.zeros_like(x)) == 0  # Nothing there: not NaN.
