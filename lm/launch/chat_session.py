"""A conversation with a model, without the terminal around it."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import threading
from typing import Any


from lm import decode
from lm.data import chat
from lm.decode import prepared
from lm.decode import stream
from lm.model import ModelConfig
from lm.types import Params, UserError

TEXT, THOUGHT, NOTE = "text", "thought", "note"


@dataclasses.dataclass(frozen=True)
class Piece:
  """Something to show.

  Attributes:
    kind: TEXT, THOUGHT (an answer's text up to the marker), or NOTE (one line
      that the model did not say).
    text: whole characters.
  """

  kind: str
  text: str


@dataclasses.dataclass(frozen=True)
class Settings:
  """How answers are made.

  Attributes:
    rules: of sampling.
    max_tokens: of one answer.
    seed: of the sampler.
    think: most tokens before `marker`; 0: there is no thinking.
    marker: where thinking ends.
  """

  rules: decode.sampling.Rules = ()
  max_tokens: int = 512
  seed: int = 0
  think: int = 0
  marker: str = "Answer:"

  def __post_init__(self):
    if self.max_tokens < 1:
      raise UserError(f"max_tokens={self.max_tokens}: allow at least 1")
    if self.think < 0:
      raise UserError(f"think={self.think}: give a number of tokens, or 0 for"
                      " no thinking")


@dataclasses.dataclass(frozen=True)
class _Answered:
  """A turn as the model saw it.

  Attributes:
    rendered: the prompt as the template gives it.
    fed: the prompt as it was read.
    written: what the model answered, without an end token.
  """

  rendered: list[int]
  fed: list[int]
  written: list[int]


class Conversation:
  """Turns of a user and of the model, whose cache is kept between them.

  Attributes:
    messages: all that was said and still counts.
    settings: for the answers from now on.
  """

  def __init__(self, config: ModelConfig, vocab: Any, *, settings: Settings,
               system: str | None = None):
    """Without weights yet: see `open`."""
    self.messages: list[dict[str, str]] = []
    self.settings = settings
    self._config, self._vocab = config, vocab
    self._model = prepared.model(config)
    self._stream = stream.Stream(
        self._model, eos_ids=vocab.eos_ids, rules=settings.rules,
        seed=settings.seed)
    self._answered: _Answered | None = None
    self._budgets: dict[int, decode.ThinkingBudget] = {}
    self.set_system(system)

  def open(self, read: Callable[[], Params]) -> None:
    """Reads the weights; the programs for them are made meanwhile.

    Raises:
      Whatever `read` raises.
    """
    budget = self._budget() if self.settings.think else None

    def make():
      # What fails here fails again in the first answer, which asks for it.
      with contextlib.suppress(Exception):
        self._stream.prepare(prepared.like(self._config), budget)

    threading.Thread(target=make).start()
    self._stream.params = prepared.prepare(self._config, read())

  def set_system(self, text: str | None) -> None:
    """Another system message (None or empty: none); the turns stay."""
    turns = [m for m in self.messages if m["role"] != "system"]
    head = [{"role": "system", "content": text}] if text else []
    self.messages = head + turns

  def reset(self) -> None:
    """Forgets the turns, not the system message."""
    self.messages = [m for m in self.messages if m["role"] == "system"]

  def think(self, tokens: int) -> None:
    """Sets the thinking budget; 0 turns it off."""
    self.settings = dataclasses.replace(self.settings, think=tokens)

  def say(self, text: str, *, stopped: Callable[[], bool] = lambda: False,
          ) -> Iterator[Piece]:
    """A user's turn; yields the answer as it is written.

    What is written becomes a message when the iterator ends or is closed, also
    if `stopped` ended it. Without a word written, the user's turn is forgotten.

    Raises:
      UserError: the text does not fit the model's context.
    """
    self.messages.append({"role": "user", "content": text})
    said: list[str] = []
    ended = False
    try:
      rendered, left_out = self._fit()
      if left_out:
        yield Piece(NOTE, f"the context of {self._model.config.max_length}"
                    f" tokens is full: the {left_out} oldest turns were left"
                    " out")
      for piece in self._answer(rendered, stopped):
        said.append(piece.text if piece.kind != NOTE else "")
        yield piece
      ended = not stopped()
    finally:
      if ended or any(said):
        self.messages.append({"role": "assistant", "content": "".join(said)})
      else:
        self.messages.pop()

  def _answer(self, rendered, stopped):
    settings, limit = self.settings, self._model.config.max_length
    fed = self._as_fed(rendered)
    room = limit - len(fed)
    written: list[int] = []
    self._answered = _Answered(rendered, fed, written)
    text, said, thinking = stream.Text(self._vocab), "", settings.think > 0
    ended = False
    for ids in self._stream.answer(
        fed, max_tokens=min(settings.max_tokens, room), stopped=stopped,
        budget=self._budget() if thinking else None):
      ended = bool(ids) and ids[-1] in self._vocab.eos_ids
      written += ids[:-1] if ended else ids
      new = text.feed(ids)
      if ended:
        new += text.close()
      if not new:
        continue
      start, said = len(said), said + new
      if thinking and (at := said.find(settings.marker)) >= 0:
        cut = max(at + len(settings.marker) - start, 0)
        if cut:
          yield Piece(THOUGHT, new[:cut])
        thinking, new = False, new[cut:]
      if new:
        yield Piece(THOUGHT if thinking else TEXT, new)
    if not ended and not stopped():
      yield Piece(NOTE, "the context is full" if room <= settings.max_tokens
                  else f"the answer was cut after {settings.max_tokens} tokens")

  # ----------------------------------------------------------------- prompts

  def _fit(self) -> tuple[list[int], int]:
    """The prompt, and how many turns are left out for it from now on.

    Some room is kept for the answer. If turns have to go, then as many as leave
    half the context free: the rest is read anew, which shall be rare.
    """
    limit = self._model.config.max_length
    reserve = min(self.settings.max_tokens, limit // 4)
    messages, left_out, most = list(self.messages), 0, limit - reserve
    first = int(messages[0]["role"] == "system")
    rendered = self._render(messages)
    while len(rendered) > most and len(messages) - first > 1:
      most = min(most, limit // 2)
      left_out += 1
      del messages[first:first + 2]
      rendered = self._render(messages)
    if len(rendered) >= limit:
      raise UserError(
          f"the message takes {len(rendered)} tokens with all that belongs to"
          f" it, and the model's context is {limit}: shorten it, or the system"
          " message")
    self.messages = messages
    return rendered, left_out

  def _render(self, messages: list[dict[str, str]]) -> list[int]:
    try:
      ids = chat.encode_prompt(self._vocab, messages)
    except ValueError as e:
      raise e if isinstance(e, UserError) else UserError(str(e)) from e
    prefix = list(self._vocab.prefix)
    return ids if ids[:len(prefix)] == prefix else prefix + ids

  def _as_fed(self, rendered: list[int]) -> list[int]:
    """The prompt, with the last answer in the tokens that it was written in.

    A text can be cut into tokens in many ways, and a model does not always
    write the one of the tokenizer; the cache is good for its own only.
    """
    last = self._answered
    if last is None or rendered[:len(last.rendered)] != last.rendered:
      return rendered
    rest = rendered[len(last.rendered):]
    end = next((i for i, t in enumerate(rest) if t in self._vocab.eos_ids),
               None)
    if end is None or self._spell(rest[:end]) != self._spell(last.written):
      return rendered
    fed = [*last.fed, *last.written, *rest[end:]]
    return fed if len(fed) < self._model.config.max_length else rendered

  def _spell(self, ids: Sequence[int]) -> bytes:
    return b"".join(map(self._vocab.token_bytes, ids))

  def _budget(self) -> decode.ThinkingBudget:
    tokens = self.settings.think
    if tokens not in self._budgets:
      self._budgets = {tokens: decode.ThinkingBudget.build(
          self._vocab, self.settings.marker, tokens=tokens,
          size=self._model.config.padded_vocab)}
    return self._budgets[tokens]
