"""Special tokens spelt out, so that text from outside cannot forge a turn."""

import bisect
import functools
import json
import re
import secrets
from typing import Any

from lm.data import template as template_lib
from lm.types import UserError

Spans = list[tuple[int, int]]
_EXAMPLE = [{"role": "user", "content": "x"},
            {"role": "assistant", "content": "x"},
            {"role": "user", "content": "x"}]


class Speller:
  """Encodes texts some of whose special tokens are plain text.

  Guarded are the special tokens, and those that the chat template writes
  around a user's turn, whether the tokenizer calls them special or not.

  Args:
    vocab: a HuggingFaceVocab.
  """

  def __init__(self, vocab: Any):
    self._vocab = vocab

  @functools.cached_property
  def guarded(self) -> frozenset[int]:
    """The ids that no text from outside may have."""
    vocab = self._vocab
    if vocab.chat_template is None:
      return vocab.special_ids
    turns = "".join(shown for messages in (_EXAMPLE, _EXAMPLE[:1])
                    if (shown := _shown(vocab, messages)))
    return vocab.special_ids | {
        t["id"] for t in self._added if len(t["content"].strip()) > 1
        and not t["content"].isalnum() and t["content"] in turns}

  @functools.cached_property
  def guard(self) -> re.Pattern:
    """Finds guarded tokens in a text; its one group is all of the match."""
    texts = {self._vocab.piece(i) for i in self.guarded} - {""}
    longest_first = sorted(texts, key=lambda t: (-len(t), t))
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

  def concerns(self, text: str) -> bool:
    """Whether this text from outside holds guarded tokens, or may."""
    return self.hidden or self.guard.search(text) is not None

  def marked(self, text: str, mark: str) -> str:
    """The text with `mark` inside every guarded token."""
    return self.guard.sub(lambda m: m[0][:1] + mark + m[0][1:], text)

  def encode(self, parts: list[tuple[str, bool]]) -> tuple[list[int], Spans]:
    """Ids and the characters that each covers.

    Args:
      parts: (text, is it a special token); other parts are plain text.

    Raises:
      UserError: the tokenizer makes special tokens out of any text.
    """
    plain, names, back, pause = self._plain
    broken = plain.token_to_id(pause)
    for breaking in (False, True):
      texts, places, shifts = [], [0], [0]
      for text, special in parts:
        pieces = [text]
        if breaking and not special:
          # This tokenizer makes a special token even out of plain text.
          pieces = _cut(self.guard, text)
        for i, piece in enumerate(pieces):
          for shown, width in (((pause, 0),) if i else ()) + (
              (names[piece] if special else piece, len(piece)),):
            texts.append(shown)
            places.append(places[-1] + len(shown))
            shifts.append(shifts[-1] + len(shown) - width)
      encoded = plain.encode("".join(texts), add_special_tokens=False)
      if self.guarded.isdisjoint(encoded.ids):
        break
    else:
      raise UserError("the tokenizer makes special tokens out of plain text:"
                      " it cannot keep texts from outside apart")
    true = lambda at: at - shifts[bisect.bisect_right(places, at) - 1]
    kept = [(back.get(i, i), (true(a), true(b)))
            for i, (a, b) in zip(encoded.ids, encoded.offsets, strict=True)
            if i != broken]
    return [i for i, _ in kept], [span for _, span in kept]

  @functools.cached_property
  def _added(self) -> list[dict[str, Any]]:
    return self._vocab.spec.get("added_tokens") or []

  @functools.cached_property
  def hidden(self) -> bool:
    """Whether a text may hold a token that shows only normalised."""
    return bool(self._vocab.spec.get("normalizer")) and any(
        t["normalized"] and t["id"] in self.guarded for t in self._added)

  @functools.cached_property
  def _plain(self) -> tuple[Any, dict[str, str], dict[Any, int], str]:
    """A tokenizer to which guarded tokens are text, and other names for them.

    Returns:
      The tokenizer; guarded token -> other name (that no text can know); the
      id of that -> the true id; a token that only breaks a text in two.
    """
    import tokenizers  # pylint: disable=g-import-not-at-top

    spec = {**self._vocab.spec, "post_processor": None, "added_tokens": [
        {**t, "special": t["special"] or t["id"] in self.guarded}
        for t in self._added]}
    plain = tokenizers.Tokenizer.from_str(json.dumps(spec))
    plain.no_truncation()
    plain.no_padding()
    flags = {t["id"]: t for t in self._added}
    nonce, names, back = secrets.token_hex(16), {}, {}
    for i in sorted(self.guarded):
      name, flag = f"\ufdd0{nonce}:{i}\ufdd1", flags.get(i, {})
      plain.add_tokens([tokenizers.AddedToken(
          name, normalized=False, special=False,
          lstrip=flag.get("lstrip", False), rstrip=flag.get("rstrip", False))])
      names[self._vocab.piece(i)] = name
      back[plain.token_to_id(name)] = i
    pause = f"\ufdd0{nonce}\ufdd1"
    plain.add_tokens([tokenizers.AddedToken(pause, normalized=False)])
    plain.encode_special_tokens = True
    return plain, names, back, pause


def _cut(guard: re.Pattern, text: str) -> list[str]:
  """The text in parts, each guarded token cut after its first character."""
  cuts = [m.start() + 1 for m in guard.finditer(text)]
  return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]


def _shown(vocab: Any, messages: list[dict[str, str]]) -> str:
  try:
    return render(vocab, messages, add_generation_prompt=True)
  except UserError:
    return ""  # Some templates take other dialogues only.


def render(vocab: Any, messages: Any, *, add_generation_prompt: bool) -> str:
  """The text of a dialogue by the chat template of a vocabulary.

  Raises:
    UserError: as `lm.data.template.render`.
  """
  name = lambda i: None if i is None else vocab.piece(i)
  return template_lib.render(
      vocab.chat_template, messages, bos=name(vocab.bos_id),
      eos=name(vocab.eos_id), add_generation_prompt=add_generation_prompt)
