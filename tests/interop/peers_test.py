"""Models of transformers read by us, and ours by transformers: same logits.

They come with the extra `bench`.
"""

import jax
import numpy as np
import pytest

from lm.interop import hf_config, huggingface
from lm.model import LanguageModel, ModelConfig
from tests.model import tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = dict(vocab_size=50, hidden_size=24, intermediate_size=40,
             num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
             max_position_embeddings=64, rms_norm_eps=1e-5,
             attn_implementation="eager")
LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=8.0,
              low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
PLAIN = dict(rope_type="default", rope_theta=1000.0)
# Class, options of its config, and what our config must say of it.
THEIRS = {
    "llama2": ("Llama", dict(num_key_value_heads=6, rope_parameters=PLAIN),
               dict(num_kv_heads=6, rope_theta=1000.0)),
    "llama3": ("Llama", dict(rope_parameters=LLAMA3),
               dict(rope_scaling=(8.0, 1.0, 4.0, 32))),
    "smollm2": ("Llama", dict(tie_word_embeddings=True), dict(tied=True)),
    "llama-head": ("Llama", dict(head_dim=16), dict(head_dim=16)),
    "mistral": ("Mistral", dict(sliding_window=5, head_dim=8),
                dict(window=5)),
    "mistral-full": ("Mistral", dict(sliding_window=None), dict(window=None)),
    "qwen2": ("Qwen2", {}, dict(qkv_bias=True)),
    "qwen2-tied": ("Qwen2", dict(tie_word_embeddings=True), dict(tied=True)),
    "qwen2-window": (
        "Qwen2", dict(use_sliding_window=True, sliding_window=5,
                      max_window_layers=0), dict(window=5)),
    "qwen3": ("Qwen3", dict(head_dim=16), dict(qk_norm=True, head_dim=16)),
    "qwen3-window": (
        "Qwen3", dict(head_dim=8, use_sliding_window=True, sliding_window=5,
                      max_window_layers=0, tie_word_embeddings=True),
        dict(window=5, tied=True)),
}


@pytest.fixture(autouse=True)
def quick_compile():
  """XLA without its costly optimisations: each program runs once."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def randomize(peer):
  """Weights away from their initial ones: no norm of 1, no bias of 0."""
  rng = np.random.default_rng(0)
  with torch.no_grad():
    for name, x in peer.named_parameters():
      value = rng.normal(size=tuple(x.shape)) * 1.5 * x.shape[-1] ** -0.5
      if "norm" in name:
        value = rng.uniform(0.5, 1.5, tuple(x.shape))
      x.copy_(torch.tensor(value))
  return peer.eval()


def their_logits(peer, tokens):
  with torch.no_grad():
    return peer(torch.tensor(tokens, dtype=torch.long)).logits.float().numpy()


def our_logits(config, params, tokens):
  config = config.replace(dtype="float32", unroll=1)
  logits = jax.jit(LanguageModel(config).forward)(params, tokens).logits_BTV
  return np.asarray(logits)[..., :config.vocab_size]


def close(a, b, name):
  error = np.abs(a - b).max()
  print(f"{name}: {error:.1e} of {np.abs(b).max():.1f}")
  assert np.abs(b).max() > 1  # There is something to get wrong.
  assert error < 1e-4


def reopen(folder, kind):
  """A folder of ours in transformers, with nothing missing or left over."""
  peer, info = transformers.AutoModelForCausalLM.from_pretrained(
      folder, attn_implementation="eager", output_loading_info=True)
  assert not any(info.values()), info
  assert type(peer).__name__ == f"{kind}ForCausalLM"
  return peer.eval()


@pytest.mark.parametrize("case", THEIRS)
def test_their_models_give_their_logits_and_come_back(case, tmp_path):
  kind, options, wanted = THEIRS[case]
  peer = randomize(getattr(transformers, f"{kind}ForCausalLM")(
      getattr(transformers, f"{kind}Config")(**SMALL | options)))
  peer.save_pretrained(tmp_path / "in", max_shard_size="20KB")
  config, params, vocab = huggingface.load(tmp_path / "in")
  assert vocab is None
  assert {k: getattr(config, k) for k in wanted} == wanted
  tokens = tiny.tokens(config, 2, 24)
  logits = their_logits(peer, tokens)
  close(our_logits(config, params, tokens), logits, case)

  huggingface.export(tmp_path / "out", config, params, None, shard_gb=2e-5)
  back = reopen(tmp_path / "out", "Llama" if case == "mistral-full" else kind)
  np.testing.assert_array_equal(their_logits(back, tokens), logits)


def test_our_own_shapes_open_in_transformers(tmp_path):
  """Heads that do not divide the width, a vocabulary that is padded."""
  config = tiny.config(d_model=28, window=None, scalar_head=True)
  params, tokens = tiny.params(config), tiny.tokens(config, 2, 24)
  notes = huggingface.export(tmp_path / "out", config, params, None)
  assert "scalar head" in notes[0] and "vocabulary" in notes[1]
  peer = reopen(tmp_path / "out", "Mistral")
  assert peer.config.vocab_size == config.vocab_size < config.padded_vocab
  close(our_logits(config, params, tokens), their_logits(peer, tokens), "odd")


@pytest.mark.parametrize("case", THEIRS)
def test_configs_of_the_installed_classes_are_understood(case):
  """Nothing of what the class writes, in full, is unknown to us."""
  kind, options, wanted = THEIRS[case]
  theirs = getattr(transformers, f"{kind}Config")(
      **SMALL | options, architectures=[f"{kind}ForCausalLM"])
  config = hf_config.read(theirs.to_dict(), where="config.json")
  assert {k: getattr(config, k) for k in wanted} == wanted
  ours = hf_config.write(config, dtype="float32")
  kind = ours["architectures"][0].removesuffix("ForCausalLM")
  back = getattr(transformers, f"{kind}Config")(**ours)
  assert hf_config.read(back.to_dict(), where="x") == config


def test_bfloat16_weights_are_the_same_numbers(tmp_path):
  config = tiny.config(qk_norm=True)
  params = tiny.params(config)
  huggingface.export(tmp_path / "out", config, params, None, dtype="bfloat16")
  peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
  assert peer.dtype == torch.bfloat16
  ours = torch.tensor(params["layers"]["mlp"]["up"][1].T).bfloat16()
  assert torch.equal(peer.model.layers[1].mlp.up_proj.weight.data, ours)


def test_defaults_of_the_classes_are_theirs():
  """A config.json that is silent means what transformers takes it to mean."""
  for kind in ("Llama", "Mistral", "Qwen2", "Qwen3"):
    silent = dict(architectures=[f"{kind}ForCausalLM"], vocab_size=50,
                  hidden_size=256, intermediate_size=40, num_hidden_layers=40,
                  num_attention_heads=32, model_type=kind.lower())
    theirs = getattr(transformers, f"{kind}Config")(**silent)
    assert hf_config.read(silent, where="x") == hf_config.read(
        theirs.to_dict() | silent, where="x") != ModelConfig(
            50, 256, 40, 32, 32, 8, 40), kind
