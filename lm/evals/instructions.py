"""Held-out instructions: does the model answer, in the form asked for, rightly?

Answers are decoded greedily, all of them in one batch.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re
from typing import Any

import jax
import numpy as np

from lm import decode
from lm import model as model_lib
from lm.data import chat
from lm.data.problems import game24
from lm.data.vocab import Vocab
from lm.types import Params, UserError

Messages = Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Answer:
  """What the model wrote, and whether it ended by itself."""

  text: str
  ended: bool


Grade = Callable[[str, str, Answer], dict[str, float]]


def answers(
    model: model_lib.LanguageModel, params: Params, vocab: Vocab,
    prompts: Sequence[Messages], *, max_tokens: int = 96,
) -> list[Answer]:
  """The likeliest answer to each dialogue, by greedy decoding.

  Args:
    model: the model.
    params: its parameters.
    vocab: its vocabulary.
    prompts: each ends with the user's turn.
    max_tokens: longest answer, its end included.
  """
  state = decode.generate(
      model, params, [chat.encode_prompt(vocab, p) for p in prompts],
      max_tokens=max_tokens, eos_id=vocab.eos_ids, key=jax.random.key(0),
      rules=decode.GREEDY)
  tokens, counts = jax.device_get((state.tokens_BM, state.num_B))
  ended = np.isin(tokens[np.arange(len(counts)), counts - 1], vocab.eos_ids)
  return [Answer(text, bool(end)) for text, end in
          zip(decode.texts(vocab, state), ended, strict=True)]


def evaluation(
    model: model_lib.LanguageModel, vocab: Vocab,
    groups: Mapping[str, tuple[Grade, Sequence[Messages]]], *,
    max_tokens: int = 96,
) -> Callable[[Params], dict[str, float]]:
  """Graded answers to held-out dialogues, for the `Evaluate` hook.

  Args:
    model: the model.
    vocab: its vocabulary.
    groups: by name, how to grade and the dialogues: question, then reference.
    max_tokens: longest answer.

  Returns:
    `params -> {"GROUP/GRADE": mean}`.

  Raises:
    UserError: a group without a dialogue that fits the model's context.
  """
  room = model.config.max_length - max_tokens
  items: list[tuple[str, Grade, Messages]] = []
  for name, (grade, dialogues) in groups.items():
    fitting = [d for d in dialogues
               if len(chat.encode_prompt(vocab, d[:-1])) <= room]
    if not fitting:
      raise UserError(
          f"no held-out question of {name!r} leaves {max_tokens} tokens of the"
          f" context of {model.config.max_length} to answer: hold out more, or"
          " lower evaluate.max_tokens")
    items += [(name, grade, d) for d in fitting]

  def evaluate(params):
    found: dict[str, list[float]] = {}
    written = answers(model, params, vocab, [d[:-1] for _, _, d in items],
                      max_tokens=max_tokens)
    for (name, grade, d), answer in zip(items, written, strict=True):
      question, reference = d[-2]["content"], d[-1]["content"]
      for key, value in grade(question, reference, answer).items():
        found.setdefault(f"{name}/{key}", []).append(float(value))
    return {k: float(np.mean(v)) for k, v in found.items()}

  return evaluate


def grade_text(question: str, reference: str, answer: Answer) -> dict[str, Any]:
  """Exactly the reference; its first word; ended by itself, on one line."""
  del question
  words = answer.text.split()
  return {
      "exact": answer.ended and answer.text == reference,
      "first_word": words[:1] == reference.split()[:1],
      "format": answer.ended and bool(words) and "\n" not in answer.text,
  }


_CALL = re.compile(r"(?:How is|What arguments does) (\S+) (?:called|take)\?")


def grade_documentation(
    question: str, reference: str, answer: Answer
) -> dict[str, Any]:
  """As `grade_text`; asked for a call, the form is `name(...)`."""
  grades = grade_text(question, reference, answer)
  if asked := _CALL.fullmatch(question):
    call = answer.text.startswith(f"{asked[1]}(") and ")" in answer.text
    grades["format"] = grades["format"] and call
  return grades


def grade_game24(
    question: str, reference: str, answer: Answer
) -> dict[str, Any]:
  """Readable thoughts and an answer line; an expression that makes 24."""
  del reference
  lines = answer.text.splitlines()
  numbers = [int(n) for n in re.findall(r"\d+", question.partition("from")[2])]
  readable = (
      answer.ended and len(lines) == game24.NUM_THOUGHTS + 1
      and all(game24.read(line) is not None for line in lines[:-1])
      and game24.read_answer(lines[-1]) is not None)
  return {"format": readable,
          "right": game24.grade(numbers, game24.read_answer(answer.text))}


GRADES: dict[str, Grade] = {
    "documentation": grade_documentation, "game24": grade_game24}
