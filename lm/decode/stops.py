"""Stop strings as a table: an automaton over tokens, followed on the device.

A string may be cut into tokens in many ways, so each token is spelt out in
bytes and run through the Knuth-Morris-Pratt automaton of the string once, when
the table is built.
"""

from collections.abc import Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm import sharding
from lm.types import UserError


def _automaton(pattern: bytes) -> np.ndarray:
  """KMP transitions [len(pattern) + 1, 256]; the last state is absorbing."""
  n = len(pattern)
  table = np.zeros((n + 1, 256), np.int32)
  table[0, pattern[0]] = 1
  fallback = 0
  for state in range(1, n):
    table[state] = table[fallback]
    table[state, pattern[state]] = state + 1
    fallback = table[fallback, pattern[state]]
  table[n] = n
  return table


@functools.lru_cache(maxsize=16)
def _table(vocab, strings: tuple[str, ...], size: int) -> np.ndarray:
  spelt = [vocab.token_bytes(i) for i in range(vocab.size)]
  tables = []
  for string in strings:
    step = _automaton(string.encode())
    states = len(step)
    table = np.tile(np.arange(states, dtype=np.int32)[:, None], (1, size))
    for token, text in enumerate(spelt):
      now = np.arange(states, dtype=np.int32)
      for byte in text:
        now = step[now, byte]
      table[:, token] = now
    tables.append(table)
  most = max(len(t) for t in tables)
  # Shorter automata end in their own absorbing state, repeated.
  return np.stack([np.pad(t, ((0, most - len(t)), (0, 0)), mode="edge")
                   for t in tables])


@dataclasses.dataclass(frozen=True)
class Stops:
  """Stop strings of a vocabulary.

  Attributes:
    table_PSV: next state for pattern P, state S, token V.
    final_P: the state of pattern P that means "seen".
  """
  table_PSV: jax.Array
  final_P: jax.Array

  @classmethod
  def build(cls, vocab, strings: Sequence[str], *, size: int) -> "Stops":
    """The table of `strings` over `size` (padded) token ids."""
    strings = tuple(strings)
    if not strings or not all(strings):
      raise UserError("a stop string must not be empty")
    table = _table(vocab, strings, size)
    final = np.array([len(s.encode()) for s in strings], np.int32)
    return cls(jnp.asarray(table), jnp.asarray(final))

  def start(self, batch: int) -> jax.Array:
    """The states [B, P] before any token."""
    return jnp.zeros((batch, len(self.final_P)), jnp.int32)

  def step(self, states_BP: jax.Array, tokens_B: jax.Array):
    """New states [B, P], and whether any stop string has been seen [B]."""
    patterns = jnp.arange(len(self.final_P))
    states_BP = self.table_PSV.at[patterns, states_BP, tokens_B[:, None]].get(
        out_sharding=sharding.out_spec(("batch", None), states_BP.shape))
    return states_BP, jnp.any(states_BP == self.final_P, axis=-1)


jax.tree_util.register_dataclass(
    Stops, data_fields=["table_PSV", "final_P"], meta_fields=[])
