"""One budget for every strategy: what thinking may cost, and what it did."""

from collections.abc import Callable
import dataclasses
import time

import numpy as np

from lm.types import UserError


@dataclasses.dataclass
class Cost:
  """What an answer took, counted the same way for every strategy.

  Attributes:
    generated_tokens: every sampled token, merged and unreadable ones too.
    forward_tokens: those, the prompt's, and what an evaluator had to read.
    flops: of all forward passes, heads included.
    seconds: wall time, shared evenly by the problems worked on together.
  """

  generated_tokens: int = 0
  forward_tokens: int = 0
  flops: float = 0.0
  seconds: float = 0.0

  def add(self, other: "Cost") -> None:
    for field in dataclasses.fields(self):
      name = field.name
      setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclasses.dataclass(frozen=True)
class Budget:
  """The most that one problem may cost; None is no limit.

  Attributes are those of `Cost`. Tokens and FLOPs are never passed: rows stop
  in the middle of a line. Time is softer: it is looked at between expansions,
  none of which begins unless it and the answer would be done in time if they
  take as long as the longest so far; the answer itself is always written.
  """

  generated_tokens: int | None = None
  forward_tokens: int | None = None
  flops: float | None = None
  seconds: float | None = None

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value is not None and not value > 0:
        raise UserError(f"budget.{field.name}={value}: allow more than 0, or"
                        " leave it out for no limit")


UNLIMITED = Budget()


class Meter:
  """What a budget leaves to each of P problems.

  Args:
    budget: of each.
    costs: what each has cost so far; kept up to date here.
    flops_per_token: of the dearest token that could be written or read.
    clock: seconds.
    start: when the work began, by the clock; by default now.

  Raises:
    UserError: the prompts alone cost more.
  """

  def __init__(self, budget: Budget, costs: list[Cost], *,
               flops_per_token: float = 0.0,
               clock: Callable[[], float] = time.perf_counter,
               start: float | None = None):
    self.budget, self.costs = budget, costs
    self._flops, self._clock = flops_per_token, clock
    self._start = self._last = clock() if start is None else start
    self._longest = 0.0
    for name in ("forward_tokens", "flops"):
      limit = getattr(budget, name)
      dearest = max((getattr(c, name) for c in costs), default=0)
      if limit is not None and dearest > limit:
        raise UserError(f"budget.{name}={limit:g}, but to read the prompt alone"
                        f" takes {dearest:g}: allow more")

  def left(self, reserve: int = 0, *, sampled: bool = True,
           closing: bool = False) -> np.ndarray:
    """Tokens [P] that each may still have written, `reserve` set aside.

    Or read, when they are not `sampled`. `closing` is for the last of all
    calls, the answer, which time does not forbid.
    """
    b, most = self.budget, 2**31 - 1
    if b.seconds is not None and not closing and (
        self._last - self._start + 2 * self._longest
        > b.seconds * len(self.costs)):
      return np.zeros(len(self.costs), np.int32)
    found = []
    for c in self.costs:
      tokens = [most]
      if sampled and b.generated_tokens is not None:
        tokens.append(b.generated_tokens - c.generated_tokens)
      if b.forward_tokens is not None:
        tokens.append(b.forward_tokens - c.forward_tokens)
      if b.flops is not None:
        tokens.append(int(min(most, (b.flops - c.flops) / self._flops)))
      found.append(max(0, min(tokens) - reserve))
    return np.array(found, np.int32)

  def charge(self, costs: list[Cost], *, step: bool = True) -> None:
    """Adds what each problem has just cost, and the time since the last.

    With `step` that time is also taken for what the next step may need.
    """
    now = self._clock()
    spent, self._last = now - self._last, now
    if step:
      self._longest = max(self._longest, spent)
    for mine, cost in zip(self.costs, costs, strict=True):
      mine.add(cost)
      mine.seconds += spent / len(costs)
