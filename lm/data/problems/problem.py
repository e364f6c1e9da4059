"""The contract of a problem: what `task.py`, search and grading ask of it."""

from collections.abc import Sequence
import re
from typing import Any, Protocol

import numpy as np

State = Any  # Each problem has its own; hashable.


def last_answer(pattern: re.Pattern, text: str) -> re.Match | None:
  """The last line of a text that is an answer by its whole pattern."""
  lines = reversed(text.strip().splitlines())
  return next(filter(None, (pattern.fullmatch(x.strip()) for x in lines)), None)


class Problem(Protocol):
  """One problem: how to ask, play, read and grade it.

  Lines of thought end in a newline, the answer line does not. `read` and
  `read_answer` are about form only; `winnable` is the oracle, which is for
  making data and for the evaluator of that name.
  """

  @property
  def num_thoughts(self) -> int:
    """Lines before the answer line."""

  def prompt(self) -> str:
    """The user's turn."""

  def start(self) -> State:
    """The state before the first line."""

  def remaining(self, state: State) -> int:
    """Lines still to be written from `state` before the answer line."""

  def options(self, state: State) -> tuple[tuple[str, State], ...]:
    """All faultless lines with the states they lead to; () at the end."""

  def winnable(self, state: State) -> bool:
    """Whether the right answer can still be reached; at the end: was."""

  def read(self, line: str) -> State | None:
    """The state that a line claims to lead to; None if unreadable."""

  def answer(self, lines: Sequence[str]) -> str:
    """The answer line that copies these thoughts honestly, right or not."""

  def read_answer(self, text: str) -> str | None:
    """The answer that a text gives last, or None."""

  def grade(self, answer: str | None) -> bool:
    """Whether what `read_answer` gave is right, exactly."""

  def fault(self, state: State, line: str, rng: np.random.Generator
            ) -> tuple[str, State]:
    """A faulty variant of a line from `state`, and the state it claims.

    An answer line may be given too: then one that is copied wrongly.
    """

  def show(self, state: State) -> str:
    """The state in a few words, as lines and questions write it."""

  def question(self, state: State) -> str:
    """The user's turn that asks whether `state` can win: "yes" or "no"."""
