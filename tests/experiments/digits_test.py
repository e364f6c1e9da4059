"""A model from nothing whose numbers begin as sums of their digits' vectors."""

import importlib

import jax
import numpy as np

from experiments.value import run as value
from lm import model
from lm.data import problems


def test_only_the_rows_of_numbers_differ_from_fresh_parameters():
  config = importlib.import_module("configs.thinkers.small").get_config()
  assert config.digits
  net, vocab = value.program(config.to_dict()).model, problems.vocabulary()
  made = model.init_with_digits(net, vocab, 3)
  plain = net.init(jax.random.key(3))
  table, other = (np.asarray(p["embed"]["table"]) for p in (made, plain))
  numbers = [vocab.id(f"\u2581{n}") for n in range(200)]
  words = [vocab.id(w) for w in ("\u2581(left:", "Answer:", "+", "=")]
  assert (table[numbers] != other[numbers]).any(axis=1).all()
  np.testing.assert_array_equal(table[words], other[words])
  near = np.corrcoef(table[numbers])
  shared = [near[10 * t + u, 10 * t + v]
            for t in range(10) for u in range(10) for v in range(u)]
  apart = [near[10 * t + u, 10 * ((t + 3) % 10) + (u + 3) % 10]
           for t in range(10) for u in range(10)]
  assert np.mean(shared) > np.mean(apart) + 0.2
  for rest in (made, plain):
    del rest["embed"]
  jax.tree.map(np.testing.assert_array_equal, made, plain)
