"""Chained arithmetic word problems, with a text of their own each time.

    Ann has 3 apples. Cid has twice as many as Ben. Eva has 4 more than Ann.
    Ben has 7 more apples than Ann. How many apples does Cid have?

    Ben: 3 + 7 = 10
    Cid: 10 * 2 = 20 (also: Ben 10)
    Answer: 20

There are exactly as many thoughts as the question needs, so that a deduction
which is right but leads elsewhere (Eva) loses: the question has to be read
backwards, as in iGSM (2407.20311). A number (0..99) is one piece, and so are a
word and a name; a thought of the longest chain, 5 steps, has 16 pieces.

A problem is its text: drawing writes it, and everything else is read from it,
so that a user's problem is the same thing as one of ours.
"""

from collections.abc import Sequence
import dataclasses
import functools
import re
from typing import NamedTuple

import numpy as np

from lm.data import corpus
from lm.data.problems import stories
from lm.data.problems import task as task_lib
from lm.data.problems.problem import last_answer
from lm.data.problems.stories import LARGEST, Story

State = tuple[tuple[str, int], ...]  # What was found: (name, value), by name.

_TEST, _VALIDATION = 0.1, 0.04  # Shares of all structures.
_SPACE = "\u2581"
SYMBOLS = (
    *(f"{space}{n}" for space in ("", _SPACE) for n in range(100)),
    *(form for name in stories.NAMES
      for form in (name, _SPACE + name, f"{name}:")),
    *(_SPACE + item for item in stories.ITEMS),
    *(_SPACE + word for word in stories.words()),
    *(_SPACE + op for op in "+-*/="), f"{_SPACE}(also:", ")\n", "Answer:",
    *(_SPACE + word for word in (
        "Found:", "nothing", "Lines", "left:", "Enough?")),
)


# --- Thoughts ----------------------------------------------------------------

_FOUND = r"[A-Z][a-z]+ \d{1,2}"
_THOUGHT = re.compile(
    r"([A-Z][a-z]+): (\d{1,2}) ([-+*/]) (\d{1,2}) = (\d{1,2})"
    rf"(?: \(also: ({_FOUND}(?: {_FOUND})*)\))?")
_ANSWER = re.compile(r"Answer: (\d+)")


class Thought(NamedTuple):
  """One deduction, and what was found before it."""
  name: str
  a: int
  op: str
  b: int
  result: int
  also: State

  def line(self) -> str:
    also = f" (also: {show(self.also)})" if self.also else ""
    return (f"{self.name}: {self.a} {self.op} {self.b} = {self.result}"
            f"{also}\n")

  def state(self) -> State:
    return tuple(sorted((*self.also, (self.name, self.result))))


def show(state: State) -> str:
  return " ".join(f"{name} {value}" for name, value in state)


def read_thought(line: str) -> Thought | None:
  """What a line claims; None if it is unreadable or names one name twice."""
  match = _THOUGHT.fullmatch(line.strip())
  if match is None:
    return None
  name, a, op, b, result, also = match.groups()
  words = (also or "").split()
  if len({name, *words[::2]}) <= len(words) // 2:
    return None
  found = zip(words[::2], map(int, words[1::2]))
  return Thought(name, int(a), op, int(b), int(result), tuple(found))


def deductions(story: Story, state: State) -> list[Thought]:
  """Everything that follows from what is given and what was found."""
  found = []
  given = {n: story.values[n] for n, fact in story.facts.items()
           if fact.op == "="}
  known = {**dict(state), **given}
  for fact in story.facts.values():
    if fact.name not in known and stories.known(fact, known):
      a, b = stories.numbers(fact, known)
      result = stories.compute(fact.op, a, b)
      if result is not None:
        found.append(Thought(fact.name, a, fact.op, b, result, state))
  return found


