"""Biases of queries, keys and values, as Qwen2 has them."""

import jax
import numpy as np
import pytest

from lm.model import LanguageModel
from lm.model import sizes
from tests.model import oracle, tiny


def biased_attention(plain):
  """The oracle's attention with biases: rows of kernels whose input is 1."""
  def attention(x, layer, *rest):
    layer = dict(layer)
    for name in "qkv":
      bias = layer.pop(f"{name}_bias")
      layer[name] = np.concatenate([layer[name], bias[None]])
    layer["o"] = np.pad(layer["o"], ((0, 0), (0, 0), (0, 1)))
    ones = np.ones((len(x), 1))
    return plain(np.concatenate([x, ones], -1), layer, *rest)[:, :-1]
  return attention


@pytest.mark.parametrize("changes", [
    dict(), dict(window=3, tied=True), dict(qk_norm=True, unroll=1)],
    ids=["plain", "window", "norm"])
def test_biases_enter_as_the_oracle_says(changes, monkeypatch, quick_compile):
  config = tiny.config(qkv_bias=True, **changes)
  params, tokens = tiny.params(config), tiny.tokens(config, 1, 9)
  monkeypatch.setattr(
      oracle, "attention", biased_attention(oracle.attention))
  got = jax.jit(LanguageModel(config).forward)(params, tokens).logits_BTV
  np.testing.assert_allclose(
      got[0, :, :config.vocab_size], oracle.logits(config, params, tokens[0]),
      atol=2e-4)
  for name in ("q_bias", "v_bias"):  # And each of them matters.
    attention = params["layers"]["attention"]
    less = {**params, "layers": {**params["layers"], "attention": {
        **attention, name: 0 * attention[name]}}}
    other = jax.jit(LanguageModel(config).forward)(less, tokens).logits_BTV
    assert np.abs(other - got)[..., :config.vocab_size].max() > 0.1


def test_biases_are_counted_and_laid_out_as_their_heads():
  config = tiny.config(qkv_bias=True)
  net = LanguageModel(config)
  shapes = net.abstract()["layers"]["attention"]
  assert shapes["q_bias"].shape == (2, 6, 8)
  assert shapes["k_bias"].shape == shapes["v_bias"].shape == (2, 2, 8)
  axes = net.axes()["layers"]["attention"]
  assert axes["q_bias"] == ("layers", "heads", None)
  assert axes["k_bias"] == axes["v_bias"] == ("layers", "kv_heads", None)
  for c in (config, config.replace(qkv_bias=False, qk_norm=True)):
    leaves = jax.tree.leaves(LanguageModel(c).abstract())
    assert c.num_params == sum(x.size for x in leaves)


def test_models_without_biases_are_what_they_were():
  config = sizes.size("llama2-7b")
  assert not config.qkv_bias
  assert config.num_params == 6_738_415_616  # 2307.09288, table 1: 6.7 B.
  assert not [p for p in jax.tree_util.tree_flatten_with_path(
      LanguageModel(config).abstract())[0] if "bias" in str(p[0])]


def test_published_sizes_of_qwen2():
  """Qwen2.5-0.5B has 494,032,768 parameters by its safetensors index."""
  config = sizes.size(
      "test", vocab_size=151936, d_model=896, num_layers=24, num_heads=14,
      num_kv_heads=2, head_dim=64, d_mlp=4864, tied=True, qkv_bias=True)
  assert config.num_params == 494_032_768
