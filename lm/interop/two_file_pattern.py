"""Regular expressions of tokenizers as tables of a finite automaton.

They take what Oniguruma takes by backtracking, whose syntax this is:
alternatives, groups (also `(?i:...)`), classes, `\\p{..}`, `\\s`, `\\d`, the
quantifiers `? * + {m,n}`, possessive ones, and one character looked ahead at.
A pattern becomes a program, as in Thompson (1968), and that an automaton
(`two_file_automaton.py`). Which characters a class has is asked of the
`tokenizers` library itself.
"""

from collections.abc import Iterator, Sequence
import functools
import re

from lm.interop import two_file_automaton as automaton
from lm.interop.two_file_automaton import (
    AHEAD, JUMP, MATCH, NOT_AHEAD, SPLIT, TAKE)
from lm.types import UserError

DIGIT = "\0digit"  # What Rust calls numeric.
# All assigned characters, but some private ones and plane 14, which has marks
# and formats only: they are as the last one here.
_LAST = 0x3FFFF
_ALL = (1 << (_LAST + 1)) - 1
Chars = int  # A set of characters: one bit for each.


def compile_all(patterns: Sequence[str]) -> automaton.Automaton:
  """Compiles patterns to one automaton.

  Raises:
    UserError: a pattern with something else in it, or too many kinds.
  """
  starts, ops = [], []
  for pattern in patterns:
    starts.append(len(ops))
    _Compiler(pattern, ops).whole()
  sets = list(dict.fromkeys(chars for op, _, _, chars in ops if chars))
  kinds, bits = _kinds(sets)
  ops = [(op, to, other, bits[chars] if chars else 0)
         for op, to, other, chars in ops]
  return automaton.Automaton(len(starts), automaton.states(starts, ops),
                             automaton.chars(kinds))


def _kinds(sets: Sequence[Chars]):
  """Where each kind begins, and the bits of the kinds of each set."""
  edges = {0}
  for chars in sets:
    change = chars ^ (chars << 1)
    edges.update(_bits(change & _ALL))
  numbers: dict[tuple[bool, ...], int] = {}
  kinds = []
  for first in sorted(edges):
    signature = tuple(bool(chars >> first & 1) for chars in sets)
    kind = numbers.setdefault(signature, len(numbers))
    if not kinds or kinds[-1][1] != kind:
      kinds.append((first, kind))
  if len(numbers) > automaton.INSIDE:
    raise _refused(f"more than {automaton.INSIDE} kinds of characters")
  return kinds, {
      chars: sum(1 << kind for signature, kind in numbers.items()
                 if signature[i]) for i, chars in enumerate(sets)}


def _bits(number: int) -> Iterator[int]:
  text = bin(number)[:1:-1]
  at = text.find("1")
  while at >= 0:
    yield at
    at = text.find("1", at + 1)