# --- The problem -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Words:
  """One problem: see `stories` for what its text may say."""
  text: str

  @functools.cached_property
  def story(self) -> Story:
    return stories.read(self.text)

  @property
  def num_thoughts(self) -> int:
    return len(self.story.needed())

  def prompt(self) -> str:
    return self.text

  def start(self) -> State:
    return ()

  def remaining(self, state: State) -> int:
    return max(0, self.num_thoughts - len(state))

  def options(self, state: State) -> tuple[tuple[str, State], ...]:
    if not self.remaining(state):
      return ()
    return tuple((t.line(), t.state()) for t in deductions(self.story, state))

  def winnable(self, state: State) -> bool:
    found, values = dict(state), self.story.values
    needed = self.story.needed()
    return (all(found[n] == values[n] for n in needed & found.keys())
            and len(state) + len(needed - found.keys()) <= len(needed))

  def read(self, line: str) -> State | None:
    thought = read_thought(line)
    return thought.state() if thought else None

  def answer(self, lines: Sequence[str]) -> str:
    """Copies the target's number, or the last one if it was not found."""
    thoughts = [t for t in map(read_thought, lines) if t is not None]
    if not thoughts:
      return "Answer: 0"
    last = thoughts[-1]
    return f"Answer: {dict(last.state()).get(self.story.target, last.result)}"

  def read_answer(self, text: str) -> str | None:
    match = last_answer(_ANSWER, text)
    return match[1] if match else None

  def key(self) -> str:
    """The right answer, for hints."""
    return str(self.story.values[self.story.target])

  def grade(self, answer: str | None) -> bool:
    return answer == self.key()

  def fault(self, state: State, line: str, rng: np.random.Generator
            ) -> tuple[str, State]:
    written = self.read_answer(line)
    if written is not None:
      return f"Answer: {_instead(int(written), state, rng)}", state
    thought = read_thought(line)
    if thought is None:
      raise ValueError(f"neither a thought nor an answer: {line!r}")
    allowed = {o[0] for o in self.options(state)}
    names = list(self.story.facts)
    while (wrong := _fault(thought, names, rng)).line() in allowed:
      pass
    return wrong.line(), wrong.state()

  def show(self, state: State) -> str:
    return show(state) or "nothing"

  def question(self, state: State) -> str:
    return (f"{self.text} Found: {self.show(state)}. Lines left:"
            f" {self.remaining(state)}. Enough?")


def _instead(n: int, state: State, rng: np.random.Generator) -> int:
  """Another number: one that was found, one nearby, or any."""
  options = [*(v for _, v in state), n - 10, n - 2, n - 1, n + 1, n + 2, n + 10,
             *rng.integers(0, LARGEST + 1, 2)]
  options = [int(o) for o in options if 0 <= o <= LARGEST and o != n]
  return options[rng.integers(len(options))]


def _fault(thought: Thought, names: Sequence[str], rng: np.random.Generator
           ) -> Thought:
  """A wrong result, operand, operation or name, or a wrong copy."""
  kind = rng.choice(["result", "operand", "operation", "name", "copy"])
  if kind == "name":  # The right sum, but somebody else's.
    others = set(names) - {thought.name, *dict(thought.also)}
    if others:
      return thought._replace(name=str(rng.choice(sorted(others))))
  if kind == "copy" and thought.also:
    i = rng.integers(len(thought.also))
    also = list(thought.also)
    also[i] = (also[i][0], _instead(also[i][1], thought.also, rng))
    return thought._replace(also=tuple(also))
  wrong = thought
  if kind == "operand":
    wrong = (thought._replace(a=_instead(thought.a, thought.also, rng))
             if rng.random() < 0.5 else
             thought._replace(b=_instead(thought.b, thought.also, rng)))
  elif kind == "operation":
    wrong = thought._replace(op=str(rng.choice(list("+-*/"))))
  result = stories.compute(wrong.op, wrong.a, wrong.b)
  if wrong == thought or result is None:
    result = _instead(thought.result, thought.also, rng)
  # A guess that the sum does not bear out tempts when it happens to be right.
  return wrong if wrong != thought and rng.random() < 0.3 else (
      wrong._replace(result=result))


# --- The task ----------------------------------------------------------------


def split_of(story: Story) -> str:
  """"train", "validation" or "test", by the sum behind the answer."""
  name = f"words {stories.structure(story)}"
  if corpus.split_of(name, _TEST) != "train":
    return "test"
  return corpus.split_of(name, _TEST + _VALIDATION)


def _make(rng: np.random.Generator, split: str, *, steps: int,
          distractors: int, shuffled: int) -> Words:
  while True:  # Some fifty draws for the smallest split.
    story = stories.draw(rng, steps)
    if story is not None and split_of(story) == split:
      stories.distract(story, distractors, rng)
      return Words(stories.tell(story, rng, shuffled=bool(shuffled)))


def parse(row: dict) -> Words:
  """A user's problem: {"prompt": "Ann has 3 pens. ... does Ben have?"}.

  The field "answer", if there, is held against the text.
  """
  text = row.get("prompt")
  if not isinstance(text, str):
    raise ValueError(f'"prompt" must be the text of a problem, not {text!r}')
  problem = Words(" ".join(text.split()))
  right = problem.story.values[problem.story.target]
  answer = row.get("answer")
  if answer is not None and not problem.grade(str(answer)):
    raise ValueError("a task file with a wrong answer key: it says"
                     f" {answer!r}, and {right} is right")
  return problem


TASK = task_lib.Task(
    name="words", symbols=(*SYMBOLS, *task_lib.SYMBOLS), make=_make,
    parse=parse, limits={"steps": task_lib.Dial(3, 1, 5),
                         "distractors": task_lib.Dial(2, 0, 8),
                         "shuffled": task_lib.Dial(1, 0, 1)})
