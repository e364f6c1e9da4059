"""Embeddings of numbers that begin as sums of their digits' vectors.

A vocabulary that keeps "43" whole makes lines short, but each number is then a
name like any other, and sums must be learnt pair by pair. Rows that begin as
the sum of a vector for each digit at its place let a model learn them by
digits. It is a beginning only: training moves the rows as it likes. (Whole
numbers as tokens with a structure of their own: 2502.09741, there by Fourier
features.)
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lm import sharding
from lm.model.transformer import LanguageModel
from lm.types import Params

_OWN = 0.3  # Of a row that is the number's own.


def from_digits(table_VD: jax.Array, pieces: Sequence[str], key: jax.Array
                ) -> jax.Array:
  """The table with the rows of whole numbers made of digits.

  Args:
    table_VD: freshly drawn.
    pieces: the text of each of the first rows; a space before a number is one.
    key: of the digits' vectors, of the rows' own size.
  """
  ids = [i for i, p in enumerate(pieces)
         if p.isascii() and p.removeprefix(" ").isdecimal()]
  texts = [pieces[i].removeprefix(" ")[::-1] for i in ids]
  places = max(map(len, texts), default=1)
  # A number that is too short for a place has a 0 there.
  digits_NP = np.array([[int(t[p]) if p < len(t) else 0 for p in range(places)]
                        for t in texts], np.int32).reshape(len(ids), places)
  vectors_PXD = table_VD.std() * jax.random.normal(
      key, (places, 10, table_VD.shape[1]), table_VD.dtype)
  sum_ND = sum(vectors_PXD[p, digits_NP[:, p]] for p in range(places))
  at = np.array(ids, np.int32)
  return table_VD.at[at].set(
      sum_ND / places ** 0.5 + _OWN * table_VD[at])


def init_with_digits(net: LanguageModel, vocab: Any, seed: int) -> Params:
  """Fresh parameters, laid out on the mesh, numbers made of their digits.

  Args:
    net: the model.
    vocab: its vocabulary, with `size` and `piece(id)`.
    seed: of all of it.
  """
  pieces = [vocab.piece(i) for i in range(vocab.size)]

  def laid_out(key):
    params = net.init(key)
    table = from_digits(params["embed"]["table"], pieces,
                        jax.random.fold_in(key, 1))
    return {**params, "embed": {"table": sharding.shard(
        table, *net.axes()["embed"]["table"])}}

  return jax.jit(laid_out)(jax.random.key(seed))
