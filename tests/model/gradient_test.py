"""Backward passes, hand-written ones too, against finite differences.

The function differentiated is the NumPy transformer, in float64: nothing is
shared with the code under test.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import masked
from lm.model import LanguageModel
from tests.model import oracle, tiny

CASES = {
    "packed": dict(rope_theta=500.0, rope_scaling=(8.0, 1.0, 4.0, 32)),
    "everything": dict(tied=True, qk_norm=True, window=4, logit_cap=4.0,
                       scalar_head=True),
}
T = 14
TARGETS = tiny.tokens(tiny.config(), 1, T, seed=3)
WEIGHTS = np.random.default_rng(4).normal(size=(2, 1, T)).astype(np.float32)


def places(case):
  if case != "packed":
    return np.arange(T)[None], np.ones((1, T), int)
  segments = np.array([[1] * 5 + [2] * 7 + [0] * 2])
  return np.array([[*range(5), *range(7), 0, 0]]), segments


def numpy_loss(config, case, params, tokens):
  positions, segments = (x[0] for x in places(case))
  real = segments > 0
  logits = oracle.logits(config, params, tokens[0], positions, segments)
  top = logits.max(-1, keepdims=True)
  log_z = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
  picked = logits[np.arange(T), TARGETS[0]] - log_z
  loss = (WEIGHTS[0, 0] * picked)[real].sum()
  if config.scalar_head:
    loss += (WEIGHTS[1, 0] * oracle.values(config, params, tokens[0])).sum()
  return loss


def our_gradient(config, case, params, tokens):
  positions, segments = (x.astype(np.int32) for x in places(case))

  def loss(params):
    out = LanguageModel(config).forward(
        params, tokens, positions_BT=positions, segments_BT=segments)
    picked, _ = masked.token_log_probs(out.logits_BTV, TARGETS)
    total = jnp.sum(WEIGHTS[0] * picked * (segments > 0))
    if config.scalar_head:
      total += jnp.sum(WEIGHTS[1] * out.values_BT)
    return total
  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("case", CASES)
def test_gradients_match_finite_differences(case):
  config = tiny.config(**CASES[case])
  params = tiny.params(config)
  tokens = tiny.tokens(config, 1, T)
  loss, grads = our_gradient(config, case, params, tokens)
  np.testing.assert_allclose(
      loss, numpy_loss(config, case, params, tokens), rtol=1e-5)
  rng = np.random.default_rng(5)
  flat, tree = jax.tree_util.tree_flatten_with_path(params)
  for i, (path, leaf) in enumerate(flat):
    direction = rng.normal(size=leaf.shape)
    step = 1e-5 / np.linalg.norm(direction)

    def at(sign, i=i, leaf=leaf, move=step * direction):
      moved = [x for _, x in flat]
      moved[i] = leaf.astype(np.float64) + sign * move
      return numpy_loss(config, case, tree.unflatten(moved), tokens)

    want = (at(1) - at(-1)) / (2 * step)
    ours = np.asarray(jax.tree.leaves(grads)[i], np.float64)
    scale = max(abs(want), np.linalg.norm(ours))
    assert abs((ours * direction).sum() - want) < 2e-4 * scale, path
    assert scale > 1e-3, path


def test_bfloat16_gradients_point_the_same_way():
  config = tiny.config(**CASES["everything"])
  params, tokens = tiny.params(config), tiny.tokens(config, 1, T)
  _, exact = our_gradient(config, "everything", params, tokens)
  _, rounded = our_gradient(
      config.replace(dtype="bfloat16"), "everything", params, tokens)
  for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded)):
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    assert a @ b > 0.995 * np.linalg.norm(a) * np.linalg.norm(b)
    assert 0.95 < np.linalg.norm(b) / np.linalg.norm(a) < 1.05
    if a.size > 1:
      assert (a != b).any()  # It is another computation.
