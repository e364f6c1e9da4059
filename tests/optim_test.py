"""Optimizers against plain NumPy; meshes are in tests/train/mesh_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import optim
from lm.types import UserError


def params_and_grads(seed=0):
  rng = np.random.default_rng(seed)
  shapes = {
      "embed": {"table": (8, 6)},
      "layers": {"attention": {"q": (3, 6, 2, 4), "o": (3, 2, 4, 6)},
                 "mlp": {"up": (3, 6, 10), "down": (3, 10, 6)},
                 "mlp_norm": {"scale": (3, 6)}}}
  make = lambda: jax.tree.map(
      lambda s: rng.normal(size=s).astype(np.float32), shapes,
      is_leaf=lambda x: isinstance(x, tuple))
  return make(), [make() for _ in range(3)]


def run(tx, params, grads):
  state = jax.jit(tx.init)(params)

  @jax.jit
  def step(params, state, g):
    updates, state = tx.update(g, state, params)
    return optax.apply_updates(params, updates), state
  for g in grads:
    params, state = step(params, state, g)
  return params, state


# ---------------------------------------------------------------- schedules


def test_cosine_warms_up_and_ends_at_its_share():
  f = optim.cosine(2.0, steps=110, warmup=10, end=0.1)
  np.testing.assert_allclose([f(0), f(4), f(9)], [0.2, 1.0, 2.0], rtol=1e-6)
  np.testing.assert_allclose(f(60), (2.0 + 0.2) / 2, rtol=1e-5)  # Half way.
  np.testing.assert_allclose([f(110), f(500)], [0.2, 0.2], rtol=1e-5)


def test_wsd_is_flat_then_falls_linearly():
  f = optim.wsd(1.0, steps=100, warmup=10, decay=0.2, end=0.0)
  np.testing.assert_allclose([f(0), f(10), f(50), f(80)], [0.1, 1, 1, 1],
                             rtol=1e-6)
  np.testing.assert_allclose([f(90), f(95), f(100)], [0.5, 0.25, 0.0],
                             atol=1e-6)


def test_constant_and_impossible_warmups():
  f = optim.constant(3.0, warmup=3)
  np.testing.assert_allclose([f(0), f(1), f(2), f(3), f(99)],
                             [1, 2, 3, 3, 3], rtol=1e-6)
  for make in (optim.cosine, optim.wsd):
    with pytest.raises(UserError, match="warm-up must be shorter"):
      make(1.0, steps=10, warmup=10)


# -------------------------------------------------------------------- AdamW


def numpy_adamw(params, grads, *, lr, decay, clip, b1=0.9, b2=0.95, eps=1e-8):
  """`lr` and `decay` by path; float64."""
  paths = [p for p, _ in optim.flatten_paths(params)]
  flat = {p: np.asarray(x, np.float64) for p, x in optim.flatten_paths(params)}
  m, v = ({p: 0.0 for p in paths} for _ in range(2))
  for t, g in enumerate(grads, 1):
    g = {p: np.asarray(x, np.float64) for p, x in optim.flatten_paths(g)}
    norm = np.sqrt(sum((g[p]**2).sum() for p in paths if lr(p)))
    for p in paths:
      d = g[p] * min(1, clip / norm)
      m[p] = b1 * m[p] + (1 - b1) * d
      v[p] = b2 * v[p] + (1 - b2) * d**2
      adam = (m[p] / (1 - b1**t)) / (np.sqrt(v[p] / (1 - b2**t)) + eps)
      flat[p] = flat[p] - lr(p) * (adam + decay(p) * flat[p])
  return flat


@pytest.mark.parametrize("clip", [0.5, 1e9])
def test_adamw_with_rules(clip):
  params, grads = params_and_grads()
  rules = (optim.Rule("attention/q$", lr=0.5),
           optim.Rule("mlp/up", freeze=True),
           optim.Rule("table", lr=2.0, decay=0.0))
  found, state = run(
      optim.adamw(1e-2, weight_decay=0.3, clip=clip, rules=rules),
      params, grads)
  lr = lambda p: 1e-2 * (0.5 if p.endswith("/q") else 2.0 if "table" in p
                         else 0.0 if p.endswith("/up") else 1.0)
  decay = lambda p: 0.0 if "table" in p or "scale" in p else 0.3
  expected = numpy_adamw(params, grads, lr=lr, decay=decay, clip=clip)
  for path, x in optim.flatten_paths(found):
    np.testing.assert_allclose(x, expected[path], rtol=2e-5, atol=1e-6,
                               err_msg=path)
  up = found["layers"]["mlp"]["up"]
  np.testing.assert_array_equal(up, params["layers"]["mlp"]["up"])
  sizes = [x.shape for p, x in optim.flatten_paths(state)
           if p.endswith("mlp/up") and hasattr(x, "shape")]
  assert not sizes, "a frozen parameter has optimizer state"


def test_the_first_rule_that_sets_a_field_decides():
  params, grads = params_and_grads()
  one = optim.adamw(1e-2, rules=(
      optim.Rule("attention", lr=0.0), optim.Rule("attention", lr=9.0)))
  found, _ = run(one, params, grads)
  np.testing.assert_array_equal(
      found["layers"]["attention"]["q"], params["layers"]["attention"]["q"])
  assert np.any(found["embed"]["table"] != params["embed"]["table"])


@pytest.mark.parametrize("make", [
    lambda: optim.adamw(1e-2, rules=(optim.Rule("atention", lr=0.1),)),
    lambda: optim.muon(1e-2, matrices=(optim.Matrix("mlp/upp"),))])
def test_a_pattern_that_matches_nothing_is_refused(make):
  params, _ = params_and_grads()
  with pytest.raises(UserError, match="matches no parameter"):
    make().init(params)


# --------------------------------------------------------------------- Muon


def numpy_newton_schulz(x):
  """[inputs, outputs], float64, straight from Jordan's description."""
  a, b, c = 3.4445, -4.7750, 2.0315
  x = x / (np.linalg.norm(x) + 1e-7)
  for _ in range(5):
    gram = x @ x.T
    x = a * x + (b * gram + c * gram @ gram) @ x
  return x


