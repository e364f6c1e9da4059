"""The texts of word problems: to draw, and to read again.

A text is a list of facts, each of which tells one number from others, and a
question. Nothing but the text is kept of what is drawn, so that a text of ours
and one from elsewhere mean the same.
"""

from collections.abc import Mapping, Sequence
import re
from typing import NamedTuple

import numpy as np

LARGEST = 99
NAMES = ("Ann", "Ben", "Cid", "Dan", "Eva", "Fay", "Gus", "Hal", "Ivy", "Jan",
         "Kim", "Leo", "Mia", "Ned", "Oli", "Pam", "Ray", "Sue", "Tom", "Una")
ITEMS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells")

# What may be said, as (operation, sentence): x is found from y, and from z or
# the number n. "=" is given.
PHRASES = (
    ("=", "{x} has {n} {i}."),
    ("=", "{x} owns {n} {i}."),
    ("=", "{x} starts with {n} {i}."),
    ("+", "{x} has {n} more {i} than {y}."),
    ("+", "{x} has {n} more than {y}."),
    ("+", "{y} has {n} fewer {i} than {x}."),
    ("-", "{x} has {n} fewer {i} than {y}."),
    ("-", "{x} has {n} fewer than {y}."),
    ("-", "{y} has {n} more {i} than {x}."),
    ("*", "{x} has twice as many {i} as {y}."),
    ("*", "{x} has twice as many as {y}."),
    ("*", "{y} has half as many {i} as {x}."),
    ("*", "{x} has {n} times as many {i} as {y}."),
    ("*", "{x} has {n} times as many as {y}."),
    ("/", "{x} has half as many {i} as {y}."),
    ("/", "{x} has half as many as {y}."),
    ("/", "{y} has twice as many {i} as {x}."),
    ("sum", "{x} has as many {i} as {y} and {z} together."),
    ("sum", "{x} has as many as {y} and {z} together."),
    ("sum", "{y} and {z} together have as many {i} as {x}."),
)
QUESTION = "How many {i} does {x} have?"


def words() -> list[str]:
  """The words of all sentences, without names, numbers and items."""
  texts = " ".join([text for _, text in PHRASES] + [QUESTION])
  return sorted(set(re.findall(r"\b(?<!{)\w+\b(?!})", texts)))


# --- Reading -----------------------------------------------------------------


class Fact(NamedTuple):
  """`name` has `operands[0] op operands[1]`; "=" has one operand, a number."""
  name: str
  op: str
  operands: tuple[str | int, ...]


def compute(op: str, a: int, b: int) -> int | None:
  """A whole number from 0 to LARGEST, or None."""
  if op == "/":
    result = a // b if b and a % b == 0 else -1
  else:
    result = {"+": a + b, "-": a - b, "*": a * b}[op]
  return result if 0 <= result <= LARGEST else None


def _pattern(text: str) -> re.Pattern:
  groups = {"x": "[A-Z][a-z]+", "y": "[A-Z][a-z]+", "z": "[A-Z][a-z]+",
            "n": r"\d+", "i": "[a-z]+"}
  return re.compile(re.sub(
      r"\\{(\w)\\}", lambda m: f"(?P<{m[1]}>{groups[m[1]]})", re.escape(text)))


_PATTERNS = tuple((op, _pattern(text)) for op, text in PHRASES)
_QUESTION = _pattern(QUESTION)


def _readings(sentence: str) -> tuple[list[Fact], set[str]]:
  """The facts that a sentence may state, and the items it speaks of.

  "Ann has 2 fewer than Ben" tells Ann's number or Ben's, whichever is unknown.
  """
  facts, items = [], set()
  for op, pattern in _PATTERNS:
    match = pattern.fullmatch(sentence)
    if match is None:
      continue
    found = match.groupdict()
    items |= {found["i"]} if "i" in found else set()
    number = int(found.get("n", 2))  # Twice, half.
    if op == "=":
      facts.append(Fact(found["x"], op, (number,)))
    elif op == "sum":
      facts.append(Fact(found["x"], "+", (found["y"], found["z"])))
    else:
      facts.append(Fact(found["x"], op, (found["y"], number)))
  if not facts:
    raise ValueError(f"cannot read the sentence {sentence!r}")
  return facts, items


class Story(NamedTuple):
  """What a text says.

  Attributes:
    facts: by name, each after those that it needs.
    values: by name.
    target: the name that is asked for.
  """
  facts: dict[str, Fact]
  values: dict[str, int]
  target: str

  def needed(self) -> set[str]:
    """The names to be found for the target, itself included."""
    found, queue = set(), [self.target]
    for name in queue:  # It grows meanwhile.
      fact = self.facts[name]
      if name not in found and fact.op != "=":
        found.add(name)
        queue += [o for o in fact.operands if isinstance(o, str)]
    return found


