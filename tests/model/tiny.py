"""Configs that compile in a moment, and weights without compiling at all."""

import math

import jax
import numpy as np

from lm.model import LanguageModel, ModelConfig

SMALL = dict(vocab_size=50, d_model=24, num_layers=2, num_heads=6,
             num_kv_heads=2, head_dim=8, d_mlp=40, max_length=64,
             vocab_multiple=16, dtype="float32")


def config(**changes) -> ModelConfig:
  return ModelConfig(**SMALL | changes)


def params(config, seed=0, scale=1.5):
  """Random weights everywhere, norms and the scalar head too."""
  rng = np.random.default_rng(seed)
  def leaf(path, x):
    if path[-1].key in ("scale", "q_norm", "k_norm"):
      return rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
    fan = x.shape[-1] if path[-1].key == "table" else config.d_model
    return (scale * fan ** -0.5 * rng.normal(size=x.shape)).astype(np.float32)
  return jax.tree_util.tree_map_with_path(
      leaf, LanguageModel(config).abstract())


def tokens(config, rows, length, seed=1):
  rng = np.random.default_rng(seed)
  return rng.integers(0, config.vocab_size, (rows, length)).astype(np.int32)


def products(jaxpr) -> int:
  """Twice the multiply-adds of every matrix product of a program."""
  flops = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      (lhs, _), _ = eqn.params["dimension_numbers"]
      contracted = math.prod(eqn.invars[0].aval.shape[i] for i in lhs)
      flops += 2 * contracted * math.prod(eqn.outvars[0].aval.shape)
    for inner in jax.core.jaxprs_in_params(eqn.params):
      flops += products(inner)
  return flops
