"""Game of 24: four numbers, each used once, + - * / and brackets make 24.

The puzzles are the 1,362 solvable multisets of 1..13; the test games are ranks
901-1000 of Tree of Thoughts (2305.10601), kept beside this file with their
source. How it is played, written and graded is `arithmetic`'s, what is learned
from it `task`'s; the search itself sees only `prompt` and `read`.
"""

from collections.abc import Iterator, Sequence
import csv
import dataclasses
from fractions import Fraction
import functools
import itertools
import pathlib

import numpy as np

from lm.data import corpus
from lm.data.problems import arithmetic
from lm.data.problems import task as task_lib
from lm.data.problems.arithmetic import State

TARGET = 24
NUM_THOUGHTS = 3
LARGEST = 13**4  # That play can come to.
SYMBOLS = arithmetic.SYMBOLS

# Part of what every mixture with a `holdout` of at least as much holds out.
_VALIDATION = 0.02
_BOTH = "train and validation"


def moves(state: State) -> tuple[arithmetic.Move, ...]:
  """All distinct moves whose result is a non-negative integer."""
  return arithmetic.moves(state)


def winnable(state: State) -> bool:
  """Whether integer play can still reach 24 from `state`."""
  return arithmetic.winnable(state, TARGET)


@functools.cache
def _reaches(state: tuple[Fraction, ...]) -> bool:
  """Whether rational play can reach the target."""
  if len(state) == 1:
    return state[0] == TARGET
  for i, j in itertools.permutations(range(len(state)), 2):
    rest = [n for k, n in enumerate(state) if k not in (i, j)]
    a, b = state[i], state[j]
    results = [a + b, a * b, a - b] if i < j else [a - b]
    if b:
      results.append(a / b)
    if any(_reaches(tuple(sorted((*rest, r)))) for r in results):
      return True
  return False


def solvable(numbers: Sequence[int]) -> bool:
  """Whether the numbers make 24 at all, fractions on the way allowed."""
  state = tuple(sorted(numbers))
  return winnable(state) or _reaches(tuple(map(Fraction, state)))


@functools.cache
def test_puzzles() -> tuple[State, ...]:
  """The 100 test games, in the order of their ranks."""
  path = pathlib.Path(__file__).with_name("game24_test.csv")
  with path.open(encoding="utf-8") as f:
    rows = csv.DictReader(line for line in f if not line.startswith("#"))
    return tuple(tuple(map(int, r["numbers"].split())) for r in rows)


@functools.cache
def train_puzzles() -> tuple[State, ...]:
  """Every multiset of 1..13 that integer play solves, less the test games."""
  held_out = {tuple(sorted(p)) for p in test_puzzles()}
  every = itertools.combinations_with_replacement(range(1, 14), 4)
  return tuple(p for p in every if p not in held_out and winnable(p))


def reachable(puzzles: Sequence[State], size: int) -> set[State]:
  """The states of `size` numbers that play can reach from `puzzles`."""
  states = {tuple(sorted(p)) for p in puzzles}
  while states and len(next(iter(states))) > size:
    states = {m.left for s in states for m in moves(s)}
  return states


def overlap(puzzles: Sequence[State] = ()) -> dict[int, float]:
  """Share of the test games' states of 3 and 2 numbers also met in training."""
  share = {}
  for size in (3, 2):
    test, train = (reachable(p, size)
                   for p in (puzzles or test_puzzles(), train_puzzles()))
    share[size] = len(test & train) / len(test)
  return share


@dataclasses.dataclass(frozen=True)
class Game24(arithmetic.Arithmetic):
  """One puzzle, as the search and the grader see it."""
  numbers: State
  largest: int | None = None

  target = TARGET
  highest = 13
  stray = 36


def _make(rng: np.random.Generator, split: str, *, largest: int) -> Game24:
  puzzles = _puzzles(split, largest)
  return Game24(puzzles[rng.integers(len(puzzles))], largest)


@functools.cache
def _puzzles(split: str, largest: int) -> tuple[State, ...]:
  """Those of a split that play up to `largest` solves; of "test" all."""
  if split == "test":
    return test_puzzles()
  return tuple(p for p in train_puzzles()
               if arithmetic.winnable(p, TARGET, largest) and (
                   split == _BOTH
                   or corpus.split_of(prompt(p), _VALIDATION) == split))


def parse(row: dict) -> Game24:
  """A user's puzzle: {"numbers": [4, 9, 10, 13]}, or "4 9 10 13"."""
  return Game24(arithmetic.parse_numbers(row, count=(4, 4), highest=999))


TASK = task_lib.Task(
    name="game24", symbols=(*SYMBOLS, *task_lib.SYMBOLS), make=_make,
    parse=parse, overlap=lambda problems: overlap(
        [p.numbers for p in problems]),
    limits={"largest": task_lib.Dial(LARGEST, 30, LARGEST)})
# The first data of this game were drawn from all puzzles but the test's.
_EVERY = dataclasses.replace(TASK, splits=(_BOTH,))


# --- The same by numbers -----------------------------------------------------


def prompt(numbers: Sequence[int]) -> str:
  """The user's turn of a game."""
  return Game24(tuple(numbers)).prompt()


def read(line: str) -> State | None:
  """The numbers that a thought says are left; None if it is unreadable."""
  return arithmetic.read(line)


def read_answer(text: str) -> str | None:
  """The expression of the last `Answer: ... = 24` line, or None."""
  return arithmetic.read_answer(text, TARGET)


def grade(numbers: Sequence[int], expression: str | None) -> bool:
  """Whether the expression uses each number exactly once and makes 24."""
  return arithmetic.grade(numbers, TARGET, expression)


def solution(numbers: Sequence[int], rng: np.random.Generator) -> list[str]:
  """See `task.solution`."""
  return task_lib.solution(Game24(tuple(numbers)), rng)


def attempt(numbers: Sequence[int], rng: np.random.Generator, *,
            good: float = 0.5, slip: float = 0.2) -> list[str]:
  """See `task.attempt`."""
  return task_lib.attempt(Game24(tuple(numbers)), rng, good=good, slip=slip)


def judge(numbers: Sequence[int], lines: Sequence[str], *, sound: float = 0.0
          ) -> tuple[list[float], list[float]]:
  """See `task.judge`."""
  return task_lib.judge(Game24(tuple(numbers)), lines, sound=sound)


def dialogues(seed: int, count: int) -> Iterator[dict]:
  """Training games as dialogues: a question and a worked answer."""
  for row in task_lib.dialogues(_EVERY, "solutions", seed, count, split=_BOTH):
    yield {"messages": row["messages"]}


def value_examples(seed: int, count: int, *, solved: float = 0.3,
                   first: float = 0.35, sound: float = 0.0
                   ) -> Iterator[dict]:
  """Training games with the outcome of each line: `task.value_examples`."""
  return task_lib.value_examples(_EVERY, seed, count, solved=solved,
                                 first=first, sound=sound, split=_BOTH)
