"""The forward pass against Hugging Face's Llama and Mistral, where installed.

They come with the extra `bench`; without them the NumPy transformer of
`forward_test.py` is the oracle.
"""

import jax
import numpy as np
import pytest

from lm.model import LanguageModel
from tests.model import tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LLAMA3 = dict(rope_theta=500.0, rope_scaling=(8.0, 1.0, 4.0, 32))
CASES = {
    "llama2": ("Llama", dict(num_kv_heads=6)),
    "llama3": ("Llama", LLAMA3),
    "smollm": ("Llama", dict(tied=True, num_heads=3, num_kv_heads=1)),
    "mistral": ("Mistral", dict(window=5)),
}


def build(kind, c):
  rope = {"rope_type": "default", "rope_theta": c.rope_theta}
  if c.rope_scaling is not None:
    factor, low, high, original = c.rope_scaling
    rope |= dict(rope_type="llama3", factor=factor, low_freq_factor=low,
                 high_freq_factor=high,
                 original_max_position_embeddings=original)
  more = dict(sliding_window=c.window) if kind == "Mistral" else {}
  config = getattr(transformers, f"{kind}Config")(
      vocab_size=c.padded_vocab, hidden_size=c.d_model,
      intermediate_size=c.d_mlp, num_hidden_layers=c.num_layers,
      num_attention_heads=c.num_heads, num_key_value_heads=c.num_kv_heads,
      head_dim=c.head_dim, max_position_embeddings=c.max_length,
      rms_norm_eps=c.norm_eps, rope_theta=c.rope_theta, rope_parameters=rope,
      tie_word_embeddings=c.tied, attn_implementation="eager", **more)
  return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def state_dict(c, params):
  """Our tree by their names; their kernels are [out, in]."""
  layers, d = params["layers"], c.d_model
  found = {"model.embed_tokens.weight": params["embed"]["table"],
           "model.norm.weight": params["final_norm"]["scale"]}
  found["lm_head.weight"] = (
      params["embed"]["table"] if c.tied else params["head"]["kernel"].T)
  for n in range(c.num_layers):
    at = f"model.layers.{n}."
    attention = {k: v[n] for k, v in layers["attention"].items()}
    for name in "qkv":
      found[f"{at}self_attn.{name}_proj.weight"] = attention[name].reshape(
          d, -1).T
    found[f"{at}self_attn.o_proj.weight"] = attention["o"].reshape(-1, d).T
    for name in ("gate", "up", "down"):
      found[f"{at}mlp.{name}_proj.weight"] = layers["mlp"][name][n].T
    found[f"{at}input_layernorm.weight"] = layers["attention_norm"]["scale"][n]
    found[f"{at}post_attention_layernorm.weight"] = (
        layers["mlp_norm"]["scale"][n])
  return {k: torch.tensor(np.array(v)) for k, v in found.items()}


@pytest.mark.parametrize("case", CASES)
def test_logits_match_transformers(case):
  kind, changes = CASES[case]
  config = tiny.config(**changes)
  params, tokens = tiny.params(config), tiny.tokens(config, 2, 24)
  peer = build(kind, config)
  missing, unexpected = peer.load_state_dict(
      state_dict(config, params), strict=False)
  assert not unexpected and all("rotary" in m for m in missing)
  with torch.no_grad():
    want = peer(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
  got = np.asarray(
      jax.jit(LanguageModel(config).forward)(params, tokens).logits_BTV)
  np.testing.assert_allclose(
      got[..., :config.vocab_size], want[..., :config.vocab_size],
      atol=1e-4, rtol=1e-4)
