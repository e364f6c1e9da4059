"""A real transformer whose weights spell out a chain: each token has one next.

The layers add nothing, the embedding is one-hot and the head holds the table
of transitions, so what the decoder must write is known beforehand.
"""

import jax
import numpy as np

from lm.model import LanguageModel, ModelConfig


def build(chain, *, size=16, values=None, strength=20.0, max_length=64):
  """A model for which `chain[a] = b` means that b follows a.

  Args:
    chain: {token: next token, or {next token: logit}}; tokens without an
      entry are followed by themselves.
    size: of the vocabulary.
    values: {token: logit of the scalar head on it}; None: no such head.
    strength: logit of the next token; all others have 0.

  Returns:
    (model, params).
  """
  config = ModelConfig(
      vocab_size=size, d_model=size, num_layers=1, num_heads=1, num_kv_heads=1,
      head_dim=2, d_mlp=2, max_length=max_length, vocab_multiple=1,
      norm_eps=1e-12,
      scalar_head=values is not None, dtype="float32")
  model = LanguageModel(config)
  params = jax.tree.map(
      lambda x: np.zeros(x.shape, np.float32), model.abstract())
  params["embed"]["table"] = np.eye(size, dtype=np.float32)
  params["final_norm"]["scale"] = np.full(size, size ** -0.5, np.float32)
  for token in range(size):
    follow = chain.get(token, token)
    follow = follow if isinstance(follow, dict) else {follow: strength}
    for other, logit in follow.items():
      params["head"]["kernel"][token, other] = logit
  for token, value in (values or {}).items():
    params["value"]["value"][token] = value
  return model, params


class Letters:
  """A vocabulary of one letter a token: id 0 is `a`; the last one ends."""

  def __init__(self, size=16):
    self.size, self.eos_id, self.eos_ids = size, size - 1, (size - 1,)

  def encode(self, text):
    return [ord(c) - ord("a") for c in text]

  def decode(self, ids):
    return "".join(chr(ord("a") + i) for i in ids)

  def token_bytes(self, index):
    return bytes([ord("a") + index])
