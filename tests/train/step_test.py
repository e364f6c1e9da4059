"""The step: microbatches, randomness, donation; law 7."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests.train import toy

from lm import objectives
from lm import optim
from lm import train
from lm.types import UserError

MODEL = toy.Toy()


def one_update(loss_fn, *, microbatches, tx=None, seed=0, steps=1):
  # Plain SGD: the parameters' change is the gradient.
  tx = tx or optax.sgd(1.0)
  step = train.make_step(loss_fn, tx, seed=seed, microbatches=microbatches)
  state = train.init_state(MODEL, tx, jax.random.key(0))
  for n in range(steps):
    state, metrics = step(state, toy.batch(n))
  assert step._cache_size() == 1, "the step was compiled more than once"
  return state, metrics


@pytest.mark.parametrize("microbatches", [2, 8])
def test_microbatches_add_up_to_the_full_batch(microbatches):
  loss_fn = objectives.next_token_and_value(MODEL.apply, z_loss=1e-2)
  full, full_metrics = one_update(loss_fn, microbatches=1)
  parts, metrics = one_update(loss_fn, microbatches=microbatches)
  assert set(metrics) == set(full_metrics)
  for name in metrics:
    np.testing.assert_allclose(metrics[name], full_metrics[name], rtol=1e-5,
                               err_msg=name)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
               parts.params, full.params)


def test_the_batches_weights_are_unequal_enough_to_matter():
  """Averaging microbatch means, the usual mistake, gives another loss."""
  loss_fn = objectives.next_token(MODEL.apply)
  params = MODEL.init(jax.random.key(0))
  batch = toy.batch(0)
  full = float(loss_fn(params, batch, None)[0])
  halves = [jax.tree.map(lambda x, i=i: x[i::2], batch) for i in range(2)]
  naive = np.mean([float(loss_fn(params, h, None)[0]) for h in halves])
  assert abs(naive / full - 1) > 1e-3


def test_an_indivisible_batch_is_refused():
  with pytest.raises(UserError, match="8 rows does not divide into 3"):
    one_update(objectives.next_token(MODEL.apply), microbatches=3)


def test_the_random_key_is_a_function_of_seed_and_step():
  def loss_fn(params, batch, rng):
    draw = jax.random.uniform(rng)
    return 0.0 * jnp.sum(params["value"]["kernel"]), {"draw": draw}
  draws = {(seed, n): float(one_update(
      loss_fn, microbatches=1, seed=seed, steps=n)[1]["draw"])
      for seed in (0, 1) for n in (1, 2)}
  assert len(set(draws.values())) == 4
  again = one_update(loss_fn, microbatches=1, seed=1, steps=2)[1]["draw"]
  assert float(again) == draws[1, 2]


def test_the_state_is_donated_and_given_parameters_are_not():
  params = MODEL.init(jax.random.key(0))
  tx = optim.adamw(1e-2)
  state = train.state_of(params, tx)
  step = train.make_step(objectives.next_token(MODEL.apply), tx, seed=0)
  after, _ = step(state, toy.batch())
  assert all(x.is_deleted() for x in jax.tree.leaves(state))
  assert not any(x.is_deleted() for x in jax.tree.leaves(params))
  assert int(after.step) == 1


def test_float32_state_and_metrics():
  state, metrics = one_update(objectives.next_token(MODEL.apply),
                              microbatches=2, tx=optim.muon(1e-2))
  kinds = {str(x.dtype) for x in jax.tree.leaves((state.params, metrics))}
  assert kinds == {"float32"}
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert moments and all(x.dtype == jnp.float32 for x in moments)


def test_grad_norm_is_that_before_clipping():
  loss_fn = objectives.next_token(MODEL.apply)
  params = MODEL.init(jax.random.key(0))
  grads = jax.grad(lambda p: loss_fn(p, toy.batch(0), None)[0])(params)
  norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
  _, metrics = one_update(loss_fn, microbatches=1,
                          tx=optim.adamw(1e-3, clip=norm / 100))
  np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
