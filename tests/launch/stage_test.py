"""From plain fields to a model and an optimizer."""

import jax.numpy as jnp
from lm import model
from lm.data import vocab as vocab_lib
from lm.launch import stage
from lm.types import UserError
import numpy as np
import pytest

FIELDS = dict(name="adamw", learning_rate=0.1, weight_decay=0.0, clip=0.0,
              b1=0.0, b2=0.0, eps=1e-12)


def updates(steps, count, **fields):
  """How far each update moves a parameter whose gradient is always 1."""
  tx = stage.optimizer({**FIELDS, **fields}, steps=steps)
  params = {"kernel": jnp.zeros(())}
  state, found = tx.init(params), []
  for _ in range(count):
    update, state = tx.update({"kernel": jnp.ones(())}, state, params)
    found.append(-float(update["kernel"]))
  return found


def test_schedules_by_name():
  np.testing.assert_allclose(
      updates(4, 4, schedule="constant", warmup=2), [.05, .1, .1, .1],
      rtol=1e-4)
  np.testing.assert_allclose(
      updates(10, 10, schedule="wsd", warmup=1, decay=0.5, end=0.0),
      [.1] * 6 + [.08, .06, .04, .02], rtol=1e-4)
  np.testing.assert_allclose(
      updates(4, 5, schedule="cosine", end=0.2)[::2], [.1, .06, .02],
      rtol=1e-4)


def test_a_schedule_takes_only_what_is_its_own():
  """So that an ablation may change the schedule's name alone."""
  fields = dict(warmup=1, end=0.1, decay=0.3)
  for name in ("constant", "cosine", "wsd"):
    assert updates(10, 2, schedule=name, **fields)[0] == pytest.approx(.1)


def test_rules_reach_the_optimizer():
  rules = (dict(pattern="kernel", lr=0.5),)
  assert updates(3, 1, schedule="constant", rules=rules) == [
      pytest.approx(0.05, rel=1e-4)]


@pytest.mark.parametrize("fields, words", [
    (dict(name="adam"), "did you mean 'adamw'"),
    (dict(schedule="cosin"), "did you mean 'cosine'"),
    (dict(weight_dekay=1.0), "did you mean 'weight_decay'"),
    (dict(momentum=0.9), "optimizer has no field 'momentum'"),
    (dict(lr=1.0), "optimizer has no field 'lr'"),
    (dict(warmup=50), "warm-up"),
])
def test_bad_optimizers(fields, words):
  with pytest.raises(UserError, match=words):
    stage.optimizer({**FIELDS, **fields}, steps=10)


def test_muon_by_name():
  tx = stage.optimizer(
      dict(name="muon", learning_rate=0.1, momentum=0.9), steps=10)
  net = model.LanguageModel(model.size("test"))
  state = tx.init(model.LanguageModel(net.config).abstract())
  assert "momentum" in str(state)


def test_the_dial_sets_batch_and_rate_only_where_they_are_zero():
  base = dict(model=dict(depth=6), batch=0, length=256,
              optimizer=dict(learning_rate=0.0))
  recipe = model.recipe(6)
  found = stage.by_the_dial(base)
  assert found["batch"] == recipe["batch_tokens"] / 256
  assert found["optimizer"]["learning_rate"] == recipe["learning_rate"]
  assert base["batch"] == 0  # Not changed in place.
  own = stage.by_the_dial(
      {**base, "batch": 7, "optimizer": dict(learning_rate=0.5)})
  assert own["batch"] == 7 and own["optimizer"]["learning_rate"] == 0.5
  sized = {**base, "model": dict(size="nano"), "batch": 3}
  assert stage.by_the_dial(sized) == sized


def test_models_by_size_depth_and_field():
  vocab = vocab_lib.ByteVocab()
  by_size = stage.model_config(dict(size="nano", num_layers=3), vocab.size)
  assert (by_size.num_layers, by_size.vocab_size) == (3, vocab.size)
  assert stage.model_config(dict(depth=3), vocab.size).d_model == 192
  fields = model.size("test", vocab_size=vocab.size).to_dict()
  assert stage.model_config(fields, vocab.size).to_dict() == fields
  for bad, words in [
      (dict(size="nano", depth=3), "exclude"),
      (dict(size="nano", vocab_size=9), "pieces"),
      (dict(size="nano", widht=9), "widht"),
      (dict(d_model=3), "missing")]:
    with pytest.raises(UserError, match=words):
      stage.model_config(bad, vocab.size)
  with pytest.raises(UserError, match="context of 256"):
    stage.model_config(dict(size="nano"), vocab.size, length=257)