def numpy_muon(path, grads):
  """The direction after all of `grads`: each layer's matrix on its own."""
  momentum = 0.0
  for g in grads:
    g = np.asarray(dict(optim.flatten_paths(g))[path], np.float64)
    momentum = 0.95 * momentum + g
  x = 0.95 * momentum + g
  inputs = 8 if path.endswith("/o") else x.shape[1]
  flat = x.reshape(x.shape[0], inputs, -1)
  scale = 0.2 * np.sqrt(max(flat.shape[1:]))
  return np.stack([scale * numpy_newton_schulz(m) for m in flat]
                  ).reshape(x.shape)


def test_muon_orthogonalizes_each_layer_and_adamw_does_the_rest():
  params, grads = params_and_grads()
  tx = optim.muon(1e-2, weight_decay=0.0, clip=0.0)
  before, _ = run(tx, params, grads[:2])
  after, _ = run(tx, params, grads)
  before, after = (dict(optim.flatten_paths(x)) for x in (before, after))
  for path in ("layers/attention/q", "layers/attention/o", "layers/mlp/up",
               "layers/mlp/down"):
    np.testing.assert_allclose(
        (before[path] - after[path]) / 1e-2, numpy_muon(path, grads),
        atol=2e-4, err_msg=path)
  adam = numpy_adamw(params, grads, lr=lambda p: 1e-2, decay=lambda p: 0.0,
                     clip=1e9)
  for path in ("embed/table", "layers/mlp_norm/scale"):
    np.testing.assert_allclose(after[path], adam[path], rtol=2e-5, atol=1e-6)


def test_muon_flattens_the_spectrum():
  x = np.random.default_rng(0).normal(size=(2, 12, 5, 4)).astype(np.float32)
  x *= np.logspace(0, -1.5, 12)[:, None, None]  # Badly conditioned.
  out = optim.orthogonalize(jnp.asarray(x), optim.Matrix("", 1, 2))
  scale = 0.2 * np.sqrt(20)
  for layer in np.asarray(out).reshape(2, 12, 20) / scale:
    values = np.linalg.svd(layer, compute_uv=False)
    assert 0.5 < values.min() and values.max() < 1.3, values
  # The promised root mean square, that of an Adam update.
  assert 0.1 < np.sqrt(np.mean(np.square(out))) < 0.25


def test_muon_refuses_a_kernel_that_its_table_does_not_describe():
  params = {"mlp": {"up": np.zeros((4, 4), np.float32)}}
  tx = optim.muon(1e-2, matrices=(optim.Matrix("mlp/up"),))
  with pytest.raises(UserError, match=r"mlp/up has shape \(4, 4\)"):
    tx.update(params, tx.init(params), params)
