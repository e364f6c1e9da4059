"""Sizes, and what is derived from them, against the trees they describe."""

import json
import math

import jax
import numpy as np
import pytest

from lm import model
from lm.model import LanguageModel, ModelConfig
from lm.types import UserError
from tests.model import tiny

# Of the published checkpoints; their vocabularies need no padding here.
PUBLISHED = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-34b": 33_743_970_304,  # Code Llama 34B, with Llama 2's vocabulary.
    "llama2-70b": 68_976_648_192,
    "llama3.1-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", model.SIZES)
def test_parameters_of_every_size(name):
  config = model.size(name)
  tree = LanguageModel(config).abstract()
  total = sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
  assert total == config.num_params
  padding = (config.padded_vocab - config.vocab_size) * config.d_model * (
      1 if config.tied else 2)
  if name in PUBLISHED:
    assert total - padding == PUBLISHED[name]


def test_padding_and_heads_are_counted():
  for changes in (dict(), dict(tied=True, scalar_head=True), dict(qk_norm=True),
                  dict(vocab_size=64), dict(vocab_size=65, scalar_head=True)):
    config = tiny.config(**changes)
    tree = LanguageModel(config).abstract()
    total = sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    assert total == config.num_params, changes
  assert tiny.config(vocab_size=64).padded_vocab == 64
  assert tiny.config(vocab_size=65).padded_vocab == 80


@pytest.mark.parametrize("changes", [
    dict(), dict(tied=True, num_kv_heads=6), dict(head_dim=16, num_kv_heads=1)])
def test_flops_are_those_of_the_forward_pass(changes):
  config = tiny.config(**changes, unroll=2)
  lm = LanguageModel(config)
  tokens = jax.ShapeDtypeStruct((3, 20), np.int32)
  jaxpr = jax.make_jaxpr(lm.forward)(lm.abstract(), tokens)
  # The reference attention multiplies every query with all 20 keys. On a CPU
  # the table of angles, [.., H / 2], is written by two products.
  table = 2 * 2 * (config.head_dim // 2) ** 2
  assert tiny.products(jaxpr.jaxpr) == 3 * 20 * (
      config.flops_per_token(20) + table)


def test_flops_per_token_by_hand():
  config = model.size("llama2-7b")
  matrices = config.num_params - 32000 * 4096 - 65 * 4096  # No table, no norms.
  attention = 2 * 32 * 4096 * 1000  # Scores and mixing, over 1,000 keys.
  assert config.flops_per_token(1000) == 2 * (matrices + attention)
  assert (config.flops_per_token(1000, training=True)
          == 3 * config.flops_per_token(1000))
  assert config.flops_per_token() == config.flops_per_token(4096)
  mistral = model.size("mistral-7b")
  assert mistral.flops_per_token(9000) == mistral.flops_per_token(4096)
  head = tiny.config(scalar_head=True).flops_per_token(8)
  assert head == tiny.config().flops_per_token(8) + 2 * 24


@pytest.mark.parametrize("name", model.SIZES)
def test_cache_bytes_of_every_size(name):
  config = model.size(name, dtype="bfloat16")
  def size(slots):
    cache = jax.eval_shape(lambda: model.empty_cache(config, 1, slots))
    arrays = jax.tree.leaves((cache.k_BKSH, cache.v_BKSH))
    # On a CPU the cache holds values of bfloat16 in float32.
    return {sum(x.size for x in arrays) * b
            for b in (x.dtype.itemsize for x in arrays)}
  (longer,), (shorter,) = size(9), size(8)
  width = 4 if jax.default_backend() == "cpu" else 2
  assert longer - shorter == config.kv_bytes_per_token(width)
  assert config.kv_bytes_per_token() * width == 2 * (longer - shorter)


def test_published_cache_sizes():
  # 0.5 MB a token for Llama 2 7B and an eighth of it per layer and head for
  # grouped queries.
  assert model.size("llama2-7b").kv_bytes_per_token() == 524_288
  assert model.size("llama2-70b").kv_bytes_per_token() == 327_680
  assert model.size("mistral-7b").kv_bytes_per_token() == 131_072


@pytest.mark.parametrize("fields, words", [
    (dict(num_layer=2), "did you mean 'num_layers'"),
    (dict(num_kv_heads=4), "must divide"),
    (dict(head_dim=7), "even"),
    (dict(d_model=0), "at least 1"),
    (dict(dtype="float16"), "bfloat16"),
])
def test_impossible_configs_say_what_is_wrong(fields, words):
  with pytest.raises(UserError, match=words) as error:
    tiny.config().replace(**fields)
  assert "\n" not in str(error.value)


def test_unknown_names_say_what_is_known():
  with pytest.raises(UserError, match="llama2-7b"):
    model.size("lama2-7b")
  with pytest.raises(UserError, match="missing"):
    ModelConfig.from_dict({"vocab_size": 4})
  config = tiny.config(remat="everything")
  with pytest.raises(UserError, match="save_qkv"):
    LanguageModel(config).abstract()
  with pytest.raises(UserError, match="scalar head"):
    LanguageModel(tiny.config()).values({}, None)


def test_configs_survive_json():
  config = model.size("llama3.1-8b", logit_cap=30.0)
  again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
  assert again == config and hash(again) == hash(config)


def test_the_dial_widens_with_depth():
  sizes = [model.depth(n).num_params for n in (2, 4, 6, 8, 12)]
  assert sizes == sorted(sizes)
  for n in (2, 4, 8, 12):
    config = model.depth(n)
    assert config.d_model == 64 * n and config.num_heads * 64 == config.d_model
    assert config.d_mlp >= 8 / 3 * config.d_model
    # Parameters of the layers grow as the cube of depth.
    assert (config.num_layers * config.layer_params
            == pytest.approx(n ** 3 * 49152, rel=0.13))
  assert model.depth(4, vocab_size=300).vocab_size == 300
  rates = [model.recipe(n)["learning_rate"] for n in (2, 4, 8)]
  batches = [model.recipe(n)["batch_tokens"] for n in (2, 4, 8)]
  assert rates == sorted(rates, reverse=True) and batches == sorted(batches)