class _Compiler:
  """One pattern: a recursive descent that writes ops as it goes."""

  def __init__(self, pattern: str, ops: list):
    self._text, self._at, self._ops = pattern, 0, ops
    self._any_case = False

  def whole(self) -> None:
    if self._text == DIGIT:
      self._ops.append((TAKE, 0, 0, _members(DIGIT)))
    else:
      self._alternatives()
      if self._at < len(self._text):
        raise self._fault()
    self._ops.append((MATCH, 0, 0, 0))

  def _fault(self) -> UserError:
    return _refused(f"{self._text[self._at:self._at + 12]!r} in the pattern"
                    f" {self._text!r}")

  def _take(self, text: str) -> bool:
    found = self._text.startswith(text, self._at)
    self._at += len(text) * found
    return found

  def _alternatives(self) -> None:
    ops, leaves = self._ops, []
    while True:
      split = len(ops)
      ops.append((SPLIT, split + 1, 0, 0))
      self._sequence()
      if not self._take("|"):
        ops[split] = (JUMP, split + 1, 0, 0)  # The last has no other.
        break
      leaves.append(len(ops))
      ops.append((JUMP, 0, 0, 0))
      ops[split] = (SPLIT, split + 1, len(ops), 0)
    for at in leaves:
      ops[at] = (JUMP, len(ops), 0, 0)

  def _sequence(self) -> None:
    while self._at < len(self._text) and self._text[self._at] not in "|)":
      start = len(self._ops)
      looked = self._atom()
      self._quantifier(start, looked)

  def _atom(self) -> bool:
    """Writes one atom; whether it only looks ahead."""
    for look, op in (("(?!", NOT_AHEAD), ("(?=", AHEAD)):
      if self._take(look):
        chars = self._chars()
        if chars is None or not self._take(")"):
          raise self._fault()
        self._ops.append((op, 0, 0, chars))
        return True
    for group, any_case in (("(?:", None), ("(?i:", True), ("(", None)):
      if self._take(group):
        if group == "(" and self._text.startswith("?", self._at):
          raise self._fault()
        before = self._any_case
        self._any_case = before if any_case is None else any_case
        self._alternatives()
        self._any_case = before
        if not self._take(")"):
          raise self._fault()
        return False
    chars = self._chars()
    if chars is None:
      raise self._fault()
    self._ops.append((TAKE, 0, 0, chars))
    return False

  def _chars(self) -> Chars | None:
    """The characters that the next one-character atom stands for."""
    if self._take("["):
      inverted, chars = self._take("^"), 0
      while not self._take("]"):
        first = self._at
        one = self._one()
        if one is None or self._text[first] == "[" or self._text.startswith(
            "&&", self._at):
          raise self._fault()
        if (self._text.startswith("-", self._at)
            and not self._text.startswith("-]", self._at)):
          self._at += 1
          last = self._one()
          if last is None or not one.bit_count() == last.bit_count() == 1:
            raise self._fault()
          one = (last << 1) - one
        chars |= one
      return _ALL & ~chars if inverted else chars
    if self._text[self._at] in ".^$*+?{":
      return None
    return self._one()

  def _one(self) -> Chars | None:
    """One character or one escape."""
    rest = self._text[self._at:]
    escape = re.match(r"\\(?:[pP]\{\^?\w+\}|[sSdDwW])", rest)
    if escape:
      self._at += escape.end()
      body = escape[0]
      if body[1] in "SDPW":
        return _ALL & ~_members(body[0] + body[1].lower() + body[2:])
      return _members(body)
    char = re.match(r"\\([nrtfv])|\\x([0-9A-Fa-f]{2})|\\([^\w\s])|([^\\])",
                    rest, re.DOTALL)
    if not char:
      return None
    self._at += char.end()
    if char[1]:
      return 1 << ord({"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"
                       }[char[1]])
    if char[2]:
      return 1 << int(char[2], 16)
    literal = char[3] or char[4]
    if self._any_case and literal.isalpha():
      return sum(1 << ord(c) for c in _folds(literal))
    return 1 << ord(literal)

  def _quantifier(self, start: int, looked: bool) -> None:
    """Repeats what was written from `start` on."""
    found = re.match(r"(?:\?|\*|\+|\{(\d+)(,?)(\d*)\})", self._text[self._at:])
    if not found:
      return
    if looked:
      raise self._fault()
    self._at += found.end()
    symbol, ops = found[0], self._ops
    low = 1 if symbol == "+" else 0
    high = 1 if symbol == "?" else None
    if found[1]:
      low = int(found[1])
      high = (int(found[3]) if found[3] else None) if found[2] else low
      if (high is None and found[2] == "") or (high or low) > 64 or (
          high is not None and high < low):
        raise self._fault()
    possessive = not found[1] and self._take("+")
    if self._text.startswith(("?", "*", "+", "{"), self._at):
      raise self._fault()  # Lazy, or twice.
    body = ops[start:]
    del ops[start:]
    if possessive:
      if len(body) != 1:
        raise self._fault()
      chars = body[0][3]
      # As the greedy one, which ends only where no more can be taken.
      if symbol == "?":
        ops += [(SPLIT, start + 1, start + 3, 0), body[0],
                (JUMP, start + 4, 0, 0), (NOT_AHEAD, 0, 0, chars)]
        return
      ops += body * low
      split = len(ops)
      ops += [(SPLIT, split + 1, split + 3, 0), body[0], (JUMP, split, 0, 0),
              (NOT_AHEAD, 0, 0, chars)]
      return
    for _ in range(low):
      self._copy(body, start)
    if high is None:
      split = len(ops)
      ops.append((SPLIT, split + 1, 0, 0))
      self._copy(body, start)
      ops.append((JUMP, split, 0, 0))
      ops[split] = (SPLIT, split + 1, len(ops), 0)
    else:
      splits = []
      for _ in range(high - low):
        splits.append(len(ops))
        ops.append((SPLIT, len(ops) + 1, 0, 0))
        self._copy(body, start)
      for split in splits:
        ops[split] = (SPLIT, split + 1, len(ops), 0)

  def _copy(self, body: list, start: int) -> None:
    shift = len(self._ops) - start
    self._ops += [(op, to + shift, other + shift, chars)
                  if op in (SPLIT, JUMP) else (op, to, other, chars)
                  for op, to, other, chars in body]


@functools.cache
def _members(escape: str) -> Chars:
  """The characters of a class, by the library's own engine."""
  import tokenizers  # pylint: disable=g-import-not-at-top

  codes = [*range(0xD800), *range(0xE000, _LAST + 1)]
  text = "".join(map(chr, codes))
  if escape == DIGIT:
    splitter = tokenizers.pre_tokenizers.Digits(individual_digits=False)
    inside = lambda piece: tokenizers.pre_tokenizers.Digits(
        individual_digits=True).pre_tokenize_str(piece + piece) != [
            (piece + piece, (0, 2 * len(piece)))]
    pieces = splitter.pre_tokenize_str(text)
    spans = [span for piece, span in pieces if inside(piece[:1])]
  else:
    try:
      regex = tokenizers.Regex(f"(?:{escape})+")
    except Exception as e:
      raise _refused(f"the class {escape!r}") from e
    spans, last = [], 0
    splitter = tokenizers.pre_tokenizers.Split(regex, "removed")
    for _, (start, end) in splitter.pre_tokenize_str(text):
      spans.append((last, start))
      last = end
    spans.append((last, len(text)))
  chars = 0
  for start, end in spans:
    if start < end:
      for a, b in _around_surrogates(codes[start], codes[end - 1]):
        chars |= (1 << (b + 1)) - (1 << a)
  return chars


def _around_surrogates(first: int, last: int) -> list[tuple[int, int]]:
  if first < 0xD800 and last > 0xDFFF:
    return [(first, 0xD7FF), (0xE000, last)]
  return [(first, last)]


@functools.cache
def _folds(letter: str) -> tuple[str, ...]:
  """The characters that equal a letter when case does not count."""
  import tokenizers  # pylint: disable=g-import-not-at-top

  near = {c for c in map(chr, [*range(0xD800), *range(0xE000, 0x20000)])
          if c.casefold() == letter.casefold()} | {
              letter.lower(), letter.upper()}
  splitter = tokenizers.pre_tokenizers.Split(
      tokenizers.Regex(f"(?i:{letter})"), "removed")
  return tuple(sorted(c for c in near if len(c) == 1
                      and not splitter.pre_tokenize_str(c)))


def _refused(what: str) -> UserError:
  return UserError(f"the two-file export cannot say this tokenizer: {what};"
                   " export for Hugging Face instead")
