"""Numbers, each used once, + - * / and brackets make a target.

What Game of 24 and Countdown share: the moves, which states can still win, how
lines are written, read and faulted, and exact grading. Play is on non-negative
whole numbers; the grader takes any expression, fractions on the way included.
"""

import ast
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
import functools
import itertools
import operator
import re
from typing import NamedTuple

import numpy as np

State = tuple[int, ...]  # The numbers left, sorted.


def pieces(numbers: Iterable[int]) -> tuple[str, ...]:
  """What a vocabulary keeps whole, so that each number is one token."""
  return tuple(f"{space}{n}" for space in ("", "\u2581") for n in numbers)


SYMBOLS = (*pieces(range(100)), "\u2581(left:", ")\n", "Answer:")

_OPS = {"+": operator.add, "-": operator.sub, "*": operator.mul,
        "/": operator.truediv}


# --- Play --------------------------------------------------------------------


class Move(NamedTuple):
  """One step of play: `a op b = result`, written with the larger first."""
  a: int
  op: str
  b: int
  result: int
  left: State

  def line(self) -> str:
    left = " ".join(map(str, self.left))
    return f"{self.a} {self.op} {self.b} = {self.result} (left: {left})\n"


def _results(b: int, a: int, largest: int | None) -> list[tuple[str, int]]:
  """What a pair (b <= a) makes: non-negative integers up to `largest`."""
  results = [("+", a + b), ("-", a - b), ("*", a * b)]
  if b and a % b == 0:
    results.append(("/", a // b))
  if largest is not None and results[0][1] + results[2][1] > largest:
    results = [r for r in results if r[1] <= largest]
  return results


def _pairs(state: State) -> Iterator[tuple[int, int, State]]:
  for i, j in itertools.combinations(range(len(state)), 2):
    yield state[i], state[j], (*state[:i], *state[i + 1:j], *state[j + 1:])


@functools.lru_cache(1 << 14)
def moves(state: State, largest: int | None = None) -> tuple[Move, ...]:
  """All distinct moves whose result is a non-negative integer."""
  found = {}
  for b, a, rest in _pairs(state):
    for op, result in _results(b, a, largest):
      left = tuple(sorted((*rest, result)))
      found[a, op, b] = Move(a, op, b, result, left)
  return tuple(found.values())


@functools.lru_cache(1 << 14)
def _options(state: State, largest: int | None
             ) -> tuple[tuple[str, State], ...]:
  return tuple((m.line(), m.left) for m in moves(state, largest))


@functools.lru_cache(1 << 17)
def winnable(state: State, target: int, largest: int | None = None) -> bool:
  """Whether integer play can still reach the target (> 0) from `state`."""
  if len(state) == 1:
    return state[0] == target
  if len(state) == 2:
    return state[1] in _partners(state[0], target, None)
  if len(state) == 3:  # Most of the work: looked up from behind.
    for b, a, (c,) in _pairs(state):
      wanted = _partners(c, target, largest)
      if (a + b in wanted or a - b in wanted or a * b in wanted
          or b and a % b == 0 and a // b in wanted):
        return True
    return False
  for b, a, rest in _pairs(state):
    for _, result in _results(b, a, largest):
      if winnable(tuple(sorted((*rest, result))), target, largest):
        return True
  return False


@functools.lru_cache(1 << 15)
def _partners(n: int, target: int, largest: int | None) -> frozenset[int]:
  """The numbers that make the target with `n` in one move."""
  found = {target - n, target + n, n - target}
  if n:
    found.add(target * n)
  if n and target % n == 0:
    found.add(target // n)
  if n and n % target == 0:
    found.add(n // target)
  return frozenset(
      p for p in found if p >= 0 and (largest is None or p <= largest))


FAULTS = ("foreign", "result", "rest")


def fault(state: State, move: Move, rng: np.random.Generator, *, stray: int,
          largest: int | None = None, kinds: Sequence[str] = FAULTS) -> Move:
  """A number from nowhere, a wrong result, or a wrong rest.

  Args:
    state: before the move.
    move: to spoil.
    rng: of the fault.
    stray: the largest number that is made up.
    largest: that play knows.
    kinds: to choose from: FAULTS, and "remainder", a division that leaves one.
  """
  left = list(move.left)
  left.remove(move.result)

  def instead(n):  # Another number of the game, or one nearby, or any.
    other = max(0, int(rng.choice([
        rng.choice(state), n + rng.choice([-10, -2, -1, 1, 2, 10]),
        rng.integers(1, stray + 1)])))
    return other if largest is None else min(other, largest)

  kind = rng.choice(kinds)
  uneven = [(b, a, rest) for b, a, rest in _pairs(state) if b and a % b]
  if kind == "remainder" and uneven:
    b, a, rest = uneven[rng.integers(len(uneven))]
    claimed = max(1, a // b + int(rng.integers(-2, 6)))
    return Move(a, "/", b, claimed, tuple(sorted((*rest, claimed))))
  if kind == "foreign":
    # A correct line, but about a number that is not there, or not twice.
    partner = move.a if rng.random() < 0.3 else instead(move.b)
    options = moves(tuple(sorted((move.a, partner))), largest)
    other = options[rng.integers(len(options))]
    return other._replace(
        left=tuple(sorted((*left, other.result))))
  if kind == "rest" and left:
    i = rng.integers(len(left))
    left[i] = instead(left[i])
    return move._replace(left=tuple(sorted((*left, move.result))))
  wrong = instead(move.result)
  return move._replace(
      result=wrong, left=tuple(sorted((*left, wrong))))


# --- What is written and read ------------------------------------------------

_THOUGHT = re.compile(
    r"^([0-9]{1,9}) ([-+*/]) ([0-9]{1,9}) = ([0-9]{1,9})"
    r" \(left: ([0-9]{1,9}(?: [0-9]{1,9})*)\)$")
_ANSWER = re.compile(r"^Answer: (.+) = ([0-9]{1,9})$")
_ARITHMETIC = re.compile(r"[0-9 ()+*/-]*")  # No hex, no comment, no word.


def read_move(line: str) -> Move | None:
  """The move that a line claims; None if it is unreadable.

  Form only: whether the arithmetic is right is the model's own business.
  """
  match = _THOUGHT.match(line.strip())
  if not match:
    return None
  a, op, b, result, left = match.groups()
  return Move(int(a), op, int(b), int(result), tuple(map(int, left.split())))


def read(line: str) -> State | None:
  """The numbers that a thought says are left; None if it is unreadable."""
  move = read_move(line)
  return move.left if move else None


def read_answer(text: str, target: int) -> str | None:
  """The expression of the last `Answer: ... = target` line, or None."""
  for line in reversed(text.strip().splitlines()):
    match = _ANSWER.match(line.strip())
    if match and match[2] == str(target):
      return match[1]
  return None


def expression(numbers: Sequence[int], played: Sequence[Move]) -> str:
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


def grade(numbers: Sequence[int], target: int, written: str | None) -> bool:
  """Whether the expression uses each number exactly once and makes the target.

  Exact rational arithmetic on the parsed expression; anything else, a sign
  before a number or a bracket among it, is False.
  """
  if (written is None or len(written) > 200
      or not _ARITHMETIC.fullmatch(written)):
    return False
  used: list[int] = []
  try:
    value = _evaluate(ast.parse(written.strip(), mode="eval"), used)
  except (ValueError, SyntaxError, ZeroDivisionError, RecursionError,
          MemoryError):
    return False
  return value == target and sorted(used) == sorted(numbers)


def parse_numbers(row: dict, *, count: tuple[int, int], highest: int) -> State:
  """The field "numbers" of a user's row; ValueError with the reason.

  Args:
    row: with a list of numbers, or a text of them.
    count: fewest and most numbers.
    highest: number there may be.
  """
  numbers = row.get("numbers")
  if isinstance(numbers, str):
    numbers = numbers.split()
  try:
    found = tuple(int(str(n)) for n in numbers)
  except (TypeError, ValueError):
    found = ()
  if not (count[0] <= len(found) <= count[1]
          and all(1 <= n <= highest for n in found)):
    many = " to ".join(map(str, dict.fromkeys(count)))
    raise ValueError(f'"numbers" must be {many} whole numbers from 1 to'
                     f" {highest}, not {numbers!r}")
  return found


# --- The problem -------------------------------------------------------------


class Arithmetic:
  """The methods of `task.Problem`, for a dataclass with `numbers`.

  Attributes:
    numbers: to use, each once.
    target: to make.
    largest: number that play knows; None: any.
    highest: number that a puzzle may have.
    stray: largest number that a faulty line makes up.
    faults: kinds of them.
  """
  numbers: State
  target: int
  largest: int | None
  highest: int
  stray: int
  faults = FAULTS

  @property
  def num_thoughts(self) -> int:
    return len(self.numbers) - 1

  def prompt(self) -> str:
    return f"Make {self.target} from {self.show(self.start())}"

  def start(self) -> State:
    return tuple(sorted(self.numbers))

  def remaining(self, state: State) -> int:
    return len(state) - 1

  def options(self, state: State) -> tuple[tuple[str, State], ...]:
    return _options(state, self.largest)

  def winnable(self, state: State) -> bool:
    # A line may claim any number of numbers: play never adds to them.
    return (len(state) <= len(self.numbers)
            and winnable(tuple(sorted(state)), self.target, self.largest))

  def read(self, line: str) -> State | None:
    return read(line)

  def answer(self, lines: Sequence[str]) -> str:
    played = [m for m in map(read_move, lines) if m is not None]
    return f"Answer: {expression(self.numbers, played)} = {self.target}"

  def read_answer(self, text: str) -> str | None:
    return read_answer(text, self.target)

  def grade(self, answer: str | None) -> bool:
    return grade(self.numbers, self.target, answer)

  def fault(self, state: State, line: str, rng: np.random.Generator
            ) -> tuple[str, State]:
    move = read_move(line)
    if move is not None:
      move = fault(state, move, rng, stray=self.stray, largest=self.largest,
                   kinds=self.faults)
      return move.line(), move.left
    written = self.read_answer(line)
    digits = re.findall(r"\d+", written or "")
    if not digits:
      raise ValueError(f"neither a thought nor an answer: {line!r}")
    written = written.replace(digits[rng.integers(len(digits))],
                              str(rng.integers(1, self.highest + 1)), 1)
    return f"Answer: {written} = {self.target}", state

  def show(self, state: State) -> str:
    return " ".join(map(str, state))

  def question(self, state: State) -> str:
    return f"Can {self.target} be made from {self.show(state)}?"
