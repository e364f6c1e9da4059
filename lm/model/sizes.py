"""Named sizes, and the one dial of our own family: `depth`."""

import difflib

from lm.model.config import ModelConfig
from lm.types import UserError


def _llama(vocab, d, layers, heads, kv, mlp, length, **more):
  return dict(vocab_size=vocab, d_model=d, num_layers=layers, num_heads=heads,
              num_kv_heads=kv, head_dim=more.pop("head_dim", d // heads),
              d_mlp=mlp, max_length=length, **more)


# Sources: Llama 2 (2307.09288), Code Llama 34B's shape for llama2-34b
# (2308.12950), Llama 3.1 (2407.21783), Mistral (2310.06825), SmolLM2
# (2502.02737); each from the model's published config.json.
SIZES = {
    "llama2-7b": _llama(32000, 4096, 32, 32, 32, 11008, 4096),
    "llama2-13b": _llama(32000, 5120, 40, 40, 40, 13824, 4096),
    "llama2-34b": _llama(32000, 8192, 48, 64, 8, 22016, 4096),
    "llama2-70b": _llama(32000, 8192, 80, 64, 8, 28672, 4096),
    "llama3.1-8b": _llama(128256, 4096, 32, 32, 8, 14336, 131072,
                          rope_theta=500_000.0,
                          rope_scaling=(8.0, 1.0, 4.0, 8192)),
    "mistral-7b": _llama(32000, 4096, 32, 32, 8, 14336, 32768, window=4096),
    "smollm2-135m": _llama(49152, 576, 30, 9, 3, 1536, 8192, tied=True,
                           rope_theta=100_000.0),
    "nano": _llama(2048, 128, 4, 4, 4, 384, 256, tied=True, qk_norm=True),
    "micro": _llama(2048, 256, 4, 4, 4, 704, 256, tied=True, qk_norm=True),
    "mini": _llama(2048, 256, 8, 4, 4, 704, 512, tied=True, qk_norm=True),
    "test": _llama(256, 32, 2, 4, 2, 64, 64, tied=True),
}


def size(name: str, **overrides) -> ModelConfig:
  """The config of a named size; `overrides` replace single fields."""
  if name not in SIZES:
    near = difflib.get_close_matches(name, SIZES, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"unknown model size {name!r}{hint} Known: {', '.join(SIZES)}")
  return ModelConfig.from_dict(SIZES[name] | overrides)


def depth(num_layers: int, **overrides) -> ModelConfig:
  """Our own family on one dial: D = 64 L, heads of 64, F = 8/3 D.

  Width grows with depth, so parameters grow as its cube; `recipe` gives the
  batch and learning rate that go with it.
  """
  d = 64 * num_layers
  shape = dict(
      vocab_size=2048, d_model=d, num_layers=num_layers, num_heads=num_layers,
      num_kv_heads=num_layers, head_dim=64,
      d_mlp=-(-8 * d // 3 // 64) * 64, max_length=256 if num_layers < 6
      else 1024, tied=num_layers < 8, qk_norm=True)
  return ModelConfig.from_dict(shape | overrides)


def recipe(num_layers: int) -> dict[str, float]:
  """Batch (in tokens) and AdamW learning rate for `depth(num_layers)`.

  The batch grows and the rate falls with width (as 1 / D, from 4e-3 at
  D = 256): width-independent updates in the spirit of muP (2203.03466).
  """
  return {
      "batch_tokens": 2048 * max(2, num_layers),
      "learning_rate": 4e-3 * 4 / num_layers,
  }
