"""Losses against NumPy."""

import jax
import numpy as np
import pytest

from lm import objectives
from lm.types import Batch, Output, UserError

B, T, V = 3, 4, 7


@pytest.fixture
def data():
  rng = np.random.default_rng(0)
  ints = lambda high: rng.integers(0, high, (B, T)).astype(np.int32)
  weights = rng.random((B, T)).astype(np.float32)
  weights[0] = 0
  batch = Batch(
      ints(V), ints(V), weights, np.ones((B, T), np.int32), ints(T),
      {"values_BT": ints(2).astype(np.float32),
       "value_weights_BT": ints(2).astype(np.float32)})
  params = {
      "logits": rng.normal(size=(B, T, V)).astype(np.float32) * 3,
      "values": rng.normal(size=(B, T)).astype(np.float32) * 3}
  return params, batch


def apply(params, batch):
  del batch
  return Output(None, params["logits"], params["values"])


def numpy_nll(params, batch):
  logits = params["logits"].astype(np.float64)
  log_z = np.log(np.exp(logits).sum(-1))
  picked = np.take_along_axis(logits, batch.targets_BT[..., None], -1)[..., 0]
  return log_z - picked, log_z


def numpy_bce(params, batch):
  p = 1 / (1 + np.exp(-params["values"].astype(np.float64)))
  y = batch.extra["values_BT"]
  return -(y * np.log(p) + (1 - y) * np.log(1 - p))


def test_next_token_is_the_weighted_cross_entropy(data):
  params, batch = data
  nll, log_z = numpy_nll(params, batch)
  mean = lambda x: (batch.weights_BT * x).sum() / batch.weights_BT.sum()
  loss, metrics = objectives.next_token(apply)(params, batch, None)
  np.testing.assert_allclose(loss, mean(nll), rtol=1e-5)
  np.testing.assert_allclose(metrics["tokens"], batch.weights_BT.sum(),
                             rtol=1e-6)
  loss, metrics = objectives.next_token(apply, z_loss=0.1)(params, batch, None)
  np.testing.assert_allclose(loss, mean(nll) + 0.1 * mean(log_z**2), rtol=1e-5)
  # What is reported is comparable between runs with and without z-loss.
  np.testing.assert_allclose(metrics["loss"], mean(nll), rtol=1e-5)


def test_outcome_value_is_the_sigmoid_cross_entropy(data):
  params, batch = data
  weights = batch.extra["value_weights_BT"]
  expected = (weights * numpy_bce(params, batch)).sum() / weights.sum()
  loss, metrics = objectives.outcome_value(apply)(params, batch, None)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  right = (params["values"] > 0) == (batch.extra["values_BT"] > 0.5)
  np.testing.assert_allclose(
      metrics["value_accuracy"], (weights * right).sum() / weights.sum(),
      rtol=1e-6)


def test_outcome_value_survives_extreme_logits(data):
  params, batch = data
  params["values"] = np.where(params["values"] > 0, 200, -200).astype(
      np.float32)
  loss, _ = objectives.outcome_value(apply)(params, batch, None)
  assert np.isfinite(loss)


def test_both_losses_take_one_forward_pass(data):
  params, batch = data
  calls = []

  def counted(params, batch):
    calls.append(1)
    return apply(params, batch)

  loss, metrics = objectives.next_token_and_value(
      counted, value_weight=0.5, z_loss=0.1)(params, batch, None)
  assert len(calls) == 1
  nll, log_z = numpy_nll(params, batch)
  weights, values = batch.weights_BT, batch.extra["value_weights_BT"]
  expected = ((weights * (nll + 0.1 * log_z**2)).sum() / weights.sum()
              + 0.5 * (values * numpy_bce(params, batch)).sum() / values.sum())
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert {"loss", "value_loss", "value_accuracy", "tokens"} <= set(metrics)


def test_unweighted_positions_give_no_gradient(data):
  params, batch = data
  loss_fn = objectives.next_token_and_value(apply, z_loss=0.1)
  grads = jax.grad(lambda p: loss_fn(p, batch, None)[0])(params)
  assert np.abs(grads["logits"][0]).max() == 0
  assert np.abs(grads["logits"][1]).max() > 0
  unlabelled = batch.extra["value_weights_BT"] == 0
  assert np.abs(np.asarray(grads["values"])[unlabelled]).max() == 0


def test_a_batch_without_any_weight_gives_zero_not_nan(data):
  params, batch = data
  batch = batch.replace(weights_BT=np.zeros((B, T), np.float32))
  assert float(objectives.next_token(apply)(params, batch, None)[0]) == 0


def test_what_is_missing_is_said(data):
  params, batch = data
  headless = lambda p, b: Output(None, p["logits"], None)
  with pytest.raises(UserError, match="scalar_head=True"):
    objectives.outcome_value(headless)(params, batch, None)
  with pytest.raises(UserError, match="values_BT"):
    objectives.outcome_value(apply)(params, batch.replace(extra={}), None)
