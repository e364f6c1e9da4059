"""Folders of Hugging Face's: configs, shards, tokenizers, and their faults."""

import json
import os
import shutil
import types

import jax
import ml_dtypes
import numpy as np
import pytest

from lm.data import vocab as vocab_lib
from lm.interop import hf_config, huggingface
from lm.interop.safetensors_file import SafetensorsFile, write
from lm.model import sizes
from lm.types import UserError
from tests.model import tiny

# As the published models say it (fields that only generation reads left out).
LLAMA31 = dict(
    architectures=["LlamaForCausalLM"], attention_bias=False,
    attention_dropout=0.0, bos_token_id=128000,
    eos_token_id=[128001, 128008, 128009], hidden_act="silu", hidden_size=4096,
    initializer_range=0.02, intermediate_size=14336,
    max_position_embeddings=131072, mlp_bias=False, model_type="llama",
    num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8,
    pretraining_tp=1, rms_norm_eps=1e-05, rope_scaling=dict(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192, rope_type="llama3"),
    rope_theta=500000.0, tie_word_embeddings=False, torch_dtype="bfloat16",
    transformers_version="4.42.3", use_cache=True, vocab_size=128256)
PUBLISHED = {
    "llama3.1-8b": LLAMA31,
    "llama2-7b": dict(
        _name_or_path="meta-llama/Llama-2-7b-hf",
        architectures=["LlamaForCausalLM"], hidden_act="silu",
        hidden_size=4096, intermediate_size=11008, max_position_embeddings=4096,
        model_type="llama", num_attention_heads=32, num_hidden_layers=32,
        num_key_value_heads=32, pretraining_tp=1, rms_norm_eps=1e-05,
        rope_scaling=None, tie_word_embeddings=False, torch_dtype="float16",
        vocab_size=32000),
    "mistral-7b": dict(
        architectures=["MistralForCausalLM"], hidden_act="silu",
        hidden_size=4096, intermediate_size=14336,
        max_position_embeddings=32768, model_type="mistral",
        num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8,
        rms_norm_eps=1e-05, rope_theta=10000.0, sliding_window=4096,
        tie_word_embeddings=False, vocab_size=32000),
    "smollm2-135m": {
        "architectures": ["LlamaForCausalLM"], "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536,
        "is_llama_config": True, "max_position_embeddings": 8192,
        "model_type": "llama", "num_attention_heads": 9,
        "num_hidden_layers": 30, "num_key_value_heads": 3,
        "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
        "rope_theta": 100000, "tie_word_embeddings": True, "vocab_size": 49152,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
}
QWEN2 = dict(
    architectures=["Qwen2ForCausalLM"], hidden_act="silu", hidden_size=896,
    intermediate_size=4864, max_position_embeddings=32768, max_window_layers=21,
    model_type="qwen2", num_attention_heads=14, num_hidden_layers=24,
    num_key_value_heads=2, rms_norm_eps=1e-06, rope_theta=1000000.0,
    sliding_window=32768, tie_word_embeddings=True, use_mrope=False,
    use_sliding_window=False, vocab_size=151936)
QWEN3 = QWEN2 | dict(architectures=["Qwen3ForCausalLM"], head_dim=128,
                     model_type="qwen3", attention_bias=False)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_our_named_sizes(name):
  assert hf_config.read(PUBLISHED[name], where="x") == sizes.size(name)


def test_published_qwen():
  two = hf_config.read(QWEN2, where="x")
  assert (two.qkv_bias, two.qk_norm, two.window, two.head_dim) == (
      True, False, None, 64)
  assert two.num_params == 494_032_768
  three = hf_config.read(QWEN3, where="x")
  assert (three.qkv_bias, three.qk_norm, three.head_dim) == (False, True, 128)
  for fields in (QWEN2, QWEN3):  # All layers behind a window, or none.
    on = fields | dict(use_sliding_window=True, sliding_window=64)
    assert hf_config.read(on | dict(max_window_layers=0), where="x"
                          ).window == 64
    assert hf_config.read(on | dict(max_window_layers=24), where="x"
                          ).window is None
    assert hf_config.read(on | dict(layer_types=["sliding_attention"] * 24),
                          where="x").window == 64


REFUSED = {
    "gemma": (dict(architectures=["GemmaForCausalLM"]),
              ["GemmaForCausalLM", "LlamaForCausalLM", "Qwen3ForCausalLM"]),
    "classifier": (dict(architectures=["LlamaForSequenceClassification"]),
                   ["LlamaForSequenceClassification"]),
    "mixture": (dict(num_experts=8), ["num_experts=8"]),
    "gelu": (dict(hidden_act="gelu_pytorch_tanh"), ["hidden_act"]),
    "bias": (dict(attention_bias=True), ["attention_bias"]),
    "mlp bias": (dict(mlp_bias=True), ["mlp_bias"]),
    "linear": (dict(rope_scaling=dict(type="linear", factor=2.0)),
               ["'linear'", "llama3"]),
    "yarn": (dict(rope_scaling=None, rope_parameters=dict(
        rope_type="yarn", factor=4.0)), ["'yarn'"]),
    "rope": (dict(rope_scaling=dict(rope_type="default", mrope_section=[1])),
             ["mrope_section"]),
    "by layer": (dict(rope_scaling=None, rope_parameters=dict(
        full_attention=dict(rope_type="default"))), ["full_attention"]),
    "llama3 without": (dict(rope_scaling=dict(rope_type="llama3")),
                       ["factor"]),
    "partial": (dict(partial_rotary_factor=0.5), ["partial_rotary_factor"]),
    "scaling": (dict(embedding_multiplier=12.0), ["embedding_multiplier"]),
    "caps": (dict(final_logit_softcapping=30.0), ["final_logit_softcapping"]),
    "interleaved": (dict(rope_interleaved=True), ["rope_interleaved"]),
    "quantised": (dict(quantization_config=dict(bits=4)),
                  ["quantization_config", "quantised"]),
    "code": (dict(auto_map=dict(AutoModel="x.Y")), ["auto_map"]),
    "window": (dict(sliding_window=64), ["sliding_window", "Mistral"]),
    "layers": (dict(layer_types=["full_attention", "sliding_attention"]),
               ["layer_types"]),
    "text": (dict(hidden_size="4096"), ["hidden_size"]),
    "true": (dict(num_hidden_layers=True), ["num_hidden_layers"]),
    "zero": (dict(num_attention_heads=0), ["num_attention_heads"]),
    "groups": (dict(num_key_value_heads=5), ["num_kv_heads"]),
    "odd": (dict(head_dim=7), ["head_dim"]),
    "tied": (dict(tie_word_embeddings="false"), ["tie_word_embeddings"]),
    "eps": (dict(rms_norm_eps=float("nan")), ["rms_norm_eps"]),
    "no eps": (dict(rms_norm_eps=0.0), ["rms_norm_eps"]),
    "huge": (dict(rms_norm_eps=10**400), ["rms_norm_eps"]),
    "theta": (dict(rope_theta=float("inf")), ["rope_theta"]),
    "layer": (dict(layer_types=[[]]), ["layer_types"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_we_cannot_say_is_refused_by_name(case):
  changes, words = REFUSED[case]
  with pytest.raises(UserError) as e:
    hf_config.read(LLAMA31 | changes, where="DIR/config.json")
  assert str(e.value).startswith("DIR/config.json") and "\n" not in str(e.value)
  assert all(word in str(e.value) for word in words), e.value


@pytest.mark.parametrize("fields, words", [
    (QWEN2 | dict(use_sliding_window=True), "max_window_layers=21"),
    (QWEN2 | dict(attention_bias=True), "attention_bias"),
    (QWEN3 | dict(attention_bias=True), "attention_bias"),
    (QWEN3 | dict(use_sliding_window=True, layer_types=[
        "full_attention", "sliding_attention"] * 12), "layer_types"),
], ids=["some layers", "no such field", "qwen3 biases", "mixed"])
def test_qwen_that_we_cannot_say(fields, words):
  with pytest.raises(UserError, match=words):
    hf_config.read(fields, where="x")


def test_missing_fields_are_named():
  for name in ("vocab_size", "hidden_size", "num_hidden_layers",
               "intermediate_size", "num_attention_heads"):
    fields = {k: v for k, v in LLAMA31.items() if k != name}
    with pytest.raises(UserError, match=name):
      hf_config.read(fields, where="x")


@pytest.mark.parametrize("changes, words", [
    (dict(logit_cap=30.0), "logit_cap"),
    (dict(qk_norm=True, qkv_bias=True), "qkv_bias and model.qk_norm"),
], ids=["cap", "both"])
def test_what_no_class_can_say_is_not_written(changes, words, tmp_path):
  config = tiny.config(**changes)
  with pytest.raises(UserError, match=words):
    huggingface.export(tmp_path / "out", config, tiny.params(config), None)
  assert not os.listdir(tmp_path)


# --------------------------------------------------------------------- folders


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """A model in shards, and what it was made from."""
  folder = tmp_path_factory.mktemp("model") / "out"
  config = tiny.config(vocab_size=260, tied=True)
  params = tiny.params(config)
  huggingface.export(folder, config, params, None, shard_gb=2e-5)
  return folder, config, params


def copy(exported, tmp_path):
  shutil.copytree(exported[0], tmp_path / "copy")
  return tmp_path / "copy"


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_round_trip_is_bit_for_bit(exported, tmp_path, dtype):
  """In, out and in again; and the files themselves do not change."""
  config, params, _ = huggingface.load(exported[0], dtype=dtype)
  huggingface.export(tmp_path / "one", config, params, None, dtype=dtype)
  again, back, _ = huggingface.load(tmp_path / "one", dtype=dtype)
  assert again == config == exported[1].replace(
      vocab_multiple=128, dtype="auto")
  same(back, params)
  if dtype == "float32":
    rows = config.vocab_size
    np.testing.assert_array_equal(
        back["embed"]["table"][:rows], exported[2]["embed"]["table"][:rows])
    same(back["layers"], exported[2]["layers"])
  # By way of float32, as a checkpoint is loaded.
  wide = jax.tree.map(lambda x: x.astype(np.float32), params)
  huggingface.export(tmp_path / "two", config, wide, None, dtype=dtype)
  for name in ("model.safetensors", "config.json"):
    assert (tmp_path / "one" / name).read_bytes() == (
        tmp_path / "two" / name).read_bytes()
  kind = SafetensorsFile(tmp_path / "one" / "model.safetensors").dtypes
  assert {str(x) for x in kind.values()} == {dtype}


def test_shards_are_small_and_indexed(exported):
  folder = exported[0]
  index = json.loads((folder / "model.safetensors.index.json").read_text())
  files = sorted(p.name for p in folder.glob("*.safetensors"))
  assert len(files) > 3 and files[0].startswith("model-00001-of-0000")
  assert sorted(set(index["weight_map"].values())) == files
  total = 0
  for name in files:
    file = SafetensorsFile(folder / name)
    assert sum(x.size * 4 for x in map(file.read, file.shapes)) <= 2e4 or (
        len(file.shapes) == 1)
    total += sum(x.size * 4 for x in map(file.read, file.shapes))
  assert index["metadata"]["total_size"] == total


def test_faulty_folders_are_named(exported, tmp_path):
  def fails(change, *words):
    folder = copy(exported, tmp_path)
    change(folder)
    with pytest.raises(UserError) as e:
      huggingface.load(folder)
    shutil.rmtree(folder)
    assert all(word in str(e.value) for word in words), e.value
    assert "\n" not in str(e.value)

  def index(change):
    def edit(folder):
      path = folder / "model.safetensors.index.json"
      value = json.loads(path.read_text())
      change(value["weight_map"])
      path.write_text(json.dumps(value))
    return edit

  shard = sorted(p.name for p in exported[0].glob("*.safetensors"))[1]
  norm = "model.norm.weight"
  fails(lambda d: (d / shard).unlink(), shard, "missing")
  fails(lambda d: (d / shard).write_bytes((d / shard).read_bytes()[:-1]),
        shard, "cut short")
  fails(lambda d: (d / "config.json").unlink(), "config.json")
  fails(lambda d: (d / "config.json").write_text("{"), "config.json")
  fails(lambda d: (d / "model.safetensors.index.json").unlink(), "safetensors",
        "there is model-00001")
  fails(index(lambda m: m.update({norm: "../" + m[norm]})), "../model")
  fails(index(lambda m: m.update(other=shard)), shard, "'other'")
  fails(index(lambda m: m.clear()), "weight_map")
  fails(lambda d: shutil.copy(d / shard, d / "twin.safetensors") and index(
      lambda m: m.update({next(iter(SafetensorsFile(d / shard).shapes)):
                          "twin.safetensors"}))(d), "both", shard)

  def damage(folder):
    name = json.loads((folder / "model.safetensors.index.json").read_text())[
        "weight_map"][norm]
    file = SafetensorsFile(folder / name)
    made = {n: np.array(file.read(n)) for n in file.shapes}
    made[norm][3] = np.nan
    write(folder / name, [(n, x.shape) for n, x in made.items()],
          made.__getitem__, dtype=np.float32)

  fails(damage, norm, "NaN")
  with pytest.raises(UserError, match="max_length"):
    huggingface.load(exported[0], max_length=65)
  assert huggingface.read_config(exported[0], max_length=9).max_length == 9


@pytest.mark.parametrize("kind", [np.float32, ml_dtypes.bfloat16])
def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch, kind):
  config = tiny.config()
  params = jax.tree.map(lambda x: x.astype(kind), tiny.params(config))
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "mine.txt").touch()
  with pytest.raises(UserError, match="not empty"):
    huggingface.export(tmp_path / "full", config, params, None)

  def full(file, *args, **kwargs):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(huggingface, "write", full)
    with pytest.raises(UserError, match="No space left"):
      huggingface.export(tmp_path / "new", config, params, None)
  with monkeypatch.context() as patch:
    patch.setattr(shutil, "disk_usage",
                  lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="free some space"):
      huggingface.export(tmp_path / "new", config, params, None)
  assert os.listdir(tmp_path) == ["full"]
  (tmp_path / "empty").mkdir()
  notes = huggingface.export(tmp_path / "empty", config, params, None)
  assert (tmp_path / "empty" / "config.json").exists()
  assert ["vocabulary" in note for note in notes] == [True]
  assert sorted(os.listdir(tmp_path)) == ["empty", "full"]


def test_the_tokenizer_goes_along(tmp_path):
  vocab = vocab_lib.ByteVocab()
  config = tiny.config(vocab_size=vocab.size)
  params = tiny.params(config)
  assert huggingface.export(tmp_path / "out", config, params, vocab) == []
  about = json.loads((tmp_path / "out" / "config.json").read_text())
  assert about["eos_token_id"] == vocab.eos_id
  generation = json.loads(
      (tmp_path / "out" / "generation_config.json").read_text())
  assert generation["eos_token_id"] == vocab.eos_id
  config, _, back = huggingface.load(tmp_path / "out")
  text = "Tell me: 1 + 1 = 2 <|user|> caf\u00e9 \u2192 <|end|>"
  assert back.encode(text) == vocab.encode(text)
  assert back.eos_ids == (vocab.eos_id,)

  small = config.replace(vocab_size=vocab.size - 1)
  with pytest.raises(UserError, match="260 ids.*259 rows"):
    huggingface.export(tmp_path / "no", small, tiny.params(small), vocab)
  about["vocab_size"] = 100
  (tmp_path / "out" / "config.json").write_text(json.dumps(about))
  with pytest.raises(UserError, match="260 ids.*100 rows"):
    huggingface.load(tmp_path / "out")
