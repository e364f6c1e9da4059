"""The forward pass against a NumPy transformer with the same weights."""

import jax
import numpy as np
import pytest

from lm.model import LanguageModel
from lm.types import UserError
from tests.model import oracle, tiny

FAMILIES = {
    "llama2": dict(num_kv_heads=6),
    # Of the four wavelengths two are stretched, one is kept, one is blended.
    "llama3": dict(rope_theta=500.0, rope_scaling=(8.0, 1.0, 4.0, 32)),
    "mistral": dict(window=5),
    "smollm": dict(tied=True, num_heads=3, num_kv_heads=1),
    "ours": dict(tied=True, qk_norm=True, num_kv_heads=6, norm_eps=1e-2),
    "capped": dict(logit_cap=3.0, scalar_head=True, head_dim=16),
}


def forward(config, params, tokens, **places):
  return jax.jit(LanguageModel(config).forward)(params, tokens, **places)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_match_the_numpy_transformer(family):
  config = tiny.config(**FAMILIES[family])
  params = tiny.params(config)
  tokens = tiny.tokens(config, 2, 20)
  out = forward(config, params, tokens)
  for row in range(2):
    want = oracle.logits(config, params, tokens[row])
    np.testing.assert_allclose(
        out.logits_BTV[row, :, :50], want, atol=1e-4, rtol=1e-4)
    if config.scalar_head:
      np.testing.assert_allclose(
          out.values_BT[row], oracle.values(config, params, tokens[row]),
          atol=1e-4)
  assert (out.values_BT is not None) == config.scalar_head


def test_packed_rows_match_the_numpy_transformer():
  config = tiny.config(**FAMILIES["llama3"], window=5)
  params = tiny.params(config)
  tokens = tiny.tokens(config, 1, 20)
  segments = np.array([[1] * 7 + [2] * 9 + [0] * 4], np.int32)
  positions = np.array([[*range(7), *range(9), 0, 0, 0, 0]], np.int32)
  out = forward(config, params, tokens, positions_BT=positions,
                segments_BT=segments)
  want = oracle.logits(config, params, tokens[0], positions[0], segments[0])
  np.testing.assert_allclose(
      out.logits_BTV[0, :16, :50], want[:16], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("change", [
    dict(window=5), dict(logit_cap=3.0), dict(norm_eps=1e-2),
    dict(rope_scaling=(8.0, 1.0, 4.0, 32)), dict(rope_theta=1e4),
    dict(qk_norm=False)], ids=str)
def test_no_feature_is_ignored(change):
  """What the comparison above compares does show in the logits."""
  base = tiny.config(rope_theta=500.0, qk_norm=True)
  params, tokens = tiny.params(base), tiny.tokens(base, 1, 20)[0]
  difference = (oracle.logits(base, params, tokens)
                - oracle.logits(base.replace(**change), params, tokens))
  assert np.abs(difference).max() > 1e-2


def test_padding_of_the_vocabulary_is_masked():
  config = tiny.config()
  assert config.padded_vocab == 64
  logits = forward(config, tiny.params(config), tiny.tokens(config, 2, 20)
                   ).logits_BTV
  assert logits.shape == (2, 20, 64) and logits.dtype == np.float32
  assert (np.asarray(logits[..., 50:]) == -1e9).all()
  assert (np.asarray(logits[..., :50]) > -1e3).all()


def test_init_gives_a_plain_tree_whose_first_guess_is_uniform():
  config = tiny.config(
      qk_norm=True, scalar_head=True, vocab_size=500, vocab_multiple=64,
      d_model=48)
  lm = LanguageModel(config)
  params = lm.init(jax.random.key(0))
  assert type(params) is dict
  assert jax.tree.map(lambda x: x.shape, params) == {
      "embed": {"table": (512, 48)},
      "layers": {
          "attention": {"q": (2, 48, 6, 8), "k": (2, 48, 2, 8),
                        "v": (2, 48, 2, 8), "o": (2, 6, 8, 48),
                        "q_norm": (2, 8), "k_norm": (2, 8)},
          "mlp": {"gate": (2, 48, 40), "up": (2, 48, 40), "down": (2, 40, 48)},
          "attention_norm": {"scale": (2, 48)},
          "mlp_norm": {"scale": (2, 48)}},
      "final_norm": {"scale": (48,)},
      "head": {"kernel": (48, 512)},
      "value": {"value": (48,), "bias": ()}}
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
  # Layers start different from each other, with the spread of their fan-in.
  q = np.asarray(params["layers"]["attention"]["q"])
  assert np.abs(q[0] - q[1]).max() > 0.1
  np.testing.assert_allclose(q.std(), 48 ** -0.5, rtol=0.1)
  down = np.asarray(params["layers"]["mlp"]["down"])
  np.testing.assert_allclose(down.std(), (40 * 4) ** -0.5, rtol=0.1)
  out = forward(config, params, tiny.tokens(config, 4, 32))
  log_probs = np.asarray(jax.nn.log_softmax(out.logits_BTV))
  other = tiny.tokens(config, 4, 32, seed=2)[..., None]
  loss = -np.take_along_axis(log_probs, other, -1).mean()
  assert abs(loss - np.log(500)) < 0.75
  assert (np.asarray(out.values_BT) == 0).all()  # A new head knows nothing.


def test_parameters_of_another_depth_are_refused():
  config = tiny.config()
  params = tiny.params(config)
  for layers in (1, 3):
    with pytest.raises(UserError, match=f"of 2 layers.*has {layers}"):
      forward(config.replace(num_layers=layers), params,
              tiny.tokens(config, 1, 4))
