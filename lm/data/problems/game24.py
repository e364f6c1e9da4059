"""Game of 24: four numbers, each used once, + - * / and brackets make 24.

The puzzles are the 1,362 solvable multisets of 1..13; the test games are ranks
901-1000 of Tree of Thoughts (2305.10601), kept beside this file with their
source. Everything that grades lives here, so that evaluation and reward cannot
drift apart; the search itself sees only `prompt` and `read`.
"""

import ast
from collections.abc import Iterator, Sequence
import csv
import dataclasses
from fractions import Fraction
import functools
import itertools
import operator
import pathlib
import re

import numpy as np

TARGET = 24
NUM_THOUGHTS = 3
State = tuple[int, ...]  # The numbers left, sorted.

# Pieces that the vocabulary keeps whole, so that a number is one token.
SYMBOLS = (
    *(f"{space}{n}" for space in ("", "\u2581") for n in range(100)),
    "\u2581(left:", ")\n", "Answer:",
)

_OPS = {"+": operator.add, "-": operator.sub, "*": operator.mul,
        "/": operator.truediv}


@dataclasses.dataclass(frozen=True)
class Move:
  """One step of play: `a op b = result`, written with the larger first."""
  a: int
  op: str
  b: int
  result: int
  left: State

  def line(self) -> str:
    left = " ".join(map(str, self.left))
    return f"{self.a} {self.op} {self.b} = {self.result} (left: {left})\n"


@functools.cache
def moves(state: State) -> tuple[Move, ...]:
  """All distinct moves whose result is a non-negative integer."""
  found = {}
  for i, j in itertools.combinations(range(len(state)), 2):
    rest = tuple(n for k, n in enumerate(state) if k not in (i, j))
    b, a = sorted((state[i], state[j]))
    results = {"+": a + b, "-": a - b, "*": a * b}
    if b and a % b == 0:
      results["/"] = a // b
    for op, result in results.items():
      left = tuple(sorted((*rest, result)))
      found[a, op, b] = Move(a, op, b, result, left)
  return tuple(found.values())


@functools.cache
def winnable(state: State) -> bool:
  """Whether integer play can still reach the target from `state`."""
  if len(state) == 1:
    return state[0] == TARGET
  return any(winnable(m.left) for m in moves(state))


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


def overlap() -> dict[int, float]:
  """Share of the test games' states of 3 and 2 numbers also met in training."""
  share = {}
  for size in (3, 2):
    test, train = (reachable(p, size)
                   for p in (test_puzzles(), train_puzzles()))
    share[size] = len(test & train) / len(test)
  return share


# --- What the model reads and writes ---------------------------------------


def prompt(numbers: Sequence[int]) -> str:
  """The user's turn of a game."""
  return f"Make 24 from {' '.join(map(str, sorted(numbers)))}"


_THOUGHT = re.compile(
    r"^\d+ [-+*/] \d+ = \d+ \(left: (\d+(?: \d+)*)\)$")
_ANSWER = re.compile(r"^Answer: (.+) = 24$")
_ARITHMETIC = re.compile(r"[0-9 ()+*/-]*")  # No hex, no comment, no word.


def read(line: str) -> State | None:
  """The numbers that a thought says are left; None if it is unreadable.

  Form only: whether the arithmetic is right is the model's own business.
  """
  match = _THOUGHT.match(line.strip())
  return tuple(map(int, match[1].split())) if match else None


def read_answer(text: str) -> str | None:
  """The expression of the last `Answer: ... = 24` line, or None."""
  for line in reversed(text.strip().splitlines()):
    match = _ANSWER.match(line.strip())
    if match:
      return match[1]
  return None


def _evaluate(node: ast.AST, used: list[int]) -> Fraction:
  match node:
    case ast.Expression(body=body):
      return _evaluate(body, used)
    case ast.Constant(value=int(value)) if not isinstance(value, bool):
      used.append(value)
      return Fraction(value)
    case ast.BinOp(left=left, op=op, right=right):
      ops = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
      if type(op) in ops:
        left, right = _evaluate(left, used), _evaluate(right, used)
        return _OPS[ops[type(op)]](left, right)
  raise ValueError("not arithmetic")


