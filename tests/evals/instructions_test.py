"""Grading of answers, by hand; and of what a model without layers writes."""

import dataclasses

import jax
from lm import model
from lm.data import vocab as vocab_lib
from lm.data.problems import game24
from lm.evals import instructions
from lm.evals.instructions import Answer
from lm.types import UserError
import numpy as np
import pytest

GOOD = ("13 - 9 = 4 (left: 4 4 10)\n10 - 4 = 6 (left: 4 6)\n"
        "4 * 6 = 24 (left: 24)\nAnswer: (10 - 4) * (13 - 9) = 24")
GAME = game24.prompt((4, 9, 10, 13))


@pytest.mark.parametrize("text, ended, readable, right", [
    (GOOD, True, 1, 1),
    (GOOD, False, 0, 1),
    (GOOD.replace("13 - 9 = 4", "13 minus 9"), True, 0, 1),
    (GOOD.replace("(13 - 9) = 24", "(13 - 8) = 24"), True, 1, 0),
    (GOOD + "\nmore", True, 0, 1),
    ("\n".join(GOOD.splitlines()[1:]), True, 0, 1),
    ("", True, 0, 0),
    ("Answer: 24 = 24", True, 0, 0),
])
def test_games(text, ended, readable, right):
  grades = instructions.grade_game24(GAME, "not looked at", Answer(text, ended))
  assert {k: float(v) for k, v in grades.items()} == {
      "format": readable, "right": right}


@pytest.mark.parametrize("question, text, ended, exact, first, form", [
    ("What does f do?", "Return the sum.", True, 1, 1, 1),
    ("What does f do?", "Return the sum.", False, 0, 1, 0),
    ("What does f do?", "Return nothing.", True, 0, 1, 1),
    ("What does f do?", "Sum.\nOf all.", True, 0, 0, 0),
    ("What does f do?", "", True, 0, 0, 0),
    ("How is f called?", "f(a)", True, 0, 0, 1),
    ("How is f called?", "g(a)", True, 0, 0, 0),
    ("What arguments does f take?", "f(a", True, 0, 0, 0),
])
def test_documentation(question, text, ended, exact, first, form):
  grades = instructions.grade_documentation(
      question, "Return the sum.", Answer(text, ended))
  assert {k: float(v) for k, v in grades.items()} == {
      "exact": exact, "first_word": first, "format": form}


@pytest.fixture(scope="module")
def parrot():
  """A model that always writes the same token, and its vocabulary."""
  vocab = vocab_lib.ByteVocab()
  net = model.LanguageModel(model.size("test", vocab_size=vocab.size))
  params = net.init(jax.random.key(0))

  def saying(token):
    table = np.zeros_like(params["embed"]["table"])
    table[token] = 1.0
    table[vocab.id("<|assistant|>")] = 0.5
    layers = jax.tree.map(np.zeros_like, params["layers"])
    return {**params, "embed": {"table": table}, "layers": layers}
  return net, vocab, saying


def dialogue(question, answer):
  return [{"role": "user", "content": question},
          {"role": "assistant", "content": answer}]


def test_greedy_answers_are_graded_per_group(parrot):
  net, vocab, saying = parrot
  evaluate = instructions.evaluation(
      net, vocab, {
          "a": (instructions.grade_text, [dialogue("q", "xxxx"),
                                          dialogue("longer q", "yes")]),
          "b": (instructions.grade_text, [dialogue("q", "no")])},
      max_tokens=4)
  found = evaluate(saying(ord("x")))
  # Four times x, cut off: the reference's first word, but no end.
  assert found == {"a/exact": 0, "a/first_word": 0.5, "a/format": 0,
                   "b/exact": 0, "b/first_word": 0, "b/format": 0}
  answers = instructions.answers(
      net, saying(vocab.eos_id), vocab, [dialogue("q", "x")[:-1]],
      max_tokens=4)
  assert answers == [Answer("", True)]


def test_questions_that_do_not_fit_are_left_out_or_refused(parrot):
  net, vocab, _ = parrot
  small = model.LanguageModel(dataclasses.replace(net.config, max_length=16))
  long = dialogue("q" * 30, "x")
  with pytest.raises(UserError, match="'a'"):
    instructions.evaluation(
        small, vocab, {"a": (instructions.grade_text, [long])}, max_tokens=4)
