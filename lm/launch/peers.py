"""What the hosts of a run tell each other: that they live, and why they end.

Through the key-value store of JAX's coordinator, for a host that has failed
takes part in no collective.
"""

from collections.abc import Iterable
import contextlib
import dataclasses
import json
import sys
import time
from typing import Any

import jax
from jax._src import distributed  # Its key-value store has no public name.

LOST_STATUS = 75  # EX_TEMPFAIL: another host is gone; starting again may help.
STALLED_STATUS = 124  # As of timeout(1): no step was finished for too long.
INTERVAL = 2.0  # Seconds between two signs of life.
SILENCE = 45.0  # Without one for so long a host is gone; JAX waits 60.
_ERRORS, _BEATS = "lm/error/", "lm/beat/"


@dataclasses.dataclass(frozen=True)
class Failure:
  """Why a run ends.

  Attributes:
    index: the process that it comes from.
    text: one line.
    status: of the exit.
    stack: where that process was, if it matters.
  """

  index: int
  text: str
  status: int
  stack: str = ""


class Gone(Exception):
  """The coordinator does not answer."""


class Peers:
  """The processes of a run; without others nothing is told or asked.

  Args:
    names: of all.
    index: which of them this is. JAX is not asked: that would start it.
  """

  def __init__(self, names: dict[int, str], index: int):
    self._names, self.index = names, index
    self.several = len(names) > 1
    self._heard: dict[int, tuple[int, float]] = {}
    self._client = distributed.global_state.client if self.several else None

  def name(self, index: int) -> str:
    return f"{self._names.get(index, '?')} (process {index})"

  def beat(self, count: int, step: int | None) -> None:
    """Shows that this process lives; raises Gone."""
    self._set(_BEATS, {"count": count, "step": step})

  def leave(self) -> None:
    """Nobody is to wait for signs of life any more."""
    with contextlib.suppress(Gone):
      self._set(_BEATS, {"count": -1, "step": None})

  def publish(self, failure: Failure) -> None:
    """Tells all why this process ends, if there is still somebody."""
    try:
      self._set(_ERRORS, dataclasses.asdict(failure))
    except Gone:
      pass

  def failures(self) -> list[Failure]:
    """Those of other processes; raises Gone."""
    found = [Failure(**value) for value in self._all(_ERRORS).values()]
    return [f for f in found if f.index != self.index]

  def steps(self) -> dict[int, int]:
    """Of the processes that train; raises Gone."""
    return {i: beat["step"] for i, beat in self._all(_BEATS).items()
            if beat["step"] is not None}

  def silent(self) -> list[int]:
    """Who shows no life any more; takes some seconds, raises Gone."""
    before = self._all(_BEATS)
    time.sleep(2.5 * INTERVAL)
    after = self._all(_BEATS)
    return [i for i in self._names if i != self.index
            and before.get(i, {}).get("count") == after.get(i, {}).get("count")]

  def long_silent(self) -> list[int]:
    """Who showed life once, but not for `SILENCE`; at once, raises Gone."""
    now = time.monotonic()
    for i, beat in self._all(_BEATS).items():
      if self._heard.get(i, (None,))[0] != beat["count"]:
        self._heard[i] = beat["count"], now
    return [i for i, (count, at) in self._heard.items()
            if i != self.index and count >= 0 and now - at > SILENCE]

  def say(self, failures: Iterable[Failure], *, known: str = "") -> None:
    """Writes failures of others to this log; `known` is not said again."""
    for failure in failures:
      name = self.name(failure.index)
      if failure.text != known:
        write(f"error: {name}: {failure.text}")
      if failure.stack:
        write(f"stack of {name}:\n{failure.stack.rstrip()}")

  def say_all(self, *, known: str = "") -> None:
    """Writes what all others have to say, as far as it can still be read."""
    try:
      self.say(self.failures(), known=known)
    except Gone:
      pass

  def _set(self, prefix: str, value: dict[str, Any]) -> None:
    if self._client is None:
      return
    try:
      self._client.key_value_set(
          f"{prefix}{self.index}", json.dumps(value), allow_overwrite=True)
    except jax.errors.JaxRuntimeError as e:
      raise Gone from e

  def _all(self, prefix: str) -> dict[int, dict[str, Any]]:
    if self._client is None:
      return {}
    try:
      found = self._client.key_value_dir_get(prefix)
    except jax.errors.JaxRuntimeError as e:
      raise Gone from e
    return {int(key.rpartition("/")[2]): json.loads(v) for key, v in found}


def write(line: str) -> None:
  """To this process's log."""
  sys.stderr.write(f"{line.rstrip()}\n")