def grade(numbers: Sequence[int], expression: str | None) -> bool:
  """Whether the expression uses each number exactly once and makes 24.

  Exact rational arithmetic on the parsed expression; anything else is False.
  """
  if (expression is None or len(expression) > 200
      or not _ARITHMETIC.fullmatch(expression)):
    return False
  used: list[int] = []
  try:
    value = _evaluate(ast.parse(expression.strip(), mode="eval"), used)
  except (ValueError, SyntaxError, ZeroDivisionError, RecursionError,
          MemoryError):
    return False
  return value == TARGET and sorted(used) == sorted(numbers)


# --- What the model learns from ---------------------------------------------


def _expression(numbers: Sequence[int], played: Sequence[Move]) -> str:
  """The moves as one expression; compound operands stand in brackets.

  A number that a faulty move took from nowhere is written as it is.
  """
  pool = [(n, str(n)) for n in numbers]
  for move in played:
    operands = []
    for value in (move.a, move.b):
      item = next((p for p in pool if p[0] == value), (value, str(value)))
      if item in pool:
        pool.remove(item)
      operands.append(f"({item[1]})" if " " in item[1] else item[1])
    pool.append((move.result, f"{operands[0]} {move.op} {operands[1]}"))
  return pool[-1][1]


def solution(numbers: Sequence[int], rng: np.random.Generator) -> list[str]:
  """A worked answer: at each step a uniform choice of the winning moves."""
  state, played = tuple(sorted(numbers)), []
  while len(state) > 1:
    good = [m for m in moves(state) if winnable(m.left)]
    move = good[rng.integers(len(good))]
    played.append(move)
    state = move.left
  answer = f"Answer: {_expression(numbers, played)} = {TARGET}"
  return [m.line() for m in played] + [answer]


def _slip(state: State, move: Move, rng: np.random.Generator) -> Move:
  """The move with a fault; half of the time one that lands in a won game.

  Those are the faults that a policy which looks for won games makes.
  """
  options = [_fault(state, move, rng) for _ in range(8)]
  tempting = [m for m in options if winnable(m.left)]
  if tempting and rng.random() < 0.5:
    return tempting[0]
  return options[0]


def _fault(state: State, move: Move, rng: np.random.Generator) -> Move:
  """A number from nowhere, a wrong result, or a wrong rest."""
  left = list(move.left)
  left.remove(move.result)

  def instead(n):  # Another number of the game, or one nearby, or any.
    return max(0, int(rng.choice([
        rng.choice(state), n + rng.choice([-10, -2, -1, 1, 2, 10]),
        rng.integers(1, 37)])))

  kind = rng.choice(["foreign", "result", "rest"])
  if kind == "foreign":
    # A correct line, but about a number that is not there, or not twice.
    partner = move.a if rng.random() < 0.3 else instead(move.b)
    options = moves(tuple(sorted((move.a, partner))))
    other = options[rng.integers(len(options))]
    return dataclasses.replace(
        other, left=tuple(sorted((*left, other.result))))
  if kind == "rest" and left:
    i = rng.integers(len(left))
    left[i] = instead(left[i])
    return dataclasses.replace(move, left=tuple(sorted((*left, move.result))))
  wrong = instead(move.result)
  return dataclasses.replace(
      move, result=wrong, left=tuple(sorted((*left, wrong))))


