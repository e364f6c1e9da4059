"""Streaming against `generate`: the same tokens, and nothing read twice."""

import jax
import numpy as np
import pytest

from lm import decode
from lm.data import vocab as vocab_lib
from lm.decode import stream
from lm.model import LanguageModel
from lm.types import UserError
from tests.decode import markov
from tests.model import tiny

FIRST = [3, 14, 15, 9, 2, 6]
EOS = (50, 51)  # Padding of the vocabulary: these are never written.


@pytest.fixture
def small_sizes(monkeypatch):
  """So small that a tiny model goes through several of each."""
  monkeypatch.setattr(stream, "SLOTS", 16)
  monkeypatch.setattr(stream, "READS", (4, 8))


def generated(config, prompt, max_tokens):
  state = decode.generate(
      LanguageModel(config), tiny.params(config), [prompt], eos_id=EOS,
      max_tokens=24, key=jax.random.key(0), rules=decode.GREEDY)
  return np.asarray(state.tokens_BM)[0, :max_tokens].tolist()


def watched(made):
  """The stream's reads from now on: (first token, how many)."""
  seen, get = [], made._reads.get

  def recorded(*args):
    seen.append((int(args[3]), int(args[4])))
    return get(*args)
  made._reads.get = recorded
  return seen


def everything(pieces):
  return [i for piece in pieces for i in piece]


def test_two_turns_equal_generate_and_read_only_what_is_new(small_sizes):
  config = tiny.config(qk_norm=True, window=5)
  made = stream.Stream(LanguageModel(config), tiny.params(config), eos_ids=EOS,
                       rules=decode.GREEDY)
  reads = watched(made)
  first = everything(made.answer(FIRST, max_tokens=20))
  assert first == generated(config, FIRST, 20)
  assert reads == [(0, 6)] and made.ids == FIRST + first
  assert len(first) == 20  # The cache had to grow.
  second = [*FIRST, *first, *range(20, 31)]
  del reads[:]
  answer = everything(made.answer(second, max_tokens=9))
  assert answer == generated(config, second, 9)
  begin = len(FIRST) + len(first)
  assert reads == [(begin, 8), (begin + 8, 3)]


def test_another_branch_and_the_same_prompt_again(small_sizes):
  """What lies behind the common beginning is forgotten, not attended to."""
  config = tiny.config()
  made = stream.Stream(LanguageModel(config), tiny.params(config), eos_ids=EOS,
                       rules=decode.GREEDY)
  everything(made.answer([*FIRST, 40, 41, 42, 43], max_tokens=12))
  reads = watched(made)
  for prompt, expected in (([*FIRST, 44, 45], [(6, 2)]),
                           ([*FIRST, 44, 45], [(7, 1)]),
                           ([*FIRST, 44], [(6, 1)]), ([5], [(0, 1)])):
    del reads[:]
    answer = everything(made.answer(prompt, max_tokens=8))
    assert answer == generated(config, prompt, 8), prompt
    assert reads == expected


@pytest.mark.parametrize("way", ["stopped", "closed"])
def test_an_answer_broken_off_leaves_a_good_cache(way, small_sizes):
  config = tiny.config()
  made = stream.Stream(LanguageModel(config), tiny.params(config), eos_ids=EOS,
                       rules=decode.GREEDY)
  some = []
  pieces = made.answer(FIRST, max_tokens=24, stopped=lambda: len(some) > 2)
  for piece in pieces:
    some += piece
    if way == "closed" and len(some) > 2:
      pieces.close()
  whole = generated(config, FIRST, 24)
  assert 2 < len(some) < len(whole) and whole[:len(some)] == some
  assert made.ids == FIRST + some
  rest = everything(made.answer(FIRST + some, max_tokens=24 - len(some)))
  assert some + rest == whole


def test_every_end_token_ends(small_sizes):
  model, params = markov.build({1: 2, 2: 3, 3: 4, 4: 5, 9: 10, 10: 1})
  made = stream.Stream(model, params, eos_ids=(5, 10), rules=decode.GREEDY)
  assert everything(made.answer([1], max_tokens=20)) == [2, 3, 4, 5]
  assert everything(made.answer([1, 9], max_tokens=20)) == [10]