def read(text: str) -> Story:
  """What a text says; ValueError with the reason if that is not a problem."""
  *said, asked = re.split(r"(?<=[.?]) ", text.strip())
  question = _QUESTION.fullmatch(asked)
  if question is None:
    raise ValueError('the text must end in a question like "How many apples'
                     f' does Ann have?", not {asked!r}')
  items, open_sentences = {question["i"]}, {}
  for sentence in said:
    open_sentences[sentence], named = _readings(sentence)
    items |= named
  if len(items) > 1:
    raise ValueError(f"one thing only may be counted, not {sorted(items)}")
  story = Story({}, {}, question["x"])
  while open_sentences:
    for sentence, facts in open_sentences.items():
      fact = next((f for f in facts if f.name not in story.values
                   and known(f, story.values)), None)
      if fact is not None:
        _add(story, fact, sentence)
        del open_sentences[sentence]
        break
    else:
      raise ValueError("nothing follows from the sentence"
                       f" {next(iter(open_sentences))!r}: it must tell one"
                       " number from numbers that are known without it")
  if story.target not in story.values:
    raise ValueError(f"nothing is said of {story.target}, who is asked for")
  if not story.needed():
    raise ValueError(f"the number of {story.target} is given: ask for one that"
                     " takes a step")
  return story


def known(fact: Fact, values: Mapping[str, int]) -> bool:
  return all(isinstance(o, int) or o in values for o in fact.operands)


def numbers(fact: Fact, values: Mapping[str, int]) -> list[int]:
  return [o if isinstance(o, int) else values[o] for o in fact.operands]


def _add(story: Story, fact: Fact, sentence: str) -> None:
  terms = numbers(fact, story.values)
  value = terms[0] if fact.op == "=" else compute(fact.op, *terms)
  if value is None or max(terms) > LARGEST:
    raise ValueError(f"{sentence!r} leaves the whole numbers from 0 to"
                     f" {LARGEST}")
  story.facts[fact.name] = fact
  story.values[fact.name] = value


# --- Drawing -----------------------------------------------------------------


def draw(rng: np.random.Generator, steps: int) -> Story | None:
  """Facts that all are needed, `steps` of them to be found; None: a bad draw.

  A sum may be of a name that is needed elsewhere too, so this is a graph.
  """
  story = Story({}, {}, "")
  names = rng.permutation(NAMES).tolist()
  try:
    return story._replace(target=_grow(story, names, steps, rng))
  except ValueError:  # A sum above LARGEST.
    return None


def _grow(story: Story, names: Sequence[str], steps: int,
          rng: np.random.Generator) -> str:
  """Adds a name that takes so many steps to find, with all it needs."""
  if not steps:
    return _put(story, names, "=", int(rng.integers(2, 31)))
  if rng.random() >= 0.25:
    return _relate(story, names, _grow(story, names, steps - 1, rng), rng)
  left = int(rng.integers(steps))
  y = _grow(story, names, left, rng)
  others = [n for n in story.values if n != y]
  if left == steps - 1 and others and rng.random() < 0.5:
    z = _pick(others, rng)
  else:
    z = _grow(story, names, steps - 1 - left, rng)
  return _put(story, names, "+", *((y, z) if rng.random() < 0.5 else (z, y)))


def _relate(story: Story, names: Sequence[str], y: str,
            rng: np.random.Generator) -> str:
  """Adds a name whose number is told from that of `y`."""
  n = int(rng.integers(1, 21))
  options = [("+", n), ("-", n), ("*", int(rng.integers(2, 5))), ("/", 2)]
  fitting = [o for o in options if compute(o[0], story.values[y], o[1])]
  op, n = _pick(fitting, rng)
  return _put(story, names, op, y, n)


def _put(story: Story, names: Sequence[str], op: str, *operands: str | int
         ) -> str:
  name = next(n for n in names if n not in story.values)
  _add(story, Fact(name, op, operands), name)
  return name


def distract(story: Story, count: int, rng: np.random.Generator) -> None:
  """Adds facts that the question does not need."""
  names = rng.permutation(NAMES).tolist()
  for _ in range(count):
    bases = [n for n in story.values if n != story.target]
    if rng.random() < 0.2:
      _grow(story, names, 0, rng)
    else:
      _relate(story, names, _pick(bases, rng), rng)


def tell(story: Story, rng: np.random.Generator, *, shuffled: bool) -> str:
  """The text, in phrases drawn for each fact."""
  item = _pick(ITEMS, rng)
  said = [_sentence(fact, item, rng) for fact in story.facts.values()]
  if shuffled:
    said = [said[i] for i in rng.permutation(len(said))]
  return " ".join([*said, QUESTION.format(i=item, x=story.target)])


def _sentence(fact: Fact, item: str, rng: np.random.Generator) -> str:
  names = [o for o in fact.operands if isinstance(o, str)]
  kind = "sum" if len(names) == 2 else fact.op
  n = fact.operands[-1]
  spelled = kind in ("=", "+", "-") or kind == "*" and n != 2
  texts = [text for op, text in PHRASES
           if op == kind and ("{n}" in text) == spelled]
  return _pick(texts, rng).format(
      x=fact.name, n=n, i=item, **dict(zip("yz", names)))


def _pick(options: Sequence, rng: np.random.Generator):
  return options[rng.integers(len(options))]


def structure(story: Story, name: str | None = None) -> str:
  """The sum behind the answer: no names, phrases, order or distractions."""
  _, op, operands = story.facts[name or story.target]
  terms = [structure(story, o) if isinstance(o, str) else str(o)
           for o in operands]
  if op == "+" and isinstance(operands[1], str):
    terms.sort()
  return terms[0] if op == "=" else f"({terms[0]} {op} {terms[1]})"