def judge(numbers: Sequence[int], lines: Sequence[str], *, sound: float = 0.0
          ) -> tuple[list[float], list[float]]:
  """The outcome of every line of an attempt, and which are worth imitating.

  Args:
    numbers: the puzzle.
    lines: thoughts, and perhaps an answer, as they were written.
    sound: how much lines without a fault that throw a won game away are worth
      imitating: a policy that proposes them too is broader.

  Returns:
    (labels, imitate). A label is 1.0 where 24 can still be reached and no line
    was faulty so far; the answer's label is whether it is right. `imitate` is
    1.0 for lines worth writing: those without a fault that do not throw a won
    game away (in a lost one any sound move will do).
  """
  state: State | None = tuple(sorted(numbers))
  clean, labels, imitate = True, [], []
  for line in lines:
    answer = read_answer(line)
    left = read(line)
    if answer is not None:
      labels.append(float(clean and grade(numbers, answer)))
      imitate.append(labels[-1])
    elif state is None or left is None or len(left) != len(state) - 1:
      state, clean = None, False  # What follows means nothing.
      labels.append(0.0)
      imitate.append(0.0)
    else:
      faultless = line in {m.line() for m in moves(state)}
      clean = clean and faultless
      labels.append(float(clean and winnable(left)))
      thrown_away = winnable(state) and not winnable(left)
      imitate.append(
          0.0 if not faultless else sound if thrown_away else 1.0)
      state = left
  return labels, imitate


def attempt(numbers: Sequence[int], rng: np.random.Generator, *,
            good: float = 0.5, slip: float = 0.2) -> list[str]:
  """The lines of a game played well or badly.

  Args:
    numbers: the puzzle.
    rng: of the play.
    good: chance that a move is drawn from the winning ones, if there are any.
    slip: chance that a line is faulty.
  """
  state, played = tuple(sorted(numbers)), []
  while len(state) > 1:
    options = moves(state)
    winning = [m for m in options if winnable(m.left)]
    if winning and rng.random() < good:
      options = winning
    move = options[rng.integers(len(options))]
    if rng.random() < slip:
      move = _slip(state, move, rng)
    played.append(move)
    state = move.left
  lines = [move.line() for move in played]
  if state == (TARGET,) or rng.random() < 0.3:
    expression = _expression(numbers, played)
    if rng.random() < slip:  # Copied wrongly.
      digits = re.findall(r"\d+", expression)
      expression = expression.replace(
          digits[rng.integers(len(digits))], str(rng.integers(1, 14)), 1)
    lines.append(f"Answer: {expression} = {TARGET}")
  return lines


def dialogues(seed: int, count: int) -> Iterator[dict]:
  """Training games as dialogues: a question and a worked answer."""
  rng = np.random.default_rng((24, seed))
  puzzles = train_puzzles()
  for _ in range(count):
    numbers = puzzles[rng.integers(len(puzzles))]
    yield {"messages": [
        {"role": "user", "content": prompt(numbers)},
        {"role": "assistant", "content": "".join(solution(numbers, rng))},
    ]}


def value_examples(seed: int, count: int, *, solved: float = 0.3,
                   first: float = 0.35, sound: float = 0.0
                   ) -> Iterator[dict]:
  """Training games with the outcome of each line.

  A share `solved` are worked answers, the rest attempts, of which only the
  sound lines are imitated (see `judge`). A share `first` of the attempts ends
  after the first line, which is the hardest to find and to judge.
  """
  rng = np.random.default_rng((42, seed))
  puzzles = train_puzzles()
  for _ in range(count):
    numbers = puzzles[rng.integers(len(puzzles))]
    done = True
    if rng.random() < solved:
      lines = solution(numbers, rng)
    else:
      lines = attempt(numbers, rng, good=rng.choice([0.0, 0.5, 0.9]))
      if rng.random() < first:
        lines, done = lines[:1], False
    labels, imitate = judge(numbers, lines, sound=sound)
    yield {"prompt": prompt(numbers), "lines": lines, "labels": labels,
           "imitate": imitate, "done": done}


@dataclasses.dataclass(frozen=True)
class Game24:
  """One puzzle, as the search and the grader see it."""
  numbers: State

  num_thoughts = NUM_THOUGHTS

  def prompt(self) -> str:
    return prompt(self.numbers)

  def read(self, line: str) -> State | None:
    return read(line)

  def read_answer(self, text: str) -> str | None:
    return read_answer(text)

  def grade(self, expression: str | None) -> bool:
    return grade(self.numbers, expression)
