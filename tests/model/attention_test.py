"""Who sees whom: masks, causality by gradient, packed examples, the cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import model
from lm.model import LanguageModel
from lm.model import attention
from lm.model import cache as cache_lib
from lm.model.attention import make_mask
from tests.model import tiny


pytestmark = pytest.mark.usefixtures("quick_compile")


def influence(config, length=9, **places):
  """[T, S]: how much logits at t change with the embedding at s.

  Untied, and every token of the row its own, so that the gradient with
  respect to a row of the table is that with respect to one position.
  """
  lm = LanguageModel(config)
  params = tiny.params(config)
  tokens = np.arange(length, dtype=np.int32)[None]
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(config.padded_vocab,)).astype(np.float32)
  weights[config.vocab_size:] = 0

  def mixed_logits(table):
    out = lm.forward({**params, "embed": {"table": table}}, tokens, **places)
    return out.logits_BTV[0] @ weights

  grads = jax.jit(jax.jacrev(mixed_logits))(params["embed"]["table"])
  return np.abs(np.asarray(grads)[:, :length]).sum(-1)


def test_causality_by_gradient():
  seen = influence(tiny.config())
  length = len(seen)
  before = np.tril(np.ones((length, length), bool))
  assert (seen[~before] == 0).all()
  assert (seen[before] > 1e-3).all()  # And everything before is seen.


def test_a_window_sees_so_far_back_and_no_further():
  """Two layers pass on what the layer below saw: 2 * (3 - 1) back."""
  seen = influence(tiny.config(window=3))
  t, s = np.indices(seen.shape)
  reach = (s <= t) & (t - s <= 4)
  assert (seen[~reach] == 0).all() and (seen[reach] > 0).all()


def test_packed_segments_do_not_see_each_other_by_gradient():
  segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0]], np.int32)
  positions = np.array([[0, 1, 2, 0, 1, 2, 3, 0, 0]], np.int32)
  seen = influence(tiny.config(), segments_BT=segments, positions_BT=positions)
  same = segments[0][:, None] == segments[0][None, :]
  t, s = np.indices(seen.shape)
  real = segments[0] > 0
  allowed = same & (s <= t)
  assert (seen[~allowed & real[:, None]] == 0).all()
  assert (seen[allowed & real[:, None]] > 1e-3).all()


def test_packed_examples_equal_the_same_examples_alone():
  config = tiny.config(qk_norm=True, scalar_head=True)
  lm, params = LanguageModel(config), tiny.params(config)
  lengths = [7, 4, 9]
  parts = [tiny.tokens(config, 1, n, seed=n)[0] for n in lengths]
  packed = np.concatenate([*parts, np.full(4, 3, np.int32)])[None]
  segments = np.repeat([1, 2, 3, 0], [*lengths, 4])[None].astype(np.int32)
  positions = np.concatenate(
      [np.arange(n) for n in [*lengths, 4]])[None].astype(np.int32)
  forward = jax.jit(lm.forward)
  out = forward(params, packed, positions_BT=positions, segments_BT=segments)
  # Alone: right-padded to one length, so that one program serves all three.
  alone = np.zeros((3, 24), np.int32)
  for row, part in zip(alone, parts):
    row[:len(part)] = part
  places = np.arange(24, dtype=np.int32)[None] + np.zeros((3, 1), np.int32)
  inside = (places < np.array(lengths)[:, None]).astype(np.int32)
  want = forward(params, alone, positions_BT=places, segments_BT=inside)
  start = 0
  for row, n in enumerate(lengths):
    for name in ("logits_BTV", "values_BT"):
      np.testing.assert_allclose(
          getattr(out, name)[0, start:start + n],
          getattr(want, name)[row, :n], atol=2e-5, rtol=1e-5)
    start += n
  assert np.isfinite(out.logits_BTV).all()  # Padding sees nothing: no NaN.


def test_mask_by_hand():
  positions = jnp.array([[0, 1, 0, 1, 0]])
  segments = jnp.array([[1, 1, 2, 2, 0]])
  mask = make_mask(positions, segments, positions, segments)
  np.testing.assert_array_equal(mask[0].astype(int), [
      [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0],
      [0, 0, 0, 0, 0]])
  row = jnp.arange(4)[None]
  mask = make_mask(row, row * 0 + 1, row, row * 0 + 1, window=2)
  np.testing.assert_array_equal(mask[0].astype(int), [
      [1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])


# --- Recomputing and unrolling change nothing --------------------------------


@pytest.fixture(scope="module")
def loss_and_grads():
  def run(**changes):
    config = tiny.config(num_layers=3, qk_norm=True, **changes)
    lm, params = LanguageModel(config), tiny.params(config)
    tokens = tiny.tokens(config, 2, 12)

    def loss(params):
      logits = lm.forward(params, tokens[:, :-1]).logits_BTV
      picked = jnp.take_along_axis(
          jax.nn.log_softmax(logits), tokens[:, 1:, None], -1)
      return -picked.mean()
    return jax.jit(jax.value_and_grad(loss))(params)
  return run, run(unroll=3)


@pytest.mark.parametrize("changes", [
    dict(remat="full", unroll=3), dict(remat="save_qkv", unroll=1),
    dict(remat="save_matmuls", unroll=2),
], ids=str)
def test_remat_and_unroll_give_the_same_loss_and_gradients(
    loss_and_grads, changes):
  run, (want_loss, want_grads) = loss_and_grads
  loss, grads = run(**changes)
  np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
  assert jax.tree.structure(grads) == jax.tree.structure(want_grads)
  for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads)):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_remat_recomputes():
  """A policy that saved everything anyway would pass the test above."""
  flops = {}
  for remat in ("none", "save_matmuls", "save_qkv", "full"):
    config = tiny.config(remat=remat, unroll=2)
    lm = LanguageModel(config)
    loss = lambda p, lm=lm: lm.forward(
        p, jnp.zeros((1, 8), jnp.int32)).logits_BTV.sum()
    jaxpr = jax.make_jaxpr(jax.grad(loss))(lm.abstract())
    flops[remat] = tiny.products(jaxpr.jaxpr)
  order = [flops[r] for r in ("none", "save_matmuls", "save_qkv", "full")]
  assert order == sorted(order) and len(set(order)) == 4, flops


# --- The cache ---------------------------------------------------------------


def test_cache_forks_and_resizes():
  config = tiny.config()
  lm, params = LanguageModel(config), tiny.params(config)
  @jax.jit
  def make(params, tokens, rows):
    empty = model.empty_cache(config, 3, 6)
    _, cache = lm.hidden(params, tokens, cache=empty)
    forked = model.fork_cache(cache, rows)
    longer = cache_lib.resize(forked, 9)
    return empty, cache, forked, longer, cache_lib.resize(longer, 4)

  empty, cache, forked, longer, shorter = jax.device_get(
      make(params, tiny.tokens(config, 3, 4), np.array([2, 0, 2, 2])))
  assert empty.slots == 6 and int(empty.cursor) == 0
  assert (empty.segments_BS == 0).all()
  assert int(cache.cursor) == 4
  np.testing.assert_array_equal(cache.segments_BS, [[1, 1, 1, 1, 0, 0]] * 3)
  def arrays(cache):
    """Keys and values of all layers, each [B, K, S, H]."""
    return np.stack([*cache.k_BKSH, *cache.v_BKSH])
  for i, row in enumerate([2, 0, 2, 2]):
    np.testing.assert_array_equal(
        arrays(forked)[:, i], arrays(cache)[:, row])
  assert np.abs(arrays(cache)[:, 0] - arrays(cache)[:, 2]).max() > 0.1
  assert longer.slots == 9 and longer.positions_BS.shape == (4, 9)
  np.testing.assert_array_equal(arrays(longer)[..., :6, :], arrays(forked))
  assert (longer.segments_BS[:, 6:] == 0).all()
  np.testing.assert_array_equal(
      arrays(shorter), arrays(forked)[..., :4, :])


@pytest.mark.parametrize("length", [256, 300, 1030])
def test_blocks_of_queries_compute_what_the_whole_does(length):
  """Ragged, packed, with a window; output, log-normaliser and gradient."""
  rng = np.random.default_rng(length)
  b, k, g, h = 2, 2, 3, 8
  q = rng.normal(size=(b, length, k, g, h)).astype(np.float32)
  keys, values = rng.normal(size=(2, b, k, length, h)).astype(np.float32)
  segments = np.sort(rng.integers(1, 4, (b, length)), axis=1).astype(np.int32)
  positions = np.broadcast_to(np.arange(length, dtype=np.int32), (b, length))
  mask = make_mask(positions, segments, positions, segments, window=200)
  wanted = attention._whole(q, keys, values, mask)
  found = jax.jit(attention._blocks)(q, keys, values, mask)
  for x, y in zip(found, wanted, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
  text = str(jax.make_jaxpr(attention._blocks)(q, keys, values, mask))
  assert text.count("dot_general") == 2 * {256: 2, 300: 3, 1030: 8}[length]


def test_a_prompt_read_into_an_empty_cache_attends_to_itself():
  """With and without `fresh`: the same activations and the same cache."""
  config = tiny.config(window=7)
  lm, params = LanguageModel(config), tiny.params(config)
  tokens = tiny.tokens(config, 2, 12)
  cache = cache_lib.empty(config, 2, 20)
  hidden = jax.jit(lm.hidden, static_argnames="fresh")
  one, two = (hidden(params, tokens, cache=cache, fresh=fresh)
              for fresh in (True, False))
  for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_a_short_prompt_of_a_model_with_the_kernel_attends_without_it():
  """The kernel takes multiples of its block only; prompts have any length."""
  config = tiny.config()
  params, tokens = tiny.params(config), tiny.tokens(config, 1, 5)
  made = [jax.jit(LanguageModel(c).hidden, static_argnames="fresh")(
      params, tokens, cache=cache_lib.empty(c, 1, 9), fresh=True)[0]
          for c in (config.replace(attention="splash"), config)]
  np.testing.assert_array_equal(*made)