def test_budget_and_repetition_penalty_as_in_generate(small_sizes):
  letters = markov.Letters()
  letters.eos_ids = (letters.eos_id,)
  model, params = markov.build({0: 1, 1: 0, 3: 4, 4: letters.eos_id})
  budget = decode.ThinkingBudget.build(letters, "cd", tokens=3, size=16)
  made = stream.Stream(model, params, eos_ids=letters.eos_ids,
                       rules=decode.GREEDY)
  got = everything(made.answer([0], max_tokens=20, budget=budget))
  assert letters.decode(got[:-1]) == "babcde"
  rules = decode.rules(temperature=0.0, repetition_penalty=3.0)
  model, params = markov.build({0: {1: 8.0, 2: 5.0}, 1: 0})
  made = stream.Stream(model, params, eos_ids=(15,), rules=rules)
  # The second time, 1 has been seen: 8 / 3 is less than 5.
  assert everything(made.answer([0], max_tokens=3)) == [1, 0, 2]
  assert everything(made.answer([1, 0], max_tokens=1)) == [2]


def test_prepared_programs_are_used_and_the_seed_matters(small_sizes):
  config = tiny.config()
  params = tiny.params(config)
  made = stream.Stream(LanguageModel(config), eos_ids=EOS, seed=3)
  made.prepare(jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params))
  made.params = params
  before = len(made._reads._made), len(made._writes._made)
  first = everything(made.answer([3, 4], max_tokens=4))
  assert (len(made._reads._made), len(made._writes._made)) == before
  again = everything(made.answer([3, 4], max_tokens=4))
  other = stream.Stream(LanguageModel(config), params, eos_ids=EOS, seed=3)
  assert everything(other.answer([3, 4], max_tokens=4)) == first
  assert everything(other.answer([3, 4], max_tokens=4)) == again


def test_bad_prompts_are_refused(small_sizes):
  config = tiny.config()
  made = stream.Stream(LanguageModel(config), tiny.params(config), eos_ids=EOS)
  with pytest.raises(UserError, match="empty"):
    next(made.answer([], max_tokens=3))
  with pytest.raises(UserError, match="context of 64"):
    next(made.answer([1] * 62, max_tokens=3))


def test_slots_come_in_few_sizes():
  config = tiny.config(max_length=8192)
  sizes = {stream.slots_for(config, n) for n in range(1, 8193)}
  assert sizes == {1024, 2048, 4096, 8192, 8448}
  assert all(stream.slots_for(config, n) >= n + 256 for n in range(1, 8193))


def test_text_comes_in_whole_characters_without_specials():
  vocab = vocab_lib.ByteVocab()
  text = stream.Text(vocab)
  shown = [text.feed([i]) for i in vocab.encode("aé€𝄞<|user|>b<|end|>")]
  assert "".join(shown) == "aé€𝄞b"
  assert max(map(len, shown)) == 1 and shown.count("") == 1 + 2 + 3 + 2
  assert text.feed(list("é".encode())[:1]) == "" and text.close() == "\ufffd"


def test_text_begins_as_the_vocabulary_decodes_it():
  class Words:
    special_ids, eos_ids = frozenset({9}), (9,)

    def token_bytes(self, i):
      return b" w%d" % i

    def decode(self, ids):
      return " ".join(f"w{i}" for i in ids)

  text = stream.Text(Words())
  assert text.feed([9, 1]) + text.feed([2, 3]) == "w1 w2 w3"


def test_an_error_between_two_tokens_leaves_a_stream_that_goes_on(monkeypatch):
  """As a second Ctrl-C does: what was handed to the program is not kept."""
  config = tiny.config()
  made = stream.Stream(LanguageModel(config), tiny.params(config), eos_ids=EOS,
                       rules=decode.GREEDY)
  wanted = [i for ids in made.answer([1, 2, 3], max_tokens=6) for i in ids]
  program = made._writes.get

  def broken(*args):
    def run(*args):
      program(*args)(*args)
      raise KeyboardInterrupt
    return run

  answer = made.answer([4, 5], max_tokens=6)
  next(answer)
  monkeypatch.setattr(made._writes, "get", broken)
  with pytest.raises(KeyboardInterrupt):
    next(answer)
  monkeypatch.undo()
  again = [i for ids in made.answer([1, 2, 3], max_tokens=6) for i in ids]
  assert again == wanted
