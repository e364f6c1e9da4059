"""Sampling rules against brute force in NumPy, on hand-made logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import decode
from lm.decode import sampling
from lm.types import UserError

V = 12


def logits(rows=4, seed=0):
  """No ties, and some tokens far likelier than others."""
  rng = np.random.default_rng(seed)
  return (2 * rng.normal(size=(rows, V))).astype(np.float32)


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def kept_by(rule, row):
  """The ids that brute force keeps."""
  probs = softmax(row.astype(np.float64))
  order = sorted(range(V), key=lambda i: -probs[i])
  match rule:
    case sampling.TopK(k=k):
      return set(order[:k])
    case sampling.TopP(p=p):
      kept, mass = set(), 0.0
      for i in order:
        kept.add(i)
        mass += probs[i]
        if mass >= p:
          break
      return kept
    case sampling.MinP(p=p):
      return {i for i in range(V) if probs[i] >= p * probs.max()}


@pytest.mark.parametrize("rule", [
    sampling.TopK(1), sampling.TopK(3), sampling.TopK(V),
    sampling.TopP(0.05), sampling.TopP(0.5), sampling.TopP(0.93),
    sampling.TopP(1.0), sampling.MinP(0.0), sampling.MinP(0.1),
    sampling.MinP(1.0),
], ids=repr)
def test_rules_keep_what_brute_force_keeps(rule):
  x = logits()
  got = np.asarray(rule(x, None))
  for row, want in zip(got, x):
    kept = kept_by(rule, want)
    assert {i for i in range(V) if row[i] > -1e8} == kept
    for i in kept:
      assert row[i] == want[i]  # What stays is not changed.


def test_top_k_of_more_than_the_vocabulary_keeps_all():
  x = logits()
  np.testing.assert_array_equal(sampling.TopK(V + 5)(x, None), x)


def test_temperature_and_repetition_penalty():
  x = logits()
  np.testing.assert_allclose(
      sampling.Temperature(0.25)(x, None), 4 * x, rtol=1e-6)
  seen = np.zeros((4, V), bool)
  seen[:, [1, 4, 7]] = True
  got = np.asarray(sampling.RepetitionPenalty(1.5)(x, seen))
  for b in range(4):
    for v in range(V):
      want = x[b, v]
      if seen[b, v]:
        want = want / 1.5 if want > 0 else want * 1.5
        assert got[b, v] < x[b, v]
      np.testing.assert_allclose(got[b, v], want, rtol=1e-6)


def test_frequencies_follow_the_rules_in_order():
  """20,000 draws against the distribution that brute force says."""
  row = logits(1)[0]
  seen = np.zeros((1, V), bool)
  seen[0, int(row.argmax())] = True
  rules = decode.rules(temperature=0.8, top_k=6, top_p=0.9, min_p=0.02,
                       repetition_penalty=1.7)
  n = 20_000
  tokens, log_probs = jax.jit(
      lambda key: sampling.sample(
          key, jnp.tile(row, (n, 1)), rules, seen_BV=jnp.tile(seen, (n, 1)))
  )(jax.random.key(0))
  x = row.astype(np.float64)
  top = x.argmax()
  x[top] = x[top] / 1.7 if x[top] > 0 else x[top] * 1.7
  x /= 0.8
  for rule in (sampling.TopK(6), sampling.TopP(0.9), sampling.MinP(0.02)):
    kept = kept_by(rule, x)
    x = np.array([x[i] if i in kept else -np.inf for i in range(V)])
  want = softmax(x)
  got = np.bincount(np.asarray(tokens), minlength=V) / n
  assert set(np.flatnonzero(got)) == set(np.flatnonzero(want))
  assert 2 <= len(np.flatnonzero(want)) < 6
  error = np.abs(got - want) / np.sqrt(np.maximum(want * (1 - want), 1e-9) / n)
  assert error.max() < 4.5
  # The log-probabilities are the model's own, before any rule.
  own = np.log(softmax(row.astype(np.float64)))
  np.testing.assert_allclose(log_probs, own[np.asarray(tokens)], atol=1e-5)


def test_greedy_takes_the_likeliest_and_the_first_of_equals():
  x = logits()
  x[2, [3, 8]] = 50.0
  for seed in range(3):
    tokens, log_probs = sampling.sample(
        jax.random.key(seed), x, decode.GREEDY)
    np.testing.assert_array_equal(tokens, [*x[:2].argmax(-1), 3, x[3].argmax()])
  np.testing.assert_allclose(log_probs[2], np.log(0.5), atol=1e-5)
  assert decode.rules(temperature=0.0, top_k=5) == decode.GREEDY


def test_masked_padding_is_never_drawn():
  x = np.concatenate([logits(64), np.full((64, 4), -1e9, np.float32)], -1)
  for rules in ((), decode.rules(temperature=50.0),
                decode.rules(top_p=1.0, min_p=0.0, repetition_penalty=3.0)):
    tokens, _ = sampling.sample(
        jax.random.key(1), x, rules, seen_BV=np.zeros(x.shape, bool))
    assert int(tokens.max()) < V


@pytest.mark.parametrize("bad", [
    dict(temperature=-1.0), dict(top_k=0), dict(top_p=0.0), dict(top_p=1.5),
    dict(min_p=-0.1), dict(min_p=1.1), dict(repetition_penalty=0.0)], ids=str)
def test_impossible_rules_are_refused(bad):
  with pytest.raises(UserError, match=next(iter(bad))):
    decode.rules(**bad)
