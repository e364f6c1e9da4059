"""A chat template as the few texts that stand around what people say."""

from collections.abc import Callable
import dataclasses
from typing import Any

from lm.data import bpe_spell
from lm.data import chat as chat_lib
from lm.data.vocab import Vocab
from lm.types import UserError

Render = Callable[[list[dict[str, str]]], str]
# Contents that no template says by itself; they go to templates only.
_SAID = [f"\ufdd2Said <b>'\"&{{{i}}}\ufdd3" for i in range(16)]
_SPACED = [f" \n {text}\n " for text in _SAID]


@dataclasses.dataclass(frozen=True)
class Pieces:
  """What a dialogue is made of, besides contents.

  Attributes:
    texts: before a first question without system prompt; before a system
      prompt, and after it; between a question and its answer; between an
      answer and the next question.
    trim: whether spaces around contents are taken away.
  """

  texts: tuple[str, str, str, str, str]
  trim: bool

  def render(self, system: str | None, turns: list[str]) -> str:
    """The prompt that ends in the last of `turns`, a question."""
    first, before, after, answer, following = self.texts
    clean = str.strip if self.trim else str
    text = (first if system is None else before + clean(system) + after)
    for i, turn in enumerate(turns):
      if i:
        text += following if i % 2 == 0 else answer
      text += clean(turn)
    return text + answer


def pieces(vocab: Vocab) -> Pieces:
  """The pieces of a vocabulary's template, or of our own.

  Raises:
    UserError: dialogues of up to four questions are not made of such pieces.
  """
  try:
    return _found(vocab)
  except (ValueError, KeyError) as e:
    raise UserError(f"the chat template takes no plain dialogue ({e})") from e


def _found(vocab: Vocab) -> Pieces:
  if vocab.chat_template is None:
    for name in ("<|user|>", "<|assistant|>", "<|end|>"):
      vocab.id(name)
    render: Render = chat_lib.prompt
  else:
    render = lambda messages: bpe_spell.render(
        vocab, messages, add_generation_prompt=True)
  one = _split(render(_messages(None, _SAID[:1])), _SAID[:1])
  three = _split(render(_messages(None, _SAID[:3])), _SAID[:3])
  try:
    system = _split(render(_messages(_SAID[0], _SAID[1:2])), _SAID[:2])
  except UserError:
    if vocab.chat_template is None:
      raise
    system = ["", one[0], one[1]]  # Put before the question, as users would.
    return _checked(Pieces((one[0], one[0], "\n\n", one[1], three[2]), False),
                    render, systems=(None,))
  return _checked(Pieces((one[0], system[0], system[1], one[1], three[2]),
                         False), render, systems=(None, _SAID[15]))


def _checked(made: Pieces, render: Render, *, systems: Any) -> Pieces:
  """The pieces, with `trim` as it must be, if they say what it renders."""
  for trim in (False, True):
    made = dataclasses.replace(made, trim=trim)
    if all(made.render(system, said[:count]) == render(
        _messages(system, said[:count]))
           for system in systems for count in (1, 3, 5, 7)
           for said in (_SAID, _SPACED)):
      return made
  raise UserError("the chat template does more than to put texts around what"
                  " is said")


def _messages(system: str | None, turns: list[str]) -> list[dict[str, str]]:
  messages = [] if system is None else [{"role": "system", "content": system}]
  return messages + [{"role": ("user", "assistant")[i % 2], "content": turn}
                     for i, turn in enumerate(turns)]


def _split(text: str, contents: list[str]) -> list[str]:
  parts = []
  for content in contents:
    before, found, text = text.partition(content)
    if not found:
      raise UserError("the chat template leaves out what is said")
    parts.append(before)
  return [*parts, text]
