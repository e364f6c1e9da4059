"""Stop strings across token boundaries, against searching the bytes."""

import jax
import numpy as np
import pytest

from lm.data import vocab as vocab_lib
from lm.decode import Stops
from lm.decode.stops import _automaton
from lm.types import UserError


class Pieces:
  """A vocabulary of given byte strings: what a tokenizer might cut."""

  def __init__(self, *pieces):
    self.pieces = pieces
    self.size = len(pieces)

  def token_bytes(self, index):
    return self.pieces[index]


def follow(stops, rows):
  """After which token of each row a stop string was first seen (-1: never)."""
  tokens = np.asarray(rows, np.int32)
  states, first = stops.start(len(tokens)), np.full(len(tokens), -1)
  step = jax.jit(stops.step)
  for t in range(tokens.shape[1]):
    states, hit = step(states, tokens[:, t])
    first = np.where((first < 0) & np.asarray(hit), t, first)
  return first


def brute_force(vocab, strings, row):
  text = b""
  for t, token in enumerate(row):
    text += vocab.token_bytes(int(token))
    if any(s.encode() in text for s in strings):
      return t
  return -1


@pytest.mark.parametrize("strings", [
    ("aab",), ("abab",), ("aaa", "ba"), ("aabaaab", "b", "abba")], ids=str)
def test_random_tokens_against_search(strings):
  vocab = Pieces(b"a", b"b", b"ab", b"aa", b"bab", b"aab", b"abaaba", b"", b"c")
  rng = np.random.default_rng(0)
  rows = rng.choice(
      vocab.size, (300, 9), p=[.2, .1, .15, .15, .05, .05, .05, .05, .2])
  stops = Stops.build(vocab, strings, size=16)
  want = [brute_force(vocab, strings, r) for r in rows]
  np.testing.assert_array_equal(follow(stops, rows), want)
  assert -1 in want and len(set(want)) > 3


def test_automaton_falls_back_to_the_longest_border():
  table = _automaton(b"abacabad")
  for text in (b"abacabacabad", b"ababacabad", b"abacababacabad"):
    state = 0
    for n, byte in enumerate(text):
      state = table[state, byte]
      prefix = text[:n + 1]
      border = max(k for k in range(9) if prefix.endswith(b"abacabad"[:k]))
      assert state == border
    assert state == 8


def test_a_stop_string_cut_into_any_pieces():
  """SentencePiece cuts words and spaces as it likes; bytes cut characters."""
  vocab = Pieces(b"Ans", b"wer", b":", b" ", b" Answer", b"swer:", b"An",
                 b"Answer:", "é".encode()[:1], "é".encode()[1:], b"x")
  stops = Stops.build(vocab, ["Answer:"], size=vocab.size)
  rows = [[0, 1, 2, 3], [6, 5, 3, 3], [7, 3, 3, 3], [4, 2, 3, 3],
          [0, 3, 1, 2], [0, 0, 1, 2]]
  np.testing.assert_array_equal(follow(stops, rows), [2, 1, 0, 1, -1, 3])
  accent = Stops.build(vocab, ["xé"], size=vocab.size)
  np.testing.assert_array_equal(
      follow(accent, [[10, 8, 9], [10, 9, 8], [8, 9, 10]]), [2, -1, -1])


def test_the_real_vocabularies():
  texts = ["the answer to the question: forty two, forty two.\n" * 9,
           "So the Answer: 24\nanswer answers Answer: é\n" * 9]
  vocab = vocab_lib.train(texts, 330, symbols=["\u259124", "Answer:"])
  for v in (vocab, vocab_lib.ByteVocab(symbols=["Answer:"])):
    stops = Stops.build(v, ["\n", "two, fo"], size=v.size + 5)
    for text in ("forty two, forty", "é\nforty", "So the Answer: 24",
                 "two,\u2581fo", "a two, f"):
      ids = v.encode(text)
      assert v.decode(ids) == text
      want = brute_force(v, ["\n", "two, fo"], ids)
      assert follow(stops, [ids])[0] == want, (text, [v.piece(i) for i in ids])


def test_patterns_of_unequal_length_and_once_seen_always_seen():
  vocab = Pieces(b"a", b"b")
  stops = Stops.build(vocab, ["ab", "bbbbb"], size=2)
  states = stops.start(2)
  for a, b in [(0, 1), (1, 1), (1, 1), (0, 1), (0, 1)]:
    states, hit = stops.step(states, np.array([a, b]))
  np.testing.assert_array_equal(hit, [True, True])
  np.testing.assert_array_equal(states == stops.final_P,
                                [[True, False], [False, True]])


def test_empty_stop_strings_are_refused():
  for strings in ([], [""], ["a", ""]):
    with pytest.raises(UserError, match="empty"):
      Stops.build(Pieces(b"a"), strings, size=1)
