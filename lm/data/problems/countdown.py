"""Countdown: make a target from some numbers, each used exactly once.

The task of Stream of Search (2404.03683): 4 inputs of 1..99 (dials `numbers`,
`highest`), a target of 10..100, all inputs used, whole numbers from 0 on the
way. Nobody plays a result above 999 (dial `largest`), which keeps numbers short
to write: of 300 random problems that can be solved, 16 (5 %) cannot be solved
any more with this bound; of 300 with 5 numbers, 27 (9 %).

Two things are held out, so that two kinds of generalization can be told apart:
9 of the 91 targets, and a tenth of the multisets of inputs. "test" has both,
"test_targets" and "test_inputs" one of them; "validation" is another 4 % of the
inputs, with targets of training.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import hashlib

import numpy as np

from lm.data import corpus
from lm.data.problems import arithmetic
from lm.data.problems import game24
from lm.data.problems import task as task_lib
from lm.types import UserError

TARGETS = range(10, 101)
LARGEST = 999

_HELD_OUT = 0.1  # Of targets, and of inputs.
_VALIDATION = 0.04  # Of inputs.
# Whether the target is held out, and the split of the inputs.
_SPLITS = {
    "train": (False, "train"), "validation": (False, "validation"),
    "test": (True, "test"), "test_targets": (True, "train"),
    "test_inputs": (False, "test"),
}
_TRIES = 300  # For one target, before another is drawn: a bound for odd dials.


@dataclasses.dataclass(frozen=True)
class Countdown(arithmetic.Arithmetic):
  """One problem."""
  numbers: arithmetic.State
  target: int
  largest: int | None = LARGEST

  highest = 99
  stray = 99
  faults = (*arithmetic.FAULTS, "remainder")


@functools.cache
def held_out_targets() -> frozenset[int]:
  """The targets of no training problem."""
  order = sorted(TARGETS, key=lambda t: hashlib.sha256(
      f"countdown target {t}".encode()).digest())
  return frozenset(order[:round(_HELD_OUT * len(TARGETS))])


def inputs_split(numbers: Sequence[int]) -> str:
  """"train", "validation" or "test", by the multiset.

  Inputs of the test games of 24, which ask in the same words, are "test".
  """
  if tuple(sorted(numbers)) in _test_games():
    return "test"
  name = f"countdown inputs {' '.join(map(str, sorted(numbers)))}"
  if corpus.split_of(name, _HELD_OUT) != "train":
    return "test"
  return corpus.split_of(name, _HELD_OUT + _VALIDATION)


def split_of(numbers: Sequence[int], target: int) -> str | None:
  """The split of a problem; None: of none (see the module)."""
  place = (target in held_out_targets(), inputs_split(numbers))
  return next((k for k, v in _SPLITS.items() if v == place), None)


@functools.cache
def _test_games() -> frozenset[arithmetic.State]:
  return frozenset(tuple(sorted(p)) for p in game24.test_puzzles())


@functools.cache
def _targets(held_out: bool) -> tuple[int, ...]:
  return tuple(t for t in TARGETS if (t in held_out_targets()) == held_out)


def _make(rng: np.random.Generator, split: str, *, numbers: int, highest: int,
          largest: int) -> Countdown:
  held_out, inputs = _SPLITS[split]
  targets = _targets(held_out)
  for i in range(100 * _TRIES):
    if i % _TRIES == 0:
      target = targets[rng.integers(len(targets))]
    drawn = tuple(sorted(rng.integers(1, highest + 1, size=numbers).tolist()))
    if (inputs_split(drawn) == inputs
        and arithmetic.winnable(drawn, target, largest)):
      return Countdown(drawn, target, largest)
  raise UserError(f"countdown: found no problem of split {split!r} with"
                  f" {numbers} numbers up to {highest}: raise either")


def facts(seed: int, count: int, *, highest: int = 99, largest: int = LARGEST,
          lines: int = 16) -> Iterator[dict]:
  """Drill: lines of arithmetic as problems need it, of which the results count.

  Eight in ten are sums and differences, a quarter of these with a number up to
  `largest`; the others are products up to `largest` and their quotients.
  """
  rng = np.random.default_rng((56, seed))
  for _ in range(count):
    drawn = []
    for op in rng.choice(list("+-*/"), size=lines, p=[0.4, 0.4, 0.1, 0.1]):
      a, b = map(int, rng.integers(1, highest + 1, size=2))
      if op in "*/":
        b = min(b, largest // a)
        a, b = (max(a, b), min(a, b)) if op == "*" else (a * b, b)
      elif rng.random() < 0.25:
        a = int(rng.integers(1, largest + 1 - (b if op == "+" else 0)))
      a, b = max(a, b), min(a, b)
      result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[op]
      drawn.append(f"{a} {op} {b} = {result}\n")
    yield {"prompt": "Practise", "lines": drawn, "labels": [None] * lines,
           "given": [line.rpartition(" ")[0] for line in drawn],
           "holdout": drawn[0]}


def overlap(problems: Sequence[Countdown]) -> dict[int, float]:
  """What a training set of smaller problems may have told of these.

  Of the different states after one move that can still win, with their
  targets: the share that "train" of one number fewer holds as problems.
  """
  states = {(m.left, p.target) for p in problems
            for m in arithmetic.moves(p.start(), p.largest)
            if p.winnable(m.left)}
  met: dict[int, list[bool]] = {}
  for left, target in states:
    met.setdefault(len(left), []).append(
        1 <= left[0] and left[-1] <= Countdown.highest
        and split_of(left, target) == "train")
  return {size: sum(m) / len(m) for size, m in sorted(met.items())}


def parse(row: dict) -> Countdown:
  """A user's problem: {"numbers": [3, 14, 25, 62], "target": 57}."""
  numbers = arithmetic.parse_numbers(row, count=(2, 6), highest=LARGEST)
  target = row.get("target")
  if type(target) is not int or not 1 <= target <= LARGEST:
    raise ValueError(f'"target" must be a whole number from 1 to {LARGEST},'
                     f" not {target!r}")
  return Countdown(numbers, target)


TASK = task_lib.Task(
    name="countdown", symbols=(
        *arithmetic.SYMBOLS, *arithmetic.pieces(range(100, 200)),
        *task_lib.SYMBOLS),
    make=_make, parse=parse, splits=tuple(_SPLITS), overlap=overlap,
    limits={"numbers": task_lib.Dial(4, 3, 6),
            "highest": task_lib.Dial(99, 9, 99),
            "largest": task_lib.Dial(LARGEST, 100, 999_999)})
